"""The program that search solves, as plain data: groups with widths, kernels with times, blocks that may go.

    min   sum of losses          groups' widths, removed blocks, merged variants, kernels left in another precision
    s.t.  beta + sum of kernel times <= budget, bytes <= limit

A group takes one of its widths. A group inside a block vanishes with it, and so do the block's kernels. A kernel's time
is a table over the widths of *all* groups that it touches (input and output channels together: the latency term is
bilinear; freezing the input channels lands at 31 % where 50 % was asked). Nothing here knows torch or a runtime.

Units: milliseconds, bytes; losses in any unit that adds up (search uses KL in nats).
Source: the multiple-choice knapsack of HALP (arXiv 2110.10811) and the bilinear program of MDP (arXiv 2406.12079),
from the mathematics; merged variants as in LayerMerge (arXiv 2406.12837).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Cost(Protocol):
    """What a width costs on the device; the latency room's predictor is one."""

    @property
    def beta(self) -> float:
        """Milliseconds that no choice changes."""
        ...

    def kernel(self, layer: str, c_in: int, c_out: int) -> float:
        """Milliseconds of one layer's fused kernel at these channel counts, calibrated end to end."""
        ...


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are cut together.

    Attributes:
        widths: allowed numbers of units, ascending; the last is the dense size.
        losses: of each width, in the same order.
        block: the removable block that the whole group lives in; empty when it outlives every block.
    """

    name: str
    widths: tuple[int, ...]
    losses: tuple[float, ...]
    block: str = ""


@dataclass(frozen=True)
class Replacement:
    """A block's replacement, such as its convolutions merged into one."""

    name: str
    loss: float
    ms: float
    bytes: float = 0.0


@dataclass(frozen=True)
class RemovableBlock:
    """A residual block that can be replaced by identity, or by one of its variants.

    `loss` is that of removing it; infinite when it may only be replaced by a variant.
    """

    name: str
    loss: float
    variants: tuple[Replacement, ...] = ()


@dataclass(frozen=True, eq=False)
class KernelPrecision:
    """One way to compute a kernel: `ms` (and `bytes`) over the options of the kernel's groups, and what it loses."""

    name: str
    ms: Array
    loss: float = 0.0
    bytes: Array | None = None


@dataclass(frozen=True, eq=False)
class Kernel:
    """One fused kernel.

    Attributes:
        groups: names of the groups that set its channel counts, each once; tables have one axis for each.
        precisions: at least one.
        block: the block that it vanishes with; empty when it always runs.
    """

    name: str
    groups: tuple[str, ...]
    precisions: tuple[KernelPrecision, ...]
    block: str = ""


def kernel(name: str, groups: Sequence[str], ms: Array, block: str = "", bytes: Array | None = None) -> Kernel:
    """A kernel of one precision."""
    return Kernel(name, tuple(groups), (KernelPrecision("int8", np.asarray(ms, dtype=np.float64), 0.0, bytes),), block)


@dataclass(frozen=True)
class Assignment:
    """One network: the width of every group that is left, the blocks that went, and what replaced others."""

    widths: Mapping[str, int]
    removed: tuple[str, ...] = ()
    variants: Mapping[str, str] = field(default_factory=dict)
    precisions: Mapping[str, str] = field(default_factory=dict)  # only of kernels that have more than one


@dataclass(frozen=True)
class Totals:
    """What a choice costs by the program's own tables."""

    loss: float
    ms: float
    bytes: float


@dataclass(frozen=True)
class Program:
    """Everything that a solver needs. Build it, `check()` it, solve it."""

    groups: tuple[ChannelGroup, ...]
    kernels: tuple[Kernel, ...]
    blocks: tuple[RemovableBlock, ...] = ()
    beta: float = 0.0

    def check(self) -> Program:
        """Refuse contradictions with ValueError: they are a caller's mistake, never a user's."""
        groups = {group.name: group for group in self.groups}
        blocks = {block.name for block in self.blocks}
        if len(groups) != len(self.groups) or len(blocks) != len(self.blocks):
            raise ValueError("group and block names must be unique.")
        for group in self.groups:
            if (
                not group.widths
                or len(group.widths) != len(group.losses)
                or list(group.widths) != sorted(set(group.widths))
            ):
                raise ValueError(f"group {group.name}: widths must ascend and have one loss each.")
            _known(group.name, [group.block] if group.block else [], blocks)
            _finite(group.name, group.losses)
        for item in self.kernels:
            _known(item.name, [item.block] if item.block else [], blocks)
            _known(item.name, item.groups, groups)
            shape = tuple(len(groups[name].widths) for name in item.groups)
            if len(set(item.groups)) != len(item.groups) or not item.precisions:
                raise ValueError(f"kernel {item.name}: each group once, and at least one precision.")
            if any(groups[name].block not in ("", item.block) for name in item.groups):
                raise ValueError(f"kernel {item.name}: it reads a group of a block that it is not in.")
            for way in item.precisions:
                if way.ms.shape != shape or (way.bytes is not None and way.bytes.shape != shape):
                    raise ValueError(f"kernel {item.name}: {way.name} has shape {way.ms.shape}, its groups {shape}.")
                _finite(item.name, [way.loss, *way.ms.ravel()])
        return self

    def totals(self, choice: Assignment) -> Totals:
        """Loss, milliseconds and bytes of a choice."""
        gone = {*choice.removed, *choice.variants}
        loss, ms, size = 0.0, self.beta, 0.0
        index: dict[str, int] = {}
        for group in self.groups:
            if group.block not in gone:
                index[group.name] = group.widths.index(choice.widths[group.name])
                loss += group.losses[index[group.name]]
        for block in self.blocks:
            if block.name in choice.removed:
                loss += block.loss
            elif block.name in choice.variants:
                variant = next(item for item in block.variants if item.name == choice.variants[block.name])
                loss, ms, size = loss + variant.loss, ms + variant.ms, size + variant.bytes
        for item in self.kernels:
            if item.block in gone:
                continue
            name = choice.precisions.get(item.name, item.precisions[0].name)
            way = next(way for way in item.precisions if way.name == name)
            cell = tuple(index[group] for group in item.groups)
            loss, ms = loss + way.loss, ms + float(way.ms[cell])
            size += float(way.bytes[cell]) if way.bytes is not None else 0.0
        return Totals(loss, ms, size)

    def dense(self) -> Assignment:
        """Every group whole, every block there, every kernel in its first precision."""
        first = {item.name: item.precisions[0].name for item in self.kernels if len(item.precisions) > 1}
        return Assignment({group.name: group.widths[-1] for group in self.groups}, precisions=first)

    @property
    def options(self) -> int:
        """Widths, removals, variants and extra precisions: the size of the search space's axes together."""
        ways = sum(len(item.precisions) for item in self.kernels if len(item.precisions) > 1)
        return sum(len(group.widths) for group in self.groups) + sum(1 + len(b.variants) for b in self.blocks) + ways


def _known(name: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    missing = [item for item in wanted if item not in known]
    if missing:
        raise ValueError(f"{name}: unknown {missing[0]!r}.")


def _finite(name: str, values: Iterable[float]) -> None:
    if not all(np.isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"{name}: losses and times must be finite and not negative.")
