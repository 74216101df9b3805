"""Training in INT8 within a run: its own settings are used, it is logged, and what is worse is not kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from small_run import run_of

from edgeprune import quantize
from edgeprune.errors import RecipeError
from edgeprune.pipeline import int8_training, stages, workloads
from edgeprune.recipe import QuantizeSection


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "kept"),
    [({"qat_lr": 3e-3, "qat_precision": "bf16"}, True), ({"qat_lr": 30.0}, False)],
    ids=["bf16", "too fast"],
)
def test_it_is_kept_where_it_is_no_worse(tmp_path: Path, settings: dict[str, Any], kept: bool) -> None:
    given = {"qat_epochs": 3, "qat_batch": 16, "qat_device": "cpu", **settings}
    with run_of(tmp_path, quantize={**given, "images": 32}) as context:
        graph = context.subject.export(context.subject.model, tmp_path / "float.onnx")
        batches = workloads.feeds(context.subject.workload, "calibration", 32)
        how = {"method": "percentile", "percentile": 60.0} if kept else {"method": "minmax"}  # far too narrow, or good
        ranges = quantize.calibrate(
            graph, batches, context.bench.dialect, msgspec.structs.replace(context.recipe.quantize, **how)
        )
        trained, of_trained = int8_training.train(
            context.subject, context.bench, context.voice, tmp_path, (graph, ranges), {}
        )
    facts = json.loads((tmp_path / "qat.json").read_text())
    assert facts["kept"] is kept and facts["precision"] == given.get("qat_precision", "fp32")
    assert (trained is graph and of_trained is ranges) is not kept
    assert kept == (facts["after"] >= facts["before"])
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    last = [event for event in events if event["event"] == "train"][-1]
    assert (last["stage"], last["step"], last["steps"], last["epoch"]) == ("quantize", 18, 18, 3.0)
    assert (
        not kept
        or quantize.lint(quantize.apply(trained, of_trained, context.bench.dialect, {}), context.bench.dialect) == []
    )


def test_a_device_that_is_not_there_is_said_before_any_work(tmp_path: Path) -> None:
    if torch.xpu.is_available():
        pytest.skip("there is an Intel GPU here")
    settings = {"qat_epochs": 1, "qat_device": "xpu"}
    with (
        run_of(tmp_path, quantize=settings) as context,
        pytest.raises(RecipeError, match=r"\[quantize\] qat_device is 'xpu', but torch .* finds no Intel GPU"),
    ):
        stages.check_layers(
            context.recipe.quantize,
            lambda path: context.subject.export(context.subject.model, path),
            lambda: context.bench.dialect,
        )


def test_scales_that_would_learn_in_no_training_are_refused() -> None:
    def nothing(*given: Any) -> Any:
        pytest.fail("exported, or a device was asked")

    options = QuantizeSection(qat_scales=True)
    with pytest.raises(RecipeError, match="qat_scales is of training in INT8, of which there is none"):
        stages.check_layers(options, nothing, nothing)
    stages.check_layers(msgspec.structs.replace(options, qat_epochs=1.0, qat_device="cpu"), nothing, nothing)
