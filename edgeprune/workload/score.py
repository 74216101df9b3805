"""A metric with its interval, and its paired difference to a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError
from edgeprune.workload import paired
from edgeprune.workload.statistics import (
    Proportion,
    Statistics,
    agresti_min,
    bootstrap,
    paired_bootstrap,
    percentile,
    whole,
    wilson,
)


@dataclass(frozen=True, eq=False)
class Score:
    """One network's metric on N examples.

    Attributes:
        metric, unit: "top-1", "points".
        higher_is_better: of the metric.
        value: in `unit`.
        examples: N.
        broken: examples with NaN or infinity among their outputs; they count as failed.
        confidence: of `low` and `high`.
        statistics: what each example leaves; in its order.
    """

    metric: str
    unit: str
    higher_is_better: bool
    value: float
    examples: int
    broken: int
    statistics: Statistics = field(repr=False)
    confidence: float = 0.95

    @staticmethod
    def of(
        metric: str, unit: str, higher_is_better: bool, statistics: Statistics, broken: int, confidence: float = 0.95
    ) -> Score:
        """From what the examples leave; raises DataError without any."""
        if not len(statistics):
            raise DataError(f"no example to measure {metric} on.", "Check the test split.")
        value = whole(statistics)
        return Score(metric, unit, higher_is_better, value, len(statistics), broken, statistics, confidence)

    @cached_property
    def _sample(self) -> NDArray[np.float64]:
        return bootstrap(self.statistics)

    def limit(self, level: float) -> float:
        """The one-sided limit of the value: with 0.95 it is at most this much, 95 times of 100; with 0.05 at least."""
        if isinstance(self.statistics, Proportion):
            return 100 * wilson(int(self.statistics.right.sum()), self.examples, level)
        return percentile(self._sample, level, self.examples, self.statistics.resamples)

    def interval(self, confidence: float) -> tuple[float, float]:
        """The two-sided interval of the value."""
        tail = (1 - confidence) / 2
        return self.limit(tail), self.limit(1 - tail)

    @property
    def low(self) -> float:
        return self.interval(self.confidence)[0]

    @property
    def high(self) -> float:
        return self.interval(self.confidence)[1]

    def against(self, reference: Score) -> Difference:
        """How much worse this is than `reference`, on the same examples."""
        return Difference.of(self, reference)

    def to_dict(self) -> dict[str, object]:
        """For result.json: infinite limits are null."""
        return {
            "metric": self.metric,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "confidence": self.confidence,
            "examples": self.examples,
            "broken": self.broken,
        }


@dataclass(frozen=True, eq=False)
class Difference:
    """How much worse a network is than a reference on the same examples.

    Attributes:
        metric, unit: of the scores.
        drop: in `unit`; positive is worse, whichever direction is better.
        examples: N.
        confidence: of `low` and `high`.
        sample: drops of resamples, sorted; empty where a formula serves.
        pairs: right in the reference only, and here only; None where the metric is no proportion.
    """

    metric: str
    unit: str
    drop: float
    examples: int
    confidence: float
    sample: NDArray[np.float64] = field(repr=False)
    drawn: int = field(repr=False)
    pairs: tuple[int, int] | None = None

    @staticmethod
    def of(score: Score, reference: Score) -> Difference:
        """Score against reference; raises DataError where they are not of the same metric and examples."""
        if score.metric != reference.metric or score.higher_is_better != reference.higher_is_better:
            raise DataError(f"{score.metric} cannot be compared with {reference.metric}.")
        if score.examples != reference.examples:
            raise DataError(
                f"{score.metric} of {score.examples} examples cannot be compared with that of {reference.examples}.",
                "Measure both on the same examples, in the same order.",
            )
        better, worse = (reference, score) if score.higher_is_better else (score, reference)
        drop = better.value - worse.value
        one, two = better.statistics, worse.statistics
        sample, drawn, pairs = np.zeros(0), 0, None
        if isinstance(one, Proportion) and isinstance(two, Proportion):
            pairs = int((one.right & ~two.right).sum()), int((~one.right & two.right).sum())
        else:
            sample, drawn = paired_bootstrap(one, two), min(one.resamples, two.resamples)
        return Difference(score.metric, score.unit, drop, score.examples, score.confidence, sample, drawn, pairs)

    def limit(self, level: float) -> float:
        """The one-sided limit of the drop at `level`: with 0.95 the drop is at most this much, 95 times of 100.

        Where an example is right or wrong, the exact limit (paired.py); else the bootstrap's.
        """
        if self.pairs is None:
            return percentile(self.sample, level, self.examples, self.drawn)
        if level >= 0.5:
            return 100 * paired.upper_limit(*self.pairs, self.examples, level)
        return 100 * paired.lower_limit(*self.pairs, self.examples, 1 - level)

    def upper(self, confidence: float = 0.95) -> float:
        """The drop is at most this much, so surely: what a gate compares with `max_drop`."""
        return max(self.drop, self.limit(confidence)) if not math.isnan(self.drop) else math.inf

    @property
    def low(self) -> float:
        return self._end((1 - self.confidence) / 2)

    @property
    def high(self) -> float:
        return self._end((1 + self.confidence) / 2)

    def _end(self, level: float) -> float:
        """Of the two-sided interval, which is shown and decides nothing: Agresti and Min's where there is a formula."""
        return self.limit(level) if self.pairs is None else 100 * agresti_min(*self.pairs, self.examples, level)

    def to_dict(self) -> dict[str, object]:
        """For result.json: infinite limits are null."""
        data: dict[str, object] = {
            "metric": self.metric,
            "unit": self.unit,
            "drop": _finite(self.drop),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "confidence": self.confidence,
            "examples": self.examples,
        }
        if self.pairs is not None:
            data |= {"only_reference": self.pairs[0], "only_this": self.pairs[1]}
        return data


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
