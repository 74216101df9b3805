"""From a network, a latency predictor and loss curves to the program, and from its answer to a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.graph import Block, Layer, Structure, option_of, sliced, width
from edgeprune.search.curves import Sensitivity
from edgeprune.search.program import (
    Array,
    Assignment,
    ChannelGroup,
    Cost,
    Kernel,
    KernelPrecision,
    Program,
    RemovableBlock,
    kernel,
)

if TYPE_CHECKING:
    from edgeprune.graph import Plan

CELLS = 200_000  # of one kernel's table; a layer that reads more groups than that allows is split into a sum


def formulate(
    structure: Structure,
    cost: Cost,
    curves: Sensitivity,
    *,
    blocks: bool = True,
    widths: bool = True,
    sizes: bool = False,
) -> Program:
    """The program of one network.

    Args:
        cost: the latency room's predictor, or anything with `beta` and `kernel(layer, c_in, c_out)` in milliseconds.
        blocks: may removable blocks go?
        widths: may groups be narrowed?
        sizes: kernels also tell the bytes of their INT8 weights (a weight that two layers share counts once).
    """
    removable = [block for block in structure.blocks if blocks and block.module in curves.blocks]
    home = {name: block.module for block in removable for name in block.inner}
    inside = {name: block.module for block in removable for name in block.layers}
    groups = []
    for group in structure.groups:
        allowed = curves.allowed[group.name] if widths else (group.size,)
        losses = tuple(curves.loss(group.name, value) for value in allowed)
        groups.append(ChannelGroup(group.name, allowed, losses, home.get(group.name, "")))
    known = {group.name: group.widths for group in groups}
    kernels: list[Kernel] = []
    weighed: set[str] = set()
    for layer in {layer.name: layer for layer in structure.layers}.values():
        counts = sizes and layer.weight not in weighed
        weighed.add(layer.weight)
        ways = curves.options.get(layer.name, {})
        made = _kernels(layer, cost, known, inside.get(layer.name, ""), counts, ways)
        kernels += made if len(made) > 1 or ways else _with_slices(made[0], layer, cost, known, removable)
    overhead = getattr(cost, "block_overhead", None)
    for block in removable:
        extra = max(0.0, float(overhead(block.module))) if overhead is not None else 0.0
        if extra:
            kernels.append(kernel(f"{block.module} (add)", (), np.array(extra), block.module))
    removals = tuple(RemovableBlock(b.module, curves.blocks[b.module]) for b in removable)
    return Program(tuple(groups), tuple(kernels), removals, beta=float(cost.beta)).check()


def to_plan(structure: Structure, curves: Sensitivity, choice: Assignment) -> Plan:
    """The plan that a choice of widths, blocks and options means: each group keeps its most valuable units."""
    kept = {name: curves.keep(name, value) for name, value in choice.widths.items()}
    known = curves.options
    options = {name: text for name, text in choice.precisions.items() if text in known.get(name, {})}
    return structure.plan(kept, choice.removed, options)


def stages(structure: Structure) -> dict[str, str]:
    """Group or block -> its kind of cut: by the output size of its first layer ("32x32 widths", "32x32 blocks")."""
    size = {layer.name: "x".join(map(str, layer.output_size)) for layer in structure.layers}
    kinds = {group.name: (group.producers, "widths") for group in structure.groups}
    kinds |= {block.module: (tuple(block.layers), "blocks") for block in structure.blocks}
    return {
        name: f"{next((size[layer] for layer in layers if layer in size), '')} {kind}"
        for name, (layers, kind) in kinds.items()
    }


def _kernels(
    layer: Layer,
    cost: Cost,
    widths: Mapping[str, Sequence[int]],
    block: str,
    sizes: bool,
    ways: Mapping[str, float],
) -> list[Kernel]:
    names = list(dict.fromkeys(s.group for s in (*layer.inputs, *layer.outputs) if s.group in widths))
    axes = [name for name in names if name is not None]
    cells = int(np.prod([len(widths[name]) for name in axes])) if axes else 1
    if len(axes) <= 2 or cells <= CELLS // 10:
        size = _weights(layer, axes, widths) if sizes else None
        own = kernel(layer.name, axes, _table(layer, cost, axes, widths), block, size)
        return [_with_options(own, layer, cost, axes, widths, ways) if ways else own]
    # Too many inputs for one table (a long concat): the first-order sum over pairs of one input group and the output.
    outputs = [name for name in axes if any(s.group == name for s in layer.outputs)][:1]
    inputs = [name for name in axes if name not in outputs]
    whole = _table(layer, cost, outputs, widths)
    all_weights = _weights(layer, outputs, widths) if sizes else None
    parts = [kernel(layer.name, outputs, whole, block, all_weights)]
    for name in inputs:
        saved = _table(layer, cost, [name, *outputs], widths) - whole[None]  # at most zero
        lighter = None if all_weights is None else _weights(layer, [name, *outputs], widths) - all_weights[None]
        parts.append(kernel(f"{layer.name} <- {name}", (name, *outputs), saved, block, lighter))
    return _lifted(parts)


def _with_slices(
    own: Kernel, layer: Layer, cost: Cost, widths: Mapping[str, Sequence[int]], blocks: Sequence[Block]
) -> list[Kernel]:
    """The layer's kernel; what it saves without a block of which it reads a slice is a kernel that goes with it."""
    if own.block:
        return [own]
    (way,) = own.precisions
    found, left = list[Kernel](), way.ms
    for block in blocks:
        if any(name == layer.name for name, _ in block.slices):
            saved = np.maximum(way.ms - _table(layer, cost, own.groups, widths, without=block), 0.0)
            saved = np.minimum(saved, left)
            left = left - saved
            found.append(kernel(f"{layer.name} <- {block.module}", own.groups, saved, block.module))
    return [replace(own, precisions=(replace(way, ms=left),)), *found]


def _with_options(
    own: Kernel,
    layer: Layer,
    cost: Cost,
    axes: Sequence[str],
    widths: Mapping[str, Sequence[int]],
    ways: Mapping[str, float],
) -> Kernel:
    """The layer's kernel with what it may become beside narrower, as far as `cost` knows it."""
    offers = getattr(cost, "offers", None)
    found = list(own.precisions)
    for text, loss in ways.items():
        if offers is not None and offers(layer.name, text):
            option, setting = option_of(text)
            whole = option.elements(layer.weight_shape, setting) / max(1, math.prod(layer.weight_shape))
            size = None if found[0].bytes is None else found[0].bytes * whole
            found.append(KernelPrecision(text, _table(layer, cost, axes, widths, text), loss, size))
    return replace(own, precisions=tuple(found))


def _lifted(parts: list[Kernel]) -> list[Kernel]:
    """Sums of tables may have negative terms; move what is missing from the first table into the others' zero."""

    def plus(item: Kernel, ms: float) -> Kernel:
        (way,) = item.precisions
        return replace(item, precisions=(replace(way, ms=np.maximum(way.ms + ms, 0.0)),))

    base, *rest = parts
    low = sum(float(min(0.0, item.precisions[0].ms.min())) for item in rest)
    share = low / max(1, len(rest))
    return [plus(base, low), *(plus(item, -share) for item in rest)]


def _weights(layer: Layer, axes: Sequence[str], widths: Mapping[str, Sequence[int]]) -> Array:
    """Bytes of the layer's INT8 weights over the options of `axes`; other groups stay whole."""
    choices = [widths[name] for name in axes]
    found = [_elements(layer, dict(zip(axes, cell, strict=True))) for cell in product(*choices)]
    return np.array(found, dtype=np.float64).reshape([len(choice) for choice in choices])


def _elements(layer: Layer, units: Mapping[str, int]) -> float:
    def area(kept: Mapping[str, int]) -> float:
        groups = width(layer.group_axis, kept) if layer.group_axis else layer.groups
        return width(layer.inputs, kept) * width(layer.outputs, kept) / max(1, groups)

    return math.prod(layer.weight_shape) * area(units) / (area({}) or 1.0)


def _table(
    layer: Layer,
    cost: Cost,
    axes: Sequence[str],
    widths: Mapping[str, Sequence[int]],
    option: str = "",
    without: Block | None = None,
) -> Array:
    """Milliseconds over the options of `axes`; other groups stay whole.

    Args:
        option: what the layer becomes.
        without: a block of whose result it reads no slice.
    """
    gone = [without] if without else []
    choices = [widths[name] for name in axes]
    cells = list(product(*choices))
    pairs = []
    for cell in cells:
        units = dict(zip(axes, cell, strict=True))
        pairs.append(
            (max(1, width(layer.inputs, units) - sliced(gone, layer.name, units)), width(layer.outputs, units))
        )
    distinct = sorted(set(pairs))
    matrix = getattr(cost, "matrix", None)
    if matrix is not None:
        ins, outs = sorted({a for a, _ in distinct}), sorted({b for _, b in distinct})
        extra = (option,) if option else ()
        whole = np.asarray(matrix(layer.name, ins, outs, *extra), dtype=np.float64)
        row, column = {a: i for i, a in enumerate(ins)}, {b: i for i, b in enumerate(outs)}
        time = {(a, b): float(whole[row[a], column[b]]) for a, b in distinct}
    else:
        time = {(a, b): float(cost.kernel(layer.name, a, b)) for a, b in distinct}
    table = np.array([max(0.0, time[pair]) for pair in pairs], dtype=np.float64)
    return table.reshape([len(choice) for choice in choices])
