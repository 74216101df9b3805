"""Boxes of objects: COCO's mAP.

`decode(outputs) -> boxes, scores, labels` is the user's (decoders of common heads are in `edgeprune.tasks.decoders`)
and runs on the host: `outputs` is the tuple of one picture's arrays, without the batch axis; boxes are [K, 4] x0, y0,
x1, y1 in the unit of the labelled boxes, scores [K], labels [K]. No object is three empty arrays.

A target is a dict: "boxes" [M, 4], "labels" [M], and where there are crowds "crowd" [M] of booleans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, EdgepruneError, MissingDependency, TaskError
from edgeprune.workload import distances, heads
from edgeprune.workload.arrays import Outputs, broken, examples, to_array
from edgeprune.workload.boxes import Boxes, match
from edgeprune.workload.statistics import Statistics
from edgeprune.workload.task import BaseTask
from edgeprune.workload.tasks.matches import Matches, Picture

if TYPE_CHECKING:
    from torch import Tensor

Found = tuple[Boxes, NDArray[np.float64], NDArray[np.int64]]
COCO = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


@dataclass(frozen=True)
class Detection(BaseTask):
    """Mean average precision as COCO defines it, over all sizes of object.

    Attributes:
        decode: one picture's outputs -> boxes [K, 4], scores [K], labels [K].
        thresholds: of overlap; the mean over them is the metric. COCO's are 0.5, 0.55 ... 0.95.
        most: boxes of a picture and class that count, best first (COCO: 100).
        sureness: (outputs, reference's) of tensors -> [batch, ...] weights for the distance; None: see `distance`.
    """

    decode: Callable[[tuple[NDArray[Any], ...]], Any]
    thresholds: tuple[float, ...] = COCO
    most: int = 100
    sureness: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = field(default=None, repr=False)

    unit = "points"

    def __post_init__(self) -> None:
        if not callable(self.decode):
            raise TaskError(
                "detection needs a decode function: (outputs of one picture) -> boxes, scores, labels.",
                "One of edgeprune.tasks.decoders, or your own.",
            )
        if not self.thresholds or any(not 0 < t <= 1 for t in self.thresholds) or self.most < 1:
            raise TaskError("detection: thresholds are overlaps above 0 and up to 1, and at least one box counts.")

    @property
    def metric(self) -> str:  # type: ignore[override]
        if self.thresholds == COCO:
            return "mAP 50-95"
        if len(self.thresholds) == 1:
            return f"AP{100 * self.thresholds[0]:.0f}"
        return f"mAP {100 * min(self.thresholds):.0f}-{100 * max(self.thresholds):.0f}"

    def found(self, outputs: tuple[NDArray[Any], ...], place: int = 0) -> Found:
        """`decode` of one picture, checked: boxes [K, 4], scores [K], labels [K]; raises TaskError."""
        try:
            made = self.decode(outputs)
        except EdgepruneError:
            raise
        except Exception as cause:
            raise TaskError(
                f"decode failed on example {place}: {type(cause).__name__}: {cause}.",
                "It gets one picture's outputs without the batch axis, and must stand a picture without any object: "
                "then it returns empty arrays.",
            ) from cause
        if not isinstance(made, tuple | list) or len(made) != 3:
            raise TaskError(
                f"decode gave {type(made).__name__} for example {place}; it must give boxes, scores, labels."
            )
        boxes, scores, labels = (to_array(part) for part in made)
        if not boxes.size and not scores.size and not labels.size:
            return np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != (len(boxes),) or labels.shape != (len(boxes),):
            raise TaskError(
                f"decode gave boxes {list(boxes.shape)}, scores {list(scores.shape)}, labels {list(labels.shape)} for "
                f"example {place}; they must be [K, 4], [K], [K]."
            )
        if not np.array_equal(labels, labels.astype(np.int64)) or labels.min() < 0:
            raise TaskError(f"decode gave labels for example {place} that are no whole numbers from 0 up.")
        good = np.isfinite(boxes).all(1) & np.isfinite(scores)
        return boxes[good].astype(np.float64), scores[good].astype(np.float64), labels[good].astype(np.int64)

    def _measure(self, outputs: Outputs, targets: list[Any]) -> Statistics:
        bad = broken(outputs)
        columns = [examples(output) for output in outputs]
        truths = [self.target(target, place) for place, target in enumerate(targets)]
        decoded = []
        for place in range(len(targets)):
            nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)
            decoded.append(nothing if bad[place] else self.found(tuple(c[place] for c in columns), place))
        top = max([int(labels.max(initial=-1)) for *_, labels in decoded] + [int(t[1].max(initial=-1)) for t in truths])
        return Matches(tuple(self._picture(*pair, top + 1) for pair in zip(decoded, truths, strict=True)))

    def _picture(
        self, found: Found, truth: tuple[Boxes, NDArray[np.int64], NDArray[np.bool_]], classes: int
    ) -> Picture:
        boxes, scores, labels = found
        true, kinds, crowd = truth
        parts = []
        thresholds = np.asarray(self.thresholds)
        for kind in np.unique(labels):
            mine = np.flatnonzero(labels == kind)
            mine = mine[np.argsort(-scores[mine], kind="stable")][: self.most]
            of_kind = kinds == kind
            hit, beside = match(boxes[mine], true[of_kind], crowd[of_kind], thresholds)
            parts.append((scores[mine], labels[mine], hit, beside))
        counts = np.bincount(kinds[~crowd], minlength=classes)
        if not parts:
            none = np.zeros((len(thresholds), 0), bool)
            return Picture(np.zeros(0), np.zeros(0, np.int64), none, none, counts)
        s, k, right, ignored = zip(*parts, strict=True)
        return Picture(
            np.concatenate(s), np.concatenate(k), np.concatenate(right, 1), np.concatenate(ignored, 1), counts
        )

    def target(self, target: Any, place: int = 0) -> tuple[Boxes, NDArray[np.int64], NDArray[np.bool_]]:
        """(boxes [M, 4], labels [M], crowd [M]) of one example's target; raises DataError."""
        if not isinstance(target, Mapping) or "boxes" not in target or "labels" not in target:
            raise DataError(
                f"the target of example {place} must be a dict with boxes [M, 4] (x0, y0, x1, y1) and labels [M]."
            )
        boxes = (
            to_array(target["boxes"]).astype(np.float64).reshape(-1, 4)
            if to_array(target["boxes"]).size
            else np.zeros((0, 4))
        )
        labels = to_array(target["labels"]).reshape(-1)
        crowd = to_array(target.get("crowd", np.zeros(len(boxes), bool))).reshape(-1).astype(bool)
        if not len(boxes) == len(labels) == len(crowd):
            raise DataError(
                f"example {place} has {len(boxes)} boxes, {len(labels)} labels and {len(crowd)} crowd flags."
            )
        if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
            raise DataError(
                f"example {place} has a box that is not x0, y0, x1, y1 with x1 >= x0 and y1 >= y0.",
                "Convert from x, y, width, height (COCO) or centre, width, height (YOLO) first.",
            )
        if labels.size and (labels.min() < 0 or not np.array_equal(labels, labels.astype(np.int64))):
            raise DataError(f"example {place} has a label {labels.min()}; labels are whole numbers from 0 up.")
        return boxes, labels.astype(np.int64), crowd

    def _check(self, outputs: Outputs, targets: list[Any]) -> None:
        """Shapes, labels, and whether decoded and labelled boxes have one unit (pixels, or 0..1)."""
        columns = [examples(output) for output in outputs]
        extents: list[list[float]] = [[], []]
        for place, target in enumerate(targets):
            boxes, scores, _ = self.found(tuple(column[place] for column in columns), place)
            true = self.target(target, place)[0]
            if len(boxes):
                sure = boxes[scores >= np.sort(scores)[-min(len(scores), 20)]]
                extents[0].append(float(np.abs(sure).max()))
            if len(true):
                extents[1].append(float(np.abs(true).max()))
        if extents[0] and extents[1]:
            found, labelled = (float(np.median(values)) for values in extents)
            if found > 8 * labelled or labelled > 8 * found:
                raise TaskError(
                    f"decoded boxes reach to {found:.4g}, labelled boxes to {labelled:.4g}: they are not in one unit.",
                    "Both in pixels of the network's input, or both in 0..1 of the picture.",
                )

    @property
    def apart(self) -> str:  # type: ignore[override]
        if self._known:
            return (
                "divergence of objects and classes and distance of boxes, as decoded, per object of the dense network"
            )
        return "squared error over the variance per channel, weighted by how sure the dense network is of a place"

    @property
    def _known(self) -> bool:
        return self.sureness is None and heads.known(self.decode)

    def distance(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """How far from the dense network: [batch]. Of a head that a built-in decoder knows, `heads.distance`.

        Else squared error over the variance per channel, weighted by how sure the dense network is of a place.
        With `sureness` its weights, one tensor an output, broadcast over the output; without it a place (all axes but
        the batch and channels) weighs by how far the dense network is there from its usual output: a detector says
        "nothing" nearly everywhere. The error of the quiet places still counts by a tenth, so that no false box grows.
        """
        if self._known:
            return heads.between(self.decode, reference, outputs)
        weights = self.sureness(reference) if self.sureness is not None else [_activity(r) for r in reference]
        parts = []
        for (wanted, found), scale, weight in zip(
            distances.paired(reference, outputs), distances.variances(reference), weights, strict=True
        ):
            error = (found - wanted).square() / scale
            parts.append(distances.per_example(error * (0.1 + weight)))
        return sum(parts[1:], parts[0]) / len(parts)

    def chance(self, targets: Sequence[Any]) -> float | None:
        return 0.0

    def shown(self, outputs: Any, targets: Sequence[Any]) -> tuple[set[int], int]:
        """Those of the boxes; how many the network knows only `decode` can tell."""
        return {int(label) for place, one in enumerate(targets) for label in self.target(one, place)[1]}, 0

    def coco(self, outputs: Any, targets: Sequence[Any]) -> dict[str, float]:
        """AP and AP50 in points by faster-coco-eval: the field's own code, beside ours; raises MissingDependency."""
        from edgeprune.workload.arrays import as_outputs

        made = as_outputs(outputs)
        columns = [examples(output) for output in made]
        found = [self.found(tuple(c[place] for c in columns), place) for place in range(len(targets))]
        return coco_figures(found, [self.target(t, n) for n, t in enumerate(targets)])


def _activity(reference: Tensor) -> Tensor:
    """How far each place is from the output's mean, 0..1 of the farthest in the example; [batch, 1, ...]."""
    values = reference.detach().float()
    if values.ndim < 3:
        return values.new_ones(()).expand(values.shape)
    centre = values.flatten(2).median(2)[0].reshape(*values.shape[:2], *[1] * (values.ndim - 2))
    away = (values - centre).square().mean(1, keepdim=True)
    return away / away.flatten(1).max(1)[0].clamp_min(1e-12).reshape(-1, *[1] * (values.ndim - 1))


def coco_figures(found: Sequence[Found], truths: Sequence[tuple[Boxes, Any, Any]]) -> dict[str, float]:
    """AP and AP50 in points of faster-coco-eval for boxes of any unit."""
    try:
        from faster_coco_eval import COCO as Table
        from faster_coco_eval import COCOeval_faster
    except ModuleNotFoundError:
        raise MissingDependency("faster-coco-eval is not installed.", "pip install 'edgeprune[detection]'") from None
    images = [{"id": n + 1, "width": 1, "height": 1} for n in range(len(truths))]
    kinds = sorted(
        {int(k) for _, labels, _ in truths for k in labels} | {int(k) for *_, labels in found for k in labels}
    )
    labelled: list[dict[str, object]] = []
    said: list[dict[str, object]] = []
    for place, ((boxes, labels, crowd), (their, scores, guesses)) in enumerate(zip(truths, found, strict=True)):
        for box, label, many in zip(boxes, labels, crowd, strict=True):
            size = (box[2:] - box[:2]).tolist()
            labelled.append(
                {
                    "id": len(labelled) + 1,
                    "image_id": place + 1,
                    "category_id": int(label) + 1,
                    "bbox": [*box[:2].tolist(), *size],
                    "area": size[0] * size[1],
                    "iscrowd": int(many),
                }
            )
        for box, score, label in zip(their, scores, guesses, strict=True):
            said.append(
                {
                    "image_id": place + 1,
                    "category_id": int(label) + 1,
                    "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
                    "score": float(score),
                }
            )
    if not said:
        return {"AP": 0.0, "AP50": 0.0}
    table = Table(
        {"images": images, "annotations": labelled, "categories": [{"id": k + 1, "name": str(k)} for k in kinds]}
    )
    meter = COCOeval_faster(table, table.loadRes(said), "bbox", print_function=lambda *_: None)
    meter.params.areaRng, meter.params.areaRngLbl = [[0, 1e20]], ["all"]
    meter.evaluate()
    meter.accumulate()
    precision = meter.eval["precision"]  # [T, R, K, A, M]
    last = precision[:, :, :, 0, -1]
    return {
        "AP": float(100 * last[last > -1].mean()),
        "AP50": float(100 * last[0][last[0] > -1].mean()),
    }
