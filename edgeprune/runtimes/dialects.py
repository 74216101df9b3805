"""A Q/DQ scheme, as data: what `quantize.apply` emits and what `quantize.lint` accepts; each runtime has its own.

A dialect says, for every ONNX operator that may run in INT8, how it takes part (its role), and how scales, zero points,
weights and biases are written. An operator without a role stays in float. Which placement a dialect asks for was chosen
by measuring the alternatives on the runtime itself (figures in docs/int8.md), never by documentation alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Role = Literal["compute", "sum", "own", "share", "join", "product"]
# compute: has weights; its data input is quantised, its weights too (Conv, Gemm, ...)
# sum:     element-wise with several data inputs; which of them are quantised is the dialect's `residual`
# own:     one data input, quantised; the output has a scale of its own (average pooling, sigmoid)
# share:   moves or selects values: every output has the input's scale (max pooling, reshape, split, nearest resize)
# join:    Concat: all inputs and the output share one scale
# product: of two activations, in attention (`products`); both are quantised, around zero point 0

Signed = Literal["asymmetric", "symmetric"]


@dataclass(frozen=True)
class Dialect:
    """One runtime's Q/DQ scheme.

    Attributes:
        name: the key in DIALECTS and in a target's profile.
        runtime: whose it is, as profiles name it.
        title: for people.
        roles: operator -> its role; operators that are absent stay in float.
        unsigned: tensors that are never negative become uint8 with zero point 0; otherwise they are int8.
        signed: tensors with both signs: "asymmetric" (full range, any zero point; uint8 when `unsigned`, else int8) or
            "symmetric" (int8, zero point 0).
        zero_based: a never-negative int8 tensor gets zero point -128 (full range) rather than 0.
        per_channel: weights have one scale an output channel; always symmetric int8.
        store_float: weights are stored as float and go through Q then DQ (TensorRT 8 refuses INT8 initialisers).
        weight_levels: levels on each side of zero: 127, or 63 where 16-bit accumulation saturates.
        bias: "int32" with scale input * weight and a DQ of its own, or "float".
        outputs: outputs of INT8 nodes are quantised as well, as node units need (ONNX Runtime).
        residual: inputs of a "sum" that are quantised: "all", "skip" (all but the branch that ends in a layer), "none".
        depthwise: depthwise convolutions run in INT8.
        narrow: 1x1 convolutions with fewer input channels than this stay in float.
        float_type: element type of everything that is not quantised.
        strict: the runtime refuses what others only run slower: a bias with a DQ of its own, asymmetric weights.
        interpolates: a Resize that computes new values has an INT8 kernel.
        fuses_matmul: MatMul and the Add of a bias become one float Gemm before INT8 kernels are looked for.
        fuses_attention: products of two activations with the softmax between them are one kernel.
        products: where queries, keys and values have zero point 0, that kernel multiplies bytes.
        even_transposed: a ConvTranspose multiplies bytes only where its data has zero point 0.
        appends_ones: the scales of a MatMul's outputs pass a reshape to the same shape with ones behind it.
        stacks: the INT8 kernel of a MatMul takes a weight of several matrices.
        scales_gemm: the INT8 kernel of a Gemm has alpha and beta.
        weights_alone: how weights that alone are integers, of linear layers, are written: "pair", as a DQ of blocks
            that the runtime fuses, or "operator", as its own MatMulNBits; empty: it has no kernel.
        slow_norms: an Add of two tensors and the LayerNormalization behind it become one kernel, slower than the two.
        slow_pools: an AveragePool of bytes takes several times as long as the depthwise convolution that is the same.
        tables: rows of an embedding are gathered as bytes and dequantised.
        without_vnni: the scheme for x86 CPUs that sum products of 8 bits in 16, where this one would saturate.
        why_uint8: what is wrong with uint8 activations, where they are never written.
        why_int8: what is slow about int8 activations, where they are not the rule; empty: nothing.
        since: the runtime's version from which on this scheme is the one to open; empty: any.
        opset, opset_max: the ai.onnx opset that is written (a lower one is raised), and the highest accepted.
    """

    name: str
    runtime: str
    title: str
    roles: Mapping[str, Role]
    unsigned: bool
    signed: Signed
    zero_based: bool = False
    per_channel: bool = True
    store_float: bool = False
    weight_levels: int = 127
    bias: Literal["float", "int32"] = "float"
    outputs: bool = False
    residual: Literal["all", "skip", "none"] = "all"
    depthwise: bool = True
    narrow: int = 0
    float_type: Literal["float32", "float16"] = "float32"
    strict: bool = False
    interpolates: bool = False
    fuses_matmul: bool = False
    fuses_attention: bool = False
    products: bool = False
    even_transposed: bool = False
    appends_ones: bool = True
    stacks: bool = True
    scales_gemm: bool = True
    weights_alone: Literal["", "pair", "operator"] = ""
    slow_norms: bool = False
    slow_pools: bool = False
    tables: bool = False
    without_vnni: str = ""
    why_uint8: str = ""
    why_int8: str = ""
    since: str = ""
    opset: int = 13
    opset_max: int = 21
    notes: str = field(default="", compare=False)


def roles_of(*, compute: str, sum: str = "", own: str = "", share: str = "", join: str = "") -> Mapping[str, Role]:
    """Operator -> role, from one string of operators a role."""
    groups: tuple[tuple[Role, str], ...] = (
        ("compute", compute),
        ("sum", sum),
        ("own", own),
        ("share", share),
        ("join", join),
    )
    return MappingProxyType({operator: role for role, operators in groups for operator in operators.split()})


def __getattr__(name: str) -> Any:
    """`DIALECTS`, which the package gathers from the runtimes' files; it was defined here, and is found here still."""
    if name != "DIALECTS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return sys.modules[__package__].DIALECTS
