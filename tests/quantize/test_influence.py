"""What an error costs at the logits: the estimate against the truth, and what is made of it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeprune.quantize import calibrate
from edgeprune.quantize.ranges import influence as ranges_influence
from edgeprune.quantize.ranges.grids import QParams
from edgeprune.quantize.ranges.influence import costs, influence
from edgeprune.quantize.view import View
from edgeprune.runtimes import DIALECTS

from . import nets
from .test_apply import run, sqnr


def with_node_after(model: onnx.ModelProto, tensor: str, node: onnx.NodeProto, *constants: onnx.TensorProto) -> None:
    """Put a node between a tensor and its readers."""
    at = next(index for index, maker in enumerate(model.graph.node) if tensor in maker.output)
    for reader in model.graph.node:
        for index, name in enumerate(reader.input):
            if name == tensor:
                reader.input[index] = node.output[0]
    model.graph.node.insert(at + 1, node)
    model.graph.initializer.extend(constants)


def noisy(model: onnx.ModelProto, tensor: str, errors: NDArray[np.float32]) -> onnx.ModelProto:
    """The graph with a constant added to one tensor."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constant = numpy_helper.from_array(errors, "noise")
    with_node_after(result, tensor, helper.make_node("Add", [tensor, "noise"], ["noisy"]), constant)
    return result


def leads(exact: NDArray[np.float32], logits: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The lead of the exact first class over the next ones."""
    order, rows = np.argsort(-exact, axis=1), np.arange(len(exact))
    return np.stack([logits[rows, order[:, 0]] - logits[rows, order[:, k]] for k in range(1, count + 1)])


def noise(exact: NDArray[np.float32], got: NDArray[np.float32], count: int) -> float:
    """Noise over signal in those leads, in decibels."""
    return -sqnr(leads(exact, exact, count), leads(exact, got, count))


def test_independent_errors_cost_what_is_foreseen() -> None:
    model, images = nets.residual(), nets.images(16)
    tensor = "block1.conv1_output"  # before its Relu: zeros are rare
    found = influence(model, [tensor], [], images, 16, vectors=8).tensors[tensor]
    exact, rng = run(model, images), np.random.default_rng(0)
    ratios = []
    for _ in range(8):
        errors = rng.normal(0, 0.01, (1, 16, 16, 16)).astype(np.float32)
        ratios.append(10 ** (noise(exact, run(noisy(model, tensor, errors), images), 8) / 10))
    assert np.mean(ratios) == pytest.approx(1e-4 * found.sum(), rel=0.5)


@pytest.mark.long
def test_a_clipped_range_costs_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges_influence, "EARLY", 99)  # no grid is dropped
    model, images = nets.residual(), nets.images(32)
    tensor = "block1.conv2_output"
    grids = [QParams(scale, 128, 0, 255) for scale in (0.03, 0.01, 0.003)]
    found = costs(model, {"one": ([tensor], grids)}, images, 32, vectors=8)["one"]
    exact = run(model, images)
    for grid, ratio in zip(grids, found, strict=True):
        result = onnx.ModelProto()
        result.CopyFrom(model)
        pair = [numpy_helper.from_array(np.array(grid.scale, np.float32), "s")]
        pair.append(numpy_helper.from_array(np.array(grid.zero, np.uint8), "z"))
        with_node_after(result, tensor, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]), *pair)
        at = next(i for i, node in enumerate(result.graph.node) if node.op_type == "DequantizeLinear")
        result.graph.node.insert(at, helper.make_node("QuantizeLinear", [tensor, "s", "z"], ["q"]))
        assert 10 * np.log10(ratio) == pytest.approx(noise(exact, run(result, images, optimise=False), 8), abs=1.0)


@pytest.mark.long
def test_hopeless_grids_are_dropped_on_the_way_and_the_others_cost_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = nets.residual(), nets.images(24)
    grids = [QParams(scale, 128, 0, 255) for scale in (0.1, 0.03, 0.01, 0.003)]
    groups = {"one": (["block1.conv2_output"], grids)}
    short = costs(model, groups, images, 24)["one"]
    monkeypatch.setattr(ranges_influence, "EARLY", 99)
    whole = costs(model, groups, images, 24)["one"]
    best = min(whole)
    for early, late in zip(short, whole, strict=True):
        if late < ranges_influence.HOPELESS * best / 2:
            assert early == pytest.approx(late, rel=1e-5)
        else:
            assert early > 2 * best
    assert short != whole and np.argmin(short) == np.argmin(whole)


def test_what_a_bias_takes_back_is_not_counted() -> None:
    model, images = nets.inverted(), nets.images(8) * 0 + np.float32(0.5)
    errors = influence(model, [], ["stem"], images + np.float32(1e-4), 8).weights["stem"]
    whole = influence(model, [], ["stem"], nets.images(8), 8).weights["stem"]
    inside = errors[:, :, 1, 1]  # its input is the same at every position: a bias takes all of it
    assert inside.max() < 1e-6 * whole.max()


def test_a_graph_without_gradients_is_judged_where_its_tensors_are_read() -> None:
    net = nets.Net()
    x = net.relu(net.conv("input", "a", 3, 8))
    x = net.node("Hardmax", net.conv(x, "b", 8, 8), axis=1)
    model = net.model(net.conv(x, "c", 8, 8))
    ranges = calibrate(model, nets.images(8), DIALECTS["openvino"])
    assert ranges.equalise == {}
    assert any(len(tensor.candidates) > 1 for tensor in ranges.tensors.values())


def test_every_layer_of_the_view_is_found() -> None:
    model = nets.residual()
    layers = list(View.of(model).layers)
    found = influence(model, ["input"], layers, nets.images(2), 2)
    assert set(found.weights) == set(layers) and found.tensors["input"].shape == (3,)
