"""Attention's products of two activations: which of them run in INT8, and where what they read is quantised.

softmax(q k' / d + mask) v between linear layers, as one finds it behind the exporters: heads split and merged by moves,
a factor on the queries, the keys, both or the scores. OpenVINO makes one kernel of it, which multiplies bytes where
queries, keys and values have zero point 0 and the softmax starts at 0 (docs/int8.md). What does not look so is float.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from edgeprune.quantize.view import View

MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Gather", "Identity")
SCORES = ("Add", "Mul", "Div", "Reshape", "Squeeze", "Unsqueeze")  # between the first product and the softmax


def products(view: View, chosen: Collection[str], floats: Collection[str]) -> list[str]:
    """The products of attention whose queries, keys and values INT8 layers make, in pairs.

    Args:
        chosen: nodes that run in INT8.
        floats: nodes that compute in float whatever they are.
    """
    pairs: list[tuple[onnx.NodeProto, onnx.NodeProto]] = []
    for node in view.nodes:
        if node.op_type != "Softmax" or node.name in floats:
            continue
        first, second = _scores(view, node.input[0]), _read_by(view, node.output[0])
        if first is None or second is None or {first.name, second.name} & set(floats):
            continue
        if all(_from_layer(view, chosen, tensor) for tensor in _read(first, second)):
            pairs.append((first, second))
    both = {node.name for pair in pairs for node in pair}
    kept = [pair for pair in pairs if all(ends_in(view, both, source(view, t)) for t in _read(*pair))]
    return [node.name for pair in kept for node in pair]


def _read(first: onnx.NodeProto, second: onnx.NodeProto) -> list[str]:
    """Queries, keys and values of a pair of products."""
    return [first.input[0], first.input[1], second.input[1]]


def _is_product(view: View, node: onnx.NodeProto) -> bool:
    return node.op_type == "MatMul" and not any(view.is_constant(name) for name in node.input)


def _scores(view: View, tensor: str) -> onnx.NodeProto | None:
    """The product whose scores reach a softmax, alone and along the last axis."""
    node = view.producer.get(tensor)
    while node is not None and view.only_consumer(tensor) is not None:
        if _is_product(view, node):
            return node
        makers = [view.producer.get(node.input[index]) for index in view.data_inputs(node)]
        if node.op_type not in SCORES or not makers or makers[0] is None:
            return None
        tensor, node = node.input[view.data_inputs(node)[0]], makers[0]
    return None


def _read_by(view: View, tensor: str) -> onnx.NodeProto | None:
    """The product that alone reads a softmax, as its first input, perhaps in another shape."""
    node = view.only_consumer(tensor)
    while node is not None and node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Identity"):
        tensor = node.output[0]
        node = view.only_consumer(tensor)
    return node if node is not None and _is_product(view, node) and node.input[0] == tensor else None


def scales(view: View, node: onnx.NodeProto) -> bool:
    """Whether a node only multiplies by one number."""
    data = view.data_inputs(node)
    if node.op_type not in ("Mul", "Div") or len(data) != 1 or (node.op_type == "Div" and data != [0]):
        return False
    value = view.constant(node.input[1 - data[0]])
    return value is not None and value.size == 1 and float(value.reshape(-1)[0]) > 0


def passed(view: View, node: onnx.NodeProto) -> str | None:
    """What a node that moves values, or multiplies them by one number, reads; None for any other."""
    data = view.data_inputs(node)
    if not data or not view.is_float(node.input[data[0]]):
        return None
    return node.input[data[0]] if node.op_type in MOVES or scales(view, node) else None


def source(view: View, tensor: str) -> str:
    """Where what a product reads is quantised: behind the layer that makes it, before it is moved to its head."""
    node = view.producer.get(tensor)
    while node is not None and (before := passed(view, node)) is not None:
        tensor = before
        node = view.producer.get(tensor)
    return tensor


def _from_layer(view: View, chosen: Collection[str], tensor: str) -> bool:
    """Whether an INT8 linear layer, perhaps with a bias behind it, makes what reaches a product."""
    node = view.producer.get(source(view, tensor))
    if node is not None and node.op_type == "Add" and len(view.data_inputs(node)) == 1:
        node = view.producer.get(node.input[view.data_inputs(node)[0]])
    return node is not None and node.op_type in ("MatMul", "Gemm") and node.name in chosen and node.name in view.layers


def ends_in(view: View, nodes: Collection[str], tensor: str) -> bool:
    """Whether all that reads a tensor, through moves and factors, is among `nodes`."""
    left = [tensor]
    while left:
        name = left.pop()
        if name in view.outputs:
            return False
        for reader, _ in view.consumers.get(name, []):
            if reader.name in nodes:
                continue
            if passed(view, reader) is None:
                return False
            left += reader.output
    return True
