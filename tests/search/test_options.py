"""An option of layers on its whole way: offered, measured, predicted, searched, planned, proven, saved, rebuilt."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import edgeprune
from edgeprune import engine, graph, latency, recover, search, target
from edgeprune.errors import MeasurementError, PlanError
from edgeprune.graph import Configuration, Plan, Structure
from edgeprune.latency import Predictor, Table
from edgeprune.search import Evaluator, Sensitivity

sys.path.insert(0, str(Path(__file__).parents[1] / "latency"))
from latency_net import Net
from simulated import SimulatedDevice

IMAGES = torch.rand(128, 3, 16, 16, generator=torch.Generator().manual_seed(1))
THIN = 4  # what the second block's first layer truly needs


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """Its second block's first layer has weights of rank 4."""
    torch.manual_seed(0)
    made = Net().eval()
    with torch.no_grad():
        weight = made.second.conv1.weight
        weight.copy_((torch.randn(len(weight), THIN) @ torch.randn(THIN, weight[0].numel())).reshape(weight.shape) / 30)
        made.head.weight.mul_(300)
    return made


@pytest.fixture(scope="module")
def structure(net: nn.Module) -> Structure:
    return edgeprune.trace(net, IMAGES[:1])


@pytest.fixture(scope="module")
def ways(net: nn.Module, structure: Structure) -> dict[str, tuple[str, ...]]:
    return structure.options(net, ["low-rank"])


@pytest.fixture(scope="module")
def predictor(net: nn.Module, structure: Structure, ways: Mapping[str, Sequence[str]], tmp_path_factory) -> Predictor:
    """Of a table that knows the kernels of low rank."""
    folder, device = tmp_path_factory.mktemp("variants"), SimulatedDevice()
    made = latency.maker(net, structure, IMAGES[:1], target.load("x86-onnxruntime"), folder)
    table = latency.extend(Table(device.probe().fingerprint), device, made, _drawn(structure))
    table = latency.with_options(table, device, made, ways, networks=3)
    path = folder / "table.jsonl"
    table.save(path)
    kept = [one.networks[made.network].optional for one in (Table.load(path), table)]
    assert [(site.node, site.family, site.option) for site in kept[0]] == [
        (s.node, s.family, s.option) for s in kept[1]
    ]
    found = Predictor(Table.load(path), structure, made.network)
    found.maker, found.device = made, device  # type: ignore[attr-defined]
    return found


def _drawn(structure: Structure) -> list[Configuration]:
    from edgeprune.latency.variants import draw

    return draw(structure, target.load("x86-onnxruntime").channels, 5)


def test_what_is_called_as_a_layer_and_wide_enough_is_offered(ways: dict[str, tuple[str, ...]]) -> None:
    assert ways["second.conv1"] == ("low-rank:16", "low-rank:32")
    assert "stem" not in ways and "depthwise" not in ways, "3 channels in; a depthwise layer"
    attention = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    offered = edgeprune.trace(attention, torch.rand(1, 5, 32)).options(attention, ["low-rank"])
    assert "self_attn.out_proj" not in offered, "attention reads that layer's weight itself"
    with pytest.raises(PlanError, match="no option 'lowrank'"):
        edgeprune.trace(attention, torch.rand(1, 5, 32)).options(attention, ["lowrank"])


@pytest.mark.parametrize("layer", [nn.Conv2d(16, 24, 3, 2, 1, 2), nn.Conv1d(16, 24, 5), nn.Linear(16, 24, False)])
def test_the_two_layers_compute_what_the_projected_one_does(layer: nn.Module) -> None:
    option = graph.layer_options()["low-rank"]
    given = torch.rand(*{nn.Conv2d: (2, 16, 9, 9), nn.Conv1d: (2, 16, 9), nn.Linear: (2, 16)}[type(layer)])
    pair = option.replace(layer.double(), 6)
    one = option.merge(pair)
    torch.testing.assert_close(pair(given.double()), one(given.double()))
    assert sum(p.numel() for n, p in pair.named_parameters() if "weight" in n) == option.elements(layer.weight.shape, 6)
    flat = layer.weight.flatten(1).T[None]
    held = option.project(flat, torch.eye(flat.shape[1], dtype=torch.float64)[None], layer.weight.shape, 6)
    torch.testing.assert_close(held[0].T, one.weight.flatten(1)), "with white inputs, the best by the weights"


@pytest.mark.long
def test_the_table_predicts_networks_that_have_it(predictor: Predictor, structure: Structure) -> None:
    made, device = predictor.maker, predictor.device  # type: ignore[attr-defined]
    network = Configuration({"second.conv1": 32}, ("first",), {"second.conv1": "low-rank:16"})
    times = [device.load(made.build(one, "truth").artifact).truth for one in (graph.DENSE, network)]
    plain = Configuration({"second.conv1": 32}, ("first",))
    predicted = predictor.predict(network) / predictor.dense
    assert predicted == pytest.approx(times[1] / times[0], rel=0.1)
    assert predicted < 0.9 * predictor.predict(plain) / predictor.dense
    assert network.key != plain.key
    layer = predictor.layers(network)["second.conv1"]
    assert layer == pytest.approx(predictor.kernel("second.conv1", 32, 32, "low-rank:16"))
    with pytest.raises(MeasurementError, match="no kernels of low-rank for layer 'stem'"):
        predictor.predict(Configuration({}, (), {"stem": "low-rank:8"}))


@pytest.fixture(scope="module")
def session(net: nn.Module) -> engine.Session:
    return engine.Session(net, IMAGES)


@pytest.fixture(scope="module")
def curves(structure: Structure, session: engine.Session, ways: Mapping[str, Sequence[str]]) -> Sensitivity:
    widths = latency.options(structure, target.load("x86-onnxruntime").channels)
    return search.measure(structure, session, widths, options=ways)


def test_its_loss_is_measured(curves: Sensitivity) -> None:
    assert set(curves.options["second.conv1"]) == {"low-rank:16", "low-rank:32"}
    assert curves.options["second.conv1"]["low-rank:16"] < 1e-6, "the layer has no more than rank 4"
    assert curves.options["second.conv2"]["low-rank:8"] > 1e-3
    assert Sensitivity.from_dict(curves.to_dict()) == curves


@pytest.mark.long
def test_the_search_takes_it_where_it_is_free(
    net: nn.Module,
    structure: Structure,
    session: engine.Session,
    predictor: Predictor,
    curves: Sensitivity,
    tmp_path: Path,
) -> None:
    evaluator = Evaluator(structure, session)
    budget = 0.85 * predictor.dense
    found = search.find(structure, predictor, budget, curves, judge=evaluator)
    assert found.plan.options["second.conv1"] == "low-rank:16" and "second" not in found.plan.removed
    assert found.to_dict()["options_of_layers"] == found.plan.options
    assert predictor.predict(found.plan) == pytest.approx(found.predicted) and found.predicted <= budget
    proof = structure.prove(net, found.plan)
    assert proof.passed and not proof.vacuous and f"{len(found.plan.options)} layers under" in proof.method

    pruned = found.plan.apply(net)
    assert pruned.second.conv1[0].out_channels == 16
    recover.repair(net, pruned, structure, found.plan, IMAGES[:64], session=session)
    with torch.no_grad():
        dense, narrow = (torch.log_softmax(one(IMAGES[64:]), -1) for one in (net, pruned))
        loss = float((dense.exp() * (dense - narrow)).sum(-1).mean())
    assert loss < 2 * found.loss + 1e-4, "the repaired module is what was evaluated on the tape"

    graph.save_pruned(tmp_path, pruned, found.plan)
    assert Plan.load(tmp_path / "plan.json") == found.plan
    (tmp_path / "rebuild.py").write_text(recover.rebuild_script("", {}))
    again = runpy.run_path(str(tmp_path / "rebuild.py"))["student"](Net).eval()
    torch.testing.assert_close(again(IMAGES[:4]), pruned(IMAGES[:4]))


def test_a_plan_without_options_is_written_as_ever(structure: Structure) -> None:
    plain = structure.plan({}, ["first"])
    assert plain.to_dict()["version"] == 1 and "options" not in plain.to_dict()
    assert structure.plan({}, [], {"point": "low-rank:8"}).to_dict()["version"] == 2
    for options, words in (
        ({"nowhere": "low-rank:8"}, "no layer 'nowhere'"),
        ({"stem": "low-rank:8"}, "cannot be low-rank"),
        ({"point": "low-rank:x"}, "no positive number"),
        ({"first.conv1": "low-rank:8"}, "goes with its block"),
    ):
        with pytest.raises(PlanError, match=words):
            structure.plan({}, ["first"], options)
