"""Input features of very different sizes: the graph computes the same, and its INT8 self computes much the same too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgeprune.quantize import apply, calibrate
from edgeprune.quantize.correct.equalise import equalised
from edgeprune.quantize.correct.features import feature_factors, inputs, rescaled
from edgeprune.quantize.view import View
from edgeprune.quantize.write.placement import place
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import running

RNG = np.random.default_rng(0)
SIZES = np.array([300.0, 8.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], np.float32)  # as of a sound's coefficients
OFF = QuantizeSection(equalize=False)


class Tokens(nn.Module):
    """Features of each moment through two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)).mean(1))


def sensors() -> nn.Module:
    """A window of eight sensors."""
    return nn.Sequential(
        nn.Conv1d(8, 16, 5), nn.ReLU(), nn.Conv1d(16, 16, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4)
    )


def table() -> nn.Module:
    """A row of eight columns."""
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


CASES = {"tokens": (Tokens, (20, 8), 1), "sensors": (sensors, (8, 24), 0), "table": (table, (8,), 0)}


def case(name: str) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """A graph whose first layer makes as much of each feature, and examples."""
    build, shape, axis = CASES[name]
    module = running.seeded(build)
    sizes = SIZES.reshape([-1 if index == axis else 1 for index in range(len(shape))])
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv1d))
    with torch.no_grad():
        first.weight /= torch.from_numpy(SIZES).reshape([1, -1, *[1] * (first.weight.ndim - 2)])
    examples = [(RNG.normal(0, 1, shape) * sizes).astype(np.float32)[None] for _ in range(64)]
    return running.exported(module, torch.from_numpy(examples[0])), examples


def together(model: onnx.ModelProto, examples: list[np.ndarray]) -> np.ndarray:
    """The first output of each example."""
    name = View.of(model).inputs[0]
    return np.concatenate([running.outputs(model, {name: one})[0] for one in examples])


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
@pytest.mark.parametrize("name", sorted(CASES))
def test_the_int8_network_gains_and_the_float_one_stays(name: str, dialect: str) -> None:
    model, examples = case(name)
    exact = together(model, examples)
    ranges = calibrate(model, examples, running.scheme(dialect))
    feature = View.of(model).inputs[0]
    if feature not in place(View.of(model), running.scheme(dialect)).scale_of:  # its first layer stays in float there
        assert name == "table" and feature not in ranges.equalise
        return
    assert len(ranges.equalise[feature]) == 8 and max(ranges.equalise[feature]) == 1.0
    same = equalised(model, ranges.equalise)
    assert [node.op_type for node in same.graph.node].count("Mul") == 1
    np.testing.assert_allclose(together(same, examples), exact, rtol=1e-4, atol=1e-5)

    without = apply(model, calibrate(model, examples, running.scheme(dialect), OFF), running.scheme(dialect))
    written = apply(model, ranges, running.scheme(dialect))
    quantised = {node.input[0] for node in written.graph.node if node.op_type == "QuantizeLinear"}
    assert f"{feature}.divided" in quantised and feature not in quantised
    if DIALECTS[dialect].float_type == "float32":
        gained = running.sqnr(exact, together(written, examples)) - running.sqnr(exact, together(without, examples))
        assert gained > 6


def test_what_the_runtimes_make_of_it() -> None:
    model, examples = case("sensors")
    exact, name = together(model, examples), View.of(model).inputs[0]
    for dialect, runs in (("ort-x86", running.optimised), ("openvino", running.openvino)):
        written = apply(model, calibrate(model, examples, running.scheme(dialect)), running.scheme(dialect))
        found = np.concatenate([runs(written, {name: one})[0].reshape(1, -1) for one in examples])
        assert running.sqnr(exact, found) > 25, dialect


def test_features_of_one_size_stay_as_they_are() -> None:
    model, examples = case("sensors")
    alike = [one / SIZES.reshape(1, -1, 1) for one in examples]
    assert feature_factors(model, DIALECTS["openvino"], alike, 64, {}) == {}
    assert rescaled(model, {}) is model


def test_a_first_layer_that_stays_in_float_reads_its_features_as_they_are() -> None:
    model, examples = case("sensors")
    first = next(node.name for node in model.graph.node if node.op_type == "Conv")
    assert feature_factors(model, DIALECTS["openvino"], examples, 64, {})
    assert feature_factors(model, DIALECTS["openvino"], examples, 64, {first: "float"}) == {}


def test_channels_that_no_layer_reads_one_by_one_have_no_factors() -> None:
    grouped = running.exported(running.seeded(lambda: nn.Conv1d(8, 8, 3, groups=8)), torch.zeros(1, 8, 24))
    assert inputs(View.of(grouped)) == []  # one channel each: the weight's own scale takes it up
    single = running.exported(running.seeded(lambda: nn.Conv2d(1, 8, 3)), torch.zeros(1, 1, 24, 8))
    assert inputs(View.of(single)) == []


class Twice(nn.Module):
    """One weight that reads the input and, later, something else; the input is added as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.relu(self.layer(x))) + self.other(x) + x


def test_others_read_the_input_and_a_shared_weight_as_they_were() -> None:
    model = running.exported(running.seeded(Twice), torch.zeros(1, 5, 8))
    name = View.of(model).inputs[0]
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    same = rescaled(model, {name: tuple(np.geomspace(1, 0.01, 8).tolist())})
    example = RNG.normal(0, 1, (1, 5, 8)).astype(np.float32)
    wanted, found = (running.outputs(each, {name: example})[0] for each in (model, same))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert any(name in node.input for node in same.graph.node if node.op_type in ("Add", "Sum"))
    for tensor in model.graph.initializer:  # nothing of what was given has changed
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), before[tensor.name])


def test_factors_of_another_graph_are_left_out() -> None:
    model, _ = case("sensors")
    assert rescaled(model, {"elsewhere": (1.0, 0.5), View.of(model).inputs[0]: (1.0, 0.5)}) is model
