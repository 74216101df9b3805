"""Factors a channel with the least noise: what rounding the tensors of a stream and the weights that read it costs.

With s_c the factor of channel c, m_tc the size of tensor t there, and influences (influence.py) h_tc of an error in the
tensor and H_oc of one in a weight W_oc:

    noise of a tensor   D_t(s)^2 / 12  sum_c s_c^2 h_tc            D_t(s) = k_t max_c(m_tc / s_c)
    noise of a layer    sum_o d_o(s)^2 / 12  sum_c H_oc / s_c^2    d_o(s) = max_c(s_c |W_oc|) / levels

In u = log s both are sums of exponentials of convex functions, so the sum over tensors and layers is convex and any
descent finds its one minimum. The maxima are taken as p-norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]

POWER = 32  # of the norms that stand for maxima; a power of two
STEPS = 200  # of the descent, at most


@dataclass(frozen=True)
class Tensor:
    """One quantised tensor of a stream, by channel: its largest magnitudes and its influence.

    Attributes:
        step: of its grid, where the largest magnitude is 1.
    """

    peaks: Array
    influence: Array
    step: float


@dataclass(frozen=True)
class Weight:
    """The weight of one layer that reads a stream, [outputs, channels]: its largest magnitudes and its influence."""

    sizes: Array
    influence: Array
    levels: int


def least_noise(tensors: Sequence[Tensor], weights: Sequence[Weight], lowest: Array) -> Array:
    """The factors, within [lowest, 1]."""
    found = minimize(
        lambda u: noise(tensors, weights, u),
        np.log(lowest) / 2,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(np.log(lowest), np.zeros_like(lowest), strict=True)),
        options={"maxiter": STEPS},
    )
    return np.asarray(np.exp(found.x), np.float64)


def noise(tensors: Sequence[Tensor], weights: Sequence[Weight], u: Array) -> tuple[float, Array]:
    """The logarithm of the noise at factors e^u, and its slope."""
    s = np.exp(u)
    total, slope = 1e-300, np.zeros_like(u)
    for tensor in tensors:
        norm, share = _norm(tensor.peaks / s)
        passed = (tensor.step * norm) ** 2 / 12 * s**2 * tensor.influence
        total += float(passed.sum())
        slope += 2 * (passed - passed.sum() * share)
    for weight in weights:
        norm, share = _norm(weight.sizes * s)
        steps = (norm / weight.levels) ** 2 / 12
        by_output, by_channel = steps * (weight.influence @ s**-2), (steps @ weight.influence) / s**2
        total += float(by_output.sum())
        slope += 2 * (by_output @ share - by_channel)
    return float(np.log(total)), slope / total


def _norm(values: Array) -> tuple[Array, Array]:
    """The p-norm over the last axis, and the share of each value in it."""
    peak = np.maximum(values.max(axis=-1, keepdims=True), 1e-300)
    powers = values / peak
    for _ in range(POWER.bit_length() - 1):
        powers = powers * powers
    total = np.maximum(powers.sum(axis=-1, keepdims=True), 1e-300)
    return np.asarray((peak * total ** (1 / POWER))[..., 0]), np.asarray(powers / total)
