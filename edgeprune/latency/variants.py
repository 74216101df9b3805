"""Narrowed networks for sampling: which widths are allowed, and how random ones are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeprune.graph import Configuration, Structure
from edgeprune.target import Channels


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


def floor(structure: Structure, channels: Channels, blocks: bool = True) -> Configuration:
    """The smallest network: every group at its least width and, if `blocks`, every removable block gone."""
    least = {name: allowed[0] for name, allowed in options(structure, channels).items()}
    return Configuration(least, tuple(block.module for block in structure.blocks) if blocks else ())


def half(structure: Structure, channels: Channels) -> Configuration:
    """Every group at half of its width or less, every block there; groups that cannot be stay whole."""
    middle = {
        name: max((units for units in allowed if 2 * units <= allowed[-1]), default=allowed[-1])
        for name, allowed in options(structure, channels).items()
    }
    sizes = {group.name: group.size for group in structure.groups}
    return Configuration({name: units for name, units in middle.items() if units < sizes[name]})


def draw(
    structure: Structure, channels: Channels, count: int, seed: int = 0, blocks: bool = True
) -> list[Configuration]:
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
        result.append(Configuration(widths, _legal(structure, gone)))
    order = random.permutation(count)
    return [result[i] for i in order]


def _pick(allowed: Sequence[int], wanted: float, step: int, random: np.random.Generator) -> int:
    coarse = [units for units in allowed if units % step == 0 or units == allowed[-1]]
    pool = coarse if random.random() < 0.5 else allowed
    return min(pool, key=lambda units: abs(units - wanted))


def _legal(structure: Structure, gone: Sequence[str]) -> tuple[str, ...]:
    """Drop a block that lies inside another one that goes as well."""
    return tuple(name for name in gone if not any(name.startswith(other + ".") for other in gone if other != name))
