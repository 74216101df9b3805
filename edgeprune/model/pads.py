"""Zero padding ahead of a max pooling, kept as it is.

ONNX Runtime's PadFusion (seen in 1.31.1) moves a Pad of zeros into the MaxPool that reads it, whose own padding counts
as minus infinity: where all values of a window at the border are negative the fused graph gives the largest of them,
not zero (the same fault as https://github.com/onnx/optimizer/pull/318). YOLOv3-tiny was off by a tenth of its outputs'
range. A pad value that is not quite zero is not fused.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

ALMOST_ZERO = float(np.finfo(np.float32).tiny)


def keep_zero_pads(graph: onnx.GraphProto) -> None:
    """Give float Pads of zeros that a MaxPool reads the smallest normal number instead; in place."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    for node in graph.node:
        if node.op_type != "Pad" or node.output[0] not in pooled:
            continue
        if any(a.name == "mode" and a.s not in (b"", b"constant") for a in node.attribute):
            continue
        given = node.input[2] if len(node.input) > 2 else ""
        if given:
            value = numpy_helper.to_array(constants[given]) if given in constants else None
            if value is None or value.dtype != np.float32 or value.any():
                continue
        name = f"{node.output[0]}.almost_zero"
        graph.initializer.append(numpy_helper.from_array(np.array(ALMOST_ZERO, np.float32), name))
        node.input[:] = [*node.input[:2], name, *node.input[3:]]
