"""From a detector's raw outputs to boxes, for common heads: numpy only, one picture at a time, so that a board can too.

Each is a frozen object that is called with the tuple of one picture's outputs (without the batch axis) and gives
boxes [K, 4] as x0, y0, x1, y1 in 0..1 of the network's input, scores [K] and labels [K], best first. No object is
three empty arrays. Labels count from 0, without the background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import ModelError, TaskError
from edgeprune.workload.boxes import from_centre, nms

Arrays = tuple[NDArray[Any], ...]
Found = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]


@dataclass(frozen=True)
class _Head:
    """What heads share: scores over `score` stay, then non-maximum suppression, then the best `most`."""

    score: float = 0.01
    overlap: float = 0.45
    most: int = 100

    def _kept(self, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> Found:
        good = (scores > self.score) & np.isfinite(boxes).all(1)
        boxes, scores, labels = boxes[good].astype(np.float64), scores[good], labels[good].astype(np.int64)
        kept = nms(boxes, scores, labels, self.overlap, self.most)
        return boxes[kept], scores[kept], labels[kept]


@dataclass(frozen=True)
class FastestDet(_Head):
    """One output [5 + classes, H, W]: objectness, tanh offsets, sigmoid sizes, probabilities of classes.

    Source: FastestDet (dog-qiuqiu, BSD-3): score = objectness^0.6 * class^0.4.
    """

    def __call__(self, outputs: Arrays) -> Found:
        head = _one(outputs, 3, "[5 + classes, H, W]").astype(np.float64)
        if head.shape[0] < 6:
            raise ModelError(f"a FastestDet head is [5 + classes, H, W]; this is {list(head.shape)}.")
        rows, columns = head.shape[1:]
        y, x = np.mgrid[:rows, :columns]
        scores = np.clip(head[0], 0, None) ** 0.6 * np.clip(head[5:].max(0), 0, None) ** 0.4
        centre = [(np.tanh(head[1]) + x) / columns, (np.tanh(head[2]) + y) / rows]
        boxes = from_centre(np.stack([*centre, _sigmoid(head[3]), _sigmoid(head[4])], -1).reshape(-1, 4))
        return self._kept(boxes, scores.reshape(-1), head[5:].argmax(0).reshape(-1))


@dataclass(frozen=True)
class YoloAnchorFree(_Head):
    """Anchor-free heads with distribution focal loss (YOLOv8 and later): raw maps, or one decoded output.

    Raw: for each stride a map [4 * bins + classes, H, W] of logits; a side's distance is the mean of its bins' softmax,
    in strides. Decoded: one output [4 + classes, places], centres and sizes in pixels, class probabilities.

    Attributes:
        size: (height, width) of the network's input in pixels.
        bins: of a side's distribution; 1: the distance itself (in strides, no softmax).
    """

    size: tuple[int, int] = (640, 640)
    bins: int = 16

    def __call__(self, outputs: Arrays) -> Found:
        height, width = self.size
        whole = np.array([width, height, width, height], np.float64)
        if len(outputs) == 1 and outputs[0].ndim == 2:
            table = outputs[0].astype(np.float64)
            if table.shape[0] < 5:
                raise ModelError(f"a decoded YOLO output is [4 + classes, places]; this is {list(table.shape)}.")
            return self._kept(from_centre(table[:4].T) / whole, table[4:].max(0), table[4:].argmax(0))
        boxes, classes = [], []
        for level in outputs:
            if level.ndim != 3 or level.shape[0] <= 4 * self.bins:
                raise ModelError(f"a YOLO map is [{4 * self.bins} + classes, H, W]; this is {list(level.shape)}.")
            level = level.astype(np.float64)
            rows, columns = level.shape[1:]
            sides = level[: 4 * self.bins].reshape(4, self.bins, -1)
            if self.bins > 1:
                sides = (_softmax(sides, 1) * np.arange(self.bins)[:, None]).sum(1)
            else:
                sides = sides[:, 0]
            y, x = (grid.reshape(-1) + 0.5 for grid in np.mgrid[:rows, :columns])
            corners = np.stack([x - sides[0], y - sides[1], x + sides[2], y + sides[3]], -1)
            boxes.append(corners / np.array([columns, rows, columns, rows]))
            classes.append(_sigmoid(level[4 * self.bins :]).reshape(level.shape[0] - 4 * self.bins, -1))
        scores = np.concatenate(classes, 1)
        return self._kept(np.concatenate(boxes), scores.max(0), scores.argmax(0))


@dataclass(frozen=True)
class YoloAnchors(_Head):
    """Heads with anchors (YOLOv3 to v7): for each stride a map [anchors * (5 + classes), H, W] of logits.

    Attributes:
        anchors: for each map, in its order, the (width, height) in pixels of each anchor.
        size: (height, width) of the network's input in pixels.
        squared: sizes are (2 sigmoid)^2 anchors and centres 2 sigmoid - 0.5 (v5 and v7); else exp and sigmoid (v3).
    """

    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    size: tuple[int, int] = (640, 640)
    squared: bool = True

    def __call__(self, outputs: Arrays) -> Found:
        if len(outputs) != len(self.anchors):
            raise ModelError(f"the network has {len(outputs)} outputs; anchors are given for {len(self.anchors)}.")
        height, width = self.size
        boxes, scores, labels = [], [], []
        for level, anchors in zip(outputs, self.anchors, strict=True):
            if level.ndim != 3 or level.shape[0] % len(anchors) or level.shape[0] // len(anchors) < 6:
                raise ModelError(
                    f"a map of {len(anchors)} anchors is [{len(anchors)} * (5 + classes), H, W]; "
                    f"this is {list(level.shape)}."
                )
            rows, columns = level.shape[1:]
            head = level.astype(np.float64).reshape(len(anchors), -1, rows, columns)
            y, x = np.mgrid[:rows, :columns]
            span = np.array(anchors, np.float64)[:, :, None, None]
            if self.squared:
                at = 2 * _sigmoid(head[:, :2]) - 0.5
                size = (2 * _sigmoid(head[:, 2:4])) ** 2 * span
            else:
                at, size = _sigmoid(head[:, :2]), np.exp(np.clip(head[:, 2:4], -20, 20)) * span
            parts = [(at[:, 0] + x) / columns, (at[:, 1] + y) / rows, size[:, 0] / width, size[:, 1] / height]
            sure = _sigmoid(head[:, 4:5]) * _sigmoid(head[:, 5:])
            boxes.append(from_centre(np.stack(parts, -1).reshape(-1, 4)))
            scores.append(sure.max(1).reshape(-1))
            labels.append(sure.argmax(1).reshape(-1))
        return self._kept(np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels))


@dataclass(frozen=True)
class SSD(_Head):
    """Two outputs: scores [priors, classes] and offsets [priors, 4] (or boxes, where there are no priors).

    Source: SSD (Liu et al. 2016): centre = prior + offset * variance[0] * prior size, and
    size = prior size * exp(offset * variance[1]).

    Attributes:
        priors: [priors, 4] as cx, cy, w, h in 0..1; None: the network decodes, and gives x0, y0, x1, y1 in 0..1.
        variance: of centres and of sizes.
        background: the class that is no object; None: there is none, and scores are independent.
        softmax: scores are logits; None: by looking, whether a place's scores are all within 0..1.
    """

    priors: Any = None
    variance: tuple[float, float] = (0.1, 0.2)
    background: int | None = 0
    softmax: bool | None = None

    def __call__(self, outputs: Arrays) -> Found:
        if len(outputs) != 2:
            raise ModelError(f"an SSD head has two outputs, scores and boxes; this network has {len(outputs)}.")
        scores, boxes = (output.astype(np.float64) for output in outputs)
        if scores.ndim == 2 and boxes.ndim == 2 and boxes.shape[1] != 4 and scores.shape[1] == 4:
            scores, boxes = boxes, scores
        if scores.ndim != 2 or boxes.shape != (len(scores), 4):
            raise ModelError(
                f"an SSD head is [priors, classes] and [priors, 4]; this is {[list(o.shape) for o in outputs]}."
            )
        logits = self.softmax if self.softmax is not None else bool(scores.min() < 0 or scores.max() > 1)
        if logits:
            scores = _softmax(scores, 1) if self.background is not None else _sigmoid(scores)
        if self.priors is not None:
            priors = np.asarray(self.priors, np.float64)
            if priors.shape != boxes.shape:
                raise TaskError(f"there are {list(priors.shape)} priors, but boxes are {list(boxes.shape)}.")
            centre = priors[:, :2] + boxes[:, :2] * self.variance[0] * priors[:, 2:]
            size = priors[:, 2:] * np.exp(np.clip(boxes[:, 2:] * self.variance[1], -20, 20))
            boxes = from_centre(np.concatenate([centre, size], 1))
        if self.background is not None:
            scores = np.delete(scores, self.background, axis=1)
        if not scores.shape[1]:
            raise ModelError("the SSD head has no class beside the background.")
        return self._kept(boxes, scores.max(1), scores.argmax(1))


@dataclass(frozen=True)
class DETR:
    """Two outputs: logits [queries, classes + 1] and boxes [queries, 4] as cx, cy, w, h in 0..1; no suppression.

    Source: DETR (Carion et al. 2020). `background`: the last class is "no object" and scores are a softmax; False:
    scores are independent sigmoids (Deformable DETR and later).
    """

    background: bool = True
    score: float = 0.01
    most: int = 100

    def __call__(self, outputs: Arrays) -> Found:
        if len(outputs) != 2 or outputs[1].ndim != 2 or outputs[1].shape[1] != 4 or outputs[0].ndim != 2:
            raise ModelError(
                f"a DETR head is [queries, classes] and [queries, 4]; this is {[list(o.shape) for o in outputs]}."
            )
        logits = outputs[0].astype(np.float64)
        scores = _softmax(logits, 1)[:, :-1] if self.background else _sigmoid(logits)
        query, label = np.divmod(np.argsort(-scores, axis=None, kind="stable")[: self.most], scores.shape[1])
        if self.background:  # one class a query
            query = np.argsort(-scores.max(1), kind="stable")[: self.most]
            label = scores.argmax(1)[query]
        good = scores[query, label] > self.score
        query, label = query[good], label[good]
        return from_centre(outputs[1].astype(np.float64))[query], scores[query, label], label.astype(np.int64)


@dataclass(frozen=True)
class EndToEnd:
    """One output [most, 6] of x0, y0, x1, y1, score, class: of a network, or an artifact, that suppresses by itself.

    Rows of a score up to `score`, or of a class below 0, are no objects. YOLOv10 and YOLO26 give such rows, and the
    artifact of `[export] output = "nms"`.

    Attributes:
        size: (height, width) of the network's input, where boxes are in pixels; None: they are in 0..1.
        score: of an object, more.
    """

    size: tuple[int, int] | None = None
    score: float = 0.0

    def __call__(self, outputs: Arrays) -> Found:
        rows = _one(outputs, 2, "[most, 6]").astype(np.float64)
        if rows.shape[1] != 6:
            raise ModelError(
                f"this head is rows of x0, y0, x1, y1, score, class; the network gives {list(rows.shape)}."
            )
        rows = rows[(rows[:, 4] > self.score) & (rows[:, 5] >= 0) & np.isfinite(rows).all(1)]
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
        height, width = self.size or (1, 1)
        return rows[:, :4] / [width, height, width, height], rows[:, 4], np.rint(rows[:, 5]).astype(np.int64)


def _one(outputs: Arrays, axes: int, wanted: str) -> NDArray[Any]:
    if len(outputs) != 1 or outputs[0].ndim != axes:
        raise ModelError(f"this head is one output {wanted}; the network gives {[list(o.shape) for o in outputs]}.")
    return outputs[0]


def _sigmoid(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -60, 60))))


def _softmax(values: NDArray[Any], axis: int) -> NDArray[np.float64]:
    shifted = np.exp(values - values.max(axis, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis, keepdims=True))
