"""Boxes on the host, numpy only: overlap, non-maximum suppression, other ways to write them, COCO's matching.

A box is x0, y0, x1, y1. The unit is the user's choice (pixels, or 0..1 of the picture), as long as decoded boxes and
labelled boxes have the same one: overlap does not change when an axis is scaled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]


def area(boxes: Boxes) -> NDArray[np.float64]:
    """[K, 4] -> [K]; 0 for a box that is turned inside out."""
    return np.asarray(np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None))


def overlap(first: Boxes, second: Boxes, crowd: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """[K, 4], [M, 4] -> [K, M] intersection over union; over the area of `first` where `second` is a crowd (COCO)."""
    corner = np.minimum(first[:, None, 2:], second[None, :, 2:]) - np.maximum(first[:, None, :2], second[None, :, :2])
    shared = np.clip(corner, 0, None).prod(-1)
    union = area(first)[:, None] + area(second)[None] - shared
    if crowd is not None:
        union = np.where(crowd[None], area(first)[:, None], union)
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def from_centre(boxes: NDArray[Any]) -> NDArray[Any]:
    """cx, cy, w, h in the last axis -> x0, y0, x1, y1."""
    half = boxes[..., 2:] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def nms(
    boxes: Boxes, scores: NDArray[Any], labels: NDArray[Any], limit: float = 0.45, most: int = 100
) -> NDArray[np.int64]:
    """Places of the boxes that stay, best first.

    Args:
        boxes, scores, labels: [K, 4], [K], [K].
        limit: a box that overlaps a better one of its class by more goes.
        most: how many may stay.
    """
    order = np.argsort(-scores, kind="stable")
    sorted_boxes, sorted_labels = boxes[order], labels[order]
    left = np.ones(len(order), bool)
    kept: list[int] = []
    for place in range(len(order)):
        if not left[place]:
            continue
        kept.append(int(order[place]))
        if len(kept) == most:
            break
        rest = np.flatnonzero(left[place + 1 :] & (sorted_labels[place + 1 :] == sorted_labels[place])) + place + 1
        left[rest[overlap(sorted_boxes[place : place + 1], sorted_boxes[rest])[0] > limit]] = False
    return np.array(kept, np.int64)


def match(
    found: Boxes, true: Boxes, crowd: NDArray[np.bool_], thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """COCO's greedy matching of one picture and class: (right [T, K], not counted [T, K]).

    Args:
        found: [K, 4], best score first.
        true: [M, 4] labelled boxes.
        crowd: [M]; what lies in a crowd is neither right nor wrong.
        thresholds: [T] of overlap.
    """
    right = np.zeros((len(thresholds), len(found)), bool)
    ignored = np.zeros_like(right)
    if not len(true) or not len(found):
        return right, ignored
    order = np.argsort(crowd, kind="stable")  # crowds last
    overlaps, crowded = overlap(found, true[order], crowd[order]), crowd[order]
    for row, threshold in enumerate(np.minimum(thresholds, 1 - 1e-10)):
        taken = np.zeros(len(true), bool)
        for box in np.flatnonzero((overlaps >= threshold).any(1)):
            # Equal overlaps: COCO's loop takes the last one.
            single = np.where(taken | crowded, -1.0, overlaps[box])
            best = len(single) - 1 - int(np.argmax(single[::-1]))
            if single[best] >= threshold:
                taken[best] = right[row, box] = True
            elif (overlaps[box][crowded] >= threshold).any():
                ignored[row, box] = True
    return right, ignored
