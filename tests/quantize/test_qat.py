"""Quantisation-aware training: what is trained is what is exported, exactly."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from edgeprune.errors import GraphError
from edgeprune.quantize import apply, calibrate, dummy_ranges
from edgeprune.quantize.train.interpret import constants, interpret
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


def test_an_operator_that_cannot_be_trained_is_named() -> None:
    net = nets.Net()
    x = net.node("Hardmax", net.relu(net.conv("input", "a", 3, 8)), name="odd")
    model = net.model(net.conv(x, "b", 8, 8))
    student = Trainable(model, dummy_ranges(model), DIALECTS["openvino"])
    with pytest.raises(GraphError, match="'odd' is a Hardmax"):
        student(torch.zeros(1, 3, 16, 16))
