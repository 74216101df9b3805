"""The integer grids: what a value of an activation or a weight becomes, in each dialect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeprune.quantize.view import output_axis
from edgeprune.runtimes import Dialect

TINY = 1e-8  # smallest scale; below it an int32 bias overflows
BIAS_STEPS = 2.0**30  # of an int32 bias, at most: the sum of products takes the other bit
HALF_TINY = 2.0**-14  # smallest normal float16, for activations
HALF_SMALL = 2.0**-20  # for weights: a float16 below the normal ones still holds 4 bits here


@dataclass(frozen=True)
class QParams:
    """The integer grid of one activation tensor: value = scale * (q - zero)."""

    scale: float
    zero: int
    low: int
    high: int

    @property
    def dtype(self) -> type[np.generic]:
        """uint8 or int8."""
        return np.uint8 if self.low == 0 else np.int8


def _scale(value: float, half: bool) -> float:
    """The scale as it will be stored, so that integers are made with that very number."""
    return float(np.float16(max(value, HALF_TINY))) if half else float(np.float32(max(value, TINY)))


def qparams(low: float, high: float, dialect: Dialect, positive: bool = False, even: bool = False) -> QParams:
    """The grid that represents [low, high] (widened to hold 0 exactly) in `dialect`.

    Args:
        positive: the tensor cannot be negative, whatever `low` says.
        even: zero point 0 whatever the dialect's signed tensors have.
    """
    low, high = (0.0 if positive else min(low, 0.0)), max(high, 0.0)
    half = dialect.float_type == "float16"
    if low == 0.0 and dialect.unsigned:
        return QParams(_scale(high / 255, half), 0, 0, 255)
    if low == 0.0 and dialect.zero_based:
        return QParams(_scale(high / 255, half), -128, -128, 127)
    if dialect.signed == "symmetric" or even:
        return QParams(_scale(max(-low / 128, high / 127), half), 0, -128, 127)
    scale = _scale((high - low) / 255, half)
    base = 0 if dialect.unsigned else -128
    zero = int(np.clip(np.rint(base - low / scale), base, base + 255))
    return QParams(scale, zero, base, base + 255)


def least_scales(bias: NDArray[np.float32], activation: float) -> NDArray[np.float32]:
    """Scales of weights, one an output channel, below which `bias` does not fit into int32 steps of
    `activation` x scale, with a bit left for what the layer adds up.

    A channel needs this whose weights have decayed to nothing while its bias has not. The weights lose nothing that
    counts: all of them together are then less than a millionth of the bias.
    """
    steps = np.abs(np.asarray(bias, np.float32)).astype(np.float64) / (float(np.float32(activation)) * BIAS_STEPS)
    return np.asarray(steps, np.float32)


def quantise_weight(
    weight: NDArray[np.float32],
    axis: int | None,
    levels: int,
    half: bool = False,
    least: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric integers and scales, one scale an index of `axis` (None: one for all), rounding half to even.

    Args:
        half: scales are rounded to float16 first.
        least: scales are at least this.
    """
    if axis is None:
        peak = np.abs(weight).max(initial=0.0)
    else:
        peak = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis % weight.ndim), initial=0.0)
    scale = np.maximum(np.asarray(peak, np.float32) / np.float32(levels), np.float32(HALF_SMALL if half else TINY))
    if least is not None:
        scale = np.maximum(scale, least if axis is not None else least.max(initial=0.0))
    if half:
        scale = scale.astype(np.float16).astype(np.float32)
    spread = (
        scale if axis is None else scale.reshape([-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim)])
    )
    return np.clip(np.rint(weight / spread), -levels, levels).astype(np.int8), scale


def rounded_weight(
    weight: NDArray[np.float32], node: onnx.NodeProto, dialect: Dialect, chosen: NDArray[np.int8] | None = None
) -> NDArray[np.float32]:
    """The weight of a layer as INT8 represents it, in float; `chosen` are its integers where not the nearest ones."""
    axis = output_axis(node) % weight.ndim if dialect.per_channel else None
    integers, scales = quantise_weight(weight, axis, dialect.weight_levels, dialect.float_type == "float16")
    if axis is not None:
        scales = scales.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
    return np.asarray((integers if chosen is None else chosen) * scales, np.float32)
