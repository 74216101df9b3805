"""What `run` will take: every thing that was timed counts where it is done."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from edgeprune.pipeline import estimate, override
from edgeprune.pipeline.estimate import FILE, UnitCosts
from edgeprune.pipeline.rundir import RunDirectory, write_json
from edgeprune.recipe import Recipe
from edgeprune.target import load

COSTS = UnitCosts(
    forward=0.01, step=0.05, read=0.002, judged=0.03, network=1.0, run=0.005, kept=1, largest=1, weights=4,
    resident=100, train=1000, test=200, selection=100, widths=10, blocks=2, stages=4, load=0.1,
)  # fmt: skip


def told(recipe: Recipe, folder: Path, costs: UnitCosts = COSTS) -> dict[str, float]:
    """Seconds by step."""
    with RunDirectory(folder / "run") as run:
        run.folder("plan").mkdir(parents=True, exist_ok=True)
        write_json(run.folder("plan") / FILE, asdict(costs))
        return dict(estimate.estimate(recipe, load("x86-onnxruntime"), run, None).seconds)


def test_plans_that_are_judged_count(tiny: Recipe, tmp_path: Path):
    tiny = override(override(tiny, "recover", epochs=0), "search", method="joint", images=100, rounds=3, trials=8)
    now, slower = told(tiny, tmp_path), told(tiny, tmp_path, replace(COSTS, judged=0.04))
    plans = 3 + 2 * COSTS.stages + 2 + 8 + 5 * 2 + 1  # rounds, corrections, simpler ones, trials, closure, ridges
    repaired = 512  # examples, before any training
    assert slower["prune"] - now["prune"] == pytest.approx(0.01 * (plans * 100 + repaired))
    assert {step for step in now if now[step] != slower[step]} == {"prune"}
    fewer = told(override(tiny, "search", method="joint", images=100, rounds=1, trials=0), tmp_path)
    assert now["prune"] - fewer["prune"] == pytest.approx(0.03 * 100 * (2 + 2 * COSTS.stages + 8))


def test_the_reading_of_examples_counts(tiny: Recipe, tmp_path: Path):
    tiny = override(override(tiny, "recover", epochs=2), "search", method="joint", images=100)
    now, slower = told(tiny, tmp_path), told(tiny, tmp_path, replace(COSTS, read=0.012))
    assert slower["validate"] - now["validate"] == pytest.approx(0.01 * COSTS.test)
    trained = 2 * (COSTS.train + COSTS.selection) + 4 * COSTS.selection + 100
    assert slower["prune"] - now["prune"] == pytest.approx(0.01 * trained)


def test_a_protocol_of_more_rounds_takes_longer(tiny: Recipe, tmp_path: Path):
    protocol = load("x86-onnxruntime").protocol
    runs = protocol.warmup_runs * protocol.processes + protocol.runs * protocol.rounds
    assert told(tiny, tmp_path)["validate"] == pytest.approx(200 * (2 * 0.005 + 0.002) + 2 * runs * 0.005)


def test_a_network_that_is_captured_for_each_plan_counts_once_a_plan(tiny: Recipe, tmp_path: Path):
    tiny = override(override(tiny, "recover", epochs=0), "search", method="joint", images=100, rounds=1, trials=0)
    now, slower = told(tiny, tmp_path), told(tiny, tmp_path, replace(COSTS, anew=2.0))
    assert slower["prune"] - now["prune"] == pytest.approx(2.0 * (1 + 2 + 5 * 2 + 1))
