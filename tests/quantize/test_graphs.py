"""Graphs of the usual kinds with random weights, in every dialect: a ViT, a speech encoder, a U-Net, a CRNN.

Lint, signal to noise, and the runtimes' own profilers: every layer that was meant to runs in INT8.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.quantize import View, apply, calibrate, lint
from edgeprune.quantize.check.kernels import in_float, intended
from edgeprune.quantize.write.placement import place
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import running

FAST = QuantizeSection(method="minmax", equalize=False, bias_correction=False)
DIALECT_NAMES = ("openvino", "openvino-avx2", "ort-x86", "ort-x86-avx2", "ort-arm64", "tensorrt-a", "tensorrt-b")
LEAST_DB = 22.0


class Layer(nn.Module):
    """A pre-norm layer of a transformer; `fused`: one linear layer for queries, keys and values (a ViT)."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.n1, self.n2, self.o = nn.LayerNorm(width), nn.LayerNorm(width), nn.Linear(width, width)
        self.qkv = nn.Linear(width, 3 * width) if fused else nn.Identity()
        self.q, self.k, self.v = (nn.Linear(width, width, bias) for bias in (True, False, True))
        self.f1, self.f2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        y = self.n1(x)
        if self.fused:
            q, k, v = self.qkv(y).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (f(y).view(b, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.o(a.transpose(1, 2).reshape(b, n, c))
        return x + self.f2(functional.gelu(self.f1(self.n2(x))))


class DeiT(nn.Module):
    """Patches, a class token, positions, two layers, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 48, 8, 8), nn.LayerNorm(48), nn.Linear(48, 10)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 48)), nn.Parameter(0.5 * torch.randn(1, 17, 48))
        self.layers = nn.Sequential(Layer(48, 3, True), Layer(48, 3, True))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token, self.patches(x).flatten(2).transpose(1, 2)], 1) + self.places
        return self.head(self.norm(self.layers(x))[:, 0])


class Whisper(nn.Module):
    """An encoder of speech: two convolutions over time, positions, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(20, 48, 3, padding=1), nn.Conv1d(48, 48, 3, 2, 1)
        self.places, self.norm = nn.Parameter(0.5 * torch.randn(1, 16, 48)), nn.LayerNorm(48)
        self.layers = nn.Sequential(Layer(48, 3, False), Layer(48, 3, False))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.b(functional.gelu(self.a(x)))).transpose(1, 2)
        return self.norm(self.layers(x + self.places))


def twice(c_in: int, c_out: int) -> nn.Sequential:
    first, second = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


class UNet(nn.Module):
    """Down twice, up once by a transposed convolution and once by its neighbours, skips joined."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = twice(3, 16), twice(16, 32), twice(32, 64)
        self.up, self.d, self.e, self.last = (
            nn.ConvTranspose2d(64, 32, 2, 2),
            twice(64, 32),
            twice(48, 16),
            nn.Conv2d(16, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(functional.max_pool2d(a, 2))
        c = self.c(functional.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up(c), b], 1))
        return self.last(self.e(torch.cat([functional.interpolate(d, scale_factor=2), a], 1)))


class CRNN(nn.Module):
    """Text on a line: convolutions, columns as steps of an LSTM both ways, classes a step."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(twice(3, 16), nn.MaxPool2d(2), twice(16, 32), nn.MaxPool2d((8, 1)))
        self.steps, self.head = nn.LSTM(64, 32, bidirectional=True, batch_first=True), nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(self.steps(x.permute(0, 3, 1, 2).flatten(2))[0])


NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "DeiT": (DeiT, (3, 32, 32)),
    "Whisper": (Whisper, (20, 32)),
    "U-Net": (UNet, (3, 32, 32)),
    "CRNN": (CRNN, (3, 32, 32)),
}

FLOATS = {("U-Net", "ort"): {"up"}, ("U-Net", "tensorrt"): {"up"}, ("DeiT", "tensorrt"): {"head"}}
"""Layers that a dialect leaves in float: transposed convolutions, and Gemm in TensorRT."""


def items(network: str) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 1, *NETWORKS[network][1])).astype(np.float32)


@cache
def exported(network: str) -> onnx.ModelProto:
    build, shape = NETWORKS[network]
    return running.exported(running.seeded(build), torch.zeros(1, *shape))


@cache
def quantised(network: str, dialect: str) -> onnx.ModelProto:
    chosen = DIALECTS[dialect]
    return apply(exported(network), calibrate(exported(network), list(items(network)), chosen, FAST), chosen)


@pytest.mark.long
@pytest.mark.parametrize("dialect", DIALECT_NAMES)
@pytest.mark.parametrize("network", NETWORKS)
def test_it_lints_clean_and_is_close_to_float(network: str, dialect: str) -> None:
    graph = quantised(network, dialect)
    assert [str(finding) for finding in lint(graph, DIALECTS[dialect])] == []
    view = View.of(exported(network))
    meant = [name for name, role in place(view, DIALECTS[dialect]).nodes.items() if role == "compute"]
    assert set(view.layers) - set(meant) == FLOATS.get((network, dialect.split("-")[0]), set())
    pairs = [[running.outputs(m, {"input": x})[0] for m in (exported(network), graph)] for x in items(network)]
    exact, got = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    assert running.sqnr(exact, got) > LEAST_DB


@pytest.mark.long
@pytest.mark.parametrize("network", NETWORKS)
def test_openvino_runs_every_layer_in_int8(network: str) -> None:
    pytest.importorskip("openvino")
    graph, dialect = quantised(network, "openvino"), DIALECTS["openvino"]
    found = running.openvino_kernels(graph, {"input": items(network)[0]})
    assert [str(finding) for finding in in_float(graph, found, dialect)] == []
    if network in ("DeiT", "Whisper") and any("512" in kernel.implementation for kernel in found):
        assert sum("i8" in k.implementation.lower() for k in found if k.kind == "Subgraph") >= 2, found


@pytest.mark.long
@pytest.mark.parametrize("network", NETWORKS)
def test_onnx_runtime_runs_every_layer_in_int8(network: str) -> None:
    graph = quantised(network, "ort-x86")
    ran = running.kernels(graph, {"input": items(network)[0]})
    integer = Counter(
        {k: n for k, n in ran.items() if k.startswith(("QLinearConv", "QLinearMatMul", "MatMulInteger", "QGemm"))}
    )
    assert integer.total() == len(list(intended(View.of(graph)))), ran
    assert ran["Conv"] + ran["FusedConv"] + ran["Gemm"] == 0, ran
