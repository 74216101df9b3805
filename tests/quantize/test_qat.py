"""Quantisation-aware training: what is trained is what is exported, exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edgeprune.errors import GraphError
from edgeprune.quantize import apply, calibrate, dummy_ranges
from edgeprune.quantize.train.interpret import constants, interpret, rounded
from edgeprune.quantize.train.learnt_scales import LearntScales
from edgeprune.quantize.train.qat import Trainable, fine_tune
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import nets
from .test_apply import run, sqnr

NETS = {"residual": nets.residual, "inverted": nets.inverted, "plain": nets.plain}


def outputs(model: onnx.ModelProto, images: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return interpret(model, constants(model, dtype), {"input": torch.from_numpy(images).to(dtype)})[0]


@pytest.mark.parametrize("net", NETS)
def test_the_interpreter_computes_what_onnx_runtime_computes(net: str) -> None:
    model, images = NETS[net](), nets.images(4)
    assert sqnr(run(model, images), outputs(model, images).numpy()) > 100


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["openvino", "ort-x86", "ort-arm64", "tensorrt-a"])
@pytest.mark.parametrize("net", NETS)
def test_the_exported_graph_equals_what_was_trained_in_float64(net: str, dialect: str) -> None:
    model, images = NETS[net](), nets.images(8)
    student = Trainable(
        model,
        calibrate(model, images, DIALECTS[dialect]),
        DIALECTS[dialect],
        {"head": "float"} if net != "plain" else None,
    )
    before = {name: value.detach().clone() for name, value in student.trained.items()}
    optimiser = torch.optim.SGD(student.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        student(torch.from_numpy(images)).square().mean().backward()
        optimiser.step()
    assert all(not torch.equal(before[name], value) for name, value in student.trained.items())
    exported = apply(*student.to_onnx(), DIALECTS[dialect])
    trained = student.double()(torch.from_numpy(images).double())
    assert (outputs(exported, images) - trained).abs().max() == 0
    step = float(trained.detach().abs().max()) / 127
    assert np.abs(run(exported, images, optimise=False) - trained.detach().numpy()).max() < 3 * step


@pytest.mark.long
def test_fine_tuning_wins_back_what_int8_lost_and_repeats_itself() -> None:
    model, images = nets.residual(), nets.images(32)
    dialect = DIALECTS["openvino"]
    crude = QuantizeSection(method="moving-average", equalize=False, bias_correction=False)
    ranges = calibrate(model, images, dialect, crude)

    def data() -> list[np.ndarray]:
        return [images[:16], images[16:]]

    losses: list[float] = []
    tuned = [
        apply(*fine_tune(model, ranges, dialect, data, 15, lr=1e-3, on_step=lambda _, v: losses.append(v)), dialect)
        for _ in range(2)
    ]
    assert len(losses) == 60 and np.mean(losses[24:30]) < np.mean(losses[:6])
    assert tuned[0].SerializeToString(deterministic=True) == tuned[1].SerializeToString(deterministic=True)


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["openvino", "ort-x86", "ort-arm64", "tensorrt-a", "tensorrt-b"])
def test_scales_learn_and_the_exported_graph_has_them(dialect: str) -> None:
    """Ranges ten times too wide: trained scales shrink, and what is written computes what was trained."""
    model, images, chosen = nets.residual(), nets.images(16), DIALECTS[dialect]
    ranges = calibrate(model, images, chosen)
    wide = {name: replace(one, low=10 * one.low, high=10 * one.high) for name, one in ranges.tensors.items()}
    student = Trainable(model, replace(ranges, tensors=wide), chosen, {"head": "float"}, steps=True)
    assert student.steps is not None and student.steps.groups and student.steps.largest == 1
    optimiser = torch.optim.Adam([student.steps.logs], lr=0.1)
    batch = torch.from_numpy(images)
    wanted = interpret(model, constants(model, torch.float32), {"input": batch})[0]
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = (student(batch) - wanted).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0], losses
    assert float(student.steps.logs.detach().mean()) < -0.5 and student.steps.largest > 2
    exported = apply(*student.to_onnx(), chosen)
    trained = student.double()(batch.double()).detach()
    apart = (outputs(exported, images) - trained).abs().max()
    assert apart <= float(trained.abs().max()) / 127  # the last bit of a scale may turn a tie


@pytest.mark.long
def test_scales_in_half_precision_learn_as_others_do_and_stated_ranges_stay() -> None:
    model, images = nets.residual(), nets.images(16)
    ranges = calibrate(model, images, DIALECTS["tensorrt-a"])
    learn = {}
    for name in ("tensorrt-a", "tensorrt-b"):
        student = Trainable(model, ranges, DIALECTS[name], steps=True)
        assert student.steps is not None
        learn[name] = {one for group in student.steps.groups for one in group}
    assert len(learn["tensorrt-a"]) > 2 and learn["tensorrt-a"] == learn["tensorrt-b"]
    stated = sorted(learn["tensorrt-a"])[0]
    tensors = {**ranges.tensors, stated: replace(ranges.tensors[stated], method="user", high=3.0, low=-3.0)}
    student = Trainable(model, replace(ranges, tensors=tensors), DIALECTS["tensorrt-a"], steps=True)
    assert student.steps is not None
    assert {one for group in student.steps.groups for one in group} == learn["tensorrt-a"] - {stated}


@pytest.mark.long
def test_the_gradient_of_a_scale_is_that_of_lsq() -> None:
    """Inside: round(x/s) - x/s; outside: the limit; arXiv:1902.08153, equation 3."""
    x, scale = torch.tensor([-300.0, -1.3, 0.2, 0.6, 300.0]), torch.tensor(0.5, requires_grad=True)
    rounded(x, scale, 127, torch.float32).sum().backward()
    inside = x[1:4] / 0.5
    assert scale.grad == pytest.approx(float((inside.round() - inside).sum() - 127 + 127), abs=1e-5)
    each = torch.tensor([0.5, 0.25], requires_grad=True)
    rounded(torch.tensor([[0.6], [300.0]]), each.reshape(2, 1), 127, torch.float32).sum().backward()
    assert each.grad is not None and each.grad.tolist() == pytest.approx([1 - 1.2, 127.0], abs=1e-5)


def test_a_scale_that_its_range_does_not_set_does_not_learn() -> None:
    """And neither do those that are tied to it."""
    model = nets.residual()
    dummy = dummy_ranges(model)
    ranges = replace(dummy, tensors={name: replace(one, low=-1.0, high=1.0) for name, one in dummy.tensors.items()})
    names = sorted(ranges.tensors)

    def stubborn(given: Any) -> onnx.ModelProto:
        graph = onnx.ModelProto()
        for name, one in given.tensors.items():
            high = ranges.tensors[name].high if name == names[0] else one.high
            scale = np.float32((1 if name in names[:2] else 2) * high)
            graph.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(scale), f"{name}.scale"))
        return graph

    steps = LearntScales(stubborn(ranges), ranges, stubborn)
    assert [set(group) for group in steps.groups] == [set(names[2:])]
    with torch.no_grad():
        steps.logs.fill_(np.log(2.0))
    learnt = steps.learnt().tensors
    assert learnt[names[0]] == ranges.tensors[names[0]] and learnt[names[1]] == ranges.tensors[names[1]]
    assert learnt[names[2]].high == pytest.approx(2 * ranges.tensors[names[2]].high)


def test_an_operator_that_cannot_be_trained_is_named() -> None:
    net = nets.Net()
    x = net.node("Hardmax", net.relu(net.conv("input", "a", 3, 8)), name="odd")
    model = net.model(net.conv(x, "b", 8, 8))
    student = Trainable(model, dummy_ranges(model), DIALECTS["openvino"])
    with pytest.raises(GraphError, match="'odd' is a Hardmax"):
        student(torch.zeros(1, 3, 16, 16))
