"""The dense network is calibrated before any table: what INT8 costs it, and what stays in float for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_run import run_of

from edgeprune import stage
from edgeprune.pipeline import choose, precision
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.rundir import RunDirectory, read_json, write_json
from edgeprune.quantize import Ranges


def until_dense(context: Context) -> Path:
    """Make what stands before the table, but for the plan; the folder of the dense network's calibration."""
    work = {
        "graph": lambda folder: None,
        "precision": lambda folder: write_json(folder / precision.FILE, {"float": []}),
    }
    for name, made in work.items():
        context.run.stage(name, context.keys[name], made)
    return context.run.stage("dense", context.keys["dense"], lambda part: context.work(precision.dense_stage, part))


@pytest.mark.long
def test_the_dense_network_is_calibrated_and_its_agreement_told(tmp_path: Path) -> None:
    with run_of(tmp_path, quantize={"images": 96}) as context:
        folder = until_dense(context)
        ranges, said = Ranges.load(folder / precision.RANGES), (tmp_path / "run" / "events.jsonl").read_text()
    assert ranges.images == 96 and ranges.tensors and ranges.dialect == "ort-x86"
    assert read_json(folder / precision.FILE) == {"float": []}
    found = read_json(folder / "agreement.json")
    assert found["method"] == "auto" and 0.97 <= found["agreement"] <= 1
    assert f"INT8 agrees with float on {100 * found['agreement']:.1f} % of the calibration examples" in said
    assert not list(folder.glob("*.onnx"))


@pytest.mark.long
def test_the_search_measures_networks_with_what_accuracy_keeps_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red before: what accuracy kept in float was known after the training, and closure had timed another network."""
    monkeypatch.setattr(precision, "choose_precision", lambda *given: {"method": "auto", "float": ["2"]})
    with run_of(tmp_path) as context:
        until_dense(context)
        context.run.stage(
            "plan",
            context.keys["plan"],
            lambda part: context.subject.export(context.subject.model, part / "dense.onnx"),
        )
        maker = choose._maker(context.subject, context.bench, context.run, tmp_path)
        assert "float:2" in maker.network
        assert precision.in_float(context.run) == {} and precision.in_float(context.run, "dense") == {"2": "float"}


@pytest.mark.parametrize(("kept", "whole"), [(["a"], True), (["a", "b"], False)])
def test_a_table_holds_where_other_ranges_end_in_the_same_choice(kept: list[str], whole: bool, tmp_path: Path) -> None:
    """Another [quantize] method makes new ranges of the dense network; that alone throws no training away."""

    def dense(number: int, floats: list[str]) -> Any:
        def work(folder: Path) -> None:
            (folder / precision.RANGES).write_text(f"{number}")
            write_json(folder / precision.FILE, {"float": floats})

        return work

    with RunDirectory(tmp_path) as run:
        run.stage("dense", "first", dense(1, ["a"]))
        for name in ("latency", "search", "quantize"):
            run.stage(name, "same", lambda folder: (folder / "made").write_text("1"))
        run.stage("dense", "second", dense(2, kept))
        assert run.is_whole("latency", "same") == whole
        assert (tmp_path / "dense" / precision.RANGES).read_text() == "2"


def test_only_the_choice_of_the_dense_calibration_decides() -> None:
    """And the released graphs are made again with its key: their ranges are its ranges."""
    assert [one.name for one in stage.PIPELINE if one.decides] == ["dense"]
    assert {one.name for one in stage.PIPELINE if "dense" in one.reads} == {"latency", "quantize"}
    assert "dense" in stage.named("quantize").after and "dense" not in stage.named("latency").after
