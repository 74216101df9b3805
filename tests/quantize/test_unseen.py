"""Ranges that unseen examples exceed: the factor against every example held out by hand, and what it is worth."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgeprune.quantize import apply, calibrate, inference_session
from edgeprune.quantize.ranges import unseen
from edgeprune.quantize.ranges.grids import qparams
from edgeprune.recipe import LayerOverride, QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import nets

OPENVINO = DIALECTS["openvino"]
PLAIN = QuantizeSection(equalize=False, bias_correction=False)
Floats = NDArray[np.float32]


def passing() -> onnx.ModelProto:
    """A convolution that passes its input on, so that what rounding does to it is what it does to the output."""
    net = nets.Net(channels=1, size=16)
    weight = net.constant("weight", np.ones((1, 1, 1, 1), np.float32))
    return net.model(net.node("Conv", "input", weight, name="passes", kernel_shape=[1, 1]))


def regressor() -> onnx.ModelProto:
    """Two convolutions: what lies between follows the size of the input."""
    net = nets.Net(size=16)
    return net.model(net.conv(net.relu(net.conv("input", "first", 3, 8, bias=False)), "last", 8, 3, bias=False))


def sized(model: onnx.ModelProto, *sizes: float) -> Floats:
    """Noise between 0 and each size."""
    shape = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)[1:]
    noise = np.random.default_rng(0).random((len(sizes), *shape), np.float32)
    return noise * np.array(sizes, np.float32).reshape(-1, 1, 1, 1)


def held_out(images: Floats) -> float:
    """The factor with the least mean squared error of examples that are rounded to the ranges of all others."""
    found = []
    for factor in unseen.WIDER:
        errors = []
        for number, image in enumerate(images):
            grid = qparams(0.0, factor * float(np.delete(images, number, 0).max()), OPENVINO)
            integers = np.clip(np.rint(image / grid.scale) + grid.zero, grid.low, grid.high)
            errors.append(float(np.square((integers - grid.zero) * grid.scale - image).mean()))
        found.append(np.mean(errors))
    return unseen.WIDER[int(np.argmin(found))]


@pytest.mark.parametrize("furthest", [1.0, 1.09, 1.24, 1.45, 1.9])
def test_the_factor_is_that_of_holding_out_every_example(furthest: float) -> None:
    model = passing()
    images = sized(model, *[1.0] * 23, furthest)
    ranges = calibrate(model, images, OPENVINO, PLAIN)
    factor = held_out(images)
    assert factor == {1.0: 1.0, 1.09: 1.1, 1.24: 1.25, 1.45: 1.5, 1.9: 2.0}[furthest]
    assert ranges.tensors["input"].high == pytest.approx(factor * float(images.max()))
    told = [line for line in ranges.warnings if "unseen inputs" in line]
    assert len(told) == (factor > 1)
    if told:
        assert "'input'" in told[0] and f"factor of up to {factor:g}" in told[0] and "of the 24 " in told[0]


@pytest.mark.long
def test_unseen_inputs_lose_less(monkeypatch: pytest.MonkeyPatch) -> None:
    model = regressor()
    signal, noise = 0.0, np.zeros(2)
    for draw in range(3):
        images = sized(model, *np.random.default_rng(draw).lognormal(0, 0.4, 40))
        for place, factors in enumerate((unseen.WIDER, (1.0,))):
            with monkeypatch.context() as patch:
                patch.setattr(unseen, "WIDER", factors)
                graph = apply(model, calibrate(model, images[:8], OPENVINO, PLAIN), OPENVINO)
            sessions = [inference_session(one) for one in (model, graph)]
            for image in images[8:]:
                exact, got = (session.run(None, {"input": image[None]})[0] for session in sessions)
                noise[place] += np.square(got - exact).sum()
                signal += np.square(exact).sum() / 2
    decibels = 10 * np.log10(signal / noise)
    assert decibels[0] > decibels[1] + 1, decibels


def test_what_is_bounded_asked_for_or_too_little_is_left_alone() -> None:
    model = passing()
    far = sized(model, *[1.0] * 23, 1.9)
    limited = np.minimum(sized(model, *[2.0] * 23, 8.0), np.float32(1))
    for images, options in (
        (limited, PLAIN),
        (far, QuantizeSection(method="minmax", equalize=False, bias_correction=False)),
        (far, QuantizeSection(equalize=False, layers={"passes": LayerOverride(range=(0.0, 1.9))})),
        (far[-3:], PLAIN),
    ):
        ranges = calibrate(model, images, OPENVINO, options)
        assert ranges.tensors["input"].high <= max(float(images.max()), 1.9)
        assert not any("unseen" in line for line in ranges.warnings)
