"""The task's score on the split that training chooses by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgeprune.engine import call
from edgeprune.model import Split
from edgeprune.recover.batches import evaluate, logits
from edgeprune.recover.source import moved, shaped
from edgeprune.workload import Inputs, Score, Task, item, score_batches

CHUNK = 64
TELLS = 0.95  # how sure held-out examples must be, one-sided: the best of many scores leads by luck alone as a rule


@dataclass(frozen=True)
class HeldOutScorer:
    """Scores a network on held-out examples.

    Attributes:
        split: images, or a map-style dataset.
        task: what the score is of.
        inputs: of one example of a dataset.
    """

    split: Any
    task: Task
    inputs: Inputs | None

    def __len__(self) -> int:
        return len(self.split)

    def __call__(self, model: nn.Module) -> float:
        """The score in the metric's own unit; for images of classes top-1 as a fraction, as ever."""
        if isinstance(self.split, Split):
            return evaluate(model, self.split)
        return self.score(model).value

    def score(self, model: nn.Module) -> Score:
        """With what each example leaves, so that two networks can be compared example by example."""
        return score_batches(self.task, self._outputs(model))

    def told_worse(self, one: nn.Module, other: nn.Module) -> bool:
        """Do the examples tell that `one` is worse than `other`, by more than the noise of their difference?"""
        first, second = self.score(one), self.score(other)
        return not math.isfinite(first.value) or first.against(second).limit(1 - TELLS) > 0

    def better(self, one: float, other: float) -> bool:
        """Is `one` at least as good as `other`?"""
        if not math.isfinite(one):
            return False
        if not math.isfinite(other):
            return True
        return one >= other if self.task.higher_is_better else one <= other

    def shown(self, value: float) -> str:
        """For people."""
        if isinstance(self.split, Split):
            return f"best {100 * value:.1f} % on {len(self)} held-out images"
        unit = f" {self.task.unit}" if self.task.unit else ""
        return f"best {self.task.metric} {value:.4g}{unit} on {len(self)} held-out examples"

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> Iterator[tuple[Any, Any]]:
        if isinstance(self.split, Split):
            yield (logits(model, self.split).numpy(),), self.split.labels
            return
        assert self.inputs is not None
        training, device = model.training, next(model.parameters()).device
        model.eval()
        for start in range(0, len(self.split), CHUNK):
            stop = min(start + CHUNK, len(self.split))
            items = [item(self.split, place, "selection") for place in range(start, stop)]
            columns = self.inputs.batch([inputs for inputs, _ in items], start)
            outputs = call(model, moved(shaped(self.inputs, columns), device))
            found = tuple((one.float() if one.is_floating_point() else one).cpu().numpy() for one in outputs)
            yield found, [target for _, target in items]
        model.train(training)
