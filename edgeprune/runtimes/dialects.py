"""The Q/DQ scheme of each runtime, as data: what `quantize.apply` emits and what `quantize.lint` accepts.

A dialect says, for every ONNX operator that may run in INT8, how it takes part (its role), and how scales, zero points,
weights and biases are written. An operator without a role stays in float. Which placement a dialect asks for was chosen
by measuring the alternatives on the runtime itself (figures in docs/int8.md), never by documentation alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

Role = Literal["compute", "sum", "own", "share", "join"]
# compute: has weights; its data input is quantised, its weights too (Conv, Gemm, ...)
# sum:     element-wise with several data inputs; which of them are quantised is the dialect's `residual`
# own:     one data input, quantised; the output has a scale of its own (average pooling, sigmoid)
# share:   moves or selects values: the output has the input's scale (max pooling, reshape)
# join:    Concat: all inputs and the output share one scale

Signed = Literal["asymmetric", "symmetric"]


@dataclass(frozen=True)
class Dialect:
    """One runtime's Q/DQ scheme.

    Attributes:
        name: the key in DIALECTS and in a target's profile.
        runtime: "openvino", "onnxruntime" or "tensorrt".
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
    opset: int = 13
    opset_max: int = 21
    notes: str = field(default="", compare=False)


def _roles(*, compute: str, sum: str = "", own: str = "", share: str = "", join: str = "") -> Mapping[str, Role]:
    """Operator -> role, from one string of operators a role."""
    groups: tuple[tuple[Role, str], ...] = (
        ("compute", compute),
        ("sum", sum),
        ("own", own),
        ("share", share),
        ("join", join),
    )
    return MappingProxyType({operator: role for role, operators in groups for operator in operators.split()})


_OPENVINO = Dialect(
    name="openvino",
    runtime="openvino",
    title="OpenVINO on x86 CPUs",
    roles=_roles(
        compute="Conv ConvTranspose Gemm MatMul",
        sum="Add",
        own="AveragePool GlobalAveragePool",
        share="MaxPool Reshape Flatten Transpose Squeeze Unsqueeze",
        join="Concat",
    ),
    unsigned=True,
    signed="asymmetric",
)

_ORT_X86 = Dialect(
    name="ort-x86",
    runtime="onnxruntime",
    title="ONNX Runtime on x86 CPUs",
    roles=_roles(
        compute="Conv Gemm MatMul",
        sum="Add Mul",
        own="AveragePool GlobalAveragePool Sigmoid",
        share="MaxPool Reshape Flatten Transpose Squeeze Unsqueeze",
        join="Concat",
    ),
    unsigned=True,
    signed="asymmetric",
    bias="int32",
    outputs=True,
    notes="U8S8: S8S8 leaves most convolutions in float here. Without VNNI two products can saturate 16 bits.",
)

# The reduced twin: 7-bit weights cannot saturate the 16-bit sums of x86 CPUs without VNNI.
_ORT_X86_AVX2 = replace(_ORT_X86, name="ort-x86-avx2", title="ONNX Runtime on x86 without VNNI", weight_levels=63)

_ORT_ARM64 = replace(
    _ORT_X86,
    name="ort-arm64",
    title="ONNX Runtime on 64-bit ARM CPUs",
    unsigned=False,
    zero_based=True,
    notes="S8S8: the dot-product kernels are made for signed activations.",
)

_TENSORRT_A = Dialect(
    name="tensorrt-a",
    runtime="tensorrt",
    title="TensorRT 8.5 to 10.x",
    roles=_roles(
        compute="Conv",
        sum="Add",
        share="MaxPool Resize Reshape Flatten Transpose Squeeze Unsqueeze",
        join="Concat",
    ),
    unsigned=False,
    signed="symmetric",
    store_float=True,
    residual="skip",
    depthwise=False,
    narrow=8,  # TensorRT-RTX makes no INT8 kernel of EfficientNet-B0's 4 -> 96 squeeze-excite; 8 -> 32 is one
    opset=13,
    opset_max=17,
    notes="Gemm stays float: at batch 1 FP16 is faster. Depthwise stays float below TensorRT 10.",
)

_TENSORRT_B = replace(
    _TENSORRT_A,
    name="tensorrt-b",
    title="TensorRT 10.12 and later, strongly typed",
    store_float=False,
    depthwise=True,
    float_type="float16",
    opset=19,
    opset_max=21,
    notes="FP16 around INT8; input and output stay FP32 and are cast at the ends.",
)

_ALL = (_OPENVINO, _ORT_X86, _ORT_X86_AVX2, _ORT_ARM64, _TENSORRT_A, _TENSORRT_B)
DIALECTS: Mapping[str, Dialect] = MappingProxyType({dialect.name: dialect for dialect in _ALL})
