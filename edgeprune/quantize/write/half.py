"""Turning a Q/DQ graph's float part into float16; input and output stay float32 behind casts."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGEST = 65504.0  # of float16

# Inputs that an operator reads as float32 whatever the rest of it is.
_FLOAT32_INPUTS = {("Resize", 1), ("Resize", 2), ("Upsample", 1)}


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with float16 in place of float32; values beyond float16 saturate. Changes and gives back `model`."""
    graph = model.graph
    kept = {
        name for node in graph.node for index, name in enumerate(node.input) if (node.op_type, index) in _FLOAT32_INPUTS
    }
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_half(tensor))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_half(attribute.t))
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [_name(value) for value in graph.input if value.name not in initializers and _is_float(value)]
    outputs = [_name(value) for value in graph.output]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in inputs or name in outputs:
                node.input[index] = f"{name}.half"
        for index, name in enumerate(node.output):
            if name in outputs:
                node.output[index] = f"{name}.half"
    before = [helper.make_node("Cast", [n], [f"{n}.half"], name=f"{n}/half", to=TensorProto.FLOAT16) for n in inputs]
    after = [helper.make_node("Cast", [f"{n}.half"], [n], name=f"{n}/float", to=TensorProto.FLOAT) for n in outputs]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _name(value: onnx.ValueInfoProto) -> str:
    return str(value.name)


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT)


def _half(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = np.clip(numpy_helper.to_array(tensor), -LARGEST, LARGEST).astype(np.float16)
    return numpy_helper.from_array(values, tensor.name)
