"""Yes or no: several independent questions an example (multilabel), or one (binary)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, ModelError, TaskError
from edgeprune.workload import distances
from edgeprune.workload.arrays import Outputs, as_outputs, broken, count, pick, to_array, whole_numbers
from edgeprune.workload.statistics import Flags, Proportion, Statistics, Sums, Values, Weights
from edgeprune.workload.task import BaseTask

if TYPE_CHECKING:
    from torch import Tensor

LOWEST = -np.inf  # what an example that failed is scored where it should be yes; the highest where it should be no


@dataclass(frozen=True, eq=False)
class Ranked:
    """Scores [N, L] against truth [N, L], for metrics of their order.

    Attributes:
        scores, truth: of each example and question.
        kind: "mAP": mean over questions of the average precision; "AUC": of the area under the ROC curve.
    """

    scores: Values
    truth: Flags
    kind: Literal["mAP", "AUC"]
    resamples: int = 1000

    def __len__(self) -> int:
        return len(self.scores)

    def values(self, weights: Weights) -> Values:
        found = np.empty((self.scores.shape[1], len(weights)))
        for question in range(self.scores.shape[1]):
            found[question] = self._one(self.scores[:, question], self.truth[:, question], weights)
        known = ~np.isnan(found)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(100 * np.where(known, found, 0).sum(0) / known.sum(0))

    def _one(self, scores: Values, truth: Flags, weights: Weights) -> Values:
        order = np.argsort(-scores, kind="stable")
        ranked, yes = scores[order], truth[order]
        last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # of each run of equal scores
        drawn = weights[:, order].astype(np.float64)
        hits = np.cumsum(drawn * yes, 1)[:, last]
        every = np.cumsum(drawn, 1)[:, last]
        gained = np.diff(hits, axis=1, prepend=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.kind == "mAP":
                precision = np.where(every > 0, hits / every, 0)
                return np.asarray((precision * gained).sum(1) / hits[:, -1])
            misses = every - hits
            wrong = np.diff(misses, axis=1, prepend=0)
            area = (wrong * (hits - gained / 2)).sum(1)  # an equal score is half right
            return np.asarray(area / (hits[:, -1] * misses[:, -1]))

    def extended(self, example: int, failed: bool) -> Ranked:
        row = self.scores[[example]]
        if failed:
            row = np.where(self.truth[[example]], LOWEST, -LOWEST)
        truth = np.concatenate([self.truth, self.truth[[example]]])
        return Ranked(np.concatenate([self.scores, row]), truth, self.kind, self.resamples)

    @property
    def graded(self) -> bool:
        """Are scores measured numbers? Then two networks hardly ever give the same ones."""
        return bool((self.scores != np.rint(self.scores)).any())

    def ties(self, other: Ranked) -> Flags:
        return np.asarray((self.scores == other.scores).all(axis=1))

    def joined(self, others: Sequence[Ranked]) -> Ranked:
        every = [self, *others]
        scores = np.concatenate([part.scores for part in every])
        return Ranked(scores, np.concatenate([part.truth for part in every]), self.kind, self.resamples)


def f1(sums: Values) -> Values:
    """[B, 3 L] sums of hits, of what was said, of what is true -> mean F1 over questions in points."""
    hits, said, true = np.split(sums, 3, axis=1)
    known = said + true > 0
    each = np.where(known, 2 * hits / np.where(known, said + true, 1), 0)
    return np.asarray(100 * each.sum(1) / known.sum(1))


@dataclass(frozen=True)
class MultiLabel(BaseTask):
    """Scores [N, labels] against yes or no for each: a target is [labels] of 0 and 1.

    Attributes:
        metric: "mAP" (of the ranking, no threshold) or "F1" (macro, of what is over the threshold).
        output: the network's output that holds the scores.
        threshold: of a probability; logits are compared with its logit.
        logits: None: by looking, whether all scores are within 0..1.
    """

    metric: Literal["mAP", "F1"] = "mAP"
    output: int = 0
    threshold: float = 0.5
    logits: bool | None = None

    unit = "points"

    def __post_init__(self) -> None:
        if self.metric not in ("mAP", "F1"):
            raise TaskError(f"multilabel has the metrics mAP and F1, not {self.metric}.")
        _check_threshold(self.threshold)

    def _measure(self, outputs: Outputs, targets: list[Any]) -> Statistics:
        scores = pick(outputs, self.output, self.metric).astype(np.float64)
        if scores.ndim != 2:
            raise ModelError(f"output {self.output} is {list(scores.shape)}; multilabel needs [examples, labels].")
        truth = _yes_or_no(targets, scores.shape[1])
        bad = broken((scores,))[:, None]
        if self.metric == "mAP":
            return Ranked(np.where(bad, np.where(truth, LOWEST, -LOWEST), scores), truth, "mAP")
        said = np.where(bad, ~truth, scores > _cut(scores, self.threshold, self.logits))
        rows = np.concatenate([said & truth, said, truth], 1).astype(np.float64)
        failed = np.concatenate([np.zeros_like(truth), ~truth, truth], 1).astype(np.float64)
        return Sums(rows, failed, f1)

    apart = "KL divergence of each label's yes or no"

    def distance(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """Mean over labels of the divergence of the dense network's yes or no."""
        return distances.on_output(reference, outputs, self.output, distances.binary_divergence)

    def loss(self, outputs: Sequence[Tensor], targets: Any) -> Tensor | None:
        """Binary cross-entropy."""
        return _cross_entropy(outputs[self.output], np.stack([to_array(t) for t in targets]))

    def chance(self, targets: Sequence[Any]) -> float | None:
        """mAP of a random order is how often yes is true; F1 of saying yes always is 2p / (1 + p)."""
        share = _yes_or_no(list(targets), None).mean(0)
        share = share[share > 0]
        each = share if self.metric == "mAP" else 2 * share / (1 + share)
        return float(100 * each.mean()) if len(each) else None


@dataclass(frozen=True)
class Binary(BaseTask):
    """One score [N] or [N, 1] against 0 or 1.

    Attributes:
        metric: "accuracy" (over the threshold or not) or "AUC" (the area under the ROC curve).
        output, threshold, logits: as in MultiLabel.
    """

    metric: Literal["accuracy", "AUC"] = "accuracy"
    output: int = 0
    threshold: float = 0.5
    logits: bool | None = None

    unit = "points"

    def __post_init__(self) -> None:
        if self.metric not in ("accuracy", "AUC"):
            raise TaskError(f"binary has the metrics accuracy and AUC, not {self.metric}.")
        _check_threshold(self.threshold)

    def _scores(self, outputs: Outputs) -> NDArray[np.float64]:
        scores = pick(outputs, self.output, self.metric).astype(np.float64)
        if scores.size != len(scores):
            raise ModelError(
                f"output {self.output} is {list(scores.shape)}; a binary task needs one score an example.",
                'Two scores an example are task "classification".',
            )
        return scores.reshape(-1)

    def _measure(self, outputs: Outputs, targets: list[Any]) -> Statistics:
        scores = self._scores(outputs)
        truth = whole_numbers(targets, 2, self.metric).astype(bool)
        bad = ~np.isfinite(scores)
        if self.metric == "AUC":
            return Ranked(np.where(bad, np.where(truth, LOWEST, -LOWEST), scores)[:, None], truth[:, None], "AUC")
        return Proportion.of(((scores > _cut(scores, self.threshold, self.logits)) == truth) & ~bad)

    apart = "KL divergence of yes or no"

    def distance(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """Divergence of the dense network's yes or no."""
        return distances.on_output(reference, outputs, self.output, distances.binary_divergence)

    def loss(self, outputs: Sequence[Tensor], targets: Any) -> Tensor | None:
        """Binary cross-entropy."""
        scores = outputs[self.output]
        return _cross_entropy(scores.reshape(len(scores)), np.asarray([int(t) for t in targets]))

    def chance(self, targets: Sequence[Any]) -> float | None:
        """Always the more frequent answer; 50 for the AUC."""
        share = whole_numbers(targets, 2, self.metric).mean()
        return float(100 * max(share, 1 - share)) if self.metric == "accuracy" else 50.0

    def constant(self, outputs: Any) -> bool:
        """Is it the same answer for every example (accuracy), or the same score (AUC)?"""
        made = as_outputs(outputs)
        if count(made) < 2 or self.metric == "AUC":
            return super().constant(made)
        scores = self._scores(made)
        said = scores > _cut(scores, self.threshold, self.logits)
        return bool((said == said[0]).all())


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise TaskError(f"threshold is {threshold:g}; it is a probability, between 0 and 1.")


def _cut(scores: NDArray[Any], threshold: float, logits: bool | None) -> float:
    finite = scores[np.isfinite(scores)]
    if logits is None:
        logits = bool(finite.size and (finite.min() < 0 or finite.max() > 1))
    return float(np.log(threshold / (1 - threshold))) if logits else threshold


def _yes_or_no(targets: list[Any], labels: int | None) -> Flags:
    rows: list[Any] = []
    for place, target in enumerate(targets):
        value = to_array(target)
        wanted = labels if labels is not None else (len(rows[0]) if rows else value.size)
        if value.shape != (wanted,) or not np.isin(value, (0, 1)).all():
            raise DataError(
                f"the target of example {place} is {value.dtype} {list(value.shape)}; "
                f"it must be [{wanted}] of 0 and 1.",
                "A list of label numbers becomes one row of 0 and 1 a label in the dataset.",
            )
        rows.append(value.astype(bool))
    return np.stack(rows)


def _cross_entropy(scores: Tensor, truth: NDArray[Any]) -> Tensor:
    import torch
    from torch.nn import functional

    labels = torch.as_tensor(truth, device=scores.device).to(scores.dtype)
    if bool(((scores.detach() >= 0) & (scores.detach() <= 1)).all()):
        return functional.binary_cross_entropy(scores, labels)
    return functional.binary_cross_entropy_with_logits(scores, labels)
