"""The role of each operator, by the runtimes' own profilers: what runs in INT8, and that our own graphs lint clean."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeprune.quantize import apply, calibrate, dummy_ranges, inference_session, lint
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import running

IMAGES = np.random.default_rng(0).random((8, 3, 16, 16), np.float32)
FAST = QuantizeSection(method="minmax", equalize=False, bias_correction=False)


class Between(nn.Module):
    """An operator between two convolutions, and a convolution behind."""

    def __init__(self, middle: nn.Module, channels: int = 16) -> None:
        super().__init__()
        self.a, self.middle, self.b = nn.Conv2d(3, 16, 3, padding=1), middle, nn.Conv2d(channels, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.middle(self.a(x))).mean((2, 3))


class Shuffle(nn.Module):
    """Half of the channels pass a layer, both halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, y = x.chunk(2, 1)
        x = torch.cat([kept, torch.relu(self.layer(y))], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Even(nn.Module):
    """Every other channel, by Gather, beside the others' layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        x = x.view(n, c // 2, 2, h, w)
        return torch.cat([x[:, :, 0], torch.relu(self.layer(x[:, :, 1]))], 1)


class Crop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 2:-2, 2:-2]


MIDDLES = {
    "shuffle": (Shuffle, 16),
    "even": (Even, 16),
    "crop": (Crop, 16),
    "nearest": (lambda: nn.Upsample(scale_factor=2), 16),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), 16),
    "leaky": (lambda: nn.LeakyReLU(0.1), 16),
    "prelu": (lambda: nn.PReLU(16), 16),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), 4),
    "silu": (nn.SiLU, 16),
    "hardswish": (nn.Hardswish, 16),
    "gelu": (nn.GELU, 16),
    "transpose": (lambda: nn.ConvTranspose2d(16, 16, 2, 2), 16),
    "norm": (lambda: nn.InstanceNorm2d(16, affine=True), 16),
    "softmax": (lambda: nn.Softmax(1), 16),
}
INTEGER = ("shuffle", "even", "crop", "nearest", "leaky", "pixel shuffle", "silu", "softmax")
"""Networks that ONNX Runtime runs in INT8 from end to end: one quantising kernel, no float arithmetic."""


@cache
def between(middle: str) -> onnx.ModelProto:
    build, channels = MIDDLES[middle]
    return running.exported(running.seeded(lambda: Between(build(), channels)), torch.zeros(1, 3, 16, 16))


@cache
def quantised(middle: str, dialect: str) -> onnx.ModelProto:
    model, chosen = between(middle), DIALECTS[dialect]
    return apply(model, calibrate(model, [IMAGES], chosen, FAST), chosen)


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["openvino", "ort-x86"])
@pytest.mark.parametrize("middle", MIDDLES)
def test_our_own_graphs_lint_clean_and_are_close_to_float(middle: str, dialect: str) -> None:
    found = quantised(middle, dialect)
    assert [str(finding) for finding in lint(found, DIALECTS[dialect])] == []
    exact, got = (
        np.concatenate([running.outputs(m, {"input": i[None]})[0] for i in IMAGES]) for m in (between(middle), found)
    )
    assert running.sqnr(exact, got) > 22


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["ort-arm64", "tensorrt-a", "tensorrt-b"])
@pytest.mark.parametrize("middle", MIDDLES)
def test_graphs_for_the_other_runtimes_lint_clean(middle: str, dialect: str) -> None:
    found = apply(between(middle), dummy_ranges(between(middle)), DIALECTS[dialect])
    assert [str(finding) for finding in lint(found, DIALECTS[dialect])] == []
    inference_session(found)


@pytest.mark.parametrize("middle", INTEGER)
def test_onnx_runtime_runs_it_in_int8_from_end_to_end(middle: str) -> None:
    found = quantised(middle, "ort-x86")
    kernels = running.kernels(found, {"input": IMAGES[:1]})
    assert kernels["QuantizeLinear"] == 1 and kernels["DequantizeLinear"] == 1, kernels
    assert not {"Conv", "Concat", "LeakyRelu", "Softmax", "Sigmoid", "Mul", "Relu"} & set(kernels), kernels


@pytest.mark.long
def test_softmax_is_float_before_an_operator_of_float() -> None:
    """Its INT8 kernel is slower; between two INT8 layers ONNX Runtime takes it by itself."""
    model = running.exported(
        running.seeded(lambda: Between(nn.Sequential(nn.Softmax(1), nn.Tanh()), 16)), torch.zeros(1, 3, 16, 16)
    )
    kernels = running.kernels(apply(model, dummy_ranges(model), DIALECTS["ort-x86"]), {"input": IMAGES[:1]})
    assert kernels["Softmax"] == 1 and "QLinearSoftmax" not in kernels, kernels


@pytest.mark.parametrize("middle", ["shuffle", "even", "crop", "nearest", "pixel shuffle"])
def test_openvino_moves_bytes(middle: str) -> None:
    pytest.importorskip("openvino")
    found = quantised(middle, "openvino")
    moving = ("Split", "VariadicSplit", "Gather", "StridedSlice", "Slice", "Interpolate", "DepthToSpace", "Concat")
    kernels = running.openvino_kernels(found, {"input": IMAGES[:1]})
    kinds = {kernel.kind: kernel.implementation for kernel in kernels if kernel.kind in (*moving, "Convolution")}
    assert "Convolution" in kinds and all("i8" in kind.lower() for kind in kinds.values()), kinds


class Pooled(nn.Module):
    """A MaxPool behind a rectified convolution, that several nodes read: the start of ResNet, ShuffleNet and others."""

    def __init__(self, readers: str) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1)
        self.a, self.b, self.readers = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), readers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        match self.readers:
            case "layers":
                x = torch.relu(self.a(x) + self.b(x))
            case "sum":
                x = torch.relu(x + self.a(x))
            case "moved":
                x = torch.relu(self.a(nn.functional.interpolate(x, scale_factor=2))[:, :, ::2, ::2] + self.b(x))
            case "float":
                x = self.a(x) * torch.tanh(x)
        return self.b(x)


@pytest.mark.parametrize("readers", ["layers", "sum", "moved"])
def test_openvino_pools_bytes_that_several_layers_read(readers: str) -> None:
    pytest.importorskip("openvino")
    model = running.exported(running.seeded(lambda: Pooled(readers)), torch.zeros(1, 3, 16, 16))
    found = apply(model, calibrate(model, [IMAGES], DIALECTS["openvino"], FAST), DIALECTS["openvino"])
    kernels = running.openvino_kernels(found, {"input": IMAGES[:1]})
    kinds = [k.implementation for k in kernels if "Pool" in k.kind or k.kind in ("Pooling", "Convolution")]
    assert len(kinds) >= 4 and all("i8" in kind.lower() for kind in kinds), kinds
    exact, got = (np.concatenate([running.outputs(m, {"input": i[None]})[0] for i in IMAGES]) for m in (model, found))
    assert running.sqnr(exact, got) > 22


def test_a_reader_in_float_reads_what_was_not_rounded() -> None:
    """The pair stays behind the MaxPool, where only the layer reads it."""
    model = running.exported(running.seeded(lambda: Pooled("float")), torch.zeros(1, 3, 16, 16))
    found = apply(model, dummy_ranges(model), DIALECTS["openvino"])
    maker = {name: node for node in found.graph.node for name in node.output}
    (pool,) = (node for node in found.graph.node if node.op_type == "MaxPool")
    (tanh,) = (node for node in found.graph.node if node.op_type == "Tanh")
    assert maker[pool.input[0]].op_type == "Relu" and maker[tanh.input[0]] == pool


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("readers", ["layers", "sum", "moved", "float"])
def test_any_layer_may_stay_in_float_with_the_ranges_of_all(readers: str, dialect: str) -> None:
    """Red before: beside a layer in float the pair went where no range had been found: behind a MaxPool that others
    read too (OpenVINO), at the branch of a sum that another one is fused with (TensorRT).
    """
    model = running.exported(running.seeded(lambda: Pooled(readers)), torch.zeros(1, 3, 16, 16))
    ranges = calibrate(model, [IMAGES], DIALECTS[dialect], FAST)
    exact = np.concatenate([running.outputs(model, {"input": i[None]})[0] for i in IMAGES])
    layers = [node.name for node in model.graph.node if node.op_type == "Conv"]
    for kept in [[one] for one in layers] + [[one, other] for one in layers for other in layers if one < other]:
        found = apply(model, ranges, DIALECTS[dialect], dict.fromkeys(kept, "float"))
        got = np.concatenate([running.outputs(found, {"input": i[None]})[0] for i in IMAGES])
        assert running.sqnr(exact, got) > 22, kept


@pytest.mark.long
def test_what_only_goes_out_is_not_cut_off_and_not_joined_in_one_scale() -> None:
    """A detector's head: few cells of an output are large, and they are what counts."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.score, self.box = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 2, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem(x))
            return torch.cat([self.score(x).sigmoid(), 20 * self.box(x)], 1)

    model, dialect = running.exported(running.seeded(Detector), torch.zeros(1, 3, 16, 16)), DIALECTS["ort-x86"]
    images = IMAGES.copy()
    images[0, :, :3, :3] = 12  # one bright corner
    ranges = calibrate(model, [images], dialect)
    for layer in ("score", "box"):
        (node,) = (one for one in model.graph.node if one.name == layer)
        entry = ranges.tensors[node.output[0]]
        assert entry.low <= min(entry.minimum, 0.0) and entry.high >= max(entry.maximum, 0.0)
    found = apply(model, ranges, dialect)
    assert not lint(found, dialect)
    exact, got = (np.concatenate([running.outputs(m, {"input": i[None]})[0] for i in images]) for m in (model, found))
    assert np.abs(exact[:, :2] - got[:, :2]).max() < 0.06  # scores keep a scale of their own
