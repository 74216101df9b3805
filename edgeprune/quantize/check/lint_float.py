"""Rules for graphs that a runtime accepts and then computes in float without a word, dequantising at every call.

Each was seen in the runtime's own profile (docs/int8.md); quantize/check/kernels.py reads such a profile for any graph.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from edgeprune.quantize.check.findings import DQ, LintFinding, LintRule, dequantised
from edgeprune.quantize.view import WEIGHTED, View, attribute
from edgeprune.quantize.write.attention import source
from edgeprune.quantize.write.placement import plain_gemm
from edgeprune.quantize.write.pools import window
from edgeprune.quantize.write.weights import LEAST_BLOCK
from edgeprune.runtimes import Dialect

RECURRENT = ("LSTM", "GRU", "RNN")


def _fused_in_float(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """MatMuls that become one float Gemm with the Add of a bias, before INT8 kernels are looked for."""
    if not dialect.fuses_matmul:
        return
    for node in view.nodes:
        reader = view.only_consumer(node.output[0]) if node.op_type == "MatMul" else None
        if reader is None or reader.op_type != "Add":
            continue
        if any(dequantised(view, name) is None for name in node.input):
            continue
        bias = next((view.constant(name) for name in reader.input if view.is_constant(name)), None)
        rank = len(view.shape(node.output[0]) or ())
        if bias is not None and (bias.ndim == 1 or (rank == bias.ndim == 2)):
            why = "MatMul and the Add of a bias become one float Gemm, its weights dequantised at every call."
            yield LintFinding(
                node.name, "matmul-add", "warning", why, "Give the bias as many axes as the MatMul's output."
            )


def _float_bias(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """ONNX Runtime's integer Gemm takes an int32 bias; beside a float one it stays in float."""
    if dialect.bias != "int32":
        return
    for node in view.nodes:
        if node.op_type != "Gemm" or len(node.input) < 3 or not view.is_constant(node.input[2]):
            continue
        if on_weights_alone(view, node):
            continue
        if all(dequantised(view, name) is not None for name in node.input[:2]):
            why = "Its bias is in float: it runs in float."
            yield LintFinding(node.name, "bias-float", "warning", why, "Store the bias as int32 behind a DQ.")


def _scaled_gemm(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """ONNX Runtime's integer Gemm has neither alpha nor beta."""
    if dialect.scales_gemm:
        return
    for node in view.nodes:
        if node.op_type == "Gemm" and not plain_gemm(node) and dequantised(view, node.input[1]) is not None:
            why = "A Gemm with alpha or beta other than 1 runs in float."
            yield LintFinding(node.name, "gemm-scaled", "warning", why, "Fold them into the weight and the bias.")


def _products(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """A product of two quantised activations, as in attention: where one has a zero point the fused kernel is lost."""
    if not dialect.fuses_attention:
        return
    for node in view.nodes:
        pairs = [_pair(view, name) for name in node.input] if node.op_type == "MatMul" else [None]
        if not all(pair is not None and _activation(view, pair.input[0]) for pair in pairs):
            continue
        if not dialect.products:
            why = "A product of two activations in INT8: attention is no longer one kernel, and this one runs in float."
            yield LintFinding(node.name, "product-int8", "warning", why, "Leave both in float.")
        elif any(_zero(view, pair) for pair in pairs):
            why = "A product of two activations, one with a zero point: attention is no longer one kernel, and slower."
            yield LintFinding(node.name, "product-zero-point", "warning", why, "Give both the zero point 0.")


def _transposed(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """OpenVINO's ConvTranspose takes bytes without a zero point alone."""
    if not dialect.even_transposed:
        return
    for node in view.nodes:
        if node.op_type == "ConvTranspose" and _zero(view, dequantised(view, node.input[0])):
            why = "A ConvTranspose whose data has a zero point runs in float."
            yield LintFinding(node.name, "transposed-zero-point", "warning", why, "Give it the zero point 0.")


def _pair(view: View, tensor: str) -> onnx.NodeProto | None:
    """The DQ that a product reads, perhaps through nodes that move values or multiply them by one number."""
    node = view.producer.get(source(view, tensor))
    return node if node is not None and node.op_type == DQ else None


def _zero(view: View, pair: onnx.NodeProto | None) -> bool:
    """Whether a pair's zero point is another than 0."""
    zero = view.constant(pair.input[2]) if pair is not None and len(pair.input) > 2 else None
    return zero is not None and bool(zero.any())


def _activation(view: View, tensor: str) -> bool:
    """Whether a pair's integers come from a Q on a tensor that is computed."""
    node = view.producer.get(tensor)
    return node is not None and not view.is_constant(node.input[0])


def _recurrent(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """Recurrent layers with dequantised weights; in ONNX Runtime an input may be another layer's output.

    ONNX Runtime 1.31 dequantises and computes in float; OpenVINO 2026.4 "expects Constant" weights of an LSTM.
    """
    for node in view.nodes:
        if node.op_type not in RECURRENT:
            continue
        makers = [view.producer.get(name) for name in node.input[1 if dialect.outputs else 0 : 3]]
        if any(maker is not None and maker.op_type == DQ for maker in makers):
            why = (
                f"{dialect.title} runs {node.op_type} in float and dequantises for it at every call, or does not "
                "compile it where its weights are no constants."
            )
            yield LintFinding(node.name, "recurrent-int8", "warning", why, "Leave it in float.")


def _slow_pools(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """ONNX Runtime's average pooling of bytes, where a depthwise convolution is the same."""
    if not dialect.slow_pools:
        return
    for node in view.nodes:
        if node.op_type == "AveragePool" and dequantised(view, node.input[0]) is not None and window(view, node):
            why = "An average pooling of bytes is several times slower than the depthwise convolution that is the same."
            yield LintFinding(node.name, "pool-slow", "warning", why, "Write it as a convolution, all weights alike.")


def _weights_alone(view: View, dialect: Dialect) -> Iterator[LintFinding]:
    """Weights alone in integers where the runtime makes no kernel of it and the product."""
    for node in view.nodes:
        if on_weights_alone(view, node) and not fits_weights_alone(view, dialect, node):
            why = f"Its weight is dequantised at every call: {dialect.title} has no kernel for it as it is."
            yield LintFinding(node.name, "weights-alone", "warning", why, "Leave it in INT8 or in float.")


def on_weights_alone(view: View, node: onnx.NodeProto) -> bool:
    """Whether a layer's weight comes in blocks of integers, which no INT8 kernel takes."""
    pair = view.producer.get(node.input[1]) if node.op_type in WEIGHTED and len(node.input) > 1 else None
    return pair is not None and pair.op_type == DQ and bool(attribute(pair, "block_size", 0))


def fits_weights_alone(view: View, dialect: Dialect, node: onnx.NodeProto) -> bool:
    """Whether a kernel for weights alone takes a layer: [inputs, outputs] in blocks of inputs, the data in float."""
    pair = view.producer[node.input[1]]
    straight = node.op_type == "MatMul" or (plain_gemm(node) and not attribute(node, "transB", 0))
    block, axis = attribute(pair, "block_size", 0), attribute(pair, "axis", 1)
    fits = block >= LEAST_BLOCK and not block & (block - 1) and axis == 0 and view.is_constant(pair.input[0])
    return dialect.weights_alone == "pair" and node.op_type in ("MatMul", "Gemm") and straight and fits


SILENT: tuple[LintRule, ...] = (
    *(_fused_in_float, _float_bias, _scaled_gemm, _products, _transposed, _recurrent, _slow_pools, _weights_alone),
)
