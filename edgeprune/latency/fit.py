"""Two regressions: a kernel's time over its channels, and a network's time over its kernels.

`Surface` predicts one kernel family. Its base is affine-bilinear, `a + b*i + c*o + d*i*o` with non-negative
coefficients, over channel counts rounded up to the runtime's block sizes, which are found from the data. On top lies a
local residual: the log ratio of measured to base, interpolated from the nearest measured cells by kriging, so that a
measured cell is returned nearly as measured, non-monotone points included, and a far one falls back on the base.

`calibrate` turns sums of kernels into end-to-end latency: T = beta + sum over classes of alpha * sum of kernels, by
non-negative least squares on whole runs, relative errors, with a weak pull towards one common alpha so that classes
that rise and fall together keep sensible shares. beta alone may be negative: small networks live in the caches, and
gain more than their kernels tell.

Sources: latency as an affine function of channels on blocks, and measured staircases: Radu et al., arXiv 2002.08697;
kriging and its closed-form leave-one-out error: Rasmussen & Williams 2006, section 5.4.2; NNLS: Lawson & Hanson 1974.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

INPUT_BLOCKS = (1, 4, 8, 16)
OUTPUT_BLOCKS = (1, 8, 16, 32)
PHASE = 16  # channels that fill whole vectors behave alike; those that do not are another population
LENGTHS = (0.1, 0.25, 0.5, 1.0)  # octaves over which neighbours inform each other
FLOOR = 1e-9
LOWEST = -0.15  # beta, as a share of the slowest run


@dataclass(frozen=True, eq=False)
class Cells:
    """Measured cells of one family, one row each: [n] arrays; times in the table's unit.

    `noise` is the relative standard error of each time.
    """

    c_in: Array
    c_out: Array
    time: Array
    noise: Array


@dataclass(frozen=True, eq=False)
class Surface:
    """Time of one kernel family over (c_in, c_out); made by `fit_surface`."""

    blocks: tuple[int, int]
    bilinear: bool
    coefficients: Array
    cells: Cells
    length: float
    variance: float
    weights: Array

    def base(self, c_in: Array, c_out: Array) -> Array:
        """The affine-bilinear part; shapes broadcast already."""
        return _positive(_features(c_in, c_out, self.blocks, self.bilinear) @ self.coefficients)

    def __call__(self, c_in: Array, c_out: Array) -> Array:
        """Predicted times for equally shaped arrays of channel counts."""
        c_in, c_out = np.asarray(c_in, np.float64), np.asarray(c_out, np.float64)
        flat_in, flat_out = c_in.ravel(), c_out.ravel()
        near = self.variance * _correlation(flat_in, flat_out, self.cells.c_in, self.cells.c_out, self.length)
        return (self.base(flat_in, flat_out) * np.exp(near @ self.weights)).reshape(c_in.shape)

    def distance(self, c_in: float, c_out: float) -> float:
        """Octaves to the nearest measured cell."""
        steps = np.hypot(
            _octaves(self.cells.c_in) - np.log2(max(c_in, 1)), _octaves(self.cells.c_out) - np.log2(max(c_out, 1))
        )
        return float(steps.min())


def fit_surface(
    cells: Cells, input_blocks: Sequence[int] = INPUT_BLOCKS, output_blocks: Sequence[int] = OUTPUT_BLOCKS
) -> Surface:
    """Fit one family; works from one cell on (then it is a constant).

    Blocks are the pair with the smallest squared relative error; a larger block must win by 2 % to be taken over a
    smaller one. The length scale minimises the leave-one-out error.
    """
    bilinear = not np.array_equal(cells.c_in, cells.c_out)
    best: tuple[float, tuple[int, int], Array, Array] | None = None
    for block_in in input_blocks if bilinear else (1,):
        for block_out in output_blocks:
            coefficients, residual = _base(cells, (block_in, block_out), bilinear)
            error = float(np.mean(residual**2)) + 1e-12
            if best is None or error < best[0] * 0.98:
                best = (error, (block_in, block_out), coefficients, residual)
    assert best is not None
    _, blocks, coefficients, residual = best
    nugget = cells.noise**2 + 1e-5
    variance = max(float(np.mean(residual**2) - np.mean(nugget)), 1e-6)
    length, weights = _krige(cells, residual, variance, nugget)
    return Surface(blocks, bilinear, coefficients, cells, length, variance, weights)


def _base(cells: Cells, blocks: tuple[int, int], bilinear: bool) -> tuple[Array, Array]:
    features = _features(cells.c_in, cells.c_out, blocks, bilinear)
    weight = 1.0 / np.maximum(cells.time, FLOOR) / np.maximum(cells.noise, 0.01) ** 0.5
    scale = np.maximum(np.abs(features).max(axis=0), FLOOR)
    solution, _ = nnls(features / scale * weight[:, None], cells.time * weight)
    coefficients = solution / scale
    return coefficients, np.log(_positive(cells.time) / _positive(features @ coefficients))


def _krige(cells: Cells, residual: Array, variance: float, nugget: Array) -> tuple[float, Array]:
    best: tuple[float, float, Array] | None = None
    for length in LENGTHS:
        covariance = variance * _correlation(cells.c_in, cells.c_out, cells.c_in, cells.c_out, length)
        inverse = np.linalg.inv(covariance + np.diag(nugget))
        weights = inverse @ residual
        error = float(np.mean((weights / np.diag(inverse)) ** 2))
        if best is None or error < best[0]:
            best = (error, length, weights)
    assert best is not None
    return best[1], best[2]


def _features(c_in: Array, c_out: Array, blocks: tuple[int, int], bilinear: bool) -> Array:
    i = np.ceil(c_in / blocks[0]) * blocks[0]
    o = np.ceil(c_out / blocks[1]) * blocks[1]
    columns = [np.ones_like(o), i, o, i * o] if bilinear else [np.ones_like(o), o]
    return np.stack(columns, axis=-1)


def _correlation(in_a: Array, out_a: Array, in_b: Array, out_b: Array, length: float) -> Array:
    """Correlation of residuals, [a, b]: near in octaves, and of the same phase modulo the vector width."""
    square = (_octaves(in_a)[:, None] - _octaves(in_b)) ** 2 + (_octaves(out_a)[:, None] - _octaves(out_b)) ** 2
    same_in = (in_a % PHASE == 0)[:, None] == (in_b % PHASE == 0)
    same_out = (out_a % PHASE == 0)[:, None] == (out_b % PHASE == 0)
    phase = np.where(same_in, 1.0, 0.5) * np.where(same_out, 1.0, 0.5)
    result: Array = np.exp(-square / (2 * length**2)) * phase
    return result


def _octaves(channels: Array) -> Array:
    result: Array = np.log2(np.maximum(channels, 1.0))
    return result


def _positive(values: Array) -> Array:
    return np.maximum(values, FLOOR)


@dataclass(frozen=True)
class Calibration:
    """End-to-end latency from kernel sums: T = beta + sum over classes of alpha[class] * sum.

    Attributes:
        alpha: factor of each kernel class.
        beta: what no kernel explains, in the table's unit; negative where small networks gain more than their kernels.
        runs: whole runs behind it; 0 means that it was never measured end to end (all alphas 1).
        error: median relative error on those runs.
    """

    alpha: dict[str, float]
    beta: float
    runs: int
    error: float


def calibrate(
    sums: Sequence[dict[str, float]],
    latency: Sequence[float],
    weight: Sequence[float] | None = None,
    pull: float = 0.2,
) -> Calibration:
    """Fit alpha and beta.

    Args:
        sums: of each run, class -> sum of its predicted kernel times.
        latency: of each run, end to end, same unit.
        weight: of each run; default 1.
        pull: strength of the pull towards one common alpha, per run; 0 is plain NNLS.
    """
    classes = sorted({name for run in sums for name in run})
    if not latency:
        return Calibration(dict.fromkeys(classes, 1.0), 0.0, 0, float("nan"))
    x = np.array([[run.get(name, 0.0) for name in classes] for run in sums])
    y = np.asarray(latency, np.float64)
    w = np.ones_like(y) if weight is None else np.asarray(weight, np.float64)
    total = x.sum(axis=1)
    common, offset = _line(total, y, w)
    lowest = LOWEST * float(y.max())
    rows = np.column_stack([np.ones_like(y), x]) * (w / y)[:, None]
    share = (x * (w / y)[:, None]).mean(axis=0)
    prior = np.sqrt(pull * len(y)) * np.diag(np.r_[1.0 / y.mean(), share])
    left = np.vstack([rows, prior])
    right = left @ np.r_[lowest, np.zeros(len(classes))]  # NNLS in beta - lowest
    solution, _ = nnls(left, np.r_[w, prior @ np.r_[offset, np.full(len(classes), common)]] - right)
    solution[0] += lowest
    error = float(np.median(np.abs(solution[0] + x @ solution[1:] - y) / y))
    return Calibration(dict(zip(classes, solution[1:].tolist(), strict=True)), float(solution[0]), len(y), error)


def _line(total: Array, y: Array, w: Array) -> tuple[float, float]:
    """One alpha and beta for all classes; alpha alone when there are too few runs to tell beta."""
    scale = (w / y)[:, None]
    if len(y) < 3 or np.ptp(total) < 0.05 * total.mean():
        return float(np.sum(w) / np.sum(w * total / y)), 0.0
    lowest = LOWEST * float(y.max())
    features = np.column_stack([total, np.ones_like(y)]) * scale
    solution, _ = nnls(features, w - features[:, 1] * lowest)
    return float(solution[0]), float(solution[1]) + lowest
