"""A linter for Q/DQ graphs: what a runtime rejects, or runs slower or wrongly in silence, before the artifact exists.

Findings of severity "error" are graphs that the runtime rejects or computes wrongly; "warning" ones run, but
slower than they look. The rules are structural: they read types, constants and neighbours, and run nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeprune.quantize.check.findings import DQ, LintFinding, LintRule, Q, dequantised
from edgeprune.quantize.check.lint_float import SILENT, on_weights_alone
from edgeprune.quantize.view import View, attribute, is_depthwise, output_axis
from edgeprune.quantize.write.attention import ends_in, scales
from edgeprune.quantize.write.placement import SHARING, read_elsewhere, role_of
from edgeprune.runtimes import Dialect

MOST = 2**30 + 2**24  # of an int32 bias: more leaves the sum of products no room
FLOATING = ("AveragePool", "GlobalAveragePool", "Sigmoid", "HardSigmoid", "HardSwish", "Mul", "Softmax", "Resize")


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


def lint(model: onnx.ModelProto, dialect: Dialect) -> list[LintFinding]:
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
    if node.op_type == DQ and maker is not None and maker.op_type == "Gather" and view.is_constant(maker.input[0]):
        return 1  # rows of an embedding
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


def _types(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """Integer types, zero points and granularity."""
    allowed = {"uint8", "int8"} if dialect.unsigned else {"int8"}
    for pair in pairs(view):
        name = pair.node.name
        if pair.scale is None:
            yield LintFinding(name, "scale-not-constant", "error", "The scale is computed.", "Make it an initializer.")
            continue
        if not np.all(np.isfinite(pair.scale)) or np.any(pair.scale <= 0):
            yield LintFinding(
                name, "scale-not-positive", "error", "A scale is zero, negative or not finite.", "Calibrate again."
            )
        if pair.on_bias:
            if dialect.bias == "float":
                why = "A bias with a DQ of its own is rejected." if dialect.strict else "It buys nothing here."
                severity: Literal["error", "warning"] = "error" if dialect.strict else "warning"
                yield LintFinding(name, "bias-quantised", severity, why, "Leave the bias in float.")
            values = view.constant(pair.node.input[0])
            if values is not None and values.dtype == np.int32 and np.any(np.abs(values.astype(np.int64)) > MOST):
                why = "A bias at the end of int32: it is clipped, or overflows when products are added to it."
                yield LintFinding(name, "bias-saturated", "error", why, "Raise the scale of that channel's weights.")
            continue
        if pair.on_weight:
            yield from _weight_pair(view, dialect, pair)
            continue
        if pair.kind not in allowed:
            why = {
                "uint8": dialect.why_uint8 or "uint8 activations have no kernel.",
                "int16": "16-bit activations are rejected or run in float.",
                "uint16": "16-bit activations are rejected or run in float.",
            }.get(pair.kind, f"{pair.kind} activations have no kernel.")
            yield LintFinding(name, "activation-type", "error", why, f"Use {' or '.join(sorted(allowed))}.")
        if pair.kind == "int8" and dialect.why_int8 and pair.node.op_type == DQ:
            yield LintFinding(name, "activation-signed", "warning", dialect.why_int8, "Use uint8.")
        if pair.scale.size > 1:
            yield LintFinding(
                name, "activation-per-channel", "warning", "A layer that reads it runs in float.", "Use one scale."
            )
        if dialect.signed == "symmetric" and pair.kind == "int8" and pair.zero is not None:
            nonzero = bool(np.any(pair.zero != 0))
            if nonzero and not (dialect.zero_based and np.all(pair.zero == -128)):
                yield LintFinding(
                    name, "zero-point", "error", "A zero point other than 0 is rejected.", "Use symmetric ranges."
                )


def _weight_pair(view: View, dialect: Dialect, pair: Pair) -> Iterator[LintFinding]:
    name = pair.node.name
    if attribute(pair.node, "block_size", 0):
        return  # lint_float.py
    if pair.kind != "int8":
        severity: Literal["error", "warning"] = "error" if dialect.strict else "warning"
        yield LintFinding(name, "weight-type", severity, f"{pair.kind} weights are rejected or slow.", "Use int8.")
    if pair.zero is not None and np.any(pair.zero != 0):
        severity = "error" if dialect.strict else "warning"
        yield LintFinding(name, "weight-zero-point", severity, "Weights must be symmetric.", "Use zero point 0.")
    if pair.node.op_type == DQ and dialect.store_float and view.is_constant(pair.node.input[0]):
        yield LintFinding(
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
            yield LintFinding(name, "weight-axis", "warning", why, "Quantise along the output channels.")


def _opset(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    version = max((o.version for o in view.model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if version < dialect.opset:
        why = (
            f"Opset {version}; this dialect needs {dialect.opset} (per-channel Q/DQ came with 13, FP16 scales with 19)."
        )
        yield LintFinding("graph", "opset-old", "error", why, "Export with a newer opset.")
    elif version > dialect.opset_max:
        why = f"Opset {version}; the runtime's parser reads up to {dialect.opset_max}."
        yield LintFinding("graph", "opset-new", "error", why, "Export with an older opset.")


def _layers(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """Layers of which only one side is quantised; operators that have no INT8 kernel."""
    for node in view.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or len(node.input) < 2:
            continue
        data, weight = dequantised(view, node.input[0]), view.producer.get(node.input[1])
        quantised = weight is not None and weight.op_type == DQ
        constant = view.is_constant(node.input[1])
        if data is not None and constant and dialect.roles.get(node.op_type) == "compute" and not dialect.outputs:
            why = "Its input is quantised, its weight is not: it runs in float."
            yield LintFinding(node.name, "weight-float", "warning", why, "Quantise both or none.")
        elif on_weights_alone(view, node):
            continue  # lint_float.py
        elif quantised and data is None:
            yield LintFinding(
                node.name,
                "input-float",
                "warning",
                "Its weight is quantised, its input is not: it runs in float.",
                "Quantise both or none.",
            )
        elif quantised and dialect.roles.get(node.op_type) != "compute":
            yield LintFinding(
                node.name,
                "no-int8-kernel",
                "warning",
                f"{dialect.title} runs {node.op_type} in float.",
                "Leave it in float.",
            )
        elif quantised and not dialect.depthwise:
            shape = _weight_shape(view, node)
            if shape and is_depthwise(node, shape):
                yield LintFinding(
                    node.name, "depthwise", "warning", "Depthwise INT8 is slower than float here.", "Leave it in float."
                )


def _weight_shape(view: View, node: onnx.NodeProto) -> tuple[int, ...]:
    name = node.input[1]
    while name in view.producer and view.producer[name].op_type in (Q, DQ):
        name = view.producer[name].input[0]
    return tuple(view.initializers[name].dims) if name in view.initializers else ()


def _joins(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """Inputs of a Concat share one scale, or a requantising kernel runs for each.

    ONNX Runtime's own kernel takes a scale for each; what others read too has one of its own there.
    """
    for node in view.nodes:
        if node.op_type != "Concat":
            continue
        alone = [name for name in node.input if not (dialect.outputs and read_elsewhere(view, name))]
        feeding = [pair for pair in (dequantised(view, name) for name in alone) if pair is not None]
        found: dict[bytes, set[bytes]] = {}
        for pair in feeding:
            scale, zero = (view.constant(name) for name in (pair.input[1], pair.input[-1]))
            if scale is not None and zero is not None:
                # ONNX Runtime needs rectified inputs to have a zero point of their own
                found.setdefault(zero.tobytes() if dialect.outputs else b"", set()).add(scale.tobytes())
        scales = max(found.values(), key=len, default=set())
        if len(scales) > 1:
            yield LintFinding(
                node.name,
                "concat-scales",
                "warning",
                f"{len(scales)} scales: a requantising kernel an input.",
                "Give all inputs one scale.",
            )


def _moves(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """Nodes that only move or select values keep the scale of what they read."""
    for node in view.nodes:
        if node.op_type not in SHARING or _computes(dialect, node):
            continue
        before = None if _behind_float(view, dialect, node.input[0]) else dequantised(view, node.input[0])
        after = [one for output in node.output for one, _ in view.consumers.get(output, []) if one.op_type == Q]
        if before is None or not after:
            continue
        scales = [view.constant(one.input[1]) for one in (before, after[0])]
        if all(scale is not None for scale in scales) and not np.array_equal(*scales):  # type: ignore[arg-type]
            why = f"A {node.op_type} does not change values, but its output has another scale: a requantising kernel."
            yield LintFinding(node.name, "scale-changed", "warning", why, "Give input and output one scale.")


def _behind_float(view: View, dialect: Dialect, tensor: str) -> bool:
    """Whether a Resize in float lies between a tensor and the DQ that it comes from."""
    node = view.producer.get(tensor)
    while node is not None and node.op_type in SHARING:
        if _computes(dialect, node):
            return True
        node = view.producer.get(node.input[0])
    return False


def _computes(dialect: Dialect, node: onnx.NodeProto) -> bool:
    """Whether a Resize makes values of its own: it runs in float then."""
    return node.op_type == "Resize" and role_of(dialect, node) is None


def _floats(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """Operators that the runtime runs in float, reading dequantised values for nothing."""
    if dialect.outputs:
        return  # there every output is quantised, whoever reads it
    products = [node.name for node in view.nodes if node.op_type == "MatMul"]
    for node in view.nodes:
        if node.op_type not in FLOATING or role_of(dialect, node) is not None:
            continue
        if dialect.products and scales(view, node) and ends_in(view, products, node.output[0]):
            continue  # it goes into the scale of what the product reads
        if any(dequantised(view, name) is not None for name in node.input):
            why = f"{dialect.title} runs {node.op_type} in float: the Q/DQ before it only splits a fused kernel."
            yield LintFinding(node.name, "float-reads-int8", "warning", why, "Let it read the float tensor.")


def _could(view: View, dialect: Dialect, tensor: str) -> bool:
    """Whether an operator that reads nothing but dequantised values, and has a kernel for them, makes `tensor`."""
    node = view.producer.get(tensor)
    if node is not None and node.op_type in ("Relu", "Clip"):
        node = view.producer.get(node.input[0])
    if node is None or role_of(dialect, node) is None:
        return False
    return all(dequantised(view, node.input[index]) is not None for index in view.data_inputs(node)[:2])


def _residuals(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """Which inputs of a residual Add should be quantised."""
    for node in view.nodes:
        if node.op_type != "Add" or len(view.data_inputs(node)) < 2 or dialect.residual == "none":
            continue
        makers = [dequantised(view, name) for name in node.input]
        floats = [name for name, maker in zip(node.input, makers, strict=True) if maker is None]
        if dialect.outputs and not any(_could(view, dialect, name) for name in floats):
            continue  # what comes from a float operator would have to be quantised for the Add alone
        if dialect.residual == "all" and len({maker is None for maker in makers}) > 1:
            why = "Only one input is quantised: the Add is a kernel of its own."
            yield LintFinding(node.name, "residual-one", "warning", why, "Quantise both inputs.")
        if dialect.residual == "skip" and all(maker is not None for maker in makers):
            yield LintFinding(
                node.name,
                "residual-both",
                "warning",
                "Both inputs are quantised: the Add is not fused into the layer.",
                "Quantise the skip input only.",
            )


def _outputs(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """A Q on a tensor that a Relu or Clip reads next, or a DQ without its Q: breaks fusion."""
    for node in view.nodes:
        if node.op_type in ("Relu", "Clip"):
            before = view.producer.get(node.input[0])
            quantised = view.producer.get(before.input[0]) if before is not None and before.op_type == DQ else None
            layer = view.producer.get(quantised.input[0]) if quantised is not None and quantised.op_type == Q else None
            if layer is not None and layer.op_type in ("Conv", "Gemm"):
                yield LintFinding(
                    node.name,
                    "activation-unfused",
                    "warning",
                    "Q/DQ between a layer and its activation: they do not fuse.",
                    "Quantise after it.",
                )
    if dialect.outputs:
        yield from _rectified(view)
        for node in view.nodes:
            if node.op_type == "Conv" and dequantised(view, node.input[0]) is not None:
                tensor = view.settled(node.output[0])
                weight = view.producer.get(node.input[1])
                if (
                    weight is not None
                    and weight.op_type == DQ
                    and not any(r.op_type == Q for r, _ in view.consumers.get(tensor, []))
                ):
                    yield LintFinding(
                        node.name,
                        "output-float",
                        "warning",
                        "Its output is not quantised: it runs in float.",
                        "Quantise the output.",
                    )


def _rectified(view: View) -> Iterator[LintFinding]:
    """ONNX Runtime leaves a Relu to saturation only where the zero point is the least integer."""
    for node in view.nodes:
        if node.op_type != "Conv" or view.settled(node.output[0]) == node.output[0]:
            continue
        for reader, _ in view.consumers.get(view.settled(node.output[0]), []):
            zero = view.constant(reader.input[2]) if reader.op_type == Q and len(reader.input) > 2 else None
            if zero is not None and np.any(zero != np.iinfo(zero.dtype).min):
                why = "Its activation's zero point is not the least integer: layer and activation run in float."
                yield LintFinding(node.name, "activation-zero-point", "warning", why, "Give the output a range from 0.")


RULES: tuple[LintRule, ...] = (_opset, _types, _layers, *SILENT, _joins, _moves, _floats, _residuals, _outputs)
