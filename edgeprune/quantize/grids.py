"""The integer grids: what a value of an activation or a weight becomes, in each dialect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeprune.quantize.view import output_axis
from edgeprune.runtimes.dialects import Dialect

TINY = 1e-8  # smallest scale; below it an int32 bias overflows
HALF_TINY = 2.0**-14  # smallest normal float16, for activations
HALF_SMALL = 2.0**-20  # for weights: a float16 below the normal ones still holds 4 bits here


@dataclass(frozen=True)
class Grid:
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


def grid(low: float, high: float, dialect: Dialect, positive: bool = False) -> Grid:
    """The grid that represents [low, high] (widened to hold 0 exactly) in `dialect`.

    Args:
        positive: the tensor cannot be negative, whatever `low` says.
    """
    low, high = (0.0 if positive else min(low, 0.0)), max(high, 0.0)
    half = dialect.float_type == "float16"
    if low == 0.0 and dialect.unsigned:
        return Grid(_scale(high / 255, half), 0, 0, 255)
    if low == 0.0 and dialect.zero_based:
        return Grid(_scale(high / 255, half), -128, -128, 127)
    if dialect.signed == "symmetric":
        return Grid(_scale(max(-low / 128, high / 127), half), 0, -128, 127)
    scale = _scale((high - low) / 255, half)
    base = 0 if dialect.unsigned else -128
    zero = int(np.clip(np.rint(base - low / scale), base, base + 255))
    return Grid(scale, zero, base, base + 255)


def quantise_weight(
    weight: NDArray[np.float32], axis: int | None, levels: int, half: bool = False
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric integers and scales, one scale an index of `axis` (None: one for all), rounding half to even.

    Args:
        half: scales are rounded to float16 first.
    """
    if axis is None:
        peak = np.abs(weight).max(initial=0.0)
    else:
        peak = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis % weight.ndim), initial=0.0)
    scale = np.maximum(np.asarray(peak, np.float32) / np.float32(levels), np.float32(HALF_SMALL if half else TINY))
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
