"""Which layers stay in float: the program against brute force, and against the greedy baseline."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from edgeprune import target
from edgeprune.devices.types import KernelTime, Timing
from edgeprune.errors import BudgetError
from edgeprune.pipeline import precision, stages
from edgeprune.pipeline.rundir import read_json, write_json
from edgeprune.quantize import apply, calibrate
from edgeprune.quantize.fallback import (
    LayerCost,
    PrecisionChoice,
    choose,
    greedy,
    layer_edges,
    sensitivities,
    solve,
    times,
)
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS
from edgeprune.workload import Difference

from . import nets


def program(seed: int, count: int = 8) -> tuple[dict[str, LayerCost], dict[tuple[str, str], float]]:
    rng = np.random.default_rng(seed)
    costs = {f"l{i}": LayerCost(*(float(v) for v in rng.uniform(0.1, 2.0, 3))) for i in range(count)}
    edges = {(f"l{i}", f"l{i + 1}"): float(rng.uniform(0, 0.5)) for i in range(count - 1)}
    edges["l0", f"l{count - 1}"] = 0.3
    return costs, edges


def total(costs: dict[str, LayerCost], edges: dict[tuple[str, str], float], int8: set[str]) -> tuple[float, float]:
    ms = sum(c.int8_ms if n in int8 else c.float_ms for n, c in costs.items())
    ms += sum(v for (a, b), v in edges.items() if (a in int8) != (b in int8))
    return ms, sum(costs[n].loss for n in int8)


@pytest.mark.parametrize("seed", range(12))
def test_the_program_is_exact_and_never_slower_than_float_or_greedy(seed: int) -> None:
    costs, edges = program(seed)
    max_loss = 0.5 + seed / 3
    subsets = itertools.chain.from_iterable(itertools.combinations(costs, n) for n in range(len(costs) + 1))
    best = min(ms for ms, loss in (total(costs, edges, set(s)) for s in subsets) if loss <= max_loss)
    found = solve(costs, edges, max_loss)
    chosen = {name for name, kind in found.precision.items() if kind == "int8"}
    assert total(costs, edges, chosen) == pytest.approx((found.ms, found.loss))
    assert found.ms == pytest.approx(best) and found.gap == pytest.approx(0, abs=1e-9)
    assert found.loss <= max_loss + 1e-9
    assert found.ms <= min(found.float_ms, greedy(costs, edges, max_loss).ms) + 1e-9


def test_an_isolated_int8_layer_does_not_pay_for_its_reformats() -> None:
    costs = {"a": LayerCost(1.0, 2.0, 0.0), "b": LayerCost(1.0, 0.8, 0.0), "c": LayerCost(1.0, 2.0, 0.0)}
    cheap, dear = ({("a", "b"): ms, ("b", "c"): ms} for ms in (0.05, 0.2))
    assert solve(costs, cheap, 1.0).precision["b"] == "int8"
    assert set(solve(costs, dear, 1.0).precision.values()) == {"float"}
    assert greedy(costs, dear, 1.0).ms > solve(costs, dear, 1.0).ms


def test_the_recipe_chooses_the_method_and_an_impossible_loss_is_refused() -> None:
    costs, edges = program(3)
    assert set(choose("none", costs, edges, 0.0).precision.values()) == {"int8"}
    assert choose("auto", costs, edges, 1.0) == solve(costs, edges, 1.0)
    baseline: PrecisionChoice = choose("greedy", costs, edges, 1.0)
    assert baseline.precision == greedy(costs, edges, 1.0).precision and baseline.loss <= 1.0
    with pytest.raises(BudgetError, match="float costs 0"):
        solve(costs, edges, -0.1)


def test_edges_and_times_lead_back_to_layers() -> None:
    edges = layer_edges(nets.residual(), 1e-6)
    assert ("stem", "block1.conv1") in edges and ("block1.conv1", "block1.conv2") in edges
    assert {a for a, b in edges if b == "block2.conv1"} == {"stem", "block1.conv2"}
    assert edges["stem", "block1.conv1"] == pytest.approx(16 * 16 * 16 * 1e-6)
    kernels = [
        KernelTime("stem", "Convolution", (), 0.5, 0.0, 10),
        KernelTime("fused", "Convolution", ("block1.conv1", "block1.conv2"), 0.8, 0.0, 10),
        KernelTime("reorder", "Reorder", (), 9.0, 0.0, 10),
    ]
    assert times(["stem", "block1.conv1", "head"], kernels) == {"stem": 0.5, "block1.conv1": 0.8, "head": 0.0}


@pytest.mark.parametrize("name", ["ort-x86", "openvino", "tensorrt-b"])
def test_the_layer_that_hurts_is_found_and_float_mends_it(name: str) -> None:
    model, images = nets.residual(), nets.images(8)
    dialect = DIALECTS[name]
    weight = next(t for t in model.graph.initializer if t.name == "block2.conv1.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[:, 0] *= 400  # one input channel dominates every output channel's scale ...
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    ranges = calibrate(model, images, dialect, QuantizeSection(method="minmax", equalize=False, bias_correction=False))
    losses = sensitivities(model, ranges, dialect, images, 8)
    assert max(losses, key=lambda name: losses[name]) == "block2.conv1"
    quantised = apply(model, ranges, dialect, {"block2.conv1": "float"})
    assert next(n for n in quantised.graph.node if n.name == "block2.conv1").input[1] == "block2.conv1.weight"


def test_reformatting_beside_a_layer_that_is_always_float_counts_for_the_other() -> None:
    """The head has no cost of its own here: it is float in this dialect, and INT8 before it pays for the change."""
    costs = {"a": LayerCost(1.0, 0.5, 0.0), "b": LayerCost(1.0, 0.5, 0.0)}
    cheap = choose("auto", costs, {("a", "b"): 0.3, ("b", "head"): 0.1, ("head", "tail"): 5.0}, 1.0)
    dear = choose("auto", costs, {("a", "b"): 0.3, ("b", "head"): 0.9}, 1.0)
    assert cheap.precision == {"a": "int8", "b": "int8"} and cheap.ms == pytest.approx(1.1)
    assert dear.precision == {"a": "int8", "b": "float"} and dear.ms == pytest.approx(1.8)


X86 = target.load("x86-onnxruntime")


class Told:
    """A device whose profiles say that float is faster, and which times whole networks as it is told."""

    def __init__(self, int8: float, chosen: float, quick: tuple[str, ...] = ()) -> None:
        """`quick`: the layers that are faster in INT8."""
        self.ms, self.quick = {"whole-int8": int8, "whole-chosen": chosen}, quick
        self.open: list[str] = []
        self.seen: list[str] = []

    def load(self, artifact: Any) -> Any:
        self.seen.append(artifact.name)
        self.open.append(artifact.name)
        return SimpleNamespace(artifact=artifact)

    def unload(self, loaded: Any) -> None:
        self.open.remove(loaded.artifact.name)

    def profile(self, loaded: Any) -> list[KernelTime]:
        each = {"fallback-float": 1.0, "fallback-int8": 2.0}[loaded.artifact.name]
        layers = [node.name for node in nets.residual().graph.node if node.op_type in ("Conv", "Gemm")]
        quick = self.quick if each == 2.0 else ()
        return [KernelTime(name, "Conv", (), 0.5 if name in quick else each, 0.0, 10) for name in layers]

    def measure(self, loaded: Any, protocol: Any) -> list[Any]:
        every = [self.ms[one.artifact.name] for one in loaded]
        return [Timing(ms, ms, ms, ms, ms, spread=0.01, count=40, rounds=(1.0,) * 40) for ms in every]


@pytest.mark.long
def test_an_artifact_without_a_layer_in_int8_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever INT8 agrees on: all in float is refused as no INT8 artifact, after it took the time of FP32."""
    network, images, x86 = nets.residual(), nets.images(8), target.load("x86-onnxruntime")
    monkeypatch.setattr(precision, "_agreement", lambda *given: (0.9, 0.92))
    monkeypatch.setattr(
        precision, "_lost", lambda *given: Difference("top-1", "points", 1.2, 512, 0.95, np.zeros(0), 0, (9, 3))
    )
    said = list[str]()
    subject: Any = SimpleNamespace(
        recipe=SimpleNamespace(quantize=QuantizeSection()),
        workload=SimpleNamespace(inputs=SimpleNamespace(parts=[SimpleNamespace(shape=(3, 16, 16))])),
    )
    bench: Any = SimpleNamespace(device=Told(1.0, 1.0), target=x86, dialect=DIALECTS["ort-x86"])
    ranges = calibrate(network, images, bench.dialect, QuantizeSection(method="minmax"))
    costs, edges = {"a": LayerCost(1.0, 2.0, 0.1), "b": LayerCost(1.0, 2.0, 0.1)}, {}
    monkeypatch.setattr(precision, "_costs", lambda *given: (costs, edges))
    monkeypatch.setattr(precision.fallback, "sensitivities", lambda *given: {"a": 0.1, "b": 0.1})
    monkeypatch.setattr(precision.workloads, "feeds", lambda *given: None)
    found: Any = precision.choose_precision(subject, bench, said.append, tmp_path, network, ranges, {})
    assert found["float"] == [] and found["agreement"] == 0.9
    assert "agrees on 90.0 %" in said[0] and "all run in INT8" in said[0] and found["drop"]["drop"] == 1.2


@pytest.mark.long
@pytest.mark.parametrize(("int8", "stay"), [(0.9, False), (1.004, False), (1.1, True)])
def test_layers_stay_in_float_for_speed_only_where_the_whole_network_is_faster(
    int8: float, stay: bool, tmp_path: Path
) -> None:
    """The profiles say float for most layers; the whole networks, timed, have the last word."""
    device, said = Told(int8, 1.0, ("head",)), list[str]()
    bench: Any = SimpleNamespace(device=device, target=X86, dialect=DIALECTS["ort-x86"])
    voice: Any = SimpleNamespace(say=lambda stage, line: said.append(line))
    found = precision.for_speed(bench, voice, tmp_path, nets.residual(), ["block1.conv1"])
    assert bool(found) == stay and "head" not in found and "block1.conv1" not in found
    assert ("no layer stays" in said[0], "they stay in float" in said[0]) == (not stay, stay)
    assert device.open == [] and not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("chosen", "share", "late"),
    [
        (1.189, 0.972, "115.6 % of the latency budget, where the search had measured 97.2 %"),  # FastestDet, as it was
        (1.02, 0.972, ""),  # there is room for them
        (1.04, 0.972, "101.1 % of the latency budget"),
        (1.1, 0.87, ""),  # cut by whole blocks, far below the budget
        (0.9, 1.05, ""),  # the search missed it, and they are faster
        (1.01, 1.05, "106.0 % of the latency budget"),
    ],
)
def test_layers_stay_in_float_for_accuracy_only_where_the_budget_still_holds(
    chosen: float, share: float, late: str, tmp_path: Path
) -> None:
    """Red before: of a pruned detector 52 of 70 layers went to float for 0.19 points of 28 examples, and the release
    was refused as 18.8 % too slow."""
    device = Told(1.0, chosen)
    bench: Any = SimpleNamespace(device=device, target=X86, dialect=DIALECTS["ort-x86"])
    network = nets.residual()
    ranges = calibrate(network, nets.images(8), bench.dialect, QuantizeSection(method="minmax"))
    said = precision.too_slow(bench, tmp_path, network, ranges, ["block1.conv1"], {"stem": "float"}, share)
    assert late in said and bool(said) == bool(late)
    assert device.open == [] and not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("late", "kept"), [("", ["a", "b", "c"]), ("with them it is late", ["a"])])
def test_layers_that_the_budget_does_not_hold_are_in_int8_and_precision_json_says_which(
    late: str, kept: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "search").mkdir()
    write_json(tmp_path / "search" / "search.json", {"measured_ratio": 0.486, "budget_ratio": 0.5})
    run: Any = SimpleNamespace(folder=lambda name: tmp_path / name)
    said, asked = list[str](), list[Any]()
    voice: Any = SimpleNamespace(say=lambda stage, line: said.append(line), progress=lambda stage: None)
    subject: Any = SimpleNamespace(recipe=SimpleNamespace(quantize=QuantizeSection()))
    ranges: Any = SimpleNamespace(warnings=[])
    monkeypatch.setattr(stages, "calibrated", lambda *given: ranges)
    monkeypatch.setattr(stages, "choose_precision", lambda *given: {"method": "auto", "float": ["a", "b", "c"]})
    monkeypatch.setattr(stages, "too_slow", lambda *given: asked.append(given[4:]) or late)
    none: Any = None
    found, floats = stages._pruned_ranges(subject, none, run, voice, tmp_path, nets.residual(), {"a": "float"})
    assert found is ranges and sorted(floats) == kept == read_json(tmp_path / "precision.json")["float"]
    assert asked == [(["b", "c"], {"a": "float"}, pytest.approx(0.972))]
    assert said == [late or "the search did not know of these layers in float: the latency gate decides"]
    assert read_json(tmp_path / "precision.json").get("too_slow", []) == (["b", "c"] if late else [])


@pytest.mark.parametrize(
    ("told", "share"),
    [
        ({"measured_ratio": 0.486, "budget_ratio": 0.5}, 0.972),
        ({"measured_ratio": 0.486, "budget_ratio": 0.5, "bounded": {"speedup": 2.0}}, 0.0),  # as fast as max_drop lets
        ({"method": "joint"}, 0.0),
    ],
)
def test_the_share_of_the_budget_is_what_the_search_measured(
    told: dict[str, Any], share: float, tmp_path: Path
) -> None:
    write_json(tmp_path / "search.json", told)
    assert precision.share_of_budget(SimpleNamespace(folder=lambda name: tmp_path)) == pytest.approx(share)  # type: ignore[arg-type]


@pytest.mark.parametrize("quick", [(), ("stem", "block1.conv1", "block2.conv1", "head")])
def test_float_for_speed_is_not_asked_where_it_leaves_no_layer_in_int8_or_is_slower_for_half(
    quick: tuple[str, ...], tmp_path: Path
) -> None:
    """All in float is no INT8 artifact; and a profile's noise on a few layers starts no measurement."""
    device = Told(1.1, 1.0, quick)
    bench: Any = SimpleNamespace(device=device, target=X86, dialect=DIALECTS["ort-x86"])
    voice: Any = SimpleNamespace(say=lambda stage, line: pytest.fail(line))
    assert precision.for_speed(bench, voice, tmp_path, nets.residual()) == []
    assert "whole-int8" not in device.seen


def test_a_loss_has_the_same_digits_in_every_process() -> None:
    """Sums run in the order of the layers, not of a set's hashes: the last digit would differ from run to run."""
    costs = {f"l{i}": LayerCost(1.0, 0.5, loss) for i, loss in enumerate([1.0, *[1e-16] * 20])}
    assert choose("none", costs, {}, 10.0).loss == sum(cost.loss for cost in costs.values())
