"""Reconstruction of rounding: integers that keep a layer's output, rather than each weight nearest.

With z the layer's input as the quantised network gives it, less its mean (the bias takes that), weights are rounded one
input at a time, and what rounding one input gets wrong is made good by the inputs not yet rounded. No gradients, no
labels, no randomness.

    H = mean z z^T + damping,   U = upper Cholesky factor of H^-1
    for i: q_i = round(W_i);   W_j -= U_ij (W_i - q_i) / U_ii   for all j > i

Sources: Frantar & Alistarh, "Optimal Brain Compression", NeurIPS 2022 (arXiv 2208.11580); the Cholesky form, Frantar et
al., GPTQ (arXiv 2210.17323); inputs as the quantised network gives them, Nagel et al., AdaRound (arXiv 2004.10568).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky

from edgeprune.quantize.ranges.grids import quantise_weight
from edgeprune.quantize.view import attribute, output_axis
from edgeprune.runtimes import Dialect

Array = NDArray[np.float64]

DAMPING = 0.02  # of the mean diagonal of H: keeps directions that few samples show near the given weights
POSITIONS = 96  # output positions an image that enter H
LARGEST = 2304  # inputs of one output; larger layers have redundancy to spare and H would not fit in caches


def pack(integers: NDArray[np.int8]) -> str:
    """Integers as text."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(integers, np.int8).tobytes(), 6)).decode()


def unpack(text: str, shape: tuple[int, ...]) -> NDArray[np.int8] | None:
    """The inverse of `pack`; None when the size is not that of `shape`."""
    values = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.int8)
    return values.reshape(shape) if values.size == int(np.prod(shape)) else None


def round_weight(
    node: onnx.NodeProto, weight: NDArray[np.float32], moments: SecondMoment, dialect: Dialect
) -> NDArray[np.int8]:
    """Integers for the weight of a layer, in the weight's own shape."""
    axis = output_axis(node) if dialect.per_channel else None
    _, scales = quantise_weight(weight, axis, dialect.weight_levels, dialect.float_type == "float16")
    rows, back = _as_rows(node, weight.astype(np.float64))
    steps = np.broadcast_to(scales, weight.shape[output_axis(node)]).reshape(rows.shape[0], -1)
    return back(_round(rows, steps.astype(np.float64), moments.centred(), dialect.weight_levels)).astype(np.int8)


def fits(node: onnx.NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether the rounding of a layer can be reconstructed: a Conv or Gemm, and not too large."""
    if node.op_type not in ("Conv", "Gemm"):
        return False
    inputs = shape[1 - output_axis(node)] if node.op_type == "Gemm" else int(np.prod(shape[1:]))
    return inputs <= LARGEST


def _as_rows(node: onnx.NodeProto, weight: Array) -> tuple[Array, Callable[[Array], Array]]:
    """A weight as [groups, outputs a group, inputs], and the way back."""
    if node.op_type == "Gemm":
        turned = output_axis(node) == 1
        return (weight.T if turned else weight)[None], lambda values: values[0].T if turned else values[0]
    groups = int(attribute(node, "group", 1))
    return weight.reshape(groups, weight.shape[0] // groups, -1), lambda values: values.reshape(weight.shape)


class SecondMoment:
    """Mean of z z^T of one layer's input, centred, over the images that were added."""

    def __init__(self, node: onnx.NodeProto, shape: tuple[int, ...]) -> None:
        self.node, self.shape = node, shape
        self.sums: list[Array] = []
        self.count = self.turn = 0

    def add(self, seen: NDArray[np.float32]) -> None:
        """Add a batch of the layer's input."""
        z = _patches(self.node, self.shape, seen, self.turn)
        parts = [z.transpose(0, 2, 1) @ z, z.sum(axis=1)]
        self.sums = [a + b for a, b in zip(self.sums, parts, strict=True)] if self.sums else parts
        self.count += z.shape[1]
        self.turn += 1

    def centred(self) -> Array:
        """mean z z^T less the means: [groups, inputs, inputs]."""
        zz, z = (total / self.count for total in self.sums)
        return np.asarray(zz - z[:, :, None] * z[:, None, :])


def _patches(node: onnx.NodeProto, shape: tuple[int, ...], values: NDArray[np.float32], turn: int) -> Array:
    """What the layer's outputs read at up to POSITIONS positions an image: [groups, samples, inputs]."""
    if node.op_type == "Gemm":
        return values.reshape(1, values.shape[0], -1).astype(np.float64)
    groups = int(attribute(node, "group", 1))
    kernel = attribute(node, "kernel_shape") or list(shape[2:])
    strides = attribute(node, "strides") or [1, 1]
    dilations = attribute(node, "dilations") or [1, 1]
    pads = attribute(node, "pads") or [0, 0, 0, 0]
    padded = np.pad(values, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    height, width = windows.shape[2:4]
    step = max(1, height * width // POSITIONS)
    places = np.arange(turn % step, height * width, step)
    taken = windows[:, :, places // width, places % width]  # [N, C, positions, kh, kw]
    taken = taken.transpose(1, 0, 2, 3, 4).reshape(groups, -1, taken.shape[0] * len(places), *taken.shape[3:])
    return np.ascontiguousarray(taken.transpose(0, 2, 1, 3, 4)).reshape(groups, taken.shape[2], -1).astype(np.float64)


def _round(rows: Array, steps: Array, zz: Array, levels: int) -> Array:
    """Integers [groups, outputs, inputs] for weights `rows` with one step an output."""
    groups, _, inputs = rows.shape
    result = np.empty_like(rows)
    for group in range(groups):
        damping = DAMPING * max(float(np.trace(zz[group])) / inputs, 1e-12)
        hessian = zz[group] + damping * np.eye(inputs)
        order = np.argsort(-np.diag(hessian), kind="stable")
        inverse = cho_solve((cholesky(hessian[np.ix_(order, order)], lower=True), True), np.eye(inputs))
        upper = cholesky(inverse, lower=False)
        result[group][:, order] = _sequential(rows[group][:, order] / steps[group][:, None], upper, levels)
    return result


def _sequential(weight: Array, upper: Array, levels: int, block: int = 64) -> Array:
    """Round column by column, in units of the step; errors are carried on, a block at a time for speed."""
    weight = weight.copy()
    integers = np.empty_like(weight)
    for begin in range(0, weight.shape[1], block):
        end = min(begin + block, weight.shape[1])
        errors = np.empty((weight.shape[0], end - begin))
        for column in range(begin, end):
            integers[:, column] = np.clip(np.rint(weight[:, column]), -levels, levels)
            errors[:, column - begin] = (weight[:, column] - integers[:, column]) / upper[column, column]
            weight[:, column + 1 : end] -= errors[:, column - begin, None] * upper[column, column + 1 : end]
        weight[:, end:] -= errors @ upper[begin:end, end:]
    return integers
