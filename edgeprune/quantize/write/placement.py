"""Where Q/DQ pairs go: from a float graph, a dialect and the user's float layers to nodes, edges and scales.

Only the structure of the graph counts, never the ranges: dummy ranges and real ones give the same placement, so a
latency sampled with dummies is the latency of the real artifact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from edgeprune.quantize.ranges.ranges import non_negative
from edgeprune.quantize.view import View, attribute, is_depthwise, output_axis
from edgeprune.quantize.write import attention
from edgeprune.runtimes import Dialect, Role

Edge = tuple[str, int]  # node name, input index
SHARING = (
    *("MaxPool", "Resize", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
    *("Split", "Slice", "Gather", "DepthToSpace", "Expand", "Tile"),
)
PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Placement:
    """Which nodes run in INT8 and which edges read dequantised values.

    Attributes:
        nodes: INT8 node -> its role, in graph order.
        edges: (node, input index) that reads a dequantised tensor -> that tensor.
        tensors: tensors that get a Q/DQ pair, in graph order.
        scale_of: tensor -> the tensor whose range it uses (itself, unless it shares).
        groups: tensor whose range is used -> every observed tensor that the range must cover.
        even: of these those whose zero point is 0, as products of two activations and some layers need it.
    """

    nodes: dict[str, str]
    edges: dict[Edge, str]
    tensors: tuple[str, ...]
    scale_of: dict[str, str]
    groups: dict[str, tuple[str, ...]]
    even: frozenset[str] = frozenset()

    def read_by(self, view: View, node: onnx.NodeProto, index: int = 0) -> str | None:
        """The quantised tensor that input `index` of a node carries, perhaps through nodes that only move values."""
        found = self.edges.get((node.name, index))
        while found is None:
            maker = view.producer.get(node.input[index])
            if maker is None or not maker.input or view.producer.get(maker.input[0]) is maker:
                return None
            if maker.op_type not in SHARING and not attention.scales(view, maker):
                return None
            node, index = maker, view.data_inputs(maker)[0]
            found = self.edges.get((node.name, index))
        return found


def place(view: View, dialect: Dialect, precision: Mapping[str, str] | None = None) -> Placement:
    """Decide the placement for the graph; nodes that `precision` calls otherwise than "int8" compute in float.

    Node names must be unique.
    """
    floats = {name for name, kind in (precision or {}).items() if kind != "int8"}
    nodes = _int8_nodes(view, dialect, floats)
    edges: dict[Edge, str] = {}
    scale_of: dict[str, str] = {}
    even: set[str] = set()
    for node in view.nodes:
        for index in _quantised_inputs(view, dialect, nodes, node):
            product = nodes[node.name] == "product"
            origin = node.input[index]
            origin = attention.source(view, origin) if product else _origin(view, dialect, nodes, floats, origin)
            if product or (node.op_type == "ConvTranspose" and dialect.even_transposed):
                even.add(origin)
            for step in _path(view, origin, node, index):
                edges[step] = origin
            scale_of.setdefault(origin, origin)
    if dialect.outputs:
        _quantise_outputs(view, dialect, nodes, edges, scale_of)
    groups = _unite(view, dialect, nodes, floats, scale_of)
    order = {name: index for index, name in enumerate(_tensor_order(view))}
    tensors = tuple(sorted(scale_of, key=lambda t: order[t]))
    return Placement(nodes, edges, tensors, scale_of, groups, frozenset(scale_of[tensor] for tensor in even))


def _tensor_order(view: View) -> list[str]:
    return [*view.inputs, *(output for node in view.nodes for output in node.output if output)]


def _int8_nodes(view: View, dialect: Dialect, floats: set[str]) -> dict[str, str]:
    """The nodes that run in INT8, in graph order. A node without weights joins when INT8 nodes feed it."""
    chosen: dict[str, str] = {}
    for node in view.nodes:
        role = role_of(dialect, node)
        if role is None or node.name in floats or not _floating(view, node):
            continue
        if role == "compute":
            if _can_compute(view, dialect, node):
                chosen[node.name] = role
            continue
        inputs = view.data_inputs(node)
        fed = [_is_int8(view, chosen, node.input[index]) for index in inputs]
        if role == "sum":
            if dialect.residual == "none" or len(inputs) < 2:
                continue
            wanted = all(fed) if dialect.outputs else len(_skips(view, chosen, node)) < len(inputs)
            if dialect.residual == "skip" and any(_made_by(view, node.input[index]) in floats for index in inputs):
                wanted = False  # what a layer of float gives out has no range: where all are in INT8 it may be fused
        elif role == "join":
            wanted = all(fed)
        else:
            wanted = bool(fed) and fed[0]
        if wanted:
            chosen[node.name] = role
    if dialect.outputs:
        _release(view, chosen)
        for name in tail(view) & chosen.keys():
            del chosen[name]
    if dialect.products:
        chosen |= dict.fromkeys(attention.products(view, chosen, floats), "product")
    return chosen


def tail(view: View) -> set[str]:
    """Nodes without weights behind the last layers: what they make only goes out, and costs little in float.

    In INT8 the outputs themselves would be whole steps, of one scale for all that a last Concat joins.
    """
    found: set[str] = set()
    for node in reversed(list(view.nodes)):
        readers = [reader for output in node.output for reader, _ in view.consumers.get(output, [])]
        if node.name not in view.layers and all(reader.name in found for reader in readers):
            found.add(node.name)
    return found


def heads(view: View, tensors: Iterable[str]) -> set[str]:
    """Of `tensors` those whose errors go out as they are: outputs, and what only the tail reads."""
    last = tail(view)
    return {
        tensor
        for tensor in tensors
        if tensor in view.outputs or all(reader.name in last for reader, _ in view.consumers.get(tensor, []))
    }


def _release(view: View, chosen: dict[str, str]) -> None:
    """Take out nodes that only move what a linear layer gives to operators of float: it can give that in float."""
    for node in reversed(list(view.nodes)):
        if chosen.get(node.name) != "share" or any(output in view.outputs for output in node.output):
            continue
        maker = view.producer.get(node.input[0])
        while maker is not None and chosen.get(maker.name) == "share":
            maker = view.producer.get(maker.input[0])
        readers = [reader.name for output in node.output for reader, _ in view.consumers.get(output, [])]
        if maker is not None and maker.op_type in ("MatMul", "Gemm") and not chosen.keys() & set(readers):
            del chosen[node.name]


def role_of(dialect: Dialect, node: onnx.NodeProto) -> Role | None:
    """The role of a node; a Resize that computes new values is one of float, but where the dialect has a kernel."""
    role = dialect.roles.get(node.op_type)
    between = node.op_type == "Resize" and attribute(node, "mode", b"nearest") != b"nearest"
    return None if between and not dialect.interpolates else role


def _floating(view: View, node: onnx.NodeProto) -> bool:
    """Whether what a node computes with is floating point: tokens, masks and shapes are no business of INT8."""
    data = view.data_inputs(node)
    return bool(data) and view.is_float(node.input[data[0]]) and view.is_float(node.output[0])


def _can_compute(view: View, dialect: Dialect, node: onnx.NodeProto) -> bool:
    if len(node.input) < 2 or not view.is_constant(node.input[1]) or view.is_constant(node.input[0]):
        return False
    weight = view.initializers.get(node.input[1])
    shape = tuple(weight.dims) if weight is not None else ()
    if len(shape) < 2 or (len(node.input) > 2 and node.input[2] and not view.is_constant(node.input[2])):
        return False
    if node.op_type == "Gemm" and not dialect.scales_gemm and not plain_gemm(node):
        return False
    if node.op_type == "Gemm" and dialect.bias == "int32" and len(node.input) > 2 and node.input[2]:
        bias = view.shape(node.input[2]) or ()
        if int(np.prod(bias)) not in (1, shape[output_axis(node)]):
            return False  # a bias for each row: QGemm knows one for all
    if node.op_type == "MatMul" and not dialect.appends_ones and _ones_appended(view, node):
        return False
    if node.op_type == "MatMul" and not dialect.stacks and int(np.prod(shape[:-2])) > 1:
        return False  # constants of several matrices, such as relative positions of each head
    if shape[1] < dialect.narrow and all(size == 1 for size in shape[2:]) and attribute(node, "group", 1) == 1:
        return False
    return dialect.depthwise or not is_depthwise(node, shape)


def _ones_appended(view: View, node: onnx.NodeProto) -> bool:
    """Whether a reader of what a MatMul gives (plus zeros) only appends sizes of one: [1, 16, 64] to [..., 1]."""
    made = node.output[0]
    shape = view.shape(made) or ()
    for reader, _ in view.consumers.get(made, []):
        if reader.op_type == "Add" and any(_zeros(view, name) for name in reader.input):
            made = reader.output[0]
    readers = [reader for name in {node.output[0], made} for reader, _ in view.consumers.get(name, [])]
    after = [view.shape(r.output[0]) or () for r in readers if r.op_type in ("Reshape", "Unsqueeze")]
    return any(len(a) > len(shape) > 2 and a[: len(shape)] == shape and set(a[len(shape) :]) == {1} for a in after)


def _zeros(view: View, name: str) -> bool:
    value = view.constant(name)
    return value is not None and not value.any()


def plain_gemm(node: onnx.NodeProto) -> bool:
    """Whether a Gemm scales neither its product nor its bias."""
    scales = [attribute(node, "alpha", 1.0)]
    if len(node.input) > 2 and node.input[2]:
        scales.append(attribute(node, "beta", 1.0))
    return all(scale == 1.0 for scale in scales)


def _is_int8(view: View, chosen: Mapping[str, str], tensor: str) -> bool:
    """Whether an INT8 node, perhaps with a fused activation, makes `tensor`."""
    node = view.producer.get(tensor)
    if node is None:
        return False
    if node.name in chosen:
        return True
    before = view.producer.get(node.input[0]) if node.op_type in ("Relu", "Clip") and node.input else None
    return before is not None and before.name in chosen and view.activation_after(node.input[0]) is node


def _made_by(view: View, tensor: str) -> str:
    """The name of the node that makes a tensor; empty for an input."""
    maker = view.producer.get(tensor)
    return maker.name if maker is not None else ""


def _skips(view: View, chosen: Mapping[str, str], node: onnx.NodeProto) -> list[int]:
    """Inputs of a sum other than the branch that it is fused into: the last INT8 layer that feeds nothing else."""
    order = {name: index for index, name in enumerate(chosen)}
    branches = [
        (order[maker.name], index)
        for index in view.data_inputs(node)
        if (maker := view.producer.get(node.input[index])) is not None
        and chosen.get(maker.name) == "compute"
        and view.only_consumer(node.input[index]) is node
    ]
    main = max(branches)[1] if branches else None
    return [index for index in view.data_inputs(node) if index != main]


def _quantised_inputs(view: View, dialect: Dialect, nodes: Mapping[str, str], node: onnx.NodeProto) -> list[int]:
    """Inputs of an INT8 node that read dequantised values."""
    match nodes.get(node.name):
        case None:
            return []
        case "product":
            return [0, 1]
        case "sum":
            return view.data_inputs(node) if dialect.residual == "all" else _skips(view, nodes, node)
        case "join":
            return view.data_inputs(node)
        case "share":
            return [0] if dialect.outputs else []
        case _:
            return [0]


def _origin(view: View, dialect: Dialect, nodes: Mapping[str, str], floats: set[str], tensor: str) -> str:
    """Walk up through nodes that only move or select values: one Q/DQ pair there serves all of them."""
    if dialect.outputs:
        return tensor
    node = view.producer.get(tensor)
    while node is not None and role_of(dialect, node) == "share" and node.name not in floats:
        if not all(_all_dequantise(view, dialect, nodes, floats, output) for output in node.output if output):
            break
        if not view.is_float(node.input[0]) or view.is_constant(node.input[0]):
            break
        tensor = node.input[0]
        node = view.producer.get(tensor)
    return tensor


def _all_dequantise(view: View, dialect: Dialect, nodes: Mapping[str, str], floats: set[str], tensor: str) -> bool:
    """Whether whoever reads `tensor` reads it dequantised, perhaps behind further nodes that only move values.

    Then the pair may stand before the node that makes it: a MaxPool that two layers read pools bytes.
    """
    if tensor in view.outputs:
        return False
    for reader, index in view.consumers.get(tensor, []):
        if index in _quantised_inputs(view, dialect, nodes, reader):
            continue
        if index or role_of(dialect, reader) != "share" or reader.name in floats:
            return False
        if not all(_all_dequantise(view, dialect, nodes, floats, output) for output in reader.output if output):
            return False
    return bool(view.consumers.get(tensor))


def _path(view: View, origin: str, node: onnx.NodeProto, index: int) -> list[Edge]:
    """The first edge of the chain from `origin` to input `index` of `node`: it reads the dequantised value."""
    maker = view.producer.get(node.input[index])
    edge = (node.name, index)
    tensor = node.input[index]
    while tensor != origin:
        assert maker is not None
        at = view.data_inputs(maker)[0]
        edge, tensor = (maker.name, at), maker.input[at]
        maker = view.producer.get(tensor)
    return [edge]


def _quantise_outputs(
    view: View, dialect: Dialect, nodes: Mapping[str, str], edges: dict[Edge, str], scale_of: dict[str, str]
) -> None:
    """Quantise what INT8 nodes give out, after the fused activation; every reader then reads the dequantised value."""
    for node in view.nodes:
        if node.name not in nodes:
            continue
        for output in node.output if nodes[node.name] == "share" else node.output[:1]:
            tensor = view.settled(output)
            readers = view.consumers.get(tensor, [])
            inside = any(reader.name in nodes for reader, _ in readers)
            if node.op_type in ("Gemm", "MatMul") and not inside and not _would_fuse(view, node):
                continue  # these give out float directly
            scale_of.setdefault(tensor, tensor)
            for reader, index in readers:
                edges[(reader.name, index)] = tensor


def _mixed(view: View, tensors: list[str]) -> bool:
    """Whether some of what a Concat joins is rectified and some is signed.

    ONNX Runtime leaves a Relu to the saturation of its layer's output only where the zero point is the least integer;
    with the zero point of a signed range, layer and Relu run in float. Its Concat takes a scale for each input.
    """
    return len({non_negative(view, tensor) for tensor in tensors}) > 1


def read_elsewhere(view: View, tensor: str) -> bool:
    """Whether several nodes read `tensor`, or what it was moved from; Q and DQ do not count.

    ONNX Runtime's Concat takes a scale for each input: what others read as well keeps its own. In a detector's neck a
    feature map would be rounded to the range of all that it is joined with, 17 times its own in YOLO11n.
    """
    while True:
        if len(_readers(view, tensor)) > 1:
            return True
        maker = view.producer.get(tensor)
        if maker is None or len(maker.output) > 1 or maker.op_type not in (*SHARING, *PAIR):
            return False
        tensor = maker.input[0]


def _readers(view: View, tensor: str) -> set[str]:
    """The nodes that read a tensor, those behind Q and DQ instead of these."""
    found: set[str] = set()
    for reader, _ in view.consumers.get(tensor, []):
        found |= _readers(view, reader.output[0]) if reader.op_type in PAIR else {reader.name}
    return found


def _would_fuse(view: View, node: onnx.NodeProto) -> bool:
    """Whether ONNX Runtime makes a float Gemm of a MatMul of two axes and the Add behind it.

    With more axes `insert` keeps the two apart by the shape of the bias.
    """
    reader = view.only_consumer(node.output[0])
    if node.op_type != "MatMul" or reader is None or reader.op_type != "Add":
        return False
    return len(view.data_inputs(reader)) == 1 and len(view.shape(node.output[0]) or ()) < 3


def _unite(
    view: View, dialect: Dialect, nodes: Mapping[str, str], floats: set[str], scale_of: dict[str, str]
) -> dict[str, tuple[str, ...]]:
    """Give tensors that must share a scale one representative; fills `scale_of`, returns what each range must cover."""
    parent: dict[str, str] = {}

    def find(tensor: str) -> str:
        while parent.get(tensor, tensor) != tensor:
            tensor = parent[tensor]
        return tensor

    for node in view.nodes:
        role = nodes.get(node.name)
        if role == "share" and node.input[0] in scale_of:
            for one in node.output:
                if view.settled(one) in scale_of:
                    parent[find(view.settled(one))] = find(node.input[0])
        elif role == "join":
            read = [_origin(view, dialect, nodes, floats, node.input[index]) for index in view.data_inputs(node)]
            if dialect.outputs and _mixed(view, read):
                continue
            if dialect.outputs:
                read = [tensor for tensor in read if not read_elsewhere(view, tensor)]
            members = [tensor for tensor in [*read, view.settled(node.output[0])] if tensor in scale_of]
            for tensor in members[1:]:
                parent[find(tensor)] = find(members[0])
    for tensor in scale_of:
        scale_of[tensor] = find(tensor)
    groups: dict[str, list[str]] = {}
    for tensor, representative in scale_of.items():
        groups.setdefault(representative, []).append(tensor)
    return {representative: tuple(members) for representative, members in groups.items()}
