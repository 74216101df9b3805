"""What a network is for: its metric, how far it is from the dense network, and its labels' loss.

A `Task` is a protocol: any object that has these names will do. `BaseTask` brings everything but the metric. Outputs
are always a tuple; on the host of arrays [N, ...] (or lists of N arrays where sizes vary), in training of tensors
[batch, ...]. Targets are a list, one an example, in the data's order, of whatever the data gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, EdgepruneError, ModelError, TaskError
from edgeprune.workload import distances
from edgeprune.workload.arrays import Outputs, as_outputs, as_targets, broken, chosen, count, joined, shapes
from edgeprune.workload.score import Difference, Score
from edgeprune.workload.statistics import Statistics, whole

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BaseTask", "Difference", "Score", "Tally", "Task", "check_metric", "score_batches", "shuffled"]


@runtime_checkable
class Task(Protocol):
    """What search, recovery, quantization, the gates, the report and the bundle ask of a task."""

    @property
    def metric(self) -> str:
        """ "top-1", "mAP 50-95", "PSNR"."""

    @property
    def unit(self) -> str:
        """ "points", "dB", or empty; `max_drop` is in it."""

    @property
    def higher_is_better(self) -> bool: ...

    def check(self, outputs: Any, targets: Any) -> None:
        """Refuse what does not fit, before anything is measured: ModelError, DataError, TaskError."""

    def distance(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """[batch] >= 0, 0 where equal."""

    def loss(self, outputs: Sequence[Tensor], targets: Any) -> Tensor | None:
        """The labels' loss, a scalar; None: there is none, and only the dense network teaches."""

    def measure(self, outputs: Any, targets: Any) -> Statistics:
        """What each example leaves for the metric."""

    def score(self, outputs: Any, targets: Any, confidence: float = 0.95) -> Score:
        """The metric of these examples."""

    def chance(self, targets: Sequence[Any]) -> float | None:
        """What the best guess that does not look at the input scores; None where nobody knows."""

    def constant(self, outputs: Any) -> bool:
        """Do the outputs say the same of every example?"""

    def collate(self, items: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        """Items of the dataset -> (inputs of a batch, list of targets)."""


class BaseTask:
    """Everything but the metric; a task of one's own overrides `measure` and what it knows better.

    `measure` and `check` of a task get outputs and targets made into a tuple of arrays and a list beforehand: override
    `_measure` and `_check`.
    """

    metric: str = "metric"
    unit: str = ""
    higher_is_better: bool = True
    varying: bool = False  # may outputs have another shape for another example?
    apart: str = "squared error over the dense network's variance per channel"  # what `distance` is, in words

    def _measure(self, outputs: Outputs, targets: list[Any]) -> Statistics:
        raise NotImplementedError

    def _check(self, outputs: Outputs, targets: list[Any]) -> None:
        self._measure(outputs, targets)

    def check(self, outputs: Any, targets: Any) -> None:
        made = as_outputs(outputs)
        listed = as_targets(targets, count(made))
        if not listed:
            raise DataError(f"no example to measure {self.metric} on.", "Check the data.")
        self._check(made, listed)

    def measure(self, outputs: Any, targets: Any) -> Statistics:
        made = as_outputs(outputs)
        return self._measure(made, as_targets(targets, count(made)))

    def score(self, outputs: Any, targets: Any, confidence: float = 0.95) -> Score:
        return score_batches(self, [(outputs, targets)], confidence)

    def distance(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        return distances.scaled_error(reference, outputs)

    def loss(self, outputs: Sequence[Tensor], targets: Any) -> Tensor | None:
        return None

    def chance(self, targets: Sequence[Any]) -> float | None:
        return None

    def constant(self, outputs: Any) -> bool:
        made = as_outputs(outputs)
        if count(made) < 2:
            return False
        return all(_same(output) for output in made)

    def answers(self, outputs: Any) -> NDArray[np.int64] | None:
        """[N]: the one class that each example gets, -1 where it is broken; None where the task has no such answer."""
        return None

    def shown(self, outputs: Any, targets: Sequence[Any]) -> tuple[set[int], int] | None:
        """The classes that these targets show, and how many the outputs know (0: unknown); None without classes."""
        return None

    def collate(self, items: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        from edgeprune.workload.inputs import collate

        return collate(items)


def _same(output: Any) -> bool:
    first = np.asarray(output[0])
    if any(np.shape(value) != first.shape for value in output):
        return False
    if first.dtype == np.bool_ or not np.issubdtype(first.dtype, np.inexact):
        return all(np.array_equal(value, first) for value in output)
    size = float(np.max(np.abs(first), initial=0.0, where=np.isfinite(first)))
    return all(np.allclose(value, first, rtol=0, atol=1e-6 * size, equal_nan=True) for value in output)


def score_batches(task: Any, batches: Iterable[tuple[Any, Any]], confidence: float = 0.95) -> Score:
    """Score outputs that come a batch at a time: what is kept of a batch is small, so that maps need not fit memory.

    Args:
        task: a Task.
        batches: (outputs, targets) of each, in the data's order.
        confidence: of the interval that the score shows.

    Raises:
        ModelError: outputs that do not fit the task, or change shape from one batch to the next.
        DataError: targets that do not fit, or no example.
        TaskError: a metric, or a decode, that fails.
    """
    tally = Tally(task)
    for outputs, targets in batches:
        tally.add(outputs, targets)
    return tally.score(confidence)


class Tally:
    """One network's outputs, taken a batch at a time; what is kept of a batch is small.

    Attributes:
        task: a Task.
        examples, broken: so far; broken ones have NaN or infinity among their outputs.
        bytes: of all outputs so far.
        constant: does the task say that the whole outputs so far are the same for every example?
        same: are they the very same numbers?
    """

    def __init__(self, task: Any) -> None:
        self.task = task
        self.examples = self.broken = self.bytes = 0
        self.constant = self.same = True
        self._whole = 0  # examples that are not broken
        self._kept: list[Statistics] = []
        self._shape: tuple[Any, ...] | None = None
        self._first: Outputs | None = None

    def add(self, outputs: Any, targets: Any) -> Outputs:
        """Take a batch; raises as `score_batches`. The outputs come back as a tuple of arrays or lists [N, ...]."""
        made = as_outputs(outputs)
        if not getattr(self.task, "varying", False):
            self._shape = _steady(self._shape, made, self.examples)
        bad = broken(made)
        self.broken += int(bad.sum())
        self.examples += count(made)
        self.bytes += sum(sum(v.nbytes for v in o) if isinstance(o, list) else o.nbytes for o in made)
        if count(made):
            self._kept.append(guarded(self.task, made, as_targets(targets, count(made))))
            self._compare(chosen(made, np.flatnonzero(~bad)))
        return made

    def _compare(self, whole: Outputs) -> None:
        """Against the very first example too, so that batches which differ only from each other are told apart."""
        self._whole += count(whole)
        if not count(whole) or not (self.constant or self.same):
            return
        if self._first is None:
            self._first = chosen(whole, [0])
        else:
            whole = joined([self._first, whole])
        self.same = self.same and all(_same(output) for output in whole)
        self.constant = self.constant and (count(whole) < 2 or bool(self.task.constant(whole)))

    @property
    def bytes_each(self) -> int:
        """Of one example's outputs, in the mean."""
        return self.bytes // max(1, self.examples)

    @property
    def told(self) -> bool:
        """Are there two examples that could differ?"""
        return self._whole > 1

    def score(self, confidence: float = 0.95) -> Score:
        """Of all that came; raises DataError without any example, TaskError."""
        if not self._kept:
            raise DataError(f"no example to measure {self.task.metric} on.", "Check the test split.")
        try:
            statistics = self._kept[0].joined(self._kept[1:]) if len(self._kept) > 1 else self._kept[0]
            self._kept = [statistics]
            return Score.of(
                self.task.metric,
                self.task.unit,
                self.task.higher_is_better,
                statistics,
                self.broken,
                confidence,
            )
        except EdgepruneError:
            raise
        except Exception as cause:
            raise _failed(self.task, cause) from cause


def guarded(task: Any, outputs: Outputs, targets: list[Any]) -> Statistics:
    """`task.measure`; whatever a user's metric raises becomes a TaskError."""
    try:
        statistics: Statistics = task.measure(outputs, targets)
    except EdgepruneError:
        raise
    except Exception as cause:
        raise _failed(task, cause) from cause
    if len(statistics) != len(targets):
        raise TaskError(f"{task.metric} kept {len(statistics)} examples of {len(targets)}.")
    return statistics


def _failed(task: Any, cause: Exception) -> TaskError:
    text = str(cause).strip().splitlines()
    return TaskError(
        f"the metric {task.metric} failed: {type(cause).__name__}{': ' + text[0][:200] if text else ''}.",
        "It gets a tuple of arrays [N, ...], one an output, and a list of N targets.",
    )


def _steady(first: tuple[Any, ...] | None, outputs: Outputs, seen: int) -> tuple[Any, ...]:
    found = shapes(outputs)
    if None in found:
        place = found.index(None)
        raise ModelError(f"output {place} changes its shape from one example to another.", "This task needs one shape.")
    if first is not None and found != first:
        raise ModelError(
            f"outputs are {[list(s or ()) for s in found]} from example {seen} on, and were "
            f"{[list(s or ()) for s in first]} before.",
            "Every example must give outputs of one shape.",
        )
    return found


def shuffled(task: Task, outputs: Any, targets: Sequence[Any], seed: int = 0, times: int = 5) -> float:
    """The mean metric of the outputs against targets that were dealt out anew: what outputs are worth by chance."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(times):
        order = random.permutation(len(targets))
        found.append(whole(guarded(task, as_outputs(outputs), [targets[i] for i in order])))
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def check_metric(task: Task, outputs: Any, targets: Sequence[Any]) -> None:
    """Refuse a metric that gives no number, or that the dense network scores no better on than by chance.

    Raises:
        TaskError: NaN or infinity; or targets dealt out anew score as well or better, which means that
            `higher_is_better` is wrong, that targets do not belong to their inputs, or that the network knows nothing.
    """
    value = task.score(outputs, targets).value
    if not np.isfinite(value):
        raise TaskError(f"{task.metric} of the dense network is {value}.", "It must give a number on the test split.")
    if len(targets) < 10:
        return
    by_chance = shuffled(task, outputs, targets)
    if (
        np.isfinite(by_chance)
        and by_chance != 0
        and (value <= by_chance if task.higher_is_better else value >= by_chance)
    ):
        word = "higher" if task.higher_is_better else "lower"
        raise TaskError(
            f"{task.metric} of the dense network is {value:.4g} {task.unit}".rstrip()
            + f", and {by_chance:.4g} when the targets are shuffled, which is no worse ({word} is better).",
            "Check higher_is_better, that each target belongs to its input, and that the network is trained.",
        )
