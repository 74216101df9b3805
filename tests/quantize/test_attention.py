"""Attention in INT8 for OpenVINO: the products of queries, keys, softmax and values, as exporters write them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.quantize import Ranges, View, apply, calibrate, dummy_ranges, lint
from edgeprune.quantize.write.placement import place
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import running

OPENVINO = DIALECTS["openvino"]
FAST = QuantizeSection(method="minmax", equalize=False, bias_correction=False)
HEADS, TOKENS, WIDTH = 3, 20, 48
ITEMS = np.random.default_rng(0).normal(size=(8, TOKENS, WIDTH)).astype(np.float32)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def scored(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * 0.25).softmax(-1) @ v


def scaled_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * 0.25) @ k.transpose(-2, -1)).softmax(-1) @ v


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.triu(torch.full((TOKENS, TOKENS), -1e9), 1)
    return (q @ k.transpose(-2, -1) / 4 + mask).softmax(-1) @ v


def torchs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """One layer; `fused`: queries, keys and values come from one linear layer."""

    def __init__(self, attend: Attend, fused: str = "") -> None:
        super().__init__()
        self.attend, self.fused = attend, fused
        self.norm, self.o = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.qkv = nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH)] if fused else [nn.Linear(WIDTH, WIDTH) for _ in "qkv"])

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.fused == "unbind":
            q, k, v = self.qkv[0](y).reshape(1, TOKENS, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = self.qkv[0](y).chunk(3, -1) if self.fused else [layer(y) for layer in self.qkv]
            q, k, v = (part.view(1, TOKENS, HEADS, -1).transpose(1, 2) for part in parts)
        a = self.attend(q, k, v).transpose(1, 2).reshape(1, TOKENS, WIDTH)
        return x + self.o(a)


KINDS: dict[str, tuple[Attend, str]] = {
    "scored": (scored, ""),
    "queries": (scaled_queries, ""),
    "masked": (masked, ""),
    "torch's": (torchs, ""),
    "fused": (torchs, "unbind"),
    "chunks": (scored, "chunk"),
}


@cache
def exported(kind: str) -> onnx.ModelProto:
    return running.exported(running.seeded(lambda: Attention(*KINDS[kind])), torch.zeros(1, TOKENS, WIDTH))


def products(model: onnx.ModelProto, dialect: str = "openvino", **precision: str) -> list[str]:
    named = {name.replace("_", "."): kind for name, kind in precision.items()}
    return [n for n, role in place(View.of(model), DIALECTS[dialect], named).nodes.items() if role == "product"]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_both_products_run_in_int8_close_to_float(kind: str) -> None:
    model = exported(kind)
    assert len(products(model)) == 2
    graph = apply(model, calibrate(model, [ITEMS], OPENVINO, FAST), OPENVINO)
    assert [str(finding) for finding in lint(graph, OPENVINO)] == []
    exact, got = (np.concatenate([running.outputs(m, {"input": i[None]})[0] for i in ITEMS]) for m in (model, graph))
    assert running.sqnr(exact, got) > 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_openvino_keeps_one_kernel_that_multiplies_bytes(kind: str) -> None:
    pytest.importorskip("openvino")
    graph = apply(exported(kind), dummy_ranges(exported(kind)), OPENVINO)
    found = running.openvino_kernels(graph, {"input": ITEMS[:1]})
    if not any("512" in kernel.implementation for kernel in found):
        pytest.skip("this CPU has no AVX-512: the kernel was seen there")
    kinds = [(kernel.kind, kernel.implementation) for kernel in found]
    assert not {"MatMul", "Softmax"} & {name for name, _ in kinds}, kinds
    assert any(name == "Subgraph" and "i8" in how.lower() for name, how in kinds), kinds


def test_queries_keys_and_values_have_zero_point_zero() -> None:
    graph = apply(exported("scored"), dummy_ranges(exported("scored")), OPENVINO)
    zeros = [View.of(graph).constant(f"{tensor}.zero") for tensor in place(View.of(exported("scored")), OPENVINO).even]
    assert sorted((str(zero.dtype), int(zero)) for zero in zeros if zero is not None) == [
        *[("int8", 0)] * 3,
        ("uint8", 0),
    ]


def test_a_fused_layer_is_quantised_once_before_its_parts() -> None:
    graph = apply(exported("fused"), dummy_ranges(exported("fused")), OPENVINO)
    assert sum(node.op_type == "QuantizeLinear" for node in graph.graph.node) == 4  # input, fused, softmax, result


@pytest.mark.parametrize("dialect", ["openvino-avx2", "ort-x86", "ort-arm64", "tensorrt-a", "tensorrt-b"])
def test_other_dialects_leave_attention_in_float(dialect: str) -> None:
    assert products(exported("scored"), dialect) == []


def test_attention_of_a_layer_in_float_is_float() -> None:
    assert products(exported("scored"), qkv_1="float") == []
    assert len(products(exported("scored"), o="float")) == 2


def test_what_others_read_as_well_keeps_its_grid() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported("scored"))
    view = View.of(model)
    second = next(node for node in view.nodes if node.name == products(model)[1])
    model.graph.output.append(onnx.ValueInfoProto(name=second.input[1]))
    assert products(model) == []


def test_a_zero_point_before_a_product_is_found() -> None:
    graph = apply(exported("scored"), dummy_ranges(exported("scored")), OPENVINO)
    second = products(exported("scored"))[1]
    value = next(n for n in graph.graph.node if n.name == second).input[1]
    view = View.of(graph)
    while view.producer[value].op_type != "DequantizeLinear":
        value = view.producer[value].input[0]
    zero = next(t for t in graph.graph.initializer if t.name == view.producer[value].input[2])
    zero.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), zero.name))
    assert [(finding.node, finding.rule) for finding in lint(graph, OPENVINO)] == [(second, "product-zero-point")]


@pytest.mark.long
def test_ranges_are_kept_and_choose_among_parts() -> None:
    model = exported("masked")
    ranges = calibrate(model, [ITEMS], OPENVINO)
    again = Ranges.from_dict(ranges.to_dict())
    assert apply(model, again, OPENVINO) == apply(model, ranges, OPENVINO)
    placed = place(View.of(model), OPENVINO)
    assert len(placed.even) == 4 and all(ranges.tensors[tensor].candidates for tensor in placed.even)
