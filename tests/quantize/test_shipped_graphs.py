"""Graphs that the networks people ship brought: a recurrent state, a linear layer behind which ones come."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeprune.errors import DataError, GraphError
from edgeprune.quantize import apply, calibrate
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import running

QUICK = QuantizeSection(method="minmax", equalize=False)


class Recurrent(nn.Module):
    """A voice detector's shape: a window and a state of two layers in, a score and a state out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 16), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.a(x)) + state.sum(0)
        return self.b(y), torch.stack([y, y])


def items(batch: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(batch, 32)).astype(np.float32), rng.normal(size=(2, batch, 16)).astype(np.float32))
        for _ in range(6)
    ]


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["openvino", "ort-x86"])
def test_a_state_that_does_not_lead_with_the_batch_is_given_whole(dialect: str) -> None:
    model = running.exported(running.seeded(Recurrent), tuple(torch.from_numpy(v) for v in items()[0]))
    ranges = calibrate(model, items(), DIALECTS[dialect], QUICK)
    first = model.graph.input[0].name
    high = max(float(x.max()) for x, _ in items())
    assert ranges.images == 6 and ranges.tensors[first].high == pytest.approx(high)
    small = apply(model, ranges, DIALECTS[dialect])
    feeds = dict(zip((i.name for i in model.graph.input), items()[1], strict=True))
    for want, got in zip(running.outputs(model, feeds), running.outputs(small, feeds), strict=True):
        assert running.sqnr(want, got) > 25
    with pytest.raises(DataError, match=r"shape \[3, 1, 16\], but the network reads \[2, 1, 16\]"):
        calibrate(model, [(items()[0][0], np.zeros((3, 1, 16), np.float32))], DIALECTS[dialect], QUICK)


@pytest.mark.long
def test_a_state_beside_a_batch_of_several_is_refused() -> None:
    model = running.exported(running.seeded(Recurrent), tuple(torch.from_numpy(v) for v in items(4)[0]))
    with pytest.raises(GraphError, match="does not lead with the batch of 4"):
        calibrate(model, items(4), DIALECTS["openvino"], QUICK)


class OnesBehind(nn.Module):
    """OpenVINO throws where the scales of a MatMul without a bias pass a reshape to [..., 1]: FNet before its FFT."""

    def __init__(self, bias: bool, zeros: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(48, 32, bias=bias), nn.Linear(32, 8)
        if zeros:
            nn.init.zeros_(self.a.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).unsqueeze(-1)
        return self.b(torch.cat([y, torch.sin(y)], -1).sum(-1))


@pytest.mark.long
@pytest.mark.parametrize(("bias", "zeros", "layers"), [(False, False, 1), (True, True, 1), (True, False, 2)])
def test_ones_behind_a_linear_layer_compile_in_openvino(bias: bool, zeros: bool, layers: int) -> None:
    model = running.exported(running.seeded(lambda: OnesBehind(bias, zeros)), torch.zeros(1, 16, 48))
    tokens = np.random.default_rng(0).normal(size=(8, 16, 48)).astype(np.float32)
    small = apply(model, calibrate(model, [tokens], DIALECTS["openvino"], QUICK), DIALECTS["openvino"])
    feeds = {"input": tokens[:1]}
    assert running.openvino_kernels(small, feeds)  # it compiles
    weights = [t for t in small.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2]
    assert len(weights) == layers
    assert running.sqnr(running.outputs(model, feeds)[0], running.outputs(small, feeds)[0]) > 25


class Positions(nn.Module):
    """A matrix of relative positions for each head, constant when the network is exported: DeBERTa."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(48, 48), nn.Linear(3 * 32, 8)
        self.register_buffer("positions", torch.randn(1, 3, 16, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.a(x).view(1, -1, 3, 16).transpose(1, 2)
        return self.b((heads @ self.positions).transpose(1, 2).reshape(1, -1, 3 * 32))


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["ort-x86", "ort-x86-avx2"])
def test_a_weight_of_several_matrices_runs_in_onnx_runtime(dialect: str) -> None:
    model = running.exported(running.seeded(Positions), torch.zeros(1, 16, 48))
    tokens = np.random.default_rng(0).normal(size=(8, 16, 48)).astype(np.float32)
    scheme = running.scheme(dialect)
    small = apply(model, calibrate(model, [tokens], scheme, QUICK), scheme)
    feeds = {"input": tokens[:1]}
    assert running.sqnr(running.outputs(model, feeds)[0], running.optimised(small, feeds)[0]) > 25
