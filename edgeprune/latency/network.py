"""The float graph as latency sees it: nodes, their channels and sizes, and who makes and reads each tensor.

Which axis of a tensor holds channels is the operators' to say, never the rank's: a convolution of any rank has them on
axis 1, a linear layer, a layer norm and a recurrent cell on the last; what has no weights hands on what it was given.
A tensor may hold its channels on two axes (attention: heads and what is in a head), and then they count as a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import helper, numpy_helper

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}) | RECURRENT
# Operators whose input and output have their channels on axis 1, by ONNX's definition; and on the last one.
SECOND = frozenset(
    {"BatchNormalization", "InstanceNormalization", "GroupNormalization", "LpPool", "MaxPool", "AveragePool",
     "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "DepthToSpace", "SpaceToDepth", "LRN", "MaxRoiPool"}
)  # fmt: skip
REDUCED = (
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceProd",
    "ArgMax",
    "ArgMin",
)

Shape = tuple[int, ...]
Axes = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One node of the float graph, as far as latency cares.

    Attributes:
        name: as `model.export_onnx` gives it: the PyTorch module for a layer, `<module>/<operator>` otherwise.
        inputs: tensors that carry data (initializers left out).
        c_in, c_out: channels; of a product of two activations the larger of its operands, and of the result.
        size: of the input without batch and channels, then that of the output where it differs and no attribute tells.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str
    c_in: int
    c_out: int
    size: Shape
    weighted: bool
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def module(self) -> str:
        """The PyTorch module that the node belongs to."""
        return self.name if self.weighted and "/" not in self.name else self.name.rpartition("/")[0]


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """A float graph: its nodes in order, who makes and who reads each tensor.

    Attributes:
        axes: tensor -> its channel axes, ascending.
    """

    nodes: Mapping[str, Node]
    producer: Mapping[str, str]
    consumers: Mapping[str, tuple[str, ...]]
    inputs: tuple[str, ...]
    batch: int
    axes: Mapping[str, Axes] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict, repr=False)


def read_network(model: onnx.ModelProto) -> FloatGraph:
    """Read a float graph with static shapes."""
    if not model.graph.value_info:
        model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    shapes = {v.name: _shape(v) for v in (*graph.input, *graph.value_info, *graph.output)}
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    axes = _channel_axes(graph, shapes, weights)
    nodes: dict[str, Node] = {}
    producer: dict[str, str] = {}
    consumers: dict[str, list[str]] = {}
    for node in graph.node:
        data = tuple(name for name in node.input if name and name not in weights)
        weighted = is_weighted(node, weights)
        read, made = data[:1], node.output[0]
        c_out = _count(made, shapes, axes)
        operands = data if node.op_type == "MatMul" and not weighted else read
        before, after = (_rest(name, shapes, axes) if name else () for name in (*(read or ("",)), made))
        attributes = {
            a.name: helper.get_attribute_value(a) for a in node.attribute if a.type != onnx.AttributeProto.GRAPH
        }
        if weighted and node.op_type.startswith("Conv"):
            attributes["kernel_shape"] = weights[node.input[1]][2:]
        if node.op_type in RECURRENT and read:  # [steps, batch, channels]
            before = after = shapes.get(read[0], ())[:1]
        told = weighted or "kernel_shape" in attributes or node.op_type in SECOND
        nodes[node.name] = Node(
            name=node.name,
            op=node.op_type,
            inputs=data,
            output=made,
            c_in=max((_count(name, shapes, axes, node, weighted) for name in operands), default=1),
            c_out=c_out,
            size=before if told or before == after else (*before, *after),
            weighted=weighted,
            attributes=attributes,
        )
        producer.update(dict.fromkeys(node.output, node.name))
        for name in data:
            consumers.setdefault(name, []).append(node.name)
    return FloatGraph(
        nodes,
        producer,
        {name: tuple(found) for name, found in consumers.items()},
        tuple(v.name for v in graph.input),
        _shape(graph.input[0])[0] if _shape(graph.input[0]) else 1,
        axes,
        shapes,
    )


def is_weighted(node: onnx.NodeProto, weights: Mapping[str, object]) -> bool:
    """A layer: an operator whose second input is a parameter."""
    return node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in weights


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim)


def _count(
    name: str,
    shapes: Mapping[str, Shape],
    axes: Mapping[str, Axes],
    reader: onnx.NodeProto | None = None,
    weighted: bool = False,
) -> int:
    """Channels of a tensor, as `reader` reads them."""
    shape = shapes.get(name, ())
    if reader is not None and (weighted or reader.op_type in SECOND) and len(shape) > 1:
        return shape[_own(reader.op_type, len(shape))]
    return math.prod(shape[axis] for axis in axes.get(name, ()) if axis < len(shape))


def _rest(name: str, shapes: Mapping[str, Shape], axes: Mapping[str, Axes]) -> Shape:
    """The sizes of a tensor without batch and channels."""
    return tuple(size for axis, size in enumerate(shapes.get(name, ())) if axis and axis not in axes.get(name, ()))


def _own(op: str, rank: int) -> int:
    """The channel axis of an operator that has one by definition."""
    return 1 if op.startswith("Conv") or op in SECOND else rank - 1


def _channel_axes(graph: onnx.GraphProto, shapes: Mapping[str, Shape], weights: Mapping[str, Shape]) -> dict[str, Axes]:
    """Tensor -> channel axes: what operators with a channel axis of their own say, handed on by the others."""
    known: dict[str, Axes] = {}
    for node in graph.node:  # what enters the graph has its channels where its first reader looks for them
        if (is_weighted(node, weights) or node.op_type in SECOND) and shapes.get(node.input[0]):
            known.setdefault(node.input[0], (_own(node.op_type, len(shapes[node.input[0]])),))
    made = {name for node in graph.node for name in node.output}
    known = {name: axes for name, axes in known.items() if name not in made}
    constants = {t.name: t for t in graph.initializer if t.data_type == onnx.TensorProto.INT64}
    for value in graph.input:
        known.setdefault(value.name, ())
    for node in graph.node:
        for name in node.output:
            if name:
                known[name] = _made(node, shapes.get(name, ()), shapes, known, weights, constants)
    return known


def _made(
    node: onnx.NodeProto,
    shape: Shape,
    shapes: Mapping[str, Shape],
    known: Mapping[str, Axes],
    weights: Mapping[str, Shape],
    constants: Mapping[str, onnx.TensorProto],
) -> Axes:
    """The channel axes of one output of `node`."""
    rank, op = len(shape), node.op_type
    if rank < 2:
        return ()
    if is_weighted(node, weights) or op in SECOND:
        return (_own(op, rank),)
    if op == "LayerNormalization" and next((a.i for a in node.attribute if a.name == "axis"), -1) in (-1, rank - 1):
        return (rank - 1,)
    if op == "Gather" and node.input[0] in weights:  # an embedding
        return (rank - 1,) if len(weights[node.input[0]]) > 1 else ()
    data = [name for name in node.input if name and name in shapes and name not in weights]
    if not data:
        return ()
    rule = _RULES.get(op, _aligned)
    found = rule(node, shape, data, shapes, known, constants)
    legal = sorted({axis for axis in found if 0 <= axis < rank})
    return tuple(axis for axis in legal if shape[axis] > 1) or tuple(legal[:1])


Rule = Callable[
    [onnx.NodeProto, Shape, Sequence[str], Mapping[str, Shape], Mapping[str, Axes], Mapping[str, onnx.TensorProto]],
    Sequence[int],
]


def _aligned(
    node: onnx.NodeProto,
    shape: Shape,
    data: Sequence[str],
    shapes: Mapping[str, Shape],
    known: Mapping[str, Axes],
    constants: Mapping[str, onnx.TensorProto],
) -> Sequence[int]:
    """Elementwise, concat, split, softmax, resize, ...: axes stay, counted from the right where ranks differ."""
    return [axis + len(shape) - len(shapes[name]) for name in data for axis in known.get(name, ())]


def _transposed(
    node: onnx.NodeProto,
    shape: Shape,
    data: Sequence[str],
    shapes: Mapping[str, Shape],
    known: Mapping[str, Axes],
    constants: Mapping[str, onnx.TensorProto],
) -> Sequence[int]:
    order = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(len(shape)))[::-1])
    return [order.index(axis) for axis in known.get(data[0], ()) if axis in order]


def _reshaped(
    node: onnx.NodeProto,
    shape: Shape,
    data: Sequence[str],
    shapes: Mapping[str, Shape],
    known: Mapping[str, Axes],
    constants: Mapping[str, onnx.TensorProto],
) -> Sequence[int]:
    """Axes are cut and joined in runs of equal product; a run that holds channels gives all its axes to them."""
    before, own = shapes[data[0]], known.get(data[0], ())
    found: list[int] = []
    for old, new in runs(before, shape):
        if any(axis in own for axis in old):
            found += [axis for axis in new if shape[axis] > 1 or len(new) == 1]
    return found


def runs(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """The shortest stretches of axes of two shapes whose products agree, in order."""
    found, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        old, new = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(old), j + len(new)
        while True:
            left, right = math.prod(before[k] for k in old), math.prod(after[k] for k in new)
            if left == right:
                break
            if left < right and i < len(before):
                old, i = [*old, i], i + 1
            elif left > right and j < len(after):
                new, j = [*new, j], j + 1
            else:
                break
        found.append((old, new))
    return found


def _product(
    node: onnx.NodeProto,
    shape: Shape,
    data: Sequence[str],
    shapes: Mapping[str, Shape],
    known: Mapping[str, Axes],
    constants: Mapping[str, onnx.TensorProto],
) -> Sequence[int]:
    """MatMul of two activations: what is batch, rows of the first or columns of the second; the inner axis is gone."""
    rank, found = len(shape), list[int]()
    for place, name in enumerate(data[:2]):
        own = len(shapes[name])
        inner = own - 1 if place == 0 else own - 2
        found += [axis + rank - own for axis in known.get(name, ()) if axis != inner]
    return found


def _reduced(
    node: onnx.NodeProto,
    shape: Shape,
    data: Sequence[str],
    shapes: Mapping[str, Shape],
    known: Mapping[str, Axes],
    constants: Mapping[str, onnx.TensorProto],
) -> Sequence[int]:
    rank = len(shapes[data[0]])
    given = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    if given is None and len(node.input) > 1 and node.input[1] in constants:
        given = numpy_helper.to_array(constants[node.input[1]]).tolist()
    if given is None:
        given = [a.i for a in node.attribute if a.name == "axis"] or list(range(rank))
    gone = {axis % rank for axis in given}
    if len(shape) == rank:
        return [axis for axis in known.get(data[0], ()) if axis not in gone]
    return [axis - sum(one < axis for one in gone) for axis in known.get(data[0], ()) if axis not in gone]


def _gathered(
    node: onnx.NodeProto,
    shape: Shape,
    data: Sequence[str],
    shapes: Mapping[str, Shape],
    known: Mapping[str, Axes],
    constants: Mapping[str, onnx.TensorProto],
) -> Sequence[int]:
    """One axis is replaced by those of the indices."""
    rank = len(shapes[data[0]])
    at = next((a.i for a in node.attribute if a.name == "axis"), 0) % rank
    more = len(shape) - rank
    return [axis if axis < at else axis + more for axis in known.get(data[0], ()) if axis != at]


_RULES: dict[str, Rule] = {
    "Transpose": _transposed,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
    "MatMul": _product,
    **dict.fromkeys(REDUCED, _reduced),
    "Gather": _gathered,
}
