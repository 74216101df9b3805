"""From solved atoms to groups: units are classes of atoms; a group is the units that lie on the same axes alike.

Two units belong to one group exactly when they occur on the same axes of the graph, equally often. So every axis is a
sum of whole groups, and any choice of units in a group leaves every tensor rectangular.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeprune.graph.parts import Group, Layer, Member, Segment
from edgeprune.graph.space import Axis, AxisClasses
from edgeprune.graph.walk import Call, Walk, shaped_in


@dataclass(frozen=True)
class Units:
    """Which group and unit each class of atoms is (-1: none)."""

    group: NDArray[np.int64]
    unit: NDArray[np.int64]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    solution: AxisClasses = field(repr=False)

    def segments(self, axis: Axis) -> tuple[Segment, ...]:
        """The channels of an axis by group, in order of first appearance."""
        owner = self.group[self.solution.label[axis]]
        found, first, counts = np.unique(owner, return_index=True, return_counts=True)
        order = np.argsort(first)
        out = []
        for g, count in zip(found[order].tolist(), counts[order].tolist(), strict=True):
            if g < 0:
                out.append(Segment(None, count, 1))
            else:
                out.append(Segment(self.names[g], count, count // self.sizes[g]))
        return tuple(out)

    def alive(self, axis: Axis, kept: dict[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Which positions of an axis stay under these masks of kept units by group."""
        classes = self.solution.label[axis]
        owner, unit = self.group[classes], self.unit[classes]
        alive = np.ones(axis.size, dtype=bool)
        for g in np.unique(owner).tolist():
            mask = kept.get(self.names[g]) if g >= 0 else None
            if mask is not None:
                here = owner == g
                alive[here] = mask[unit[here]]
        return alive


def axes_of(walk: Walk) -> Iterable[Axis]:
    """Every distinct axis array of the graph, parameters first."""
    seen: set[int] = set()
    values = [*walk.values.values(), *(walk.training.values.values() if walk.training else ())]
    for value in (*walk.tensors.values(), *shaped_in(values)):
        for axis in value.axes:
            if id(axis) not in seen:
                seen.add(id(axis))
                yield axis


def _signatures(walk: Walk, solution: AxisClasses) -> NDArray[np.uint64]:
    """A hash a class of the axes that it lies on, with how often."""
    random = np.random.default_rng(0)
    total = np.zeros(solution.frozen.size, dtype=np.uint64)
    for axis in axes_of(walk):
        if axis.any():
            np.add.at(total, solution.label[axis], random.integers(1, 2**63, dtype=np.uint64))
    return total


def output_axis(call: Call) -> int | None:
    """Which dimension of the weight a layer produces; None for a depthwise convolution."""
    if call.kind.startswith("conv_transpose"):
        return 1 if call.groups == 1 else None
    if call.groups > 1 and call.weight_shape[1] == 1 and call.weight_shape[0] == call.groups:
        return None
    return 1 if call.kind == "embedding" else 0


def input_axis(call: Call) -> int | None:
    """Which dimension of the weight a layer contracts."""
    if call.kind == "embedding" or output_axis(call) is None:
        return None
    return 0 if call.kind.startswith("conv_transpose") else 1


def find_units(walk: Walk, solution: AxisClasses) -> tuple[Units, list[list[Member]]]:
    """Number the groups and units, and list each group's members (parameter axes)."""
    roles: dict[tuple[str, int], str] = {}
    rank: dict[str, int] = {}
    for call in [*walk.calls, *(walk.training.calls if walk.training else ())]:
        rank.setdefault(call.weight, len(rank))
        if (axis := output_axis(call)) is not None:
            roles[call.weight, axis] = "output"
        if (axis := input_axis(call)) is not None:
            roles.setdefault((call.weight, axis), "input")
    signature = _signatures(walk, solution)
    places = [
        (roles.get((name, d), "tied"), rank.get(name, len(rank)), name, d, solution.label[axis])
        for name, value in walk.tensors.items()
        for d, axis in enumerate(value.axes)
    ]
    places.sort(key=lambda p: (p[0] != "output", p[1]))
    group = np.full(solution.frozen.size, -1, dtype=np.int64)
    unit = np.full(solution.frozen.size, -1, dtype=np.int64)
    index: dict[int, int] = {}
    sizes: list[int] = []
    for role, _, _, _, classes in places:
        free = ~solution.frozen[classes] & (group[classes] < 0)
        if role != "output" or not free.any():
            continue
        _, first = np.unique(classes, return_index=True)
        for c in classes[np.sort(first)].tolist():
            if solution.frozen[c] or group[c] >= 0:
                continue
            g = index.setdefault(int(signature[c]), len(index))
            if g == len(sizes):
                sizes.append(0)
            group[c], unit[c] = g, sizes[g]
            sizes[g] += 1
    _drop_single(group, sizes)
    members: list[list[Member]] = [[] for _ in sizes]
    for role, _, name, d, classes in places:
        owner = group[classes]
        for g in np.unique(owner[owner >= 0]).tolist():
            positions = np.flatnonzero(owner == g)
            order = np.argsort(unit[classes[positions]], kind="stable")
            members[g].append(Member(name, d, positions[order].reshape(sizes[g], -1), role))
    names = _names(walk, members)
    return Units(group, unit, tuple(names), tuple(sizes), solution), members


def _drop_single(group: NDArray[np.int64], sizes: list[int]) -> None:
    """A group of one unit cannot be narrowed: its channel stays."""
    new = np.full(len(sizes) + 1, -1, dtype=np.int64)
    keep = [g for g, n in enumerate(sizes) if n > 1]
    new[keep] = np.arange(len(keep))
    group[:] = new[group]
    sizes[:] = [sizes[g] for g in keep]


def _names(walk: Walk, members: Sequence[Sequence[Member]]) -> list[str]:
    layer: dict[str, str] = {}
    for call in walk.calls:
        layer.setdefault(call.weight, call.module or call.weight)
    names: list[str] = []
    for found in members:
        first = found[0].parameter
        base = layer.get(first, first.rpartition(".")[0] or first)
        name, n = base, 1
        while name in names:
            n += 1
            name = f"{base}#{n}"
        names.append(name)
    return names


def make_layers(walk: Walk, units: Units) -> tuple[Layer, ...]:
    """Describe every call with its channel axes as segments."""
    group_axes = {(lit.node): lit.axis for lit in walk.literals if lit.name == "groups"}
    layers = []
    for call in walk.calls:
        macs = call.macs_per_pair * call.inputs.size * call.outputs.size / max(1, call.groups) / max(1, call.batch)
        axis = group_axes.get(call.node)
        layers.append(
            Layer(
                name=call.module,
                kind=call.kind,
                weight=call.weight,
                weight_shape=call.weight_shape,
                stride=call.stride,
                padding=call.padding,
                dilation=call.dilation,
                groups=call.groups,
                input_size=call.in_size,
                output_size=call.out_size,
                macs=round(macs),
                inputs=units.segments(call.inputs),
                outputs=units.segments(call.outputs),
                group_axis=units.segments(axis) if axis is not None else (),
            )
        )
    return tuple(layers)


def make_groups(walk: Walk, units: Units, members: Sequence[Sequence[Member]], layers: Sequence[Layer]) -> list[Group]:
    """The public groups; `parameters` counts the weights with a position in the group, `macs` its layers' share."""
    shapes = {name: value.shape for name, value in walk.tensors.items()}
    kinds = _kinds(walk, units)
    groups = []
    for name, size, found in zip(units.names, units.sizes, members, strict=True):
        outputs = {m.parameter for m in found if m.role == "output"}
        producers = tuple(dict.fromkeys(la.name for la in layers if la.weight in outputs and _has(la.outputs, name)))
        consumers = tuple(dict.fromkeys(la.name for la in layers if _has(la.inputs, name)))
        parameters = _touched([m for m in found if m.parameter not in walk.capture.buffers], shapes)
        macs = sum(la.macs for la in layers if la.name in producers or la.name in consumers)
        unit = _unit(kinds.get(name, ""), found)
        groups.append(Group(name, size, unit, 1, tuple(found), producers, consumers, parameters, macs))
    return groups


def _touched(members: Sequence[Member], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Weights with a position in the group on any of their axes; each counts once."""
    clear: dict[str, float] = {}  # the share of a parameter that no member lies on
    for m in members:
        clear[m.parameter] = clear.get(m.parameter, 1.0) * (1 - m.indices.size / shapes[m.parameter][m.axis])
    return sum(round(math.prod(shapes[name]) * (1 - share)) for name, share in clear.items())


def _has(segments: Sequence[Segment], name: str) -> bool:
    return any(s.group == name for s in segments)


def _kinds(walk: Walk, units: Units) -> dict[str, str]:
    """What the units of a group are where they are more than channels, by the axes that the group lies on."""
    grouped = {call.node for call in walk.calls if output_axis(call) is not None}
    kinds = [("head", axis) for axis in walk.heads]
    for literal in walk.literals:
        if literal.name == "hidden_size":
            kinds.append(("hidden unit", literal.axis))
        elif literal.name == "groups" and literal.node in grouped:
            kinds.append(("convolution group", literal.axis))
    found: dict[str, str] = {}
    for kind, axis in kinds:
        for segment in units.segments(axis):
            if segment.group is not None:
                found.setdefault(segment.group, kind)
    return found


def _unit(kind: str, members: Sequence[Member]) -> str:
    """What a unit is; without a better word, how many channels it takes in the layers that produce it."""
    widths = {m.indices.shape[1] for m in members if m.role == "output"}
    if kind and (widths != {1} or kind == "hidden unit"):
        return kind
    if widths == {1}:
        return "channel"
    return f"{min(widths)} channels" if len(widths) == 1 else "channels"
