"""A linter for Q/DQ graphs: what a runtime rejects, or runs slower or wrongly in silence, before the artifact exists.

Findings of severity "error" are graphs that the runtime rejects or computes wrongly; "warning" ones run, but
slower than they look. The rules are structural: they read types, constants and neighbours, and run nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeprune.quantize.placement import SHARING
from edgeprune.quantize.view import View, attribute, is_depthwise, output_axis
from edgeprune.runtimes.dialects import Dialect

Q, DQ = "QuantizeLinear", "DequantizeLinear"
FLOATING = ("AveragePool", "GlobalAveragePool", "Sigmoid", "HardSigmoid", "HardSwish", "Mul", "Softmax", "Resize")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a Q/DQ graph.

    Attributes:
        node: the node's name.
        rule: which rule, a stable short name.
        severity: "error" (rejected, or computed wrongly) or "warning" (slower than it looks).
        why: what the runtime does with it.
        remedy: what to do.
    """

    node: str
    rule: str
    severity: Literal["error", "warning"]
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.node}: {self.rule}: {self.why} {self.remedy}"


@dataclass(frozen=True)
class Pair:
    """A quantise or dequantise node with its constants."""

    node: onnx.NodeProto
    scale: NDArray[Any] | None
    zero: NDArray[Any] | None
    on_weight: bool
    on_bias: bool

    @property
    def kind(self) -> str:
        """The integer type, as numpy spells it; uint8 where no zero point is given, as ONNX defines."""
        return str(self.zero.dtype) if self.zero is not None else "uint8"


Rule = Callable[[View, Dialect], Iterator[Finding]]


def lint(model: onnx.ModelProto, dialect: Dialect) -> list[Finding]:
    """Check a Q/DQ graph against a dialect's rules; an empty list means that nothing was found."""
    view = View.of(model)
    return [finding for rule in RULES for finding in rule(view, dialect)]


def pairs(view: View) -> Iterator[Pair]:
    """Every Q and DQ node, with what it stands on."""
    for node in view.nodes:
        if node.op_type in (Q, DQ):
            scale = view.constant(node.input[1])
            zero = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
            reader = _reader(view, node)
            yield Pair(node, scale, zero, reader == 1, reader == 2)


def _reader(view: View, node: onnx.NodeProto) -> int:
    """Which input of a layer this constant's pair feeds: 1 for a weight, 2 for a bias, 0 for an activation."""
    source = node.input[0]
    maker = view.producer.get(source)
    constant = view.is_constant(source) or (
        maker is not None and maker.op_type == Q and view.is_constant(maker.input[0])
    )
    if not constant:
        return 0
    output = node.output[0]
    readers = view.consumers.get(output, [])
    if readers and readers[0][0].op_type == DQ:
        readers = view.consumers.get(readers[0][0].output[0], [])
    return max((index for _, index in readers), default=1)


def _types(view: View, dialect: Dialect) -> Iterator[Finding]:
    """Integer types, zero points and granularity."""
    allowed = {"uint8", "int8"} if dialect.unsigned else {"int8"}
    for pair in pairs(view):
        name = pair.node.name
        if pair.scale is None:
            yield Finding(name, "scale-not-constant", "error", "The scale is computed.", "Make it an initializer.")
            continue
        if not np.all(np.isfinite(pair.scale)) or np.any(pair.scale <= 0):
            yield Finding(
                name, "scale-not-positive", "error", "A scale is zero, negative or not finite.", "Calibrate again."
            )
        if pair.on_bias:
            if dialect.bias == "float":
                why = (
                    "A bias with a DQ of its own is rejected."
                    if dialect.runtime == "tensorrt"
                    else "It buys nothing here."
                )
                severity: Literal["error", "warning"] = "error" if dialect.runtime == "tensorrt" else "warning"
                yield Finding(name, "bias-quantised", severity, why, "Leave the bias in float.")
            continue
        if pair.on_weight:
            yield from _weight_pair(view, dialect, pair)
            continue
        if pair.kind not in allowed:
            why = {
                "uint8": "TensorRT retypes it to int8 without a word, so values above 127 saturate.",
                "int16": "16-bit activations are rejected or run in float.",
                "uint16": "16-bit activations are rejected or run in float.",
            }.get(pair.kind, f"{pair.kind} activations have no kernel.")
            if dialect.runtime == "onnxruntime" and pair.kind == "uint8":
                why = "ARM kernels are made for int8 activations."
            yield Finding(name, "activation-type", "error", why, f"Use {' or '.join(sorted(allowed))}.")
        if pair.kind == "int8" and dialect.unsigned and dialect.runtime == "onnxruntime" and pair.node.op_type == DQ:
            why = "x86 runs most layers that read signed activations in float, 2-4 times slower."
            yield Finding(name, "activation-signed", "warning", why, "Use uint8.")
        if pair.scale.size > 1:
            yield Finding(
                name, "activation-per-channel", "warning", "A layer that reads it runs in float.", "Use one scale."
            )
        if dialect.signed == "symmetric" and pair.kind == "int8" and pair.zero is not None:
            nonzero = bool(np.any(pair.zero != 0))
            if nonzero and not (dialect.zero_based and np.all(pair.zero == -128)):
                yield Finding(
                    name, "zero-point", "error", "A zero point other than 0 is rejected.", "Use symmetric ranges."
                )


def _weight_pair(view: View, dialect: Dialect, pair: Pair) -> Iterator[Finding]:
    name = pair.node.name
    if pair.kind != "int8":
        severity: Literal["error", "warning"] = "error" if dialect.runtime == "tensorrt" else "warning"
        yield Finding(name, "weight-type", severity, f"{pair.kind} weights are rejected or slow.", "Use int8.")
    if pair.zero is not None and np.any(pair.zero != 0):
        severity = "error" if dialect.runtime == "tensorrt" else "warning"
        yield Finding(name, "weight-zero-point", severity, "Weights must be symmetric.", "Use zero point 0.")
    if pair.node.op_type == DQ and dialect.store_float and view.is_constant(pair.node.input[0]):
        yield Finding(
            name,
            "weight-stored-int8",
            "error",
            "TensorRT 8 rejects INT8 initialisers.",
            "Store float, then Q, then DQ.",
        )
    readers = view.consumers.get(pair.node.output[0], [])
    if pair.scale is not None and pair.scale.ndim and readers and readers[0][0].op_type not in (Q, DQ):
        layer = readers[0][0]
        rank = len(view.initializers[pair.node.input[0]].dims) if pair.node.input[0] in view.initializers else 0
        axis, wanted = attribute(pair.node, "axis", 1), output_axis(layer)
        if rank and axis % rank != wanted % rank:
            why = f"Scales along axis {axis}, but output channels are axis {wanted % rank}: the layer runs in float."
            yield Finding(name, "weight-axis", "warning", why, "Quantise along the output channels.")


def _opset(view: View, dialect: Dialect) -> Iterator[Finding]:
    version = max((o.version for o in view.model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if version < dialect.opset:
        why = (
            f"Opset {version}; this dialect needs {dialect.opset} (per-channel Q/DQ came with 13, FP16 scales with 19)."
        )
        yield Finding("graph", "opset-old", "error", why, "Export with a newer opset.")
    elif version > dialect.opset_max:
        why = f"Opset {version}; the runtime's parser reads up to {dialect.opset_max}."
        yield Finding("graph", "opset-new", "error", why, "Export with an older opset.")


def _dequantised(view: View, tensor: str) -> onnx.NodeProto | None:
    """The DQ that `tensor` comes from, through nodes that only move values."""
    node = view.producer.get(tensor)
    while node is not None and node.op_type in SHARING:
        node = view.producer.get(node.input[0])
    return node if node is not None and node.op_type == DQ else None


def _layers(view: View, dialect: Dialect) -> Iterator[Finding]:
    """Layers of which only one side is quantised; operators that have no INT8 kernel."""
    for node in view.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or len(node.input) < 2:
            continue
        data, weight = _dequantised(view, node.input[0]), view.producer.get(node.input[1])
        quantised = weight is not None and weight.op_type == DQ
        constant = view.is_constant(node.input[1])
        if data is not None and constant and dialect.roles.get(node.op_type) == "compute" and not dialect.outputs:
            why = "Its input is quantised, its weight is not: it runs in float."
            yield Finding(node.name, "weight-float", "warning", why, "Quantise both or none.")
        elif quantised and data is None:
            yield Finding(
                node.name,
                "input-float",
                "warning",
                "Its weight is quantised, its input is not: it runs in float.",
                "Quantise both or none.",
            )
        elif quantised and dialect.roles.get(node.op_type) != "compute":
            yield Finding(
                node.name,
                "no-int8-kernel",
                "warning",
                f"{dialect.title} runs {node.op_type} in float.",
                "Leave it in float.",
            )
        elif quantised and not dialect.depthwise:
            shape = _weight_shape(view, node)
            if shape and is_depthwise(node, shape):
                yield Finding(
                    node.name, "depthwise", "warning", "Depthwise INT8 is slower than float here.", "Leave it in float."
                )


def _weight_shape(view: View, node: onnx.NodeProto) -> tuple[int, ...]:
    name = node.input[1]
    while name in view.producer and view.producer[name].op_type in (Q, DQ):
        name = view.producer[name].input[0]
    return tuple(view.initializers[name].dims) if name in view.initializers else ()


def _joins(view: View, dialect: Dialect) -> Iterator[Finding]:
    """Inputs of a Concat share one scale, or a requantising kernel runs for each."""
    for node in view.nodes:
        if node.op_type != "Concat":
            continue
        feeding = [pair for pair in (_dequantised(view, name) for name in node.input) if pair is not None]
        values = [view.constant(pair.input[1]) for pair in feeding]
        scales = {value.tobytes() for value in values if value is not None}
        if len(scales) > 1:
            yield Finding(
                node.name,
                "concat-scales",
                "warning",
                f"{len(scales)} scales: a requantising kernel an input.",
                "Give all inputs one scale.",
            )


def _moves(view: View, dialect: Dialect) -> Iterator[Finding]:
    """Nodes that only move or select values keep the scale of what they read."""
    for node in view.nodes:
        if node.op_type not in SHARING:
            continue
        before = _dequantised(view, node.input[0])
        after = [reader for reader, _ in view.consumers.get(node.output[0], []) if reader.op_type == Q]
        if before is None or not after:
            continue
        scales = [view.constant(one.input[1]) for one in (before, after[0])]
        if all(scale is not None for scale in scales) and not np.array_equal(*scales):  # type: ignore[arg-type]
            why = f"A {node.op_type} does not change values, but its output has another scale: a requantising kernel."
            yield Finding(node.name, "scale-changed", "warning", why, "Give input and output one scale.")


def _floats(view: View, dialect: Dialect) -> Iterator[Finding]:
    """Operators that the runtime runs in float, reading dequantised values for nothing."""
    if dialect.outputs:
        return  # there every output is quantised, whoever reads it
    for node in view.nodes:
        if node.op_type not in FLOATING or node.op_type in dialect.roles:
            continue
        if any(_dequantised(view, name) is not None for name in node.input):
            why = f"{dialect.title} runs {node.op_type} in float: the Q/DQ before it only splits a fused kernel."
            yield Finding(node.name, "float-reads-int8", "warning", why, "Let it read the float tensor.")


def _residuals(view: View, dialect: Dialect) -> Iterator[Finding]:
    """Which inputs of a residual Add should be quantised."""
    for node in view.nodes:
        if node.op_type != "Add" or len(view.data_inputs(node)) < 2 or dialect.residual == "none":
            continue
        makers = [_dequantised(view, name) for name in node.input]
        if dialect.residual == "all" and len({maker is None for maker in makers}) > 1:
            why = "Only one input is quantised: the Add is a kernel of its own."
            yield Finding(node.name, "residual-one", "warning", why, "Quantise both inputs.")
        if dialect.residual == "skip" and all(maker is not None for maker in makers):
            yield Finding(
                node.name,
                "residual-both",
                "warning",
                "Both inputs are quantised: the Add is not fused into the layer.",
                "Quantise the skip input only.",
            )


def _outputs(view: View, dialect: Dialect) -> Iterator[Finding]:
    """A Q on a tensor that a Relu or Clip reads next, or a DQ without its Q: breaks fusion."""
    for node in view.nodes:
        if node.op_type in ("Relu", "Clip"):
            before = view.producer.get(node.input[0])
            quantised = view.producer.get(before.input[0]) if before is not None and before.op_type == DQ else None
            layer = view.producer.get(quantised.input[0]) if quantised is not None and quantised.op_type == Q else None
            if layer is not None and layer.op_type in ("Conv", "Gemm"):
                yield Finding(
                    node.name,
                    "activation-unfused",
                    "warning",
                    "Q/DQ between a layer and its activation: they do not fuse.",
                    "Quantise after it.",
                )
    if dialect.outputs:
        for node in view.nodes:
            if node.op_type == "Conv" and _dequantised(view, node.input[0]) is not None:
                tensor = view.settled(node.output[0])
                weight = view.producer.get(node.input[1])
                if (
                    weight is not None
                    and weight.op_type == DQ
                    and not any(r.op_type == Q for r, _ in view.consumers.get(tensor, []))
                ):
                    yield Finding(
                        node.name,
                        "output-float",
                        "warning",
                        "Its output is not quantised: it runs in float.",
                        "Quantise the output.",
                    )


RULES: tuple[Rule, ...] = (_opset, _types, _layers, _joins, _moves, _floats, _residuals, _outputs)
