"""A task of which only the metric is known, and any metric of torchmetrics by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import EdgepruneError, MissingDependency, TaskError, did_you_mean
from edgeprune.workload import distances
from edgeprune.workload.arrays import Outputs, broken, count, pick
from edgeprune.workload.statistics import Recomputed, Statistics, whole
from edgeprune.workload.task import BaseTask

if TYPE_CHECKING:
    from torch import Tensor

Metric = Callable[[tuple[NDArray[Any], ...], list[Any]], float]


@dataclass(frozen=True, init=False, eq=False)
class Custom(BaseTask):
    """A metric of one's own; everything else follows.

    Attributes:
        metric: (outputs, targets) -> float: a tuple of arrays [N, ...], one an output, and a list of N targets.
            Or the name of a torchmetrics metric, "torchmetrics.classification:MulticlassF1Score".
        name: said in the report, and what `metric` reads as on the task.
        unit: of the metric, and of `max_drop`.
        higher_is_better: of the metric.
        distance: (reference, outputs) -> [batch] of tensors; None: squared error over the variance per channel.
        loss: (outputs, targets) -> scalar tensor; None: only the dense network teaches.
        arguments: of the torchmetrics metric.
        output: that the torchmetrics metric looks at.
        resamples: that intervals are read from; each asks the metric once.

    The outputs of an example that hold NaN or infinity reach the metric as zeros; the score counts them as `broken`.
    """

    function: Metric
    name: str
    unit: str
    higher_is_better: bool
    resamples: int
    _distance: Callable[[Any, Any], Any] | None = field(repr=False, default=None)
    _loss: Callable[[Any, Any], Any] | None = field(repr=False, default=None)

    def __init__(
        self,
        metric: Metric | str,
        name: str = "",
        unit: str = "",
        higher_is_better: bool = True,
        distance: Callable[[Any, Any], Any] | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
        *,
        arguments: Mapping[str, object] | None = None,
        output: int = 0,
        resamples: int = 200,
    ) -> None:
        if isinstance(metric, str):
            name = name or metric.rpartition(":")[2]
            metric = torchmetric(metric, arguments or {}, output)
        elif arguments:
            raise TaskError(
                "arguments belong to a torchmetrics metric that is given by name.", "Use functools.partial."
            )
        if not callable(metric):
            raise TaskError(f"the metric is {type(metric).__name__}; it must be callable, or a torchmetrics name.")
        if not isinstance(name, str) or not name.strip():
            raise TaskError("a metric needs a name.", 'Custom(metric, "my metric", unit="points").')
        if resamples < 20:
            raise TaskError(f"resamples is {resamples}; an interval needs at least 20.")
        for key, value in (("distance", distance), ("loss", loss)):
            if value is not None and not callable(value):
                raise TaskError(f"{key} is {type(value).__name__}; it must be callable or None.")
        for key, given in (
            ("function", metric),
            ("name", name),
            ("unit", unit),
            ("higher_is_better", bool(higher_is_better)),
            ("resamples", resamples),
            ("_distance", distance),
            ("_loss", loss),
        ):
            object.__setattr__(self, key, given)

    @property
    def metric(self) -> str:  # type: ignore[override]
        return self.name

    def _measure(self, outputs: Outputs, targets: list[Any]) -> Statistics:
        arrays = tuple(pick(outputs, number, self.name) for number in range(len(outputs)))
        bad = broken(arrays)
        if bad.any():
            arrays = tuple(np.where(bad.reshape(-1, *[1] * (a.ndim - 1)), np.zeros_like(a), a) for a in arrays)
        return Recomputed(self._number, arrays, targets, self.resamples)

    def _number(self, outputs: tuple[NDArray[Any], ...], targets: list[Any]) -> float:
        try:
            found = self.function(outputs, targets)
        except EdgepruneError:
            raise
        except Exception as cause:  # on a draw of the examples too, where a class may be missing, for example
            raise TaskError(
                f"the metric {self.name} failed on {len(targets)} examples: {type(cause).__name__}: {cause}.",
                "It gets a tuple of arrays [N, ...], one an output, and a list of N targets, of any draw of the "
                "examples; give a number for each.",
            ) from cause
        value = np.asarray(found.detach().cpu() if hasattr(found, "detach") else found)
        if value.size != 1 or value.dtype.kind not in "fiub":
            raise TaskError(
                f"the metric {self.name} gave {type(found).__name__} {list(value.shape)}; it must give one number."
            )
        return float(value.reshape(()))

    def _check(self, outputs: Outputs, targets: list[Any]) -> None:
        try:
            value = whole(self._measure(outputs, targets))
        except EdgepruneError:
            raise
        except Exception as cause:
            raise TaskError(
                f"the metric {self.name} failed on {count(outputs)} examples: {type(cause).__name__}: {cause}.",
                "It gets a tuple of arrays [N, ...], one an output, and a list of N targets.",
            ) from cause
        if not np.isfinite(value):
            raise TaskError(
                f"the metric {self.name} gave {value} on {count(outputs)} examples.", "It must give a number."
            )

    @property
    def apart(self) -> str:  # type: ignore[override]
        return BaseTask.apart if self._distance is None else "the task's own function"

    def distance(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """The user's, checked to be [batch] and not below 0; else squared error over the variance per channel."""
        if self._distance is None:
            return distances.scaled_error(reference, outputs)
        found: Tensor = self._distance(tuple(reference), tuple(outputs))
        batch = len(outputs[0])
        if getattr(found, "shape", None) is None or tuple(found.shape) != (batch,):
            raise TaskError(
                f"the distance of {self.name} gave {list(getattr(found, 'shape', ()))}; it must give [{batch}].",
                "One number an example, 0 where the outputs are equal.",
            )
        if bool((found < 0).any()):
            raise TaskError(f"the distance of {self.name} is below 0.", "It must be 0 where equal, and more elsewhere.")
        return found

    def loss(self, outputs: Sequence[Tensor], targets: Any) -> Tensor | None:
        if self._loss is None:
            return None
        found: Tensor = self._loss(tuple(outputs), targets)
        if not hasattr(found, "backward") or found.ndim != 0:
            raise TaskError(
                f"the loss of {self.name} must give one number as a tensor.", "Take the mean over the batch."
            )
        return found


def torchmetric(name: str, arguments: Mapping[str, object], output: int = 0) -> Metric:
    """The metric that "torchmetrics.classification:MulticlassF1Score" names, as (outputs, targets) -> float.

    Raises:
        MissingDependency: torchmetrics is not installed.
        TaskError: no such metric, or its arguments do not fit.
    """
    place, _, kind = name.rpartition(":")
    if place.split(".")[0] != "torchmetrics":
        raise TaskError(
            f"metric '{name}' is no name of a torchmetrics metric.",
            '"torchmetrics.classification:MulticlassF1Score", for example.',
        )
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as cause:
        if cause.name == "torchmetrics":
            raise MissingDependency("torchmetrics is not installed.", "pip install 'edgeprune[metrics]'") from None
        raise TaskError(f"metric '{name}': {cause}.", "Is the module's name right?") from None
    found = getattr(module, kind, None)
    if not isinstance(found, type):
        known = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise TaskError(f"metric '{name}': {place} has no {kind}.", did_you_mean(kind, known))
    make: Callable[..., Any] = found
    try:
        make(**arguments)
    except Exception as cause:
        raise TaskError(
            f"metric '{name}' does not take {dict(arguments)}: {cause}.", "See its documentation."
        ) from None

    def metric(outputs: tuple[NDArray[Any], ...], targets: list[Any]) -> float:
        import torch

        meter = make(**arguments)
        truth = torch.from_numpy(np.stack([np.asarray(t) for t in targets]))
        return float(meter(torch.from_numpy(np.ascontiguousarray(outputs[output])), truth))

    return metric
