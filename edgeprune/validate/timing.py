"""Latency by all validations of one artifact together, so that no repeat can be fished until it passes.

One validation measures the artifacts interleaved; its rounds tell how sure its medians are, but the next validation
differs by more than that (seven of one network: a ratio of 1.646 to 1.679, where each claimed 0.3 to 1.0 %). So the
ratio of the released artifact's latency to what it must not exceed is the median over all valid validations, and its
limit above holds the larger of what the validations differ by and RUN_TO_RUN: a guard band around a single one.

Slow noise (a cloud machine's other tenants) makes rounds alike that lie near each other, so that they tell less than
their number: the error is that of batches of rounds where it is larger, and one run measures at two moments.

A busy neighbour does not slow two networks alike: a training on another core took memory and cache from a dense VGG16
and hardly any from its pruned form, whose ratio was 0.273 then and 0.295 to 0.320 on the quiet machine, each within the
spread of its own rounds. So validations beside other work give way to quiet ones; where there is none, the search's own
measurements of the same network count with them.

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
BUSY = 0.35  # share of the CPUs' time that other work takes: beyond, a measurement is not quiet
APART = 0.03  # of a ratio: two moments that differ by more, and by more than their noise, do not say the same
PAIR = ("pruned_int8", "dense_int8")
MAD, MEDIAN = 1.4826, 1.2533  # a normal deviation over its MAD; the error of a median over that of a mean
BATCHES, FEWEST = 8, 2  # of rounds, and rounds in each
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


def entry(networks: Mapping[str, Latency], date: str = "", others: float = 0.0) -> Validation:
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
    pair = [networks[name].rounds for name in PAIR if name in networks]
    slow = wander(*pair) if len(pair) == 2 else 0.0
    return Validation(networks=kept, valid=not reasons, reasons=reasons, date=date, others=others, wander=slow)


def wander(rounds: Sequence[float], beside: Sequence[float]) -> float:
    """The relative standard error of the ratio of two networks' rounds by batches of them: slow noise makes it larger.

    0 where the rounds were not interleaved, or are too few.
    """
    size = len(rounds) // BATCHES
    if len(rounds) != len(beside) or size < FEWEST or min(*rounds, *beside) <= 0:
        return 0.0
    ratios = [one / other for one, other in zip(rounds, beside, strict=True)]
    medians = [statistics.median(ratios[index * size : (index + 1) * size]) for index in range(BATCHES)]
    return statistics.stdev(medians) / statistics.median(medians) / math.sqrt(BATCHES)


def quiet(kept: Sequence[Validation]) -> bool:
    """Is one of them valid, and was the device left alone meanwhile?"""
    return any(one.valid and one.others <= BUSY for one in kept)


def counted(kept: Sequence[Validation], earlier: Sequence[Validation] = ()) -> list[Validation]:
    """The validations that speak: the quiet ones; where none was, all.

    `earlier`, the search's own measurements, count with them where none was quiet, and where they say something else:
    these are moments of one device, and neither is the wrong one.
    """

    def pooled(some: Sequence[Validation]) -> Pooled | None:
        return together(some, lambda medians: medians[PAIR[0]] / medians[PAIR[1]], "ms", 0.95)

    valid, known = ([one for one in some if one.valid] for some in (kept, earlier))
    calm = [one for one in valid if one.others <= BUSY]
    if calm:
        return [*calm, *known] if apart(pooled(calm), pooled(known)) else calm
    return [*valid, *known] if valid else []


def apart(now: Pooled | None, earlier: Pooled | None) -> float:
    """By how much two moments of one device differ, of the ratio, where that is more than their noise; otherwise 0."""
    if now is None or earlier is None:
        return 0.0
    noise = math.hypot(now.high / now.ratio - 1, earlier.high / earlier.ratio - 1)
    difference = now.ratio / earlier.ratio - 1
    return difference if abs(difference) > max(APART, noise) else 0.0


def together(
    validations: Sequence[Validation], ratio: Callable[[Medians], float], unit: str, confidence: float
) -> Pooled | None:
    """What all valid validations say of `ratio`, which must not exceed 1; None where none is valid.

    Args:
        ratio: of one validation's medians, by network.
    """
    found = [one for one in validations if one.valid]
    if not found:
        return None
    ratios = [ratio({name: timed.median for name, timed in one.networks.items()}) for one in found]
    errors = [max(one.wander, math.hypot(*(one.networks[name].error for name in PAIR))) for one in found]
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
