"""COCO's mean average precision from lists of matches: each resample of the pictures costs well below a millisecond.

A picture's boxes are matched to its labels once; resampling pictures changes only how often each match counts. The
precision is read at 101 recalls (Lin et al. 2014), from the places where a box is right: elsewhere its envelope does
not change. The figures are faster-coco-eval's, which the tests hold equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.workload.statistics import Flags, Values, Weights

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, eq=False)
class Picture:
    """What one picture leaves.

    Attributes:
        scores, labels: [K] of its boxes, best first within a class.
        right, ignored: [T, K] for each threshold of overlap.
        counts: labelled boxes of each class that count, [C].
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    right: Flags
    ignored: Flags
    counts: NDArray[np.int64]

    def same(self, other: Picture) -> bool:
        return (
            np.array_equal(self.scores, other.scores)
            and np.array_equal(self.labels, other.labels)
            and np.array_equal(self.right, other.right)
        )

    def without_boxes(self) -> Picture:
        none = self.right[:, :0]
        return Picture(self.scores[:0], self.labels[:0], none, none, self.counts)


@dataclass(frozen=True, eq=False)
class Matches:
    """All pictures' matches; the metric is the mean over classes and thresholds."""

    pictures: tuple[Picture, ...]
    resamples: int = 1000

    def __len__(self) -> int:
        return len(self.pictures)

    @cached_property
    def _table(self) -> dict[str, NDArray[Any]]:
        """Boxes of all pictures sorted by class, then by score; and where they are right."""
        pictures = self.pictures
        image = np.repeat(np.arange(len(pictures)), [len(p.scores) for p in pictures])
        scores = np.concatenate([p.scores for p in pictures])
        labels = np.concatenate([p.labels for p in pictures])
        order = np.lexsort((-scores, labels))  # stable: equal scores stay in the order of pictures
        right = np.concatenate([p.right for p in pictures], 1)[:, order]
        ignored = np.concatenate([p.ignored for p in pictures], 1)[:, order]
        labels = labels[order]
        threshold, box = np.nonzero(right)
        segment = threshold * (int(labels.max(initial=0)) + 1) + labels[box]
        starts = np.flatnonzero(np.diff(segment, prepend=-1))
        return {
            "image": image[order],
            "first": np.searchsorted(labels, labels[box]),  # of its class, among all boxes
            "threshold": threshold,
            "box": box,
            "class": labels[box],
            "starts": starts,
            "run": np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(segment)))),
            "ignored": ignored if ignored.any() else None,
            "counts": np.stack([p.counts for p in pictures]),
            "thresholds": right.shape[0],
        }

    def values(self, weights: Weights) -> Values:
        return np.array([self._one(row) for row in weights])

    def _one(self, weights: NDArray[np.int64]) -> float:
        """One resample: points of mAP, NaN where it has no labelled box."""
        table = self._table
        counts = weights @ table["counts"]
        classes = np.count_nonzero(counts)
        if not classes:
            return float("nan")
        if not len(table["box"]):
            return 0.0
        drawn = weights[table["image"]]
        box, first, starts, run = table["box"], table["first"], table["starts"], table["run"]
        if table["ignored"] is None:
            seen = np.concatenate([[0], np.cumsum(drawn)])
            every = seen[box + 1] - seen[first]
        else:
            seen = np.cumsum(np.where(table["ignored"], 0, drawn), axis=1)
            seen = np.concatenate([np.zeros((len(seen), 1), seen.dtype), seen], 1)
            every = seen[table["threshold"], box + 1] - seen[table["threshold"], first]
        hit = np.cumsum(drawn[box])
        before = np.concatenate([[0], hit])[starts]
        hits = hit - before[run]
        total = counts[table["class"]]
        recall = np.divide(hits, total, out=np.zeros(len(hits)), where=total > 0)
        precision = np.divide(hits, every, out=np.zeros(len(hits)), where=every > 0)
        # The envelope: the highest precision from here on, within a class and threshold; runs are kept apart by 2 each.
        apart = 2.0 * run[::-1].max(initial=0) - 2.0 * run
        envelope = np.maximum.accumulate((precision + apart)[::-1])[::-1] - apart
        reached = np.searchsorted(RECALLS, recall, side="right")
        reached[drawn[box] == 0] = 0
        upto = np.maximum.accumulate(reached + 102 * run) - 102 * run
        previous = np.concatenate([[0], upto[:-1]])
        previous[starts] = 0
        return float(100 * ((upto - previous) * envelope).sum() / (len(RECALLS) * classes * table["thresholds"]))

    def extended(self, example: int, failed: bool) -> Matches:
        one = self.pictures[example]
        return Matches((*self.pictures, one.without_boxes() if failed else one), self.resamples)

    @property
    def graded(self) -> bool:
        """Do most pictures have boxes with measured scores? Then two networks hardly ever give the same ones."""
        return bool(np.mean([(one.scores != np.rint(one.scores)).any() for one in self.pictures]) > 0.5)

    def ties(self, other: Matches) -> Flags:
        return np.array([a.same(b) for a, b in zip(self.pictures, other.pictures, strict=True)])

    def joined(self, others: Sequence[Matches]) -> Matches:
        pictures = [p for part in (self, *others) for p in part.pictures]
        classes = max(len(p.counts) for p in pictures)
        wide = [
            p
            if len(p.counts) == classes
            else Picture(p.scores, p.labels, p.right, p.ignored, np.pad(p.counts, (0, classes - len(p.counts))))
            for p in pictures
        ]
        return Matches(tuple(wide), self.resamples)
