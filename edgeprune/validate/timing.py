"""Latency by all validations of one artifact together, so that no repeat can be fished until it passes.

One validation measures the artifacts interleaved; its rounds tell how sure its medians are, but the next validation
differs by more than that (seven of one network: a ratio of 1.646 to 1.679, where each claimed 0.3 to 1.0 %). So the
ratio of the released artifact's latency to what it must not exceed is the median over all valid validations, and its
limit above holds the larger of what the validations differ by and RUN_TO_RUN: a guard band around a single one.

A verdict stands until all validations together speak against it: passed where the upper limit is within what is
allowed, refused where the median is not, and unchanged in between.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from edgeprune.result import NAMES, Latency, Timed, Validation

RUN_TO_RUN = {"ms": 0.005, "instructions": 0.0005, "modelled ms": 0.0}  # relative, of a ratio; one standard deviation
MAD, MEDIAN = 1.4826, 1.2533  # a normal deviation over its MAD; the error of a median over that of a mean
ROUNDS = 24  # where an older result does not say how many there were

Medians = Mapping[str, float]


@dataclass(frozen=True)
class Pooled:
    """Ratios of all valid validations together.

    Attributes:
        ratio: their median.
        high, low: its one-sided limits.
        passed: the verdict that stands.
        count: valid validations.
    """

    ratio: float
    high: float
    passed: bool
    count: int
    low: float = 0.0

    @property
    def open(self) -> bool:
        """Too near to tell: on the median alone it would pass."""
        return not self.passed and self.ratio <= 1

    @property
    def near(self) -> bool:
        """Another validation could tell: neither limit speaks yet."""
        return not self.passed and self.low <= 1


def entry(networks: Mapping[str, Latency], date: str = "") -> Validation:
    """One validation as it is kept: of each network its median and that median's relative standard error."""
    reasons = tuple(
        f"{NAMES.get(name, name)}: {reason}"
        for name, latency in networks.items()
        if not latency.valid
        for reason in latency.reasons or ("marked as not valid",)
    )
    kept = {
        name: Timed(median=latency.median, error=_error(latency), spread=latency.spread)
        for name, latency in networks.items()
    }
    return Validation(networks=kept, valid=not reasons, reasons=reasons, date=date)


def together(
    validations: Sequence[Validation], ratio: Callable[[Medians], float], unit: str, confidence: float
) -> Pooled | None:
    """What all valid validations say of `ratio`, which must not exceed 1; None where none is valid.

    Args:
        ratio: of one validation's medians, by network.
    """
    valid = [one.networks for one in validations if one.valid]
    if not valid:
        return None
    ratios = [ratio({name: found.median for name, found in one.items()}) for one in valid]
    errors = [math.hypot(*(one[name].error for name in ("pruned_int8", "dense_int8"))) for one in valid]
    floor, z, passed = RUN_TO_RUN.get(unit, RUN_TO_RUN["ms"]), NormalDist().inv_cdf(confidence), False
    middle = high = low = math.nan
    for count in range(1, len(ratios) + 1):
        middle = statistics.median(ratios[:count])
        within = statistics.fmean(error**2 for error in errors[:count])
        between = statistics.stdev(ratios[:count]) / middle if count > 1 else 0.0
        deviation = max(between, math.sqrt(floor**2 + within)) * (MEDIAN if count > 2 else 1.0)
        reach = z * deviation / math.sqrt(count)
        high, low = middle * (1 + reach), middle * (1 - reach)
        passed = high <= 1 or (passed and middle <= 1)
    return Pooled(middle, high, passed, len(ratios), low)


def _error(latency: Latency) -> float:
    """The relative standard error of a median of rounds."""
    spread, rounds = latency.spread, len(latency.rounds) or ROUNDS
    return MEDIAN * MAD * spread / math.sqrt(rounds) if math.isfinite(spread) else math.inf
