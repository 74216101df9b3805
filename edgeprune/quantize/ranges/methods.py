"""Choosing a range from a histogram: min-max, moving average, percentile, squared error, entropy.

Every method takes what was watched of one tensor and gives (low, high) with low <= 0 <= high.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune.quantize.ranges.grids import QParams, qparams
from edgeprune.quantize.ranges.observe import Watched
from edgeprune.runtimes import Dialect

Method = Literal["minmax", "moving-average", "percentile", "mse", "entropy"]
METHODS: tuple[Method, ...] = ("minmax", "moving-average", "percentile", "mse", "entropy")
CANDIDATES = 64  # ranges that a search tries, from the full one down to 1/20 of it

Range = tuple[float, float]


def choose(method: Method, seen: Watched, dialect: Dialect, percentile: float = 99.99) -> Range:
    """The range of one tensor by `method`; what was never seen, or is constant zero, gives (0, 0)."""
    if not len(seen.histogram.counts):
        return 0.0, 0.0
    full = min(seen.minimum, 0.0), max(seen.maximum, 0.0)
    if full == (0.0, 0.0):
        return full
    match method:
        case "minmax":
            low, high = full
        case "moving-average":
            low, high = seen.average_low, seen.average_high
        case "percentile":
            low, high = _percentile(seen, percentile)
        case "mse":
            low, high = _least_error(seen, full, dialect)
        case "entropy":
            low, high = _least_divergence(seen, full, dialect)
    return max(min(low, 0.0), full[0]), min(max(high, 0.0), full[1])


def _percentile(seen: Watched, percentile: float) -> Range:
    """The range outside which (100 - percentile) % of the values lie, on either side; linear within a bin."""
    histogram = seen.histogram
    total = np.cumsum(histogram.counts) / histogram.counts.sum()
    edges = (np.arange(len(total)) + histogram.start + 1) * histogram.width
    tail = 1 - percentile / 100
    before = np.concatenate([[0.0], total])
    corners = np.concatenate([[histogram.start * histogram.width], edges])
    return float(np.interp(tail, before, corners)), float(np.interp(1 - tail, before, corners))


def noise(seen: Watched, on: QParams) -> float:
    """Mean squared error of rounding what was seen to `on`: from bin centres, plus the spread within a bin."""
    histogram = seen.histogram
    centres = histogram.centres
    integers = np.clip(np.rint(centres / on.scale) + on.zero, on.low, on.high)
    error = (integers - on.zero) * on.scale - centres
    return float((error**2 * _weights(seen)).sum())


def _weights(seen: Watched) -> NDArray[np.float64]:
    """Share of each bin. The bin at zero of a rectified tensor is exact zeros for the most part, which cost nothing."""
    counts = seen.histogram.counts.astype(np.float64)
    if seen.minimum == 0.0 and len(counts) > 1:
        counts[0] = min(counts[0], counts[1])
    return np.asarray(counts / max(counts.sum(), 1.0), np.float64)


def _fractions() -> NDArray[np.float64]:
    return np.asarray(np.geomspace(1.0, 0.05, CANDIDATES), np.float64)


def _least_error(seen: Watched, full: Range, dialect: Dialect) -> Range:
    """Least squared error: each end is searched in turn with the other held, twice."""
    low, high = full
    for _ in range(2):
        if full[1] > 0:
            high = min((f * full[1] for f in _fractions()), key=lambda h: noise(seen, qparams(low, h, dialect)))
        if full[0] < 0:
            low = min((f * full[0] for f in _fractions()), key=lambda v: noise(seen, qparams(v, high, dialect)))
        if full[0] == 0 or full[1] == 0:
            break
    return low, high


def _least_divergence(seen: Watched, full: Range, dialect: Dialect) -> Range:
    """Least Kullback-Leibler divergence between what was seen and its quantised self, both ends shrunk together.

    Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017, applied to the dialect's own grid.
    """
    return min(
        ((f * full[0], f * full[1]) for f in _fractions()),
        key=lambda r: _divergence(seen, qparams(r[0], r[1], dialect)),
    )


def _divergence(seen: Watched, on: QParams) -> float:
    """KL(seen || quantised). Clipped mass joins the edge bins of what was seen; the quantised one spreads each level's
    mass evenly over the bins of that level that are not empty."""
    centres, share = seen.histogram.centres, _weights(seen)
    level = np.rint(centres / on.scale) + on.zero
    inside = (level >= on.low) & (level <= on.high)
    if not inside.any():
        return np.inf
    kept = np.flatnonzero(inside)
    reference = share[kept].copy()
    approximated = share[kept]
    reference[0] += share[: kept[0]].sum()
    reference[-1] += share[kept[-1] + 1 :].sum()
    index = (level[kept] - on.low).astype(np.int64)
    filled = approximated > 0
    mass = np.bincount(index, approximated, minlength=256)
    bins = np.bincount(index, filled.astype(np.float64), minlength=256)
    spread = np.where(filled, mass[index] / np.maximum(bins[index], 1.0), 0.0)
    total = spread.sum()
    if total <= 0:
        return np.inf
    spread = np.maximum(spread / total, 1e-12)
    positive = reference > 0
    return float((reference[positive] * np.log(reference[positive] / spread[positive])).sum())
