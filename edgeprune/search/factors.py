"""A program as a factor graph, and its Lagrangian relaxation solved exactly by bucket elimination.

Variables are groups (their widths, and "absent" as a last state where a block can take them along) and blocks (keep,
remove, variants). Factors are tables over a few variables: losses and milliseconds. For a multiplier a, the minimum of
loss + a * ms over all networks is a min-sum problem; residual networks have low treewidth, so it takes milliseconds.
The same pass run backwards gives min-marginals: a bound on every network that takes a given option, which is what lets
the solver throw most options away before the exact program is written down.

Source: bucket elimination, Dechter (Artificial Intelligence 113, 1999); Lagrangian bounds of the knapsack, Fisher 1981.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgeprune.search.program import Array, Assignment, ChannelGroup, Kernel, Program

Scope = tuple[int, ...]
CLIQUE_LIMIT = 6_000_000  # cells of one elimination table; beyond it the relaxation is not used
INF = float("inf")


@dataclass(frozen=True, eq=False)
class Factor:
    """Loss and milliseconds over the states of `scope` (ascending variables); several layers: the best one counts."""

    scope: Scope
    loss: tuple[Array, ...]
    ms: tuple[Array, ...]

    def at(self, multiplier: float, loss_weight: float = 1.0) -> Array:
        """The table of loss + multiplier * ms, minimised over precisions."""
        best: Array | None = None
        for loss, ms in zip(self.loss, self.ms, strict=True):
            value: Array = (loss_weight * loss if loss_weight else np.where(np.isinf(loss), INF, 0.0)) + multiplier * ms
            best = value if best is None else np.minimum(best, value)
        assert best is not None
        return best


@dataclass(frozen=True, eq=False)
class FactorGraph:
    """The factor graph: `names[v]` has `sizes[v]` states; the first `groups` variables are groups, the rest blocks."""

    program: Program
    sizes: tuple[int, ...]
    factors: tuple[Factor, ...]
    order: tuple[int, ...] | None  # of elimination; None: some clique would be too large

    def choice(self, states: Sequence[int], multiplier: float) -> Assignment:
        """The network that these states mean; each kernel in the precision that is best at this multiplier."""
        program = self.program
        count = len(program.groups)
        widths = {g.name: g.widths[s] for g, s in zip(program.groups, states, strict=False) if s < len(g.widths)}
        kept = dict(zip((b.name for b in program.blocks), states[count:], strict=True))
        removed = tuple(name for name, state in kept.items() if state == 1)
        variants = {b.name: b.variants[kept[b.name] - 2].name for b in program.blocks if kept[b.name] >= 2}
        index = {g.name: s for g, s in zip(program.groups, states, strict=False)}
        precisions = {}
        for item in program.kernels:
            if len(item.precisions) > 1 and kept.get(item.block, 0) == 0:
                cell = tuple(index[name] for name in item.groups)
                best = min(item.precisions, key=lambda way: way.loss + multiplier * float(way.ms[cell]))
                precisions[item.name] = best.name
        return Assignment(widths, removed, variants, precisions)


def build(program: Program) -> FactorGraph:
    """The factor graph of a checked program."""
    groups, blocks = program.groups, program.blocks
    number = {group.name: v for v, group in enumerate(groups)}
    place = {block.name: len(groups) + v for v, block in enumerate(blocks)}
    sizes = [len(group.widths) + bool(group.block) for group in groups] + [2 + len(block.variants) for block in blocks]
    factors = [_group(v, group) for v, group in enumerate(groups)]
    factors += [_tie(v, place[group.block], sizes) for v, group in enumerate(groups) if group.block]
    for block in blocks:
        loss = np.array([0.0, block.loss, *(item.loss for item in block.variants)])
        ms = np.array([0.0, 0.0, *(item.ms for item in block.variants)])
        factors.append(Factor((place[block.name],), (loss,), (ms,)))
    factors += [_kernel(item, number, place, groups, sizes) for item in program.kernels]
    return FactorGraph(program, tuple(sizes), tuple(factors), _order([f.scope for f in factors], sizes))


def _group(v: int, group: ChannelGroup) -> Factor:
    extra = [0.0] if group.block else []
    loss = np.array([*group.losses, *extra])
    return Factor((v,), (loss,), (np.zeros_like(loss),))


def _tie(v: int, block: int, sizes: Sequence[int]) -> Factor:
    """A group is absent exactly when its block is not kept."""
    loss = np.full((sizes[v], sizes[block]), INF)
    loss[:-1, 0] = 0.0
    loss[-1, 1:] = 0.0
    return Factor((v, block), (loss,), (np.zeros_like(loss),))


def _kernel(
    item: Kernel,
    number: Mapping[str, int],
    place: Mapping[str, int],
    groups: Sequence[ChannelGroup],
    sizes: Sequence[int],
) -> Factor:
    scope = [number[name] for name in item.groups]
    inside = any(groups[v].block for v in scope)
    loose = bool(item.block) and not inside  # nothing but the block's own state tells whether it runs
    full = [*scope, place[item.block]] if loose else scope
    axes = np.argsort(full)
    tables: list[tuple[Array, Array]] = []
    for way in item.precisions:
        ms = np.zeros([sizes[v] for v in full])
        loss = np.zeros_like(ms)
        cells: tuple[slice | int, ...] = tuple(slice(0, len(groups[v].widths)) for v in scope)
        cells = (*cells, 0) if loose else cells
        ms[cells] = way.ms
        loss[cells] = way.loss
        tables.append((np.transpose(loss, axes), np.transpose(ms, axes)))
    ordered = tuple(full[a] for a in axes)
    return Factor(ordered, tuple(loss for loss, _ in tables), tuple(ms for _, ms in tables))


def _order(scopes: Sequence[Scope], sizes: Sequence[int]) -> tuple[int, ...] | None:
    """Greedy smallest-clique order; None when some clique exceeds the limit."""
    near: dict[int, set[int]] = {v: set() for v in range(len(sizes))}
    for scope in scopes:
        for v in scope:
            near[v] |= set(scope) - {v}
    order: list[int] = []
    while near:
        cost = {v: float(np.prod([float(sizes[u]) for u in (v, *others)])) for v, others in near.items()}
        v = min(cost, key=lambda u: (cost[u], u))
        if cost[v] > CLIQUE_LIMIT:
            return None
        others = near.pop(v)
        for u in others:
            near[u] |= others - {u}
            near[u].discard(v)
        order.append(v)
    return tuple(order)


@dataclass(frozen=True, eq=False)
class _Bucket:
    variable: int
    scope: Scope  # the variable and its separator, ascending
    table: Array
    message: Array  # over the separator
    parent: int  # index of the bucket that the message goes to; -1: a constant


@dataclass(frozen=True, eq=False)
class Relaxed:
    """The minimum of the relaxed problem, and one network that attains it."""

    value: float
    states: tuple[int, ...]
    buckets: tuple[_Bucket, ...]


def minimise(network: FactorGraph, multiplier: float, loss_weight: float = 1.0) -> Relaxed:
    """Minimum of loss_weight * loss + multiplier * ms (without beta) over all networks, exactly."""
    assert network.order is not None
    position = {v: k for k, v in enumerate(network.order)}
    waiting: list[list[tuple[Scope, Array]]] = [[] for _ in network.order]
    for factor in network.factors:
        table = factor.at(multiplier, loss_weight)
        if factor.scope:
            waiting[min(position[v] for v in factor.scope)].append((factor.scope, table))
    constant = sum(float(f.at(multiplier, loss_weight)) for f in network.factors if not f.scope)
    buckets: list[_Bucket] = []
    for k, v in enumerate(network.order):
        scope = tuple(sorted({v}.union(*(s for s, _ in waiting[k])))) if waiting[k] else (v,)
        table = np.zeros([network.sizes[u] for u in scope])
        for part, values in waiting[k]:
            table += _lift(values, part, scope)
        message = table.min(axis=scope.index(v))
        rest = tuple(u for u in scope if u != v)
        parent = min((position[u] for u in rest), default=-1)
        if rest:
            waiting[parent].append((rest, message))
        else:
            constant += float(message)
        buckets.append(_Bucket(v, scope, table, message, parent))
    states = [0] * len(network.sizes)
    for bucket in reversed(buckets):
        cell = tuple(slice(None) if u == bucket.variable else states[u] for u in bucket.scope)
        states[bucket.variable] = int(np.argmin(bucket.table[cell]))
    return Relaxed(constant, tuple(states), tuple(buckets))


def min_marginals(network: FactorGraph, relaxed: Relaxed) -> list[Array]:
    """For each variable and state, the relaxed minimum over the networks that take it."""
    assert network.order is not None
    totals: list[Array] = [bucket.table for bucket in relaxed.buckets]
    roots = sum(float(bucket.message) for bucket in relaxed.buckets if bucket.parent < 0)
    base = relaxed.value - roots  # constants outside every bucket
    result: list[Array] = [np.zeros(0)] * len(network.sizes)
    for k in range(len(relaxed.buckets) - 1, -1, -1):
        bucket = relaxed.buckets[k]
        if bucket.parent < 0:
            totals[k] = totals[k] + (base + roots - float(bucket.message))
        else:
            above, rest = relaxed.buckets[bucket.parent], tuple(u for u in bucket.scope if u != bucket.variable)
            axes = tuple(a for a, u in enumerate(above.scope) if u not in rest)
            outside = totals[bucket.parent].min(axis=axes)  # over the separator, this bucket's message included
            down = np.where(
                np.isfinite(bucket.message), outside - np.where(np.isfinite(bucket.message), bucket.message, 0), INF
            )
            totals[k] = totals[k] + _lift(down, rest, bucket.scope)
        axes = tuple(a for a, u in enumerate(bucket.scope) if u != bucket.variable)
        result[bucket.variable] = totals[k].min(axis=axes)
    return result


def _lift(values: Array, part: Scope, scope: Scope) -> NDArray[np.float64]:
    """`values` over `part`, shaped to broadcast over `scope` (both ascending)."""
    assert all(a < b for a, b in pairwise(part))
    sizes = dict(zip(part, values.shape, strict=True))
    return values.reshape([sizes.get(u, 1) for u in scope])
