"""A program, or what is left of it, as a mixed-integer linear program for scipy's HiGHS.

Only x (widths), kept / removed / variant states and precisions are integers. The cells z of a kernel's table are
continuous: their marginals are the x, so that they are 0 or 1 by themselves when the x are (MDP, arXiv 2406.12079).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from edgeprune.search.program import Array, Assignment, ChannelGroup, Kernel, Program

Allowed = Sequence[NDArray[np.bool_]]  # a mask of states for every variable of the factor graph: groups, then blocks


@dataclass(frozen=True)
class Answer:
    """What HiGHS said. `bound` is a lower bound on the loss of the allowed networks; infinite if there are none."""

    choice: Assignment | None
    bound: float


@dataclass
class _Rows:
    """A linear program while it is being written."""

    cost: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    budget: list[tuple[int, float]] = field(default_factory=list)
    memory: list[tuple[int, float]] = field(default_factory=list)
    rows: list[list[tuple[int, float]]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def column(self, loss: float, ms: float = 0.0, size: float = 0.0, integer: bool = True) -> int:
        index = len(self.cost)
        self.cost.append(loss)
        self.integer.append(integer)
        if ms:
            self.budget.append((index, ms))
        if size:
            self.memory.append((index, size))
        return index

    def row(self, terms: list[tuple[int, float]], low: float, high: float) -> None:
        self.rows.append(terms)
        self.low.append(low)
        self.high.append(high)


@dataclass
class _Names:
    """Which column stands for what."""

    width: dict[str, dict[int, int]] = field(default_factory=dict)  # group -> option -> column
    keep: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    variant: dict[str, dict[int, int]] = field(default_factory=dict)
    precision: dict[str, dict[int, int]] = field(default_factory=dict)


def solve(
    program: Program, budget: float, limit: float, allowed: Allowed, seconds: float, relative_gap: float = 1e-6
) -> Answer:
    """The best allowed network with at most `budget` milliseconds and `limit` bytes (infinite: no such row).

    The choice may exceed the budget by HiGHS's own feasibility tolerance (1e-7 of it or so); the caller checks.
    """
    rows, names = _write(program, allowed)
    if any(not options for options in names.width.values()):
        return Answer(None, float("inf"))
    scale = max(budget - program.beta, 1e-12)
    rows.row([(c, ms / scale) for c, ms in rows.budget], -np.inf, 1.0)
    if np.isfinite(limit):
        rows.row([(c, size / limit) for c, size in rows.memory], -np.inf, 1.0)
    unit = max((abs(value) for value in rows.cost), default=0.0) or 1.0
    with _silent():
        result = milp(
            np.array(rows.cost) / unit,
            integrality=np.array(rows.integer, dtype=np.int64),
            bounds=Bounds(0.0, 1.0),
            constraints=LinearConstraint(_matrix(rows), np.array(rows.low), np.array(rows.high)),
            options={"time_limit": max(seconds, 0.1), "mip_rel_gap": relative_gap},
        )
    if result.status == 2:
        return Answer(None, float("inf"))
    dual = result.mip_dual_bound
    bound = float(dual) * unit if dual is not None and np.isfinite(dual) else 0.0
    return Answer(None if result.x is None else _read(program, names, result.x), bound)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """HiGHS prints a line of its own to the process's standard output, which belongs to results (`--json`)."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError):  # there is no standard output
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(null)
        os.close(kept)


def _write(program: Program, allowed: Allowed) -> tuple[_Rows, _Names]:
    rows, names = _Rows(), _Names()
    masks = dict(zip((b.name for b in program.blocks), allowed[len(program.groups) :], strict=True))
    for block in program.blocks:
        mask = masks[block.name]
        terms = []
        if mask[0]:
            names.keep[block.name] = rows.column(0.0)
            terms.append((names.keep[block.name], 1.0))
        if mask[1] and np.isfinite(block.loss):
            names.removed[block.name] = rows.column(block.loss)
            terms.append((names.removed[block.name], 1.0))
        names.variant[block.name] = {}
        for m, item in enumerate(block.variants):
            if mask[2 + m]:
                names.variant[block.name][m] = rows.column(item.loss, item.ms, item.bytes)
                terms.append((names.variant[block.name][m], 1.0))
        rows.row(terms, 1.0, 1.0)
    for group, mask in zip(program.groups, allowed, strict=False):
        lost = group.block and group.block not in names.keep
        options = [] if lost else [i for i in range(len(group.widths)) if mask[i]]
        names.width[group.name] = {i: rows.column(group.losses[i]) for i in options}
        terms = [(column, 1.0) for column in names.width[group.name].values()]
        if lost:
            del names.width[group.name]
        elif group.block:
            rows.row([*terms, (names.keep[group.block], -1.0)], 0.0, 0.0)
        else:
            rows.row(terms, 1.0, 1.0)
    groups = {group.name: group for group in program.groups}
    for each in program.kernels:
        if not each.block or each.block in names.keep:
            _kernel(rows, names, each, groups)
    return rows, names


def _kernel(rows: _Rows, names: _Names, item: Kernel, groups: dict[str, ChannelGroup]) -> None:
    """One kernel: straight onto the widths where that is exact, else cells with their marginals."""
    keep = names.keep.get(item.block)
    if len(item.precisions) == 1 and len(item.groups) == 1 and groups[item.groups[0]].block == item.block:
        way, columns = item.precisions[0], names.width[item.groups[0]]
        for i, column in columns.items():
            rows.budget.append((column, float(way.ms[i])))
            if way.bytes is not None:
                rows.memory.append((column, float(way.bytes[i])))
        return
    ways = {p: rows.column(0.0) for p in range(len(item.precisions))} if len(item.precisions) > 1 else {}
    names.precision[item.name] = ways
    axes = [names.width[name] for name in item.groups]
    sums: list[dict[int, list[tuple[int, float]]]] = [{i: [] for i in axis} for axis in axes]
    every: list[tuple[int, float]] = []
    for p, way in enumerate(item.precisions):
        mine = []
        for cell in product(*axes):
            size = float(way.bytes[cell]) if way.bytes is not None else 0.0
            z = rows.column(way.loss, float(way.ms[cell]), size, integer=False)
            mine.append((z, 1.0))
            for axis, i in zip(sums, cell, strict=True):
                axis[i].append((z, 1.0))
        every += mine
        if ways:
            rows.row([*mine, (ways[p], -1.0)], 0.0, 0.0)
    tied = False
    for name, axis, columns in zip(item.groups, sums, axes, strict=True):
        same = groups[name].block == item.block  # the group is there exactly when the kernel is
        tied |= same
        for i, column in columns.items():
            rows.row([*axis[i], (column, -1.0)], 0.0 if same else -np.inf, 0.0)
    if not tied:
        rows.row(
            [*every, (keep, -1.0)] if keep is not None else every, *((0.0, 0.0) if keep is not None else (1.0, 1.0))
        )


def _matrix(rows: _Rows) -> csr_matrix:
    data = [value for row in rows.rows for _, value in row]
    columns = [column for row in rows.rows for column, _ in row]
    starts = np.cumsum([0, *(len(row) for row in rows.rows)])
    matrix = csr_matrix((np.array(data), np.array(columns), starts), shape=(len(rows.rows), len(rows.cost)))
    matrix.sum_duplicates()
    return matrix


def _read(program: Program, names: _Names, x: Array) -> Assignment:
    removed = tuple(name for name, column in names.removed.items() if x[column] > 0.5)
    variants = {
        block.name: block.variants[m].name
        for block in program.blocks
        for m, column in names.variant[block.name].items()
        if x[column] > 0.5
    }
    gone = {*removed, *variants}
    widths = {}
    for group in program.groups:
        if group.block not in gone:
            columns = names.width[group.name]
            widths[group.name] = group.widths[max(columns, key=lambda i: float(x[columns[i]]))]
    precisions = {}
    for item in program.kernels:
        if len(item.precisions) > 1 and item.block not in gone:
            ways = names.precision[item.name]
            precisions[item.name] = item.precisions[max(ways, key=lambda p: float(x[ways[p]]))].name
    return Assignment(widths, removed, variants, precisions)
