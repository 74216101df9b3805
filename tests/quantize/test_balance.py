"""Factors with the least noise: the closed form where there is one, a true minimum where there is not."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from scipy.optimize import check_grad

from edgeprune.quantize import inference_session
from edgeprune.quantize.correct import balance, equalise
from edgeprune.quantize.correct.balance import Tensor, Weight, least_noise
from edgeprune.quantize.correct.equalise import equalised, factors
from edgeprune.quantize.ranges.observe import with_outputs
from edgeprune.quantize.view import View
from edgeprune.runtimes import DIALECTS

from . import nets

RNG = np.random.default_rng(0)
PEAKS = np.geomspace(0.2, 6.0, 12)
ONES = np.ones(12)


def weight() -> Weight:
    """A layer of 5 outputs that reads 12 channels of different sizes."""
    return Weight(np.abs(RNG.normal(0, 1, (5, 12))), PEAKS**2 * RNG.uniform(0.5, 1, (5, 12)), 127)


def tensor() -> Tensor:
    """A tensor with 12 channels of different sizes and influences."""
    return Tensor(PEAKS * RNG.uniform(0.5, 1, 12), RNG.uniform(0.2, 1, 12), 1 / 255)


def test_where_weights_cost_nothing_channels_become_equally_large() -> None:
    found = least_noise([Tensor(PEAKS, ONES, 1 / 255)], [], ONES / 64)
    reached = PEAKS / found
    assert PEAKS.max() / PEAKS.min() > 20 * reached.max() / reached.min()


def test_a_channel_stays_above_its_lowest_factor() -> None:
    found = least_noise([Tensor(PEAKS, ONES, 1 / 255)], [], 0.3 * ONES)
    assert found.min() == pytest.approx(0.3) and found.max() <= 1.0


@pytest.mark.parametrize("count", [1, 3])
def test_it_is_the_minimum(count: int) -> None:
    tensors, weights = [tensor() for _ in range(count)], [weight(), weight()]
    found = least_noise(tensors, weights, ONES / 64)
    best = balance.noise(tensors, weights, np.log(found))[0]
    for _ in range(50):
        tried = np.minimum(np.log(found) + RNG.normal(0, 0.1, 12), 0)
        assert best <= balance.noise(tensors, weights, tried)[0] + 1e-4
    u = np.log(RNG.uniform(0.1, 1, 12))
    value, slope = (lambda u: balance.noise(tensors, weights, u)[0]), (lambda u: balance.noise(tensors, weights, u)[1])
    assert check_grad(value, slope, u) < 1e-5


def test_what_an_activation_cuts_off_does_not_count() -> None:
    model, images = nets.inverted(), nets.images(16)
    bias = next(t for t in model.graph.initializer if t.name == "expand.bias")
    values = numpy_helper.to_array(bias) - np.where(np.arange(64) % 2, 3.0, 0.0).astype(np.float32)
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))  # half of the channels are far below zero, mostly
    found = factors(model, DIALECTS["openvino"], images, 16)
    clipped = next(node.output[0] for node in model.graph.node if node.op_type == "Clip" and "expand" in node.input[0])
    peaks = []
    for graph in (model, equalised(model, found)):
        runner = inference_session(with_outputs(graph, [clipped]))
        peaks.append(np.max([runner.run(None, {"input": image[None]})[0].max((0, 2, 3)) for image in images], axis=0))
    uneven = [(values / values.max())[values > 0.01].min() for values in peaks]
    assert uneven[1] > 2 * uneven[0]


def test_of_a_large_layer_some_outputs_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nets.plain()
    view = View.of(model)
    name = next(name for name, node in view.layers.items() if node.op_type == "Gemm")
    shape = view.initializers[view.layers[name].input[1]].dims
    whole = equalise._weight(view, name, np.ones(shape), DIALECTS["openvino"])
    monkeypatch.setattr(equalise, "LARGE", whole.sizes.size // 2)
    some = equalise._weight(view, name, np.ones(shape), DIALECTS["openvino"])
    assert np.array_equal(some.sizes, whole.sizes[::2])
    assert some.influence.sum() == pytest.approx(whole.influence.sum())
