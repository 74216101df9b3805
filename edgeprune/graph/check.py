"""The validity of a Structure: what must be true of every one, whatever the network. Cheap; the tests run it on all."""

from __future__ import annotations

import numpy as np

from edgeprune.errors import GraphError
from edgeprune.graph.analysis import Findings
from edgeprune.graph.groups import axes_of
from edgeprune.graph.parts import width


def check(structure: Findings) -> None:
    """Check the group structure.

    - The units of a member take equally many positions, no position twice, all inside the parameter.
    - Every axis of the graph holds each of its groups whole and evenly: any choice of units leaves it rectangular.
    - Every group has a layer that makes it; the segments of a layer sum to the sizes of its weight.

    Raises:
        GraphError: one of these does not hold: a bug in a rule.
    """
    analysis = structure.analysis
    shapes = {name: value.shape for name, value in analysis.walk.tensors.items()}
    names = [g.name for g in structure.groups]
    _require(len(set(names)) == len(names), "two groups share a name")
    taken: dict[tuple[str, int], set[int]] = {}
    for group in structure.groups:
        _require(group.size > 1 and bool(group.producers), f"group {group.name} has one unit or no producer")
        for member in group.members:
            where = f"{group.name}: {member.parameter} axis {member.axis}"
            positions = member.indices.reshape(-1).tolist()
            mine = taken.setdefault((member.parameter, member.axis), set())
            _require(member.indices.shape[0] == group.size, f"{where} has another number of units")
            _require(len(set(positions)) == len(positions), f"{where} has a position twice")
            _require(mine.isdisjoint(positions), f"{where} shares a position with another group")
            _require(max(positions) < shapes[member.parameter][member.axis], f"{where} is out of range")
            mine.update(positions)
    _check_axes(structure)
    for layer in structure.layers:
        inputs, outputs = width(layer.inputs, {}), width(layer.outputs, {})
        if layer.kind in ("linear", "conv1d", "conv2d", "conv3d"):
            said = (outputs, inputs // layer.groups)
            _require(layer.weight_shape[:2] == said, f"layer {layer.name} is {layer.weight_shape}, not {said}")


def _check_axes(structure: Findings) -> None:
    units = structure.analysis.units
    for axis in axes_of(structure.analysis.walk):
        classes = units.solution.label[axis]
        owner, unit = units.group[classes], units.unit[classes]
        for g in np.unique(owner[owner >= 0]).tolist():
            counts = np.bincount(unit[owner == g], minlength=units.sizes[g])
            _require(bool((counts == counts[0]).all()), f"group {units.names[g]} is uneven on an axis")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise GraphError(f"The group structure is not valid: {what}.", "This is a bug in edgeprune: please report it.")
