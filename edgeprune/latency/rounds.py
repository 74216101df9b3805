"""One network timed beside the anchor, in rounds; and in which of them the device was at its own pace.

A shared or a throttled device has several paces, in turns of a fraction of a second to minutes. A ratio to the anchor
does not cancel that: at the slower pace small networks lose more than the dense one. So the anchor's fastest pace is
remembered, and only rounds at that pace count where there are enough of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeprune.devices import KernelTime
from edgeprune.latency.build import Built

SLOWER = 1.08  # a round whose anchor takes so many times what it takes at the fastest pace is of another pace
STRETCHES = 8  # of rounds, for the interval of a ratio
FEWEST, ENOUGH = 4, 6  # rounds at the fastest pace: of up to 16 rounds, of 24 and more


@dataclass(frozen=True)
class Measured:
    """One network of a batch: kernel medians (least of several profiles), and round medians beside the anchor's.

    Attributes:
        rounds, anchor: medians of each round, of this network and of the anchor, in the device's unit.
        pace: the anchor's latency at the device's fastest pace, as far as it is known; 0: not at all.
        share: the anchor's latency over the dense network's.
    """

    built: Built
    kernels: tuple[KernelTime, ...]
    rounds: tuple[float, ...]
    anchor: tuple[float, ...]
    pace: float = 0.0
    share: float = 1.0

    @property
    def at_pace(self) -> bool:
        """Enough rounds were at the fastest pace that is known."""
        return len(self._fast()) >= min(len(self.rounds), max(FEWEST, min(ENOUGH, len(self.rounds) // 4)))

    @property
    def latency(self) -> float:
        """End to end, in the device's unit."""
        return quiet([self.rounds[i] for i in self._counted()])

    @property
    def ratio(self) -> float:
        """Latency over the dense network's."""
        return self._ratio(self._counted())

    @property
    def spread(self) -> float:
        """Half of the ratio's 95 % interval, relative: what leaving out one stretch of rounds after another moves."""
        counted = self._counted()
        if len(counted) < 4:
            rounds = [self.rounds[i] for i in counted]
            return float(np.ptp(rounds) / min(rounds)) / 2
        groups = np.array_split(counted, min(STRETCHES, len(counted) // 2))
        left = [self._ratio([i for other in groups if other is not group for i in other]) for group in groups]
        error = math.sqrt((len(groups) - 1) * float(np.var(left)))  # the jackknife's standard error
        return 2 * error / self.ratio

    def and_again(self, other: Measured) -> Measured:
        """Both measurements of one network as one."""
        kernels = least([self.kernels, other.kernels])
        pace = min(self.pace or other.pace, other.pace or self.pace)
        return Measured(self.built, kernels, self.rounds + other.rounds, self.anchor + other.anchor, pace, other.share)

    def times(self, factor: float) -> Measured:
        """As on a device that is slower by this factor; ratios stay as they are."""
        kernels = tuple(dataclasses.replace(k, median=k.median * factor, mad=k.mad * factor) for k in self.kernels)
        rounds, anchor = (tuple(one * factor for one in found) for found in (self.rounds, self.anchor))
        return dataclasses.replace(self, kernels=kernels, rounds=rounds, anchor=anchor, pace=self.pace * factor)

    def _fast(self) -> list[int]:
        limit = SLOWER * (self.pace or quiet(self.anchor))
        return [i for i, anchor in enumerate(self.anchor) if anchor <= limit]

    def _counted(self) -> list[int]:
        return self._fast() if self.at_pace else list(range(len(self.rounds)))

    def _ratio(self, counted: Sequence[int]) -> float:
        return self.share * quiet([self.rounds[i] for i in counted]) / quiet([self.anchor[i] for i in counted])


class Pace:
    """What measurements of one device have in common: the anchor.

    Attributes:
        fastest: the anchor's latency at the fastest pace that it was seen at.
        dense: the dense network beside the anchor, all measurements together.
        share: the anchor's latency over the dense network's.
        earlier: the same as a table of an earlier day has it; counts as much as all of today's measurements.
    """

    def __init__(self) -> None:
        self.fastest, self.share = 0.0, 1.0
        self.earlier: float | None = None
        self.dense: Measured | None = None
        self._boards: dict[str, Pace] = {}

    def on(self, board: str) -> Pace:
        """The pace of a board of a fleet: its own fastest, with what the anchor is of the dense network; "": itself."""
        if not board:
            return self
        found = self._boards.setdefault(board, Pace())
        found.share = self.share
        return found

    def mark(self, found: Sequence[Measured]) -> list[Measured]:
        """Networks measured together, anchor first, with the pace that is known now."""
        now = quiet(found[0].anchor)
        self.fastest = min(self.fastest or now, now)
        return [self.known(one) for one in found]

    def weigh(self, dense: Measured) -> float:
        """The anchor's share of the dense network, which was measured beside it (again)."""
        self.dense = dense if self.dense is None else self.dense.and_again(dense)
        today = self.share / self.known(self.dense).ratio
        self.share = today if self.earlier is None else (today * self.earlier) ** 0.5
        return self.share

    def known(self, one: Measured) -> Measured:
        """`one` as it looks with the pace that is known now."""
        return dataclasses.replace(one, pace=self.fastest, share=self.share)


def quiet(rounds: Sequence[float]) -> float:
    """The 20 % quantile of the rounds' medians: the latency while nothing interferes (interference only ever adds)."""
    return float(np.quantile(np.asarray(rounds), 0.2))


def least(profiles: Sequence[Sequence[KernelTime]]) -> tuple[KernelTime, ...]:
    """Each kernel with the least of its medians over several profiles, in the order of the first."""
    if not profiles:
        return ()
    best = {kernel.name: kernel for kernel in profiles[0]}
    for kernel in (kernel for profile in profiles[1:] for kernel in profile):
        if kernel.name in best and kernel.median < best[kernel.name].median:
            best[kernel.name] = kernel
    runs = {name: sum(k.count for profile in profiles for k in profile if k.name == name) for name in best}
    return tuple(dataclasses.replace(kernel, count=runs[name]) for name, kernel in best.items())
