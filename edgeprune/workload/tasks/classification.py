"""One class out of several: top-1 or top-k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import ModelError, TaskError
from edgeprune.workload import distances
from edgeprune.workload.arrays import Outputs, as_outputs, broken, count, pick, whole_numbers
from edgeprune.workload.statistics import Proportion, Statistics
from edgeprune.workload.task import BaseTask

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Classification(BaseTask):
    """Scores of classes [N, classes] (or class numbers [N], argmax in the graph) against one class an example.

    Attributes:
        top: an example is right when its class is among the `top` highest scores; the first of equal ones wins.
        output: the network's output that holds the scores.
        smoothing: of the labels' cross-entropy.
    """

    top: int = 1
    output: int = 0
    smoothing: float = 0.0

    unit = "points"

    def __post_init__(self) -> None:
        if self.top < 1 or self.output < 0 or not 0 <= self.smoothing < 1:
            raise TaskError("classification: top is at least 1, output at least 0, smoothing from 0 to below 1.")

    @property
    def metric(self) -> str:  # type: ignore[override]
        return f"top-{self.top}"

    def _measure(self, outputs: Outputs, targets: list[Any]) -> Statistics:
        scores = pick(outputs, self.output, self.metric)
        if scores.ndim == 1 and np.issubdtype(scores.dtype, np.integer):
            if self.top > 1:
                raise ModelError(
                    f"{self.metric} needs the scores of classes; output {self.output} holds class numbers."
                )
            return Proportion.of(scores.astype(np.int64) == whole_numbers(targets, None, self.metric))
        classes = self._classes(scores)
        truth = whole_numbers(targets, classes, self.metric)
        rows = np.arange(len(truth))
        safe = np.where(np.isfinite(scores), scores, -np.inf)
        own = safe[rows, truth][:, None]
        before = np.arange(classes)[None, :] < truth[:, None]
        ahead = ((safe > own) | ((safe == own) & before)).sum(axis=1)
        return Proportion.of((ahead < self.top) & ~broken((scores,)))

    def _classes(self, scores: NDArray[Any]) -> int:
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise ModelError(
                f"output {self.output} is [examples, {', '.join(map(str, scores.shape[1:]))}]; {self.metric} needs "
                "[examples, classes], two or more.",
                'One logit a yes-or-no question is task "binary"; a map of classes is task "segmentation".',
            )
        if scores.shape[1] <= self.top and self.top > 1:
            raise ModelError(f"{self.metric} of {scores.shape[1]} classes is always right.", "Lower `top`.")
        return int(scores.shape[1])

    apart = "KL divergence from the dense network's classes"

    def distance(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """KL divergence of the dense network's distribution of classes."""
        return distances.on_output(reference, outputs, self.output, distances.divergence)

    def loss(self, outputs: Sequence[Tensor], targets: Any) -> Tensor | None:
        """Cross-entropy; of probabilities, where the network ends in softmax."""
        import torch
        from torch.nn import functional

        scores = outputs[self.output]
        labels = torch.as_tensor(np.asarray([int(t) for t in targets]), device=scores.device)
        if distances.looks_normalised(scores.detach(), 1):
            return functional.nll_loss(scores.clamp_min(1e-12).log(), labels)
        return functional.cross_entropy(scores, labels, label_smoothing=self.smoothing)

    def chance(self, targets: Sequence[Any]) -> float | None:
        """Always the most frequent classes."""
        frequent = np.sort(np.bincount(whole_numbers(targets, None, self.metric)))[::-1]
        return float(100 * frequent[: self.top].sum() / len(targets))

    def constant(self, outputs: Any) -> bool:
        """Is it the same class for every example?"""
        scores = pick(as_outputs(outputs), self.output, self.metric)
        if count((scores,)) < 2:
            return False
        best = scores if scores.ndim == 1 else np.argmax(np.where(np.isfinite(scores), scores, -np.inf), axis=1)
        return bool((best == best[0]).all())

    def answers(self, outputs: Any) -> NDArray[np.int64]:
        """The class of each example; the first of equal scores."""
        scores = pick(as_outputs(outputs), self.output, self.metric)
        if scores.ndim == 1:
            return scores.astype(np.int64)
        best = np.argmax(np.where(np.isfinite(scores), scores, -np.inf), axis=1)
        return np.where(np.isfinite(scores).all(axis=1), best, -1).astype(np.int64)

    def shown(self, outputs: Any, targets: Sequence[Any]) -> tuple[set[int], int]:
        """Each target is one."""
        scores = pick(as_outputs(outputs), self.output, self.metric)
        seen = set(whole_numbers(targets, None, self.metric).tolist())
        return seen, int(scores.shape[1]) if scores.ndim == 2 else 0
