"""Equalisation, bias correction, choice by output SQNR, reconstruction: each does what it claims, measured."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeprune.quantize import apply, calibrate
from edgeprune.quantize.correct.equalise import equalised, factors, streams
from edgeprune.quantize.correct.rounding import pack, unpack
from edgeprune.quantize.ranges.grids import QParams
from edgeprune.quantize.ranges.methods import METHODS, choose, noise
from edgeprune.quantize.ranges.observe import Histogram, Watched
from edgeprune.quantize.ranges.probe import Experiment, probe
from edgeprune.quantize.view import View
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import nets
from .test_apply import run, sqnr
from .test_influence import noise as noise_in_leads

OPENVINO = DIALECTS["openvino"]


def uneven(model: onnx.ModelProto, layer: str, spread: float = 30.0) -> onnx.ModelProto:
    """Make the output channels of a layer differ in size by up to `spread`."""
    for name in (f"{layer}.weight", f"{layer}.bias"):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor)
        factor = np.geomspace(1 / spread, 1, len(values)).reshape(-1, *[1] * (values.ndim - 1))
        tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(np.float32), name))
    return model


def test_streams_reach_through_residuals_and_stop_at_what_is_not_homogeneous() -> None:
    found = {stream.feeds: stream for stream in streams(View.of(nets.residual()))}
    assert ("stem", "block1.conv2") in found and ("block1.conv1",) in found
    assert set(found["stem", "block1.conv2"].reads) == {"block1.conv1", "block2.conv1", "block2.shortcut"}
    inverted = {stream.feeds: stream for stream in streams(View.of(nets.inverted()))}
    assert inverted[("expand",)].ceiling == 6.0 and inverted[("expand",)].reads == ("depthwise",)
    net = nets.Net()
    x = net.node("Sigmoid", net.conv("input", "a", 3, 8))
    assert streams(View.of(net.model(net.conv(x, "b", 8, 8)))) == []


@pytest.mark.long
@pytest.mark.parametrize("layer", ["block1.conv1", "block2.conv1"])
def test_equalisation_changes_nothing_in_float_and_helps_in_int8(layer: str) -> None:
    model, images = uneven(nets.residual(), layer), nets.images(32)
    found = factors(model, OPENVINO, images, 32)
    assert found
    assert sqnr(run(model, images), run(equalised(model, found), images)) > 100
    reached = []
    for on in (False, True):
        ranges = calibrate(model, images, OPENVINO, QuantizeSection(equalize=on))
        got = run(apply(model, ranges, OPENVINO), images, optimise=False)
        reached.append(-noise_in_leads(run(model, images), got, 4))
    assert reached[1] > reached[0] + 0.3


def test_equalisation_keeps_a_clip_exact_on_what_was_seen() -> None:
    model, images = uneven(nets.inverted(), "expand"), nets.images(16)
    found = factors(model, OPENVINO, images, 16)
    assert any(stream.ceiling == 6.0 for stream in streams(View.of(model)) if stream.name in found)
    assert sqnr(run(model, images), run(equalised(model, found), images)) > 100


@pytest.mark.long
def test_bias_correction_removes_the_mean_error() -> None:
    model, images = nets.inverted(), nets.images(32)
    exact = run(model, images)
    means = []
    for correct in (False, True):
        options = QuantizeSection(method="minmax", equalize=False, bias_correction=correct)
        got = run(apply(model, calibrate(model, images, OPENVINO, options), OPENVINO), images, optimise=False)
        means.append(float(np.abs((got - exact).mean(axis=0)).mean()))
    assert means[1] < 0.1 * means[0]  # in sequence: what earlier layers shift is met as well


@pytest.mark.long
def test_errors_add_up_from_layer_to_layer_and_the_report_says_so() -> None:
    model, images = nets.residual(), nets.images(32)
    ranges = calibrate(model, images, OPENVINO, QuantizeSection(bias_correction=False))
    assert ranges.bias == {}
    last = ranges.layers["head"]
    assert (last.accumulated_sqnr_db or 0) < (last.sqnr_db or 0) - 3
    exact, got = run(model, images), run(apply(model, ranges, OPENVINO), images, optimise=False)
    assert last.accumulated_sqnr_db == pytest.approx(sqnr(exact, got), abs=0.5)


@pytest.mark.long
def test_reconstruction_improves_the_layers_that_were_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["edgeprune.quantize.calibrate"], "BAD_SQNR_DB", 60.0)
    model, images = nets.inverted(), nets.images(32)
    plain, better = (
        calibrate(model, images, OPENVINO, QuantizeSection(method="minmax", equalize=False, reconstruct=on))
        for on in (False, True)
    )
    assert better.rounding and not plain.rounding
    for ranges in (plain, better):
        assert all(layer.accumulated_sqnr_db is not None for layer in ranges.layers.values())
    first = next(name for name in better.layers if name in better.rounding)
    assert (better.layers[first].accumulated_sqnr_db or 0) > (plain.layers[first].accumulated_sqnr_db or 0)
    exact = run(model, images)
    reached = [sqnr(exact, run(apply(model, r, OPENVINO), images, optimise=False)) for r in (plain, better)]
    assert reached[1] > reached[0]


def test_integers_travel_as_text() -> None:
    values = np.arange(-127, 128, dtype=np.int8)
    assert np.array_equal(unpack(pack(values), (255,)), values)  # type: ignore[arg-type]
    assert unpack(pack(values), (254,)) is None


@pytest.mark.long
def test_auto_takes_the_method_with_the_best_output() -> None:
    ranges = calibrate(nets.residual(), nets.images(16), OPENVINO)
    compared = [tensor for tensor in ranges.tensors.values() if len(tensor.candidates) > 1]
    assert compared
    for tensor in compared:
        chosen = tensor.method if tensor.method in tensor.candidates else tensor.method.split(" of ")[1]  # widened
        assert tensor.candidates[chosen] == max(tensor.candidates.values())
    methods = {tensor.method for tensor in ranges.tensors.values()}
    assert all(method in METHODS or " of " in method for method in methods)
    assert all(tensor.counts and tensor.width > 0 for tensor in ranges.tensors.values())
    assert all((layer.sqnr_db or 0) > 10 for layer in ranges.layers.values())


def test_an_experiment_measures_what_numpy_measures() -> None:
    model, images = nets.plain(), nets.images(6)
    view = View.of(model)
    weight = np.asarray(view.constant("features.0.weight"))
    grid = QParams(0.01, 0, 0, 255)
    outcome = probe(model, [Experiment("features.0", {0: grid}, constants={1: weight * 1.01}, bias=True)], images, 6)[0]
    conv = nets.Net()
    conv.constants = [t for t in model.graph.initializer if t.name.startswith("features.0.")]
    conv.nodes = [view.layers["features.0"]]
    single = conv.model(view.layers["features.0"].output[0])
    exact = run(single, images)
    for tensor in single.graph.initializer:
        if tensor.name == "features.0.weight":
            tensor.CopyFrom(numpy_helper.from_array((weight * 1.01).astype(np.float32), tensor.name))
    got = run(single, (np.clip(np.rint(images / np.float32(0.01)), 0, 255) * np.float32(0.01)).astype(np.float32))
    assert outcome.noise == pytest.approx(float(((got - exact) ** 2).sum()), rel=1e-3)
    assert outcome.signal == pytest.approx(float((exact**2).sum()), rel=1e-4)
    assert outcome.bias == pytest.approx((got - exact).mean(axis=(0, 2, 3)), rel=1e-2, abs=1e-5)


def test_a_histogram_is_exact_whatever_the_order_and_bounded() -> None:
    rng = np.random.default_rng(0)
    chunks = [rng.normal(0, scale, 5000).astype(np.float32) for scale in (0.01, 1.0, 40.0)]
    found = []
    for order in ((0, 1, 2), (2, 1, 0)):
        histogram, low, high = Histogram(), np.inf, -np.inf
        for index in order:
            low, high = min(low, float(chunks[index].min())), max(high, float(chunks[index].max()))
            histogram.add(chunks[index], low, high)
        assert len(histogram.counts) <= 4096 and histogram.counts.sum() == 15000
        found.append(histogram)
    edges = (np.arange(len(found[0].counts) + 1) + found[0].start) * found[0].width
    assert np.array_equal(found[0].counts, np.histogram(np.concatenate(chunks), edges)[0])
    assert found[0].exponent == found[1].exponent


def test_mse_is_the_least_noise_and_methods_bound_outliers() -> None:
    rng = np.random.default_rng(0)
    seen = Watched()
    values = np.abs(rng.normal(0, 1, 100_000)).astype(np.float32)
    values[:3] = 60.0
    seen.add(values)
    ranges = {method: choose(method, seen, OPENVINO) for method in METHODS}
    assert ranges["minmax"] == (0.0, 60.0)
    assert ranges["percentile"][1] < 6 and ranges["entropy"][1] < 30
    errors = {m: noise(seen, QParams(high / 255, 0, 0, 255)) for m, (_, high) in ranges.items()}
    assert errors["mse"] == min(errors.values())
