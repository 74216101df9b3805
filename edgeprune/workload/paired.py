"""How large a drop may be, as far as paired right-or-wrong answers tell: an exact one-sided limit.

Two networks answer the same n examples; `only_first` are right with the first alone, `only_second` with the second
alone. The drop is p1 - p2, the difference of the two chances. Its upper limit is the smallest drop that the answers
rule out at the confidence asked for:

* the answers are ordered by Tango's score statistic (Stat. Med. 17, 1998, 891-908), whose variance is that of the most
  likely probabilities *with* the drop that is tested, so that it does not shrink to nothing where no pair differs;
* its p-value is not read off the normal distribution, which is wrong for few pairs, but summed over the trinomial
  distribution, and is the largest over the unknown chance p2 (an exact unconditional test).

So a network that is truly worse than the limit passes with a chance of at most 1 - confidence, whatever n is. Without
any pair that differs the limit is 1 - (1 - confidence)^(1/n), the "rule of three". `benchmarks/gates.py` sums up how
often a bad network passes and a good one is refused.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID = 20  # chances p2 that are tried, twice: evenly in sqrt(p2), and near 0, where all happens when errors are few
TOLERANCE = 1e-6  # of a limit, which is rounded up to it
TAIL = 9.0  # standard deviations of a count that are summed over
POWER = 0.8  # of an honest network, in what `examples_for` asks for
EXACT = 1.5  # over the drop: examples that an exact test needs more than the normal distribution says, about
FEW = 100  # examples up to which other answers than "no pair differs" count for the smallest drop
AGAINST = 1 / 3  # of the dense network's errors, a network as good as it gets that share right, and errs as often anew

Array = NDArray[Any]


@lru_cache(maxsize=4096)
def upper_limit(only_first: int, only_second: int, examples: int, confidence: float) -> float:
    """The largest drop, a fraction, that the answers do not rule out at `confidence`."""
    if examples < 1 or min(only_first, only_second) < 0 or only_first + only_second > examples:
        raise ValueError(f"{only_first} and {only_second} pairs of {examples} examples")
    low, high = (only_first - only_second) / examples, 1.0
    near = low + NormalDist().inv_cdf(confidence) * math.sqrt(only_first + only_second + 1) / examples
    for guess in (near - 1 / examples, near + 1 / examples, near + 3 / examples):  # only to be quicker
        if low < guess < high:
            possible = p_value(only_first, only_second, examples, guess) > 1 - confidence
            low, high = (guess, high) if possible else (low, guess)
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        if p_value(only_first, only_second, examples, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def lower_limit(only_first: int, only_second: int, examples: int, confidence: float) -> float:
    """The smallest drop that the answers do not rule out at `confidence`."""
    return -upper_limit(only_second, only_first, examples, confidence)


def p_value(only_first: int, only_second: int, examples: int, drop: float) -> float:
    """The largest chance of answers that speak as much against a drop of `drop` or more, if it were exactly that."""
    seen = float(_score(np.array([float(only_first)]), np.array([float(only_second)]), examples, drop)[0])
    least, most = max(0.0, -drop), (1 - drop) / 2
    even = least + (most - least) * np.linspace(0, 1, GRID) ** 2
    small = least + np.concatenate([[0.0], np.geomspace(0.02, 60, GRID)]) / examples
    chances = np.unique(np.concatenate([even, small[small < most]]))
    border = _border(seen, examples, drop, _most(most, examples))
    found = np.array([_chance(border, examples, drop, chance) for chance in chances])
    for _ in range(2):  # between the points around the largest
        best = int(found.argmax())
        around = np.linspace(chances[max(0, best - 1)], chances[min(len(chances) - 1, best + 1)], 9)
        more = np.array([_chance(border, examples, drop, chance) for chance in around])
        order = np.argsort(np.concatenate([chances, around]))
        chances, found = np.concatenate([chances, around])[order], np.concatenate([found, more])[order]
    return float(min(1.0, found.max()))


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value that pairs fall this unevenly by chance."""
    pairs, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(pairs, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << pairs))  # whole numbers: exact until the last division


def smallest_drop(examples: int, confidence: float) -> float:
    """The smallest drop, a fraction, that so many examples can rule out: where no pair differs at all."""
    if examples <= FEW:
        return upper_limit(0, 0, examples, confidence)
    return float(1.0 - (1.0 - confidence) ** (1.0 / examples))


def fewest_examples(max_drop: float, confidence: float) -> int | None:
    """How many examples it takes to rule out `max_drop` (a fraction) where no pair differs; None: no number does."""
    if max_drop <= 0:
        return None
    if max_drop >= 1:
        return 1
    least = max(1, math.ceil(math.log(1 - confidence) / math.log1p(-max_drop) - 1e-9))
    while smallest_drop(least, confidence) > max_drop + TOLERANCE:
        least += 1
    return least


def examples_for(max_drop: float, confidence: float, errors: float) -> int | None:
    """About how many examples an honest network needs: as good as one with `errors` (a fraction), not the same.

    It passes with a chance of 80 %. What differs is not known before; AGAINST is what pruned networks show.
    """
    least = fewest_examples(max_drop, confidence)
    if least is None:
        return None
    z = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(POWER)
    return max(least, math.ceil(z * z * 2 * AGAINST * errors / max_drop**2 + EXACT / max_drop))


def needed(confidence: float) -> float:
    """How many deviations of one network's score an honest network's drop is to be sure of, four times of five.

    The variance of the difference is 2 * AGAINST of that of the score, as for a classifier's few errors.
    """
    return (NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(POWER)) * math.sqrt(2 * AGAINST)


def likely_drop(examples: int, confidence: float, errors: float) -> float:
    """About the smallest drop, a fraction, that so many examples rule out for such an honest network."""
    z = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(POWER)
    return min(1.0, max(smallest_drop(examples, confidence), z * math.sqrt(2 * AGAINST * errors / examples)))


def _score(first: Array, second: Array, examples: int, drop: float) -> Array:
    """Tango's statistic; negative where the answers speak for less than `drop`."""
    linear: Array = (first + second) - drop * (2 * examples - first + second)
    constant = second * drop * (1 - drop)
    chance = (linear + np.sqrt(np.maximum(linear**2 + 8 * examples * constant, 0))) / (4 * examples)
    chance = np.clip(chance, max(0.0, -drop), (1 - drop) / 2)
    variance = examples * (2 * chance + drop * (1 - drop))
    score: Array = (first - second - examples * drop) / np.sqrt(np.maximum(variance, 1e-12))
    return score


def _most(chance: float, examples: int) -> int:
    """The largest count worth a thought."""
    return min(examples, math.ceil(examples * chance + TAIL * math.sqrt(examples * chance) + 20))


def _border(seen: float, examples: int, drop: float, most: int) -> Array:
    """For each count of `only_second` up to `most`: the largest `only_first` whose score is not above `seen`, or -1."""
    second = np.arange(most + 1, dtype=np.float64)
    low, high = np.full(most + 1, -1.0), examples - second
    limit = seen + 1e-9 * max(1.0, abs(seen))
    while np.any(low < high):
        middle = np.ceil((low + high) / 2)
        good = _score(middle, second, examples, drop) <= limit
        low, high = np.where(good, middle, low), np.where(good, high, middle - 1)
    return low


def _chance(border: Array, examples: int, drop: float, second_only: float) -> float:
    """The chance to lie within the border where the second alone is right with chance `second_only`."""
    from scipy.special import bdtr, xlog1py, xlogy

    mean, deviation = examples * second_only, math.sqrt(examples * second_only) + 1
    start, end = max(0, math.floor(mean - TAIL * deviation)), min(len(border) - 1, math.ceil(mean + TAIL * deviation))
    counts = np.arange(start, end + 1)
    first_only = second_only + drop
    rest = min(1.0, max(0.0, first_only / (1 - second_only))) if second_only < 1 else 0.0
    ways = _log_factorial(examples)[[examples]] - _log_factorial(examples)[counts]
    ways = ways - _log_factorial(examples)[examples - counts]
    weights = np.exp(ways + xlogy(counts, second_only) + xlog1py(examples - counts, -second_only))
    most, left = border[start : end + 1], examples - counts
    below = np.where(most < 0, 0.0, bdtr(np.clip(most, 0, left), left, rest))
    return float((weights * np.where(most >= left, 1.0, below)).sum())


@lru_cache(maxsize=8)
def _log_factorial(most: int) -> Array:
    """log k! for k = 0 to `most`."""
    from scipy.special import gammaln

    found: Array = gammaln(np.arange(most + 1) + 1.0)
    return found
