"""Attention masks of minus infinity, as numbers that a quantizer can look at.

torch's own attention fills what is not looked at with minus infinity. A softmax makes the same zeros of -10,000, in
float32 to the bit where scores are small beside it, and no range of INT8 holds an infinite value. Only a row in which
nothing may be looked at differs: it was NaN.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

MASKED = -1e4


def finite_masks(graph: onnx.GraphProto) -> None:
    """Give constants that a Where fills with, or that are added right before a Softmax, MASKED for -inf; in place."""
    scores = {node.input[0] for node in graph.node if node.op_type == "Softmax"}
    elsewhere = {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type != "Where" and not (node.op_type == "Add" and node.output[0] in scores):
            elsewhere.update(node.input)
    for tensor in graph.initializer:
        if tensor.name in elsewhere or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if np.isneginf(values).any():
            finite = np.where(np.isneginf(values), np.float32(MASKED), values)
            tensor.CopyFrom(numpy_helper.from_array(finite, tensor.name))
