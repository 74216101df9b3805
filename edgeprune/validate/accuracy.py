"""Top-1 accuracy from an artifact's outputs, and how sure a difference between two artifacts is."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeprune.errors import DataError, ModelError

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy of one artifact.

    Attributes:
        accuracy: a fraction, 0 to 1.
        correct, images: counts.
        low, high: Wilson's 95 % interval of `accuracy`.
        agreement: the share of images on which it predicts the same class as the reference; None without one.
        broken: images whose outputs hold NaN or infinity; they count as wrong.
    """

    accuracy: float
    correct: int
    images: int
    low: float
    high: float
    agreement: float | None = None
    broken: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As in result.json; `agreement` and `broken` only where there is something to say."""
        return {
            key: value for key, value in asdict(self).items() if value is not None and (key, value) != ("broken", 0)
        }


@dataclass(frozen=True)
class Difference:
    """Two artifacts on the same images: first minus second, in points of top-1.

    Attributes:
        points: how much better the first is.
        low, high: 95 % interval of `points` (Agresti and Min 2005, for paired proportions).
        p_value: McNemar's exact two-sided test of "no difference".
        only_first, only_second: images that only one of the two gets right.
    """

    points: float
    low: float
    high: float
    p_value: float
    only_first: int
    only_second: int
    images: int

    def to_dict(self) -> dict[str, Any]:
        """As in result.json."""
        return asdict(self)


def accuracy(outputs: ArrayLike, labels: ArrayLike, reference: ArrayLike | None = None) -> Accuracy:
    """Score outputs of shape [N, classes] (or class numbers of shape [N]) against labels of shape [N].

    Args:
        outputs: the artifact's first output on N images.
        labels: the true classes, 0 to classes - 1.
        reference: outputs of the network to agree with (the dense FP32 one), of the same shape.

    Raises:
        DataError: labels out of range, or not one a row.
        ModelError: the outputs are no scores of classes.
    """
    predicted, broken = _classes(np.asarray(outputs))
    truth = _labels(np.asarray(labels), np.asarray(outputs))
    if len(truth) != len(predicted):
        raise DataError(f"{len(predicted)} images have outputs, but there are {len(truth)} labels.")
    if not len(truth):
        raise DataError("no image to validate on.", "Check [data] source and test in the recipe.")
    agreement = None
    if reference is not None:
        expected, _ = _classes(np.asarray(reference))
        if len(expected) != len(predicted):
            raise ModelError(f"the reference has outputs for {len(expected)} images, not {len(predicted)}.")
        agreement = float(np.mean((expected == predicted) & (predicted >= 0)))
    correct = int(np.count_nonzero(predicted == truth))
    low, high = wilson(correct, len(truth))
    return Accuracy(correct / len(truth), correct, len(truth), low, high, agreement, broken)


def difference(first: ArrayLike, second: ArrayLike, labels: ArrayLike) -> Difference:
    """Compare two artifacts' outputs on the same images; shapes as in `accuracy`."""
    one, _ = _classes(np.asarray(first))
    two, _ = _classes(np.asarray(second))
    truth = np.asarray(labels)
    if not len(one) == len(two) == len(truth) or not len(truth):
        raise DataError(f"outputs of {len(one)} and {len(two)} images and {len(truth)} labels cannot be compared.")
    only_first = int(np.count_nonzero((one == truth) & (two != truth)))
    only_second = int(np.count_nonzero((one != truth) & (two == truth)))
    low, high = _paired_interval(only_first, only_second, len(truth))
    points = 100 * (only_first - only_second) / len(truth)
    p_value = mcnemar(only_first, only_second)
    return Difference(points, 100 * low, 100 * high, p_value, only_first, only_second, len(truth))


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion, as fractions."""
    share, spread = correct / images, Z95**2 / images
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value that discordant pairs fall this unevenly by chance."""
    pairs, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(pairs, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << pairs))  # whole numbers: exact until the last division


def _paired_interval(only_first: int, only_second: int, images: int) -> tuple[float, float]:
    """Agresti and Min's 95 % interval of the difference of paired proportions: half an image added to each cell."""
    b, c, n = only_first + 0.5, only_second + 0.5, images + 2
    centre = (b - c) / n
    half = Z95 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)


def _classes(outputs: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """The predicted class of each row, -1 where the row holds NaN or infinity, and how many such rows there are."""
    if outputs.ndim == 1 and np.issubdtype(outputs.dtype, np.integer):
        return outputs.astype(np.int64), 0
    if outputs.ndim != 2 or outputs.shape[1] < 1:
        raise ModelError(
            f"the network's first output has shape {list(outputs.shape)}; top-1 accuracy needs [images, classes].",
            "Give a factory whose network returns one score a class first.",
        )
    finite = np.isfinite(outputs).all(axis=1)
    predicted = np.where(finite, np.argmax(np.where(np.isfinite(outputs), outputs, -np.inf), axis=1), -1)
    return predicted.astype(np.int64), int(np.count_nonzero(~finite))


def _labels(labels: NDArray[Any], outputs: NDArray[Any]) -> NDArray[Any]:
    classes = outputs.shape[1] if outputs.ndim == 2 else None
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels have shape {list(labels.shape)} and type {labels.dtype}; one whole number an image.")
    if len(labels) and (labels.min() < 0 or (classes is not None and labels.max() >= classes)):
        worst = int(labels.min()) if labels.min() < 0 else int(labels.max())
        top = "" if classes is None else f" 0 to {classes - 1}"
        raise DataError(f"label {worst} is out of range: the network has classes{top}.", "Check [data] source.")
    return labels
