"""Average pooling as the depthwise convolution that it is, where the runtime's kernel for bytes is slow.

QLinearAveragePool of ONNX Runtime takes up to ten times as long as float, and ONNX Runtime takes it wherever a pair
stands on either side; QLinearConv is two to eight times as fast (docs/int8.md). The weights of a window are all alike,
so that INT8 holds them exactly.
"""

from __future__ import annotations

import math

import onnx
from onnx import helper

from edgeprune.quantize.view import View, attribute


def window(view: View, node: onnx.NodeProto) -> tuple[int, ...] | None:
    """The shape of the weight of the depthwise convolution that is the same; None where there is none.

    A window that counts what it does not cover less, at the border, is no convolution; one over all of the image is
    a mean, which has a kernel of its own.
    """
    shape = view.shape(node.input[0]) or ()
    kernel, pads = attribute(node, "kernel_shape", ()), attribute(node, "pads", ())
    if node.op_type != "AveragePool" or len(shape) != 4 or min(shape[1:]) < 1 or list(kernel) == list(shape[2:]):
        return None
    plain = not attribute(node, "ceil_mode", 0) and attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
    counted = not any(pads) or attribute(node, "count_include_pad", 0)
    if not (plain and counted and all(size == 1 for size in attribute(node, "dilations", ()))):
        return None
    return shape[1], 1, *kernel


def convolution(node: onnx.NodeProto, data: str, weight: str, shape: tuple[int, ...]) -> onnx.NodeProto:
    """The node as a convolution of `data` and `weight`, whose shape is that of `window`."""
    kept = {one.name: one for one in node.attribute if one.name in ("kernel_shape", "pads", "strides")}
    made = helper.make_node("Conv", [data, weight], list(node.output), name=node.name, group=shape[0])
    made.attribute.extend(kept.values())
    return made


def share(shape: tuple[int, ...]) -> float:
    """What each value of a window counts."""
    return 1.0 / math.prod(shape[2:])
