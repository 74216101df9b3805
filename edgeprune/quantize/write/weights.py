"""Weights alone in INT8 or INT4: large linear layers whose activations stay in float.

The weight is stored as integers with a scale a block of its input channels, behind a DequantizeLinear. ONNX Runtime
makes one MatMulNBits of that and the product, OpenVINO one FullyConnectedCompressed; a graph that they do not recognise
would be dequantised at every call, so a layer that does not fit is refused here. Nothing of it is called INT8: what an
artifact computes in is what its operators multiply.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import RecipeError, did_you_mean
from edgeprune.quantize.ranges.grids import TINY
from edgeprune.quantize.view import View, attribute
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import Dialect

BITS = {"int8-weights": 8, "int4-weights": 4}  # a layer's precision -> bits of a weight
DOMAIN, OPERATOR = "com.microsoft", "MatMulNBits"
ACCURACY = 4  # activations are rounded to INT8 a block at a time: any other is slower than float (docs/int8.md)
OPSET = 21  # from which on DequantizeLinear has blocks, and 4 bits
BLOCKS = {8: 128, 4: 32}  # input channels that share a scale, at most: 8.25 and 5 bits a weight
TABLE = 500_000  # numbers in an embedding from which on it is stored as bytes
LEAST_BLOCK = 16  # of ONNX Runtime's kernels
CUTS = (1.0, 0.95, 0.9, 0.85, 0.8)  # of a block's peak, of which the one with the least error is its last step


def only(precision: Mapping[str, str]) -> dict[str, int]:
    """The layers of which weights alone are integers, and their bits."""
    return {name: BITS[kind] for name, kind in precision.items() if kind in BITS}


def weights_asked(options: QuantizeSection) -> bool:
    """Whether the recipe wants weights alone in integers anywhere."""
    return bool(options.weights) or any(layer.precision in BITS for layer in options.layers.values())


def weights_chosen(view: View, dialect: Dialect, options: QuantizeSection) -> tuple[dict[str, str], list[str]]:
    """Layer -> precision, where the recipe says other than INT8, and what the user should know.

    A layer that pruning left with a number of inputs for which there is no kernel stays in INT8.

    Raises:
        RecipeError: the runtime, or a layer that is named, has no such kernel.
    """
    found = {n: str(layer.precision) for n, layer in options.layers.items() if layer.precision not in (None, "int8")}
    kind, warnings = f"{options.weights}-weights", list[str]()
    for name in only(found):
        if name in view.layers and not kernelless(view, view.layers[name]) and (why := uneven(view, view.layers[name])):
            warnings.append(
                f"[quantize.layers] '{name}' has precision = '{found.pop(name)}', but stays in INT8: {why}."
            )
    if options.weights:
        _refuse(dialect, f"[quantize] weights = {options.weights!r}")
        large = [name for name, node in view.layers.items() if _numbers(view, node) >= options.weights_from]
        taken = [name for name in large if name not in options.layers or options.layers[name].precision is None]
        taken = [name for name in taken if not misfit(view, view.layers[name])]
        found |= dict.fromkeys(taken, kind)
        if not taken:
            warnings.append(
                f"[quantize] weights = {options.weights!r} changes nothing: no linear layer of "
                f"{options.weights_from:,} weights or more ([quantize] weights_from) has a kernel for it."
            )
    check(view, dialect, found)
    return found, warnings


def check(view: View, dialect: Dialect, precision: Mapping[str, str]) -> None:
    """Refuse weights alone where there is no kernel; raises RecipeError."""
    for name in only(precision):
        what = f"[quantize.layers] '{name}' has precision = {precision[name]!r}"
        _refuse(dialect, what)
        node = view.layers.get(name)
        if node is None:
            raise RecipeError(f"[quantize.layers] '{name}' has no weights.", did_you_mean(name, view.layers))
        if why := misfit(view, node):
            raise RecipeError(f"{what}, and {why}.", 'Leave it in "int8" or "float".')


def _refuse(dialect: Dialect, what: str) -> None:
    if not dialect.weights_alone:
        raise RecipeError(f"{what}, and {dialect.title} is not given weights alone.", "Take it out.")


def tables(view: View, dialect: Dialect, precision: Mapping[str, str]) -> set[str]:
    """The Gathers of rows of a large constant, which bytes serve as well: embeddings of words."""
    found = set[str]()
    for node in view.nodes if dialect.tables else ():
        data = view.initializers.get(node.input[0]) if node.op_type == "Gather" else None
        if data is None or data.data_type != TensorProto.FLOAT or len(data.dims) != 2:
            continue
        known = view.shape(node.output[0])
        if attribute(node, "axis", 0) == 0 and math.prod(data.dims) >= TABLE and known and len(known) > 1:
            found |= {node.name} if precision.get(node.name) != "float" else set()
    return found


def misfit(view: View, node: onnx.NodeProto) -> str:
    """Why a layer cannot have weights alone in integers; empty where it can."""
    return kernelless(view, node) or uneven(view, node)


def kernelless(view: View, node: onnx.NodeProto) -> str:
    """Why there is no kernel for such a layer, whatever its width; empty where there is one."""
    weight = view.initializers.get(node.input[1])
    if node.op_type not in ("MatMul", "Gemm") or weight is None or len(weight.dims) != 2:
        return "only linear layers have a kernel for that"
    scaled = any(attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if node.op_type == "Gemm" and (scaled or attribute(node, "transA", 0)):
        return "a Gemm that scales or transposes has no kernel for that"
    return ""


def uneven(view: View, node: onnx.NodeProto) -> str:
    """Why there is no kernel for so many inputs of a linear layer; empty where there is one."""
    inputs = view.initializers[node.input[1]].dims[_inputs_axis(node)]
    return f"its {inputs} input channels are no multiple of {LEAST_BLOCK}" if inputs % LEAST_BLOCK else ""


def _inputs_axis(node: onnx.NodeProto) -> int:
    return 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0


def _numbers(view: View, node: onnx.NodeProto) -> int:
    weight = view.initializers.get(node.input[1])
    return math.prod(weight.dims) if weight is not None and node.op_type in ("MatMul", "Gemm") else 0


def stored(
    node: onnx.NodeProto, weight: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers [inputs, outputs] and scales [blocks, outputs] of a linear layer's weight.

    Args:
        weight: as the layer has it, [inputs, outputs] or, with transB, [outputs, inputs].
    """
    matrix = weight.T if _inputs_axis(node) else weight
    inputs, outputs = matrix.shape
    block = next(size for size in _halves(BLOCKS[bits]) if not inputs % size)
    top = 2 ** (bits - 1) - 1
    pieces = matrix.reshape(inputs // block, block, outputs)
    peak = np.maximum(np.abs(pieces).max(1, keepdims=True) / np.float32(top), np.float32(TINY))
    best, scales = np.full(peak.shape, np.inf), peak
    for cut in CUTS if bits < 8 else CUTS[:1]:
        tried = peak * np.float32(cut)
        error = np.square(_rounded(pieces, tried, top) * tried - pieces).sum(1, keepdims=True)
        scales, best = np.where(error < best, tried, scales), np.minimum(error, best)
    integers = _rounded(pieces, scales, top).reshape(inputs, outputs).astype(np.int8)
    return np.ascontiguousarray(integers), np.ascontiguousarray(scales[:, 0], np.float32)


def _halves(size: int) -> Iterable[int]:
    while size >= LEAST_BLOCK:
        yield size
        size //= 2


def _rounded(pieces: NDArray[np.float32], scales: NDArray[np.float32], top: int) -> NDArray[np.float32]:
    return np.asarray(np.clip(np.rint(pieces / scales), -top, top), np.float32)


def packed(name: str, integers: NDArray[np.int8], bits: int) -> TensorProto:
    """Integers as an initializer; two of 4 bits share a byte, the first in its low half."""
    if bits == 8:
        return numpy_helper.from_array(integers, name)
    flat = np.append(integers.reshape(-1), np.zeros(integers.size % 2, np.int8)).astype(np.uint8) & 15
    return helper.make_tensor(
        name, TensorProto.INT4, integers.shape, (flat[0::2] | (flat[1::2] << 4)).tobytes(), raw=True
    )


def packed_by_output(name: str, integers: NDArray[np.int8], blocks: int, bits: int) -> TensorProto:
    """Integers as MatMulNBits reads them: bytes [outputs, blocks, block's bytes], the least integer 0."""
    inputs, outputs = integers.shape
    shifted = (
        (integers.T.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8).reshape(outputs, blocks, inputs // blocks)
    )
    return numpy_helper.from_array(
        np.ascontiguousarray(shifted if bits == 8 else shifted[..., 0::2] | (shifted[..., 1::2] << 4)), name
    )


def operator(layer: onnx.NodeProto, name: str, inputs: int, scales: NDArray[np.float32], bits: int) -> onnx.NodeProto:
    """MatMulNBits in a layer's place; its constants are `name`.q and `name`.scale."""
    read = [layer.input[0], f"{name}.q", f"{name}.scale", *(["", "", layer.input[2]] if len(layer.input) > 2 else [])]
    return helper.make_node(
        OPERATOR,
        read,
        list(layer.output),
        name=layer.name,
        domain=DOMAIN,
        K=inputs,
        N=scales.shape[1],
        bits=bits,
        block_size=inputs // len(scales),
        accuracy_level=ACCURACY,
    )


def describe(model: onnx.ModelProto, view: View) -> None:
    """Say what onnx cannot infer of operators that are not its own: their domain, and their outputs' shapes."""
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    for node in model.graph.node:
        for output in node.output if node.domain == DOMAIN else ():
            if output in view.values and output not in view.outputs:
                kind = onnx.TypeProto(tensor_type=view.values[output])
                model.graph.value_info.append(helper.make_value_info(output, kind))
