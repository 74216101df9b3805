"""The dense network is calibrated before any table: what INT8 costs it, and what stays in float for that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from small_run import run_of

from edgeprune import stage
from edgeprune.pipeline import choose, precision
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.rundir import RunDirectory, read_json, write_json
from edgeprune.quantize import Ranges
from edgeprune.quantize.fallback import LayerCost


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
    assert ranges.images == 96 and ranges.tensors and ranges.dialect == context.bench.dialect.name
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


@pytest.mark.long
@pytest.mark.parametrize(
    ("agreement", "perhaps", "spoilt", "said"),
    [
        (31 / 32, 0.98, False, ""),  # may well be 97 %: nothing more is asked
        (0.9, 0.92, False, "not beyond noise"),
        (0.9, 0.92, True, "layers stay in float for it"),
    ],
)
def test_layers_stay_in_float_where_the_metric_is_worse_and_not_for_a_few_other_answers(
    agreement: float, perhaps: float, spoilt: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red before: one other answer of 32 kept layers in float, and so did many where the metric did not suffer."""
    lines, asked = list[str](), list[str]()

    def costs(*given: Any) -> Any:
        asked.append("times")
        return {name: LayerCost(2.0, 1.0, 0.1 * (name == "2")) for name in ("0", "2", "6")}, {}

    monkeypatch.setattr(precision, "LEAST", 64)
    monkeypatch.setattr(precision, "_agreement", lambda *given: (agreement, perhaps))
    monkeypatch.setattr(precision, "_costs", costs)
    with run_of(tmp_path, quantize={"images": 32}) as context:
        subject, bench = context.subject, context.bench
        subject.export(subject.model, tmp_path / "net.onnx")
        network = onnx.load(tmp_path / "net.onnx")
        ranges = precision.calibrated(subject, bench, network, "dense", subject.recipe.quantize, lambda *told: None)
        if spoilt:
            cut = {name: replace(one, low=0.02 * one.low, high=0.02 * one.high) for name, one in ranges.tensors.items()}
            ranges = replace(ranges, tensors=cut)
        found = precision.choose_precision(subject, bench, lines.append, tmp_path, network, ranges, {})
    assert bool(asked) == bool(found["float"]) == spoilt
    assert said in " ".join(lines) and bool(lines) == bool(said)
    if perhaps < 0.97:
        drop: Any = found["drop"]
        assert drop["examples"] == 64 and (drop["drop"] > 20) == spoilt


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
