"""A class for every pixel: mIoU and pixel accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, ModelError, TaskError
from edgeprune.workload import distances
from edgeprune.workload.arrays import Outputs, as_outputs, count, examples, to_array
from edgeprune.workload.statistics import Statistics, Sums, Values
from edgeprune.workload.task import BaseTask

if TYPE_CHECKING:
    from torch import Tensor


def mean_iou(sums: Values) -> Values:
    """[B, 3 C] pixels (right, said, true) of each class -> mean over classes that occur, in points."""
    right, said, true = np.split(sums, 3, axis=1)
    union = said + true - right
    known = union > 0
    each = np.where(known, right / np.where(known, union, 1), 0)
    return np.asarray(100 * each.sum(1) / known.sum(1))


def pixel_accuracy(sums: Values) -> Values:
    """The same sums -> the share of pixels that are right, in points."""
    right, _, true = np.split(sums, 3, axis=1)
    return np.asarray(100 * right.sum(1) / true.sum(1))


@dataclass(frozen=True)
class Segmentation(BaseTask):
    """Scores [N, classes, H, W] (or class numbers [N, H, W]) against masks [H, W] of class numbers.

    mIoU is over all pixels of all examples, as papers report it; what is kept is three numbers a class and example.

    Attributes:
        classes: how many; 0: as many as the output has scores.
        ignore: the class number of pixels that do not count; None: all count.
        metric: "mIoU" or "pixel accuracy".
        output: the network's output that holds the scores.
        resize: masks may be of another size than the output: scores are taken from the nearest pixel. Without it
            another size is an error.
    """

    classes: int = 0
    ignore: int | None = 255
    metric: Literal["mIoU", "pixel accuracy"] = "mIoU"
    output: int = 0
    resize: bool = False

    unit = "points"
    varying = True

    def __post_init__(self) -> None:
        if self.metric not in ("mIoU", "pixel accuracy"):
            raise TaskError(f'segmentation has the metrics "mIoU" and "pixel accuracy", not {self.metric}.')
        if self.classes < 0 or self.classes == 1:
            raise TaskError(f"segmentation of {self.classes} classes; background counts as one, so two at least.")

    def _measure(self, outputs: Outputs, targets: list[Any]) -> Statistics:
        if self.output >= len(outputs):
            raise ModelError(f"the task looks at output {self.output}, but the network has {len(outputs)}.")
        rows, failed = [], []
        for place, (scores, target) in enumerate(zip(examples(outputs[self.output]), targets, strict=True)):
            said, classes, whole = self._said(scores)
            true = self._mask(target, classes, place)
            said = self._fitted(said, true.shape, place)
            counts = true != self.ignore if self.ignore is not None else np.ones(true.shape, bool)
            said, true = said[counts], true[counts]
            of_true = np.bincount(true, minlength=classes).astype(np.float64)
            none = np.zeros(classes)
            failed.append(np.concatenate([none, none, of_true]))
            if not whole:  # NaN among the scores: every pixel is wrong
                rows.append(failed[-1])
                continue
            right = np.bincount(true[said == true], minlength=classes)
            rows.append(np.concatenate([right, np.bincount(said, minlength=classes), of_true]))
        return Sums(np.stack(rows), np.stack(failed), mean_iou if self.metric == "mIoU" else pixel_accuracy)

    def _said(self, scores: NDArray[Any]) -> tuple[NDArray[np.int64], int, bool]:
        """(class numbers [H, W], how many classes, are all finite?) of one example's output."""
        if scores.ndim == 3 and scores.shape[0] == 1 and np.issubdtype(scores.dtype, np.integer):
            scores = scores[0]
        if scores.ndim == 2 and np.issubdtype(scores.dtype, np.integer):
            if not self.classes:
                raise TaskError("the output holds class numbers, so the task must be told how many classes there are.")
            if scores.size and (scores.min() < 0 or scores.max() >= self.classes):
                raise ModelError(f"the output holds class {int(scores.max())}; there are {self.classes} classes.")
            return scores.astype(np.int64), self.classes, True
        if scores.ndim != 3:
            raise ModelError(
                f"output {self.output} is {list(scores.shape)} an example; segmentation needs [classes, H, W].",
                "Return the map of scores.",
            )
        if scores.shape[0] == 1:  # one logit (or probability) of the foreground
            cut = 0.5 if scores.min() >= 0 and scores.max() <= 1 else 0.0
            return (scores[0] > cut).astype(np.int64), 2, bool(np.isfinite(scores).all())
        if self.classes and scores.shape[0] != self.classes:
            raise ModelError(
                f"output {self.output} has {scores.shape[0]} scores a pixel; there are {self.classes} classes."
            )
        return scores.argmax(0).astype(np.int64), scores.shape[0], bool(np.isfinite(scores).all())

    def _mask(self, target: Any, classes: int, place: int) -> NDArray[np.int64]:
        mask = to_array(target)
        if mask.ndim == 3 and mask.shape[0] == 1:
            mask = mask[0]
        if mask.ndim != 2 or not (np.issubdtype(mask.dtype, np.integer) or mask.dtype == np.bool_):
            raise DataError(
                f"the mask of example {place} is {mask.dtype} {list(mask.shape)}; it must be whole numbers [H, W]."
            )
        mask = mask.astype(np.int64)
        counts = mask[mask != self.ignore] if self.ignore is not None else mask
        if counts.size and (counts.min() < 0 or counts.max() >= classes):
            wrong = int(counts.min()) if counts.min() < 0 else int(counts.max())
            raise DataError(
                f"the mask of example {place} holds class {wrong}; the network has classes 0 to {classes - 1}.",
                f"Pixels that do not count must be {self.ignore}." if self.ignore is not None else "Set `ignore`.",
            )
        return mask

    def _fitted(self, said: NDArray[np.int64], shape: tuple[int, ...], place: int) -> NDArray[np.int64]:
        if said.shape == shape:
            return said
        if not self.resize:
            raise DataError(
                f"the mask of example {place} is {list(shape)}; the output is {list(said.shape)}.",
                "Give masks of the output's size, or set [task] resize = true.",
            )
        rows = (np.arange(shape[0]) * said.shape[0]) // shape[0]
        columns = (np.arange(shape[1]) * said.shape[1]) // shape[1]
        return said[np.ix_(rows, columns)]

    apart = "KL divergence of each pixel's classes"

    def distance(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """KL divergence of each pixel's classes, mean over pixels."""

        def each(dense: Tensor, other: Tensor) -> Tensor:
            if dense.ndim == 4 and dense.shape[1] == 1:
                return distances.binary_divergence(dense, other)
            return (
                distances.divergence(dense, other)
                if dense.ndim == 4
                else distances.per_example((dense != other).float())
            )

        return distances.on_output(reference, outputs, self.output, each)

    def loss(self, outputs: Sequence[Tensor], targets: Any) -> Tensor | None:
        """Cross-entropy over the pixels that count, at the masks' size."""
        import torch
        from torch.nn import functional

        scores = outputs[self.output]
        masks = np.stack([to_array(t).reshape(to_array(t).shape[-2:]) for t in targets]).astype(np.int64)
        truth = torch.as_tensor(masks, device=scores.device)
        if scores.shape[-2:] != truth.shape[-2:]:
            scores = functional.interpolate(scores, truth.shape[-2:], mode="bilinear")
        ignored = -100 if self.ignore is None else self.ignore
        if scores.shape[1] == 1:
            counts = truth != ignored
            return functional.binary_cross_entropy_with_logits(scores[:, 0][counts], truth[counts].to(scores.dtype))
        if distances.looks_normalised(scores.detach(), 1):
            return functional.nll_loss(scores.clamp_min(1e-12).log(), truth, ignore_index=ignored)
        return functional.cross_entropy(scores, truth, ignore_index=ignored)

    def chance(self, targets: Sequence[Any]) -> float | None:
        """The best of what does not look: one class everywhere; for mIoU also every pixel drawn by lot.

        By lot a class with the share p of the pixels, said with the share q, has the IoU p q / (p + q - p q): in the
        mean more than one class said everywhere, which leaves all others at zero.
        """
        total: dict[int, int] = {}
        for target in targets:
            numbers, counts = np.unique(to_array(target), return_counts=True)
            for number, pixels in zip(numbers.tolist(), counts.tolist(), strict=True):
                if number != self.ignore:
                    total[number] = total.get(number, 0) + pixels
        if not total:
            return None
        shares = np.array(list(total.values())) / sum(total.values())
        if self.metric == "pixel accuracy":
            return float(100 * shares.max())
        said = (shares, np.full(len(shares), 1 / len(shares)))
        lots = [float((shares * q / (shares + q - shares * q)).mean()) for q in said]
        return 100 * max(float(shares.max()) / len(shares), *lots)

    def constant(self, outputs: Any) -> bool:
        """Is it one class everywhere, in every example?"""
        made = as_outputs(outputs)
        seen: set[int] = set()
        for scores in examples(made[self.output]):
            seen |= set(np.unique(self._said(scores)[0]).tolist())
        return count(made) > 1 and len(seen) == 1

    def shown(self, outputs: Any, targets: Sequence[Any]) -> tuple[set[int], int]:
        """Those of the pixels that count."""
        seen: set[int] = set()
        for target in targets:
            seen.update(np.unique(to_array(target)).tolist())
        made = as_outputs(outputs)
        known = self._said(examples(made[self.output])[0])[1] if count(made) else 0
        return {number for number in seen if number != self.ignore}, known
