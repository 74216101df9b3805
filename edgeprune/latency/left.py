"""Which channels are left of each tensor of a narrowed graph, and the constants that follow from them.

A tensor's mask has one axis for each of its channel axes (`FloatGraph.axes`): [C], or [heads, channels in a head].
Layers make masks from what was cut of their weights, all other operators hand them on. Shapes of reshapes, sizes of
splits, and ends of slices are constants of an exported graph: those that hold channels change with the masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeprune.latency.network import Axes, FloatGraph, is_weighted, read_network

Removed = dict[str, dict[int, NDArray[np.int64]]]  # parameter -> axis -> positions that go
Mask = NDArray[np.bool_]


class _Unclear(Exception):
    """What is left is no grid of channels, or a constant cannot follow it."""


def resize_constants(graph: onnx.GraphProto, dense: onnx.ModelProto, gone: Removed) -> bool:
    """Mend the constants of `graph`, whose weights are cut already; False where it cannot be told how.

    Args:
        dense: the graph before anything was cut or by-passed.
    """
    network = read_network(dense)
    weights = {tensor.name: tensor for tensor in dense.graph.initializer}
    masks: dict[str, Mask] = {}
    here = {node.name: node for node in graph.node}
    try:
        for node in dense.graph.node:
            _hand_on(node, network, weights, gone, masks)
            if node.name in here:
                _mend(here[node.name], graph, network, weights, masks)
    except (_Unclear, ValueError, IndexError):
        return False
    return True


def _hand_on(
    node: onnx.NodeProto,
    network: FloatGraph,
    weights: Mapping[str, onnx.TensorProto],
    gone: Removed,
    masks: dict[str, Mask],
) -> None:
    """The masks of a node's outputs, where they can be told."""
    made, op = node.output[0], node.op_type
    shape, axes = network.shapes.get(made, ()), network.axes.get(made, ())
    if not axes:
        return
    layer, lookup = is_weighted(node, weights), op == "Gather" and node.input[0] in weights
    if layer or lookup:
        mask = np.ones(shape[axes[0]], bool)
        axis = 1 if lookup or op == "ConvTranspose" else 0
        cut = gone.get(node.input[0 if lookup else 1], {}).get(axis)
        if cut is not None and op in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather"):
            mask[cut[cut < len(mask)]] = False
            masks[made] = mask
        elif cut is None:
            masks[made] = mask
        return
    known = [name for name in node.input if name in masks]
    if not known:
        return
    source = known[0]
    mask, own, before = masks[source], network.axes[source], network.shapes[source]
    found: Mask | None
    if op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        found = _reshaped(mask, own, before, shape, axes)
    elif op == "Transpose":
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(len(shape)))[::-1])
        places = [order.index(axis) for axis in own]
        found = np.transpose(mask, np.argsort(places))
    elif op == "Concat":
        found = _joined(node, network, masks, shape, axes)
    elif op in ("Split", "Slice") and _cut_axis(node, network, weights, source) in own:
        for name, part in zip(node.output, _parts(node, network, weights, mask, source), strict=False):
            masks[name] = part.reshape([network.shapes[name][axis] for axis in network.axes[name]])
        return
    elif op == "MatMul":
        found = _product(node, network, masks, shape, axes)
    elif op == "Gather":
        found = _picked(node, weights, mask, own, len(before))
    else:
        found = _aligned(node, network, masks, shape, axes)
    wanted = [shape[axis] for axis in axes]
    if found is not None and found.size == math.prod(wanted):  # axes of size 1 come and go
        for name in node.output:
            if network.shapes.get(name) == shape:
                masks[name] = found.reshape(wanted)


def _reshaped(mask: Mask, own: Axes, before: Sequence[int], after: Sequence[int], axes: Axes) -> Mask:
    full = mask.reshape([size if axis in own else 1 for axis, size in enumerate(before)])
    moved = np.broadcast_to(full, tuple(before)).reshape(tuple(after))
    return _any(moved, [axis for axis in range(len(after)) if axis not in axes])


def _joined(
    node: onnx.NodeProto, network: FloatGraph, masks: Mapping[str, Mask], shape: Sequence[int], axes: Axes
) -> Mask | None:
    axis = next(a.i for a in node.attribute if a.name == "axis") % len(shape)
    if axis not in axes:
        return next((masks[name] for name in node.input if name in masks), None)
    parts = []
    for name in node.input:
        sizes = network.shapes.get(name)
        if sizes is None:
            return None
        mask = masks.get(name)
        if mask is None or network.axes.get(name) != axes:
            mask = np.ones([sizes[one] for one in axes], bool)
        parts.append(mask)
    result: Mask = np.concatenate(parts, axes.index(axis))
    return result


def _product(
    node: onnx.NodeProto, network: FloatGraph, masks: Mapping[str, Mask], shape: Sequence[int], axes: Axes
) -> Mask | None:
    lines: dict[int, Mask] = {}
    for place, name in enumerate(node.input[:2]):
        if name in masks:
            rank = len(network.shapes[name])
            inner = rank - 1 if place == 0 else rank - 2
            for axis in network.axes[name]:
                if axis != inner:
                    lines.setdefault(axis + len(shape) - rank, _line(masks[name], network.axes[name].index(axis)))
    if set(lines) < set(axes):
        return None
    return _grid([lines[axis] for axis in axes])


def _picked(
    node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], mask: Mask, own: Axes, rank: int
) -> Mask | None:
    """One entry of an axis (query, key or value of a joint projection), or a gather beside the channels."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0) % rank
    if axis not in own:
        return mask
    if node.input[1] not in weights:
        return None
    result: Mask = np.take(mask, numpy_helper.to_array(weights[node.input[1]]), own.index(axis))
    return result


def _aligned(
    node: onnx.NodeProto, network: FloatGraph, masks: Mapping[str, Mask], shape: Sequence[int], axes: Axes
) -> Mask | None:
    """Elementwise and the like: of the first input that has the same channels; reductions keep what has any."""
    wanted = tuple(shape[axis] for axis in axes)
    for name in node.input:
        if name in masks:
            shift = len(shape) - len(network.shapes[name])
            mask, own = masks[name], network.axes[name]
            if tuple(axis + shift for axis in own) == axes and mask.shape == wanted:
                return mask
    for name in node.input:
        if name in masks and masks[name].ndim >= len(axes):
            mask = masks[name]
            over = tuple(i for i, size in enumerate(mask.shape) if size not in wanted)
            reduced = _any(mask, over) if over else mask
            if reduced.shape == wanted:
                return reduced
    return None


def _cut_axis(
    node: onnx.NodeProto, network: FloatGraph, weights: Mapping[str, onnx.TensorProto], source: str
) -> int | None:
    """The axis that a split or slice works on; None for several, or none that is constant."""
    rank = len(network.shapes[source])
    if node.op_type == "Split":
        return next((a.i for a in node.attribute if a.name == "axis"), 0) % rank
    given = _values(node, 3, weights)
    if given is None:
        given = list(range(len(_values(node, 1, weights) or ())))
    return given[0] % rank if len(given) == 1 else None


def _values(node: onnx.NodeProto, index: int, weights: Mapping[str, onnx.TensorProto]) -> list[int] | None:
    if index >= len(node.input) or node.input[index] not in weights:
        return None
    return [int(value) for value in numpy_helper.to_array(weights[node.input[index]]).ravel()]


def _ends(
    node: onnx.NodeProto, network: FloatGraph, weights: Mapping[str, onnx.TensorProto], source: str, size: int
) -> list[tuple[int, int]]:
    """(from, to) on the cut axis for each output."""
    if node.op_type == "Split":
        sizes = _values(node, 1, weights)
        if sizes is None:
            axis = _cut_axis(node, network, weights, source)
            sizes = [network.shapes[name][axis or 0] for name in node.output]
        stops = np.cumsum(sizes).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True))
    start, end, step = (_values(node, index, weights) for index in (1, 2, 4))
    if start is None or end is None or (step is not None and step != [1]):
        raise _Unclear
    return [slice(start[0], end[0]).indices(size)[:2]]


def _parts(
    node: onnx.NodeProto, network: FloatGraph, weights: Mapping[str, onnx.TensorProto], mask: Mask, source: str
) -> list[Mask]:
    axis = network.axes[source].index(_cut_axis(node, network, weights, source) or 0)
    bounds = _ends(node, network, weights, source, mask.shape[axis])
    return [np.take(mask, np.arange(low, high), axis) for low, high in bounds]


def _mend(
    node: onnx.NodeProto,
    graph: onnx.GraphProto,
    network: FloatGraph,
    weights: Mapping[str, onnx.TensorProto],
    masks: Mapping[str, Mask],
) -> None:
    """Write the constants of one node anew where channels that they count are gone."""
    made = node.output[0]
    if node.op_type in ("Reshape", "Expand") and len(node.input) > 1 and node.input[1] in weights:
        target = numpy_helper.to_array(weights[node.input[1]]).copy()
        if made in masks:
            if masks[made].all():
                return
            sizes = _sizes(masks[made])
            shape = network.shapes[made]
            for axis, size in zip(network.axes[made], sizes, strict=True):
                place = axis - len(shape) + len(target)
                if place >= 0 and target[place] == shape[axis]:
                    target[place] = size
        elif node.op_type == "Reshape" and target.size == 2 and (target > 0).all():
            target[1] = -1  # a flattened map whose channels nobody knows
        else:
            return
        _constant(node, 1, target, graph)
        return
    source = node.input[0] if node.input else ""
    if node.op_type not in ("Split", "Slice") or source not in masks or masks[source].all():
        return
    cut = _cut_axis(node, network, weights, source)
    if cut is None:
        raise _Unclear
    if cut not in network.axes[source]:
        return
    line = _line(masks[source], network.axes[source].index(cut))
    _sizes(masks[source])
    before = np.r_[0, np.cumsum(line)]
    bounds = [(before[low], before[high]) for low, high in _ends(node, network, weights, source, len(line))]
    if node.op_type == "Split":
        sizes = [int(high - low) for low, high in bounds]
        if len(node.input) < 2:
            node.input.append("")
            kept = [a for a in node.attribute if a.name != "num_outputs"]
            del node.attribute[:]
            node.attribute.extend(kept)
        _constant(node, 1, np.array(sizes, np.int64), graph)
    else:
        _constant(node, 1, np.array([bounds[0][0]], np.int64), graph)
        _constant(node, 2, np.array([bounds[0][1]], np.int64), graph)


def _sizes(mask: Mask) -> list[int]:
    """Channels left along each axis; raises _Unclear when what is left is no grid."""
    lines = [_line(mask, axis) for axis in range(mask.ndim)]
    if not np.array_equal(_grid(lines), mask):
        raise _Unclear
    return [int(line.sum()) for line in lines]


def _line(mask: Mask, axis: int) -> Mask:
    return _any(mask, [one for one in range(mask.ndim) if one != axis])


def _any(mask: Mask, over: Sequence[int]) -> Mask:
    return np.asarray(mask.any(axis=tuple(over)), np.bool_)


def _grid(lines: Sequence[Mask]) -> Mask:
    result: Mask = np.ones((), bool)
    for line in lines:
        result = np.logical_and.outer(result, line)
    return result


def _constant(node: onnx.NodeProto, index: int, value: NDArray[Any], graph: onnx.GraphProto) -> None:
    """Give one node a constant of its own: others may read the old one."""
    name = f"{node.name}.constant{index}"
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    node.input[index] = name
