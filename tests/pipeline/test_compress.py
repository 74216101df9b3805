"""The whole path on a small network with the real ONNX Runtime: search, resume, and what a changed recipe reruns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from edgeprune import pipeline, recipe, stage, target
from edgeprune.errors import BudgetError, MeasurementError, RecipeError
from edgeprune.pipeline import override
from edgeprune.pipeline.events import Event


def _profile(tiny: recipe.Recipe, device: target.Target, run: Path) -> None:
    """Build the latency table; a machine too busy to be measured on is tried three times, then the test is skipped."""
    for attempt in range(3):
        try:
            pipeline.run(tiny, device, run, until="profile")
            return
        except MeasurementError as noisy:
            if attempt == 2:
                pytest.skip(f"this machine is too busy to measure on: {noisy.message}")
            time.sleep(5)


def _weights(run: Path) -> int:
    """How many weights the pruned network's layers have."""
    return sum(
        tensor.numel() for tensor in load_file(run / "recover" / "weights.safetensors").values() if tensor.ndim > 1
    )


def _layer_times_agree(planned: dict[str, Any], result: dict[str, Any]) -> None:
    """Those of the plan and of the report add up to the whole, and divide it alike."""
    for name, key in (("dense_int8", "dense_ms"), ("pruned_int8", "pruned_ms")):
        assert sum(layer[key] for layer in result["layers"]) == pytest.approx(result[name]["latency_ms"]["median"])
    assert sum(layer["ms"] for layer in planned["layers"]) == pytest.approx(planned["dense_int8"])
    whole = result["dense_int8"]["latency_ms"]["median"]
    mine = {layer["name"]: layer["dense_ms"] / whole for layer in result["layers"]}
    apart = sum(abs(layer["share"] - mine[layer["name"]]) for layer in planned["layers"] if layer["name"] in mine)
    assert apart / 2 < 0.3  # of the latency is given to other layers by the two profiles


@pytest.mark.slow
def test_joint_search_to_measured_result_and_resume(
    tiny: recipe.Recipe, hurried: Callable[[str], target.Target], tmp_path: Path
) -> None:
    device, events = hurried("x86-onnxruntime"), list[Event]()
    _profile(tiny, device, tmp_path / "run")
    outcome = pipeline.run(tiny, device, tmp_path / "run", until="validate", events=events.append)
    result = outcome.result
    assert result["search"]["method"] == "joint"
    assert result["search"]["gap"] <= 1e-4
    assert result["search"]["measured_ratio"] <= result["search"]["budget_ratio"] <= 1 / 1.5 + 1e-6
    assert result["proof"]["passed"]
    assert {gate["name"] for gate in result["gates"]} >= {"measurement", "proof", "accuracy", "latency", "faster"}
    for name in ("dense_fp32", "dense_int8", "pruned_int8"):
        assert 0 <= result[name]["accuracy"] <= 1 and result[name]["images"] == 100
        assert result[name]["latency_ms"]["median"] > 0 and result[name]["bytes"] > 1000
    assert result["pruned_int8"]["bytes"] < result["dense_int8"]["bytes"]
    narrowed = [layer for layer in result["layers"] if layer.get("after", 0) != layer.get("before", 0)]
    assert narrowed
    told = list[Event]()
    planned = pipeline.plan(tiny, device, tmp_path / "run", accuracy=True, events=told.append)
    begun = [event.stage for event in told if event.kind == "stage"]
    assert begun and len(set(begun)) == len(begun)  # those of the plan were told again with those of the search
    left, held = planned["accuracy"], json.loads((tmp_path / "run" / "recover" / "recover.json").read_text())
    assert left["reference"] == pytest.approx(100 * held["selection_accuracy"]["dense"])
    assert left["value"] == pytest.approx(100 * held["selection_accuracy"]["repaired"])
    assert left["drop"] == pytest.approx(left["reference"] - left["value"])
    assert left["low"] <= left["drop"] <= left["high"]
    _layer_times_agree(planned, result)
    estimated = planned["estimate"]
    assert set(estimated["seconds"]) == {step.name for step in stage.STEPS}
    taken = sum(one["seconds"] for one in result["stages"] if one["name"] not in ("graph", "plan"))
    assert 0.1 < estimated["total"] / taken < 10  # it was measured on this machine, a busy one perhaps
    assert planned["dense"].startswith("dense FP32: top-1 ")

    again = pipeline.run(tiny, device, tmp_path / "run", until="validate")
    assert all(stage["reused"] for stage in again.result["stages"])
    assert again.result["pruned_int8"] == result["pruned_int8"]

    other = pipeline.run(override(tiny, "budget", max_drop=50.0), device, tmp_path / "run", until="validate")
    assert [stage["name"] for stage in other.result["stages"] if not stage["reused"]] == ["validate"]
    other = pipeline.run(override(tiny, "quantize", method="minmax"), device, tmp_path / "run", until="calibrate")
    made = [stage["name"] for stage in other.result["stages"] if not stage["reused"]]
    assert made == ["dense", "quantize"]  # the table and the training stay

    before = _weights(tmp_path / "run")
    limit = int(0.95 * result["pruned_int8"]["bytes"])
    pipeline.run(override(tiny, "budget", max_bytes=limit), device, tmp_path / "run", until="prune")
    assert _weights(tmp_path / "run") < before


def test_milliseconds_are_refused_where_instructions_are_counted(tiny: recipe.Recipe, tmp_path: Path) -> None:
    in_ms = override(tiny, "budget", speedup=None, latency_ms=5.0)
    with pytest.raises(RecipeError, match="counts instructions, which are no time") as refused:
        pipeline.plan(in_ms, target.load("raspberry-pi-5"), tmp_path / "run")
    assert "speedup = 2.0" in refused.value.remedy and "--device" in refused.value.remedy


@pytest.mark.slow
def test_an_impossible_budget_is_refused_before_any_training(tiny: recipe.Recipe, tmp_path: Path) -> None:
    impossible = override(tiny, "budget", speedup=10_000.0)
    with pytest.raises(BudgetError):
        pipeline.run(impossible, target.load("x86-onnxruntime"), tmp_path / "run")
    assert not (tmp_path / "run" / "recover").exists()
    found = json.loads((tmp_path / "run" / "plan" / "feasibility.json").read_text())
    assert found["possible"] is False and found["floor"] < found["dense_int8"]
