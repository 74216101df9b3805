"""Narrowed networks for sampling: which widths are allowed, how random ones are drawn, and their float graphs.

Latency does not depend on the values of weights, so a variant keeps the first units of each group. Its graph is the
dense float ONNX with initializers sliced and removed blocks by-passed: milliseconds instead of a new export. `narrow`
checks the result by strict shape inference and says None when slicing is not valid for this network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeprune.graph.structure import Structure, width
from edgeprune.target import Channels


@dataclass(frozen=True)
class Variant:
    """One narrowed network.

    Attributes:
        widths: group -> units kept; groups not named stay whole.
        removed: blocks replaced by identity.
    """

    widths: Mapping[str, int]
    removed: tuple[str, ...] = ()


DENSE = Variant({})


def options(structure: Structure, channels: Channels) -> dict[str, tuple[int, ...]]:
    """Group -> allowed numbers of units, ascending, the dense size last.

    The grid is the finer of the runtime's input and output steps (a step that only saves in the consumers saves all the
    same), the depthwise step where a depthwise convolution is tied to the group. Channels, not units, lie on the grid.
    """
    depthwise = {
        segment.group
        for layer in structure.layers
        if layer.groups > 1
        for segment in (*layer.inputs, *layer.outputs)
        if segment.group is not None
    }
    per_unit = {s.group: s.per_unit for la in structure.layers for s in (*la.outputs, *la.inputs)[::-1] if s.group}
    result = {}
    for group in structure.groups:
        step = channels.depthwise_step if group.name in depthwise else min(channels.step, channels.input_step)
        each = per_unit.get(group.name, 1)
        allowed = [
            units
            for units in range(1, group.size)
            if units * each % step == 0 and units * each >= channels.minimum and units % group.divisor == 0
        ]
        result[group.name] = (*allowed, group.size)
    return result


def floor(structure: Structure, channels: Channels, blocks: bool = True) -> Variant:
    """The smallest network: every group at its least width and, if `blocks`, every removable block gone."""
    least = {name: allowed[0] for name, allowed in options(structure, channels).items()}
    return Variant(least, tuple(block.module for block in structure.blocks) if blocks else ())


def half(structure: Structure, channels: Channels) -> Variant:
    """Every group at half of its width or less, every block there; groups that cannot be stay whole."""
    middle = {
        name: max((units for units in allowed if 2 * units <= allowed[-1]), default=allowed[-1])
        for name, allowed in options(structure, channels).items()
    }
    sizes = {group.name: group.size for group in structure.groups}
    return Variant({name: units for name, units in middle.items() if units < sizes[name]})


def draw(structure: Structure, channels: Channels, count: int, seed: int = 0, blocks: bool = True) -> list[Variant]:
    """Random variants: an overall fraction from small to dense, each group's own around it, some blocks removed.

    The overall fractions are stratified, so that the whole range of latencies is covered; every third variant draws
    each group on its own. Half of the widths are on the coarse grid of the output step, where most answers lie.
    """
    random = np.random.default_rng(seed)
    allowed = options(structure, channels)
    result = []
    for index in range(count):
        overall = (index + random.random()) / count
        independent = index % 3 == 2
        widths = {}
        for group in structure.groups:
            share = random.random() if independent else float(np.clip(random.normal(overall, 0.2), 0, 1))
            widths[group.name] = _pick(allowed[group.name], share * group.size, channels.step, random)
        rate = random.random() * (1 - overall) if blocks and index % 2 else 0.0
        gone = tuple(block.module for block in structure.blocks if random.random() < rate)
        result.append(Variant(widths, _legal(structure, gone)))
    order = random.permutation(count)
    return [result[i] for i in order]


def _pick(allowed: Sequence[int], wanted: float, step: int, random: np.random.Generator) -> int:
    coarse = [units for units in allowed if units % step == 0 or units == allowed[-1]]
    pool = coarse if random.random() < 0.5 else allowed
    return min(pool, key=lambda units: abs(units - wanted))


def _legal(structure: Structure, gone: Sequence[str]) -> tuple[str, ...]:
    """Drop a block that lies inside another one that goes as well."""
    return tuple(name for name in gone if not any(name.startswith(other + ".") for other in gone if other != name))


def narrow(dense: onnx.ModelProto, structure: Structure, variant: Variant) -> onnx.ModelProto | None:
    """The variant's float graph by slicing the dense one, or None where that does not give a sound graph.

    Args:
        dense: as `model.export_onnx` writes it: initializers are called `<module>.weight` and `<module>.bias`.
    """
    model = onnx.ModelProto()
    model.CopyFrom(dense)
    del model.graph.value_info[:]
    for block in variant.removed:
        if not _bypass(model.graph, block):
            return None
    _drop_dead(model.graph)
    _slice(model.graph, structure, variant)
    _groups(model.graph, structure, variant)
    _reshapes(model.graph, dense, structure, variant)
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return None
    return model if _sound(model, dense, structure, variant) else None


def _bypass(graph: onnx.GraphProto, block: str) -> bool:
    """Connect what a block reads to what reads the block; False when it has not one entry and one exit."""
    prefix = (f"{block}.", f"{block}/")
    inside = [node for node in graph.node if node.name.startswith(prefix)]
    made = {name for node in inside for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    entries = dict.fromkeys(n for node in inside for n in node.input if n and n not in made and n not in constants)
    outside = [node for node in graph.node if not node.name.startswith(prefix)]
    exits = made & {name for node in outside for name in node.input}
    if len(entries) != 1 or len(exits) != 1 or made & {value.name for value in graph.output}:
        return False
    entry, exit_ = next(iter(entries)), next(iter(exits))
    for node in outside:
        node.input[:] = [entry if name == exit_ else name for name in node.input]
    for node in inside:
        graph.node.remove(node)
    return True


def _drop_dead(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _slice(graph: onnx.GraphProto, structure: Structure, variant: Variant) -> None:
    gone = removed_positions(structure, variant.widths)
    bias_axis = {la.name: 1 if la.kind.startswith("conv_transpose") else 0 for la in structure.layers}
    for tensor in graph.initializer:
        cuts = dict(gone.get(tensor.name, {}))
        module, _, kind = tensor.name.rpartition(".")
        if kind == "bias" and tensor.name not in gone and module in bias_axis:
            axis = bias_axis[module]
            weight = gone.get(f"{module}.weight", {})
            cuts = {0: weight[axis]} if axis in weight else {}
        if cuts:
            array = numpy_helper.to_array(tensor)
            for axis, positions in cuts.items():
                if axis < array.ndim:
                    array = np.delete(array, positions[positions < array.shape[axis]], axis)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def removed_positions(structure: Structure, widths: Mapping[str, int]) -> dict[str, dict[int, NDArray[np.int64]]]:
    """Parameter -> axis -> positions that go when group g keeps its first `widths[g]` units."""
    found: dict[str, dict[int, list[NDArray[np.int64]]]] = {}
    for group in structure.groups:
        kept = widths.get(group.name, group.size)
        if kept < group.size:
            for member in group.members:
                found.setdefault(member.parameter, {}).setdefault(member.axis, []).append(member.indices[kept:].ravel())
    return {name: {axis: np.concatenate(parts) for axis, parts in axes.items()} for name, axes in found.items()}


def _groups(graph: onnx.GraphProto, structure: Structure, variant: Variant) -> None:
    """The `group` attribute of grouped and depthwise convolutions."""
    counts = {la.name: width(la.group_axis, variant.widths) for la in structure.layers if la.group_axis}
    for node in graph.node:
        if node.name in counts:
            for attribute in node.attribute:
                if attribute.name == "group":
                    attribute.i = counts[node.name]


def _reshapes(graph: onnx.GraphProto, dense: onnx.ModelProto, structure: Structure, variant: Variant) -> None:
    """Constant target shapes that contain a channel count: the last such entry becomes -1."""
    shapes = {t.name: t for t in graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*dense.graph.value_info, *dense.graph.output)}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in shapes or not variant.widths:
            continue
        tensor = shapes[node.input[1]]
        target = numpy_helper.to_array(tensor).copy()
        if target.size == 2 and (target > 0).all() and ranks.get(node.output[0]) == 2:
            target[1] = -1
            tensor.CopyFrom(numpy_helper.from_array(target, tensor.name))


def _sound(model: onnx.ModelProto, dense: onnx.ModelProto, structure: Structure, variant: Variant) -> bool:
    """Every layer has the channels that the structure says, and the outputs kept their shapes."""
    made = {n.name: n.output[0] for n in model.graph.node}
    known = (*model.graph.value_info, *model.graph.output)
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in known}
    for layer in structure.layers:
        if layer.name not in made or layer.kind == "embedding":
            continue
        shape = shapes.get(made[layer.name], ())
        channels = shape[1] if len(shape) in (4, 5) else shape[-1] if shape else -1
        if channels != width(layer.outputs, variant.widths):
            return False
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes.update({v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input})
    for node in model.graph.node:  # ONNX's own shape inference does not compare these
        if node.op_type == "Conv" and node.input[1] in weights:
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            if shapes.get(node.input[0], (0, -1))[1] != weights[node.input[1]][1] * groups:
                return False
    old = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in dense.graph.output]
    return old == [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.output]
