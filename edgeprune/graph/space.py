"""Axes as arrays of atoms, and the constraints between them.

Every dimension of every tensor is an *axis*: an int64 array with one *atom* a position. Positions that must be kept or
removed together carry atoms of one class. Three constraints say everything that the operator rules know:

    unite(a, b)             position i of `a` and position i of `b` go together (element-wise, contraction, broadcast)
    freeze(a, why)          these positions must stay
    factor(joint, parts)    `joint` is the row-major product of `parts` (a view that cuts or joins an axis): to stay
                            rectangular, one part may be narrowed, the others stay whole

Atom 0 is the frozen atom: axes that come from inputs, constants and space are arrays of zeros.
`solve` gives each atom its class. Classes are found as connected components (scipy), so the cost is linear.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Axis = NDArray[np.int64]


@dataclass(frozen=True)
class Reason:
    """Why something is frozen: in words, the operator, the user's source line, and the module that ran it."""

    why: str
    operator: str = ""
    source: str = ""
    module: str = ""


@dataclass(frozen=True)
class Factoring:
    """`joint` (shape = sizes of `parts`) is the product of `parts`."""

    joint: Axis
    parts: tuple[Axis, ...]
    reason: Reason
    key: tuple[Any, ...]


@dataclass(frozen=True)
class AxisClasses:
    """The class of each atom, which classes are frozen, and the first reason of each frozen class."""

    label: Axis
    frozen: NDArray[np.bool_]
    reasons: dict[int, Reason]

    def classes(self, axis: Axis) -> Axis:
        """The class of each position."""
        return self.label[axis]

    def free(self, axis: Axis) -> NDArray[np.bool_]:
        """Which positions may be removed."""
        return ~self.frozen[self.label[axis]]


def constant(n: int) -> Axis:
    """An axis of `n` frozen positions."""
    return np.zeros(n, dtype=np.int64)


@dataclass
class Space:
    """All atoms and the constraints collected so far; append-only until `solve`."""

    size: int = 1
    edges: list[tuple[Axis, Axis]] = field(default_factory=list)
    freezes: list[tuple[Axis, Reason]] = field(default_factory=list)
    factorings: list[Factoring] = field(default_factory=list)
    avoided: list[Axis] = field(default_factory=list)

    def fresh(self, n: int) -> Axis:
        """An axis of `n` new atoms."""
        start = self.size
        self.size += n
        return np.arange(start, start + n, dtype=np.int64)

    def freeze(self, axis: Axis, reason: Reason) -> None:
        """These positions must stay."""
        live = axis[axis != 0]
        if live.size:
            self.freezes.append((live, reason))

    def unite(self, a: Axis, b: Axis, reason: Reason) -> Axis:
        """Tie two axes of one length position by position, and return the axis of their result."""
        if a is b:
            return a
        if a.shape != b.shape:
            raise ValueError(f"axes of {a.size} and {b.size} positions")
        zero = (a == 0) | (b == 0)
        if zero.any():
            self.freeze(a[zero], reason)
            self.freeze(b[zero], reason)
            live = ~zero
            if live.any():
                self.edges.append((a[live], b[live]))
            return np.minimum(a, b)
        if not np.array_equal(a, b):
            self.edges.append((a, b))
        return a

    def avoid(self, axis: Axis) -> None:
        """Where a product leaves the choice, rather narrow another part than this one (the width of query and key)."""
        live = axis[axis != 0]
        if live.size:
            self.avoided.append(live)

    def factor(self, joint: Axis, parts: Sequence[Axis], reason: Reason, key: tuple[Any, ...] = ()) -> None:
        """Declare `joint` to be the row-major product of `parts`; parts of one position are dropped."""
        parts = tuple(p for p in parts if p.size != 1)
        if not parts:
            self.freeze(joint, reason)
            return
        live = [i for i, p in enumerate(parts) if p.any()]
        grid = joint.reshape([p.size for p in parts])
        if len(parts) == 1:
            self.unite(joint.reshape(-1), parts[0], reason)
        elif not live:
            self.freeze(joint.reshape(-1), reason)
        elif len(live) == 1 and all(not p.any() for i, p in enumerate(parts) if i != live[0]):
            self._choose(grid, parts, live[0], reason)
        else:
            self.factorings.append(Factoring(grid, parts, reason, key))

    def _choose(self, grid: Axis, parts: Sequence[Axis], chosen: int, reason: Reason) -> None:
        """Narrow part `chosen`; the other parts stay whole."""
        shape = [1] * grid.ndim
        shape[chosen] = parts[chosen].size
        spread = np.broadcast_to(parts[chosen].reshape(shape), grid.shape)
        self.unite(grid.reshape(-1), spread.reshape(-1), reason)
        for i, part in enumerate(parts):
            if i != chosen:
                self.freeze(part, reason)

    def solve(self) -> AxisClasses:
        """Decide every factoring and give each atom its class."""
        open_ = self.factorings
        chosen: list[Axis] = []
        while True:
            solution = self._components()
            if not open_:
                return solution
            rest, progress = [], False
            for item in open_:
                options = _options(item, solution)
                if len(options) <= 1:
                    progress = True
                    self._decide(item, options, solution, chosen)
                else:
                    rest.append((item, options))
            if not progress:
                rest = self._break_ties(rest, solution, chosen)
            open_ = [item for item, _ in rest]
            self.factorings = open_

    def _decide(self, item: Factoring, options: list[int], solution: AxisClasses, chosen: list[Axis]) -> None:
        if not options:
            why = _first_reason(solution, [item.joint.reshape(-1), *item.parts]) or item.reason
            for axis in (item.joint.reshape(-1), *item.parts):
                self.freeze(axis, why)
            return
        self._choose(item.joint, item.parts, options[0], item.reason)
        chosen.append(item.parts[options[0]])

    def _break_ties(
        self, rest: list[tuple[Factoring, list[int]]], solution: AxisClasses, chosen: list[Axis]
    ) -> list[tuple[Factoring, list[int]]]:
        """Follow what a neighbour chose; else take the largest part of the first, and of all its look-alikes."""
        anchored: list[tuple[Factoring, list[int]]] = []
        others: list[tuple[Factoring, list[int]]] = []
        near_by = _labels(chosen, solution)
        for item, options in rest:
            near = [o for o in options if near_by.intersection(solution.label[item.parts[o]].tolist())]
            (anchored if near else others).append((item, near or options))
        if anchored:
            for item, near in anchored:
                self._decide(item, near, solution, chosen)
            return others
        first, options = others[0]
        avoided = _labels(self.avoided, solution)
        liked = [o for o in options if not avoided.intersection(solution.label[first.parts[o]].tolist())]
        best = max(liked or options, key=lambda o: first.parts[o].size)
        left = []
        for item, options in others:
            if item is first or (item.key == first.key and best in options and item.joint.shape == first.joint.shape):
                self._decide(item, [best], solution, chosen)
            else:
                left.append((item, options))
        return left

    def _components(self) -> AxisClasses:
        if self.edges:
            rows = np.concatenate([a for a, _ in self.edges])
            cols = np.concatenate([b for _, b in self.edges])
            self.edges = [(rows, cols)]
            graph = coo_matrix((np.ones(rows.size, dtype=np.int8), (rows, cols)), shape=(self.size, self.size))
            _, label = connected_components(graph, directed=False)
            label = label.astype(np.int64)
        else:
            label = np.arange(self.size, dtype=np.int64)
        frozen = np.zeros(int(label.max()) + 1, dtype=bool)
        frozen[label[0]] = True
        reasons: dict[int, Reason] = {}
        for atoms, reason in self.freezes:
            classes = np.unique(label[atoms])
            for c in classes[~frozen[classes]]:
                reasons[int(c)] = reason
            frozen[classes] = True
        return AxisClasses(label, frozen, reasons)


def _options(item: Factoring, solution: AxisClasses) -> list[int]:
    """The parts that could still be narrowed: one of their slabs, and they themselves, hold nothing frozen."""
    options = []
    joint_free = solution.free(item.joint)
    for i, part in enumerate(item.parts):
        others = tuple(j for j in range(joint_free.ndim) if j != i)
        slab = joint_free.all(axis=others)
        if (solution.free(part) & slab).any():
            options.append(i)
    return options


def _labels(axes: Sequence[Axis], solution: AxisClasses) -> set[int]:
    """The classes that lie on any of these axes."""
    return set(np.unique(solution.label[np.concatenate(axes)]).tolist()) if axes else set()


def _first_reason(solution: AxisClasses, axes: Sequence[Axis]) -> Reason | None:
    for label in itertools.chain.from_iterable(np.unique(solution.label[a]).tolist() for a in axes):
        if label in solution.reasons:
            return solution.reasons[label]
    return None
