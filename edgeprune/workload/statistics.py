"""What is kept of every example, so that a metric's interval and a paired difference cost milliseconds.

A metric such as mAP or mIoU is no mean over examples. What can be kept of each example (its confusion rows, its list
of matched boxes) is small, and the metric of any resample of the examples follows from it. A resample is a row of
whole numbers, one an example: how often the example was drawn.

Intervals: Wilson's for one proportion and, for the difference of paired proportions, an exact limit where something is
decided by it (paired.py) and Agresti and Min's (2005) where it is shown; else the seeded bootstrap over examples, its
percentiles widened for few examples as Hesterberg (2015, "What teachers should know about the bootstrap") says. A
bootstrap of examples that do not differ at all would be sure of itself with ten of them. So where most examples tie,
one more is drawn from, as Agresti and Min do: an example on which one of the two, half of the time this one and half of
the time that one, fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Weights = NDArray[np.int64]
Flags = NDArray[np.bool_]
CHUNK = 256  # resamples at once: [256, examples] counts


class Statistics(Protocol):
    """What one network's outputs leave of N examples."""

    @property
    def resamples(self) -> int:
        """How many resamples an interval is read from."""

    def __len__(self) -> int: ...

    def values(self, weights: Weights) -> Values:
        """The metric of each resample: counts [B, N] -> [B]; NaN where it has no value."""

    def extended(self, example: int, failed: bool) -> Statistics:
        """One example more, number N: a copy of `example`, with outputs that are of no use where `failed`."""

    def ties(self, other: Any) -> Flags:
        """[N]: does the example leave the same for both?"""

    def joined(self, others: Sequence[Any]) -> Statistics:
        """These examples, then those of `others`, which are of the same kind."""


@dataclass(frozen=True, eq=False)
class Sums:
    """A metric that is a function of sums over examples.

    Attributes:
        rows: [N, K] numbers that are added up over examples.
        failed: [N, K], the same rows for outputs that are of no use.
        reduce: sums [B, K] -> the metric [B].
        resamples: of an interval.
    """

    rows: Values
    failed: Values
    reduce: Callable[[Values], Values]
    resamples: int = 2000

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def graded(self) -> bool:
        """Is it measured numbers that are added up, not counts? Then two networks hardly ever tie on an example."""
        return bool((self.rows != np.rint(self.rows)).any())

    def values(self, weights: Weights) -> Values:
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.reduce(weights.astype(np.float64) @ self.rows)

    def extended(self, example: int, failed: bool) -> Sums:
        row = (self.failed if failed else self.rows)[[example]]
        rows, worst = np.concatenate([self.rows, row]), np.concatenate([self.failed, self.failed[[example]]])
        return type(self)(rows, worst, self.reduce, self.resamples)

    def ties(self, other: Sums) -> Flags:
        return np.asarray((self.rows == other.rows).all(axis=1))

    def joined(self, others: Sequence[Sums]) -> Sums:
        every = [self, *others]
        return type(self)(
            np.concatenate([part.rows for part in every]),
            np.concatenate([part.failed for part in every]),
            self.reduce,
            self.resamples,
        )


def points(sums: Values) -> Values:
    """Sums (of what is right, of examples) -> hundredths."""
    return 100.0 * sums[:, 0] / sums[:, 1]


class Proportion(Sums):
    """Right or wrong, one example each; its intervals are formulas."""

    @staticmethod
    def of(right: Flags) -> Proportion:
        """From [N] booleans."""
        ones = np.ones(len(right))
        return Proportion(np.stack([right.astype(np.float64), ones], 1), np.stack([0 * ones, ones], 1), points)

    @property
    def right(self) -> Flags:
        return self.rows[:, 0] > 0.5


@dataclass(frozen=True, eq=False)
class Recomputed:
    """A metric of which nothing is known: it is asked again for every resample.

    Attributes:
        metric: (tuple of arrays [N, ...], list of N targets) -> float; NaN where it has no value.
        outputs: one network's outputs on N examples, finite.
        targets: N of them.
    """

    metric: Callable[[tuple[NDArray[Any], ...], list[Any]], float]
    outputs: tuple[NDArray[Any], ...]
    targets: list[Any]
    resamples: int = 200

    @property
    def graded(self) -> bool:
        """Are outputs measured numbers? Then two networks hardly ever give the same ones."""
        return any(bool((one != np.rint(one)).any()) for one in self.outputs if one.dtype.kind == "f")

    def __len__(self) -> int:
        return len(self.targets)

    def values(self, weights: Weights) -> Values:
        out = np.empty(len(weights))
        for number, row in enumerate(weights):
            if (row == 1).all():
                out[number] = self.metric(self.outputs, self.targets)
                continue
            chosen = np.repeat(np.arange(len(row)), row)
            out[number] = self.metric(tuple(o[chosen] for o in self.outputs), [self.targets[i] for i in chosen])
        return out

    def extended(self, example: int, failed: bool) -> Recomputed:
        more = tuple(np.zeros_like(o[[example]]) if failed else o[[example]] for o in self.outputs)
        outputs = tuple(np.concatenate([o, m]) for o, m in zip(self.outputs, more, strict=True))
        return Recomputed(self.metric, outputs, [*self.targets, self.targets[example]], self.resamples)

    def ties(self, other: Recomputed) -> Flags:
        same = np.ones(len(self), bool)
        for mine, theirs in zip(self.outputs, other.outputs, strict=True):
            same &= (mine == theirs).all(axis=tuple(range(1, mine.ndim)))
        return same

    def joined(self, others: Sequence[Recomputed]) -> Recomputed:
        every = [self, *others]
        outputs = tuple(np.concatenate([part.outputs[n] for part in every]) for n in range(len(self.outputs)))
        return Recomputed(self.metric, outputs, [t for part in every for t in part.targets], self.resamples)


def whole(statistics: Statistics) -> float:
    """The metric of all examples, each once."""
    return float(statistics.values(np.ones((1, len(statistics)), np.int64))[0])


def draws(examples: int, resamples: int, seed: int) -> Iterator[Weights]:
    """Counts of `resamples` resamples of `examples`, [up to CHUNK, examples] at a time; the same for a seed."""
    random = np.random.default_rng(seed)
    chances = np.full(examples, 1.0 / examples)
    for start in range(0, resamples, CHUNK):
        yield random.multinomial(examples, chances, size=min(CHUNK, resamples - start)).astype(np.int64)


def bootstrap(statistics: Statistics, seed: int = 0) -> Values:
    """The metric of many resamples, sorted; those without a value are left out."""
    parts = [statistics.values(weights) for weights in draws(len(statistics), statistics.resamples, seed)]
    found = np.concatenate(parts)
    return np.sort(found[~np.isnan(found)])


def paired_bootstrap(first: Statistics, second: Statistics, seed: int = 0) -> Values:
    """First minus second on the same resamples, sorted; with the example more where most of them tie (see the top)."""
    count, resamples = len(first), min(first.resamples, second.resamples)
    found = []
    if np.mean(first.ties(second)) <= 0.5:
        for weights in draws(count, resamples, seed):
            found.append(first.values(weights) - second.values(weights))
    else:
        random = np.random.default_rng(seed + 1)
        for number, weights in enumerate(draws(count + 1, resamples, seed)):
            example = int(random.integers(count))
            for part, fails in ((weights[::2], number % 2 == 0), (weights[1::2], number % 2 == 1)):
                one, two = first.extended(example, fails), second.extended(example, not fails)
                found.append(one.values(part) - two.values(part))
    every = np.concatenate(found)
    return np.sort(every[~np.isnan(every)])


def percentile(sample: Values, level: float, examples: int, wanted: int) -> float:
    """The one-sided limit at `level` (0.95: 95 % of the time it lies above what is sought; 0.05: below).

    Args:
        sample: sorted values of resamples.
        level: between 0 and 1.
        examples: how many there are; few widen the limit.
        wanted: how many resamples were drawn; where fewer than half have a value, there is no limit.
    """
    worst = math.inf if level >= 0.5 else -math.inf
    if examples < 2 or 2 * len(sample) < wanted or not len(sample):
        return worst
    from scipy.special import ndtr, stdtrit

    widened = float(ndtr(math.sqrt(examples / (examples - 1)) * stdtrit(examples - 1, level)))
    return float(np.quantile(sample, widened))


def normal_point(level: float) -> float:
    """The point below which the normal distribution has `level`: 1.645 for 0.95."""
    from scipy.special import ndtri

    return float(ndtri(level))


def wilson(right: int, examples: int, level: float) -> float:
    """Wilson's one-sided limit of a proportion at `level`, as a fraction: 0.975 gives the top of the 95 % interval."""
    z = normal_point(level)
    share, spread = right / examples, z**2 / examples
    centre = (share + spread / 2) / (1 + spread)
    return min(
        1.0, max(0.0, centre + z * math.sqrt(share * (1 - share) / examples + spread / (4 * examples)) / (1 + spread))
    )


def agresti_min(only_first: int, only_second: int, examples: int, level: float) -> float:
    """Agresti and Min's one-sided limit of first minus second, paired proportions: half an example in each cell."""
    b, c, n = only_first + 0.5, only_second + 0.5, examples + 2
    limit = (b - c) / n + normal_point(level) * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, min(1.0, limit))
