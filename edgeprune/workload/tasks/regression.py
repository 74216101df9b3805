"""Numbers: MAE, RMSE, R2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, TaskError
from edgeprune.workload import distances
from edgeprune.workload.arrays import Outputs, broken, count, pick, to_array
from edgeprune.workload.statistics import Statistics, Sums, Values
from edgeprune.workload.task import BaseTask

if TYPE_CHECKING:
    from torch import Tensor


def mae(sums: Values) -> Values:
    """[B, 2 + ...] sums of |error|, of numbers -> their mean."""
    return np.asarray(sums[:, 0] / sums[:, 1])


def rmse(sums: Values) -> Values:
    """[B, 2] sums of squared error, of numbers -> the root of the mean."""
    return np.asarray(np.sqrt(sums[:, 0] / sums[:, 1]))


def r2(sums: Values) -> Values:
    """[B, 1 + 3 D] sums of examples, of squared error, truth and its square for each of D numbers -> mean R2 over D."""
    examples = sums[:, :1]
    error, total, square = np.split(sums[:, 1:], 3, axis=1)
    spread = square - total**2 / examples
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(spread > 1e-12 * np.abs(square), 1 - error / spread, np.nan)
    known = ~np.isnan(each)
    return np.asarray(np.where(known, each, 0).sum(1) / known.sum(1))


@dataclass(frozen=True)
class Regression(BaseTask):
    """Numbers [N, ...] against targets of the same shape (a number, for [N] and [N, 1]).

    Attributes:
        metric: "MAE", "RMSE" (both lower is better) or "R2" (the mean over the numbers of an example).
        unit: of the targets; MAE and RMSE are in it.
        output: the network's output that holds the numbers.
    """

    metric: Literal["MAE", "RMSE", "R2"] = "MAE"
    unit: str = ""
    output: int = 0

    def __post_init__(self) -> None:
        if self.metric not in ("MAE", "RMSE", "R2"):
            raise TaskError(f"regression has the metrics MAE, RMSE and R2, not {self.metric}.")
        if self.metric == "R2" and self.unit:
            raise TaskError("R2 has no unit.")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        return self.metric == "R2"

    def _truth(self, targets: list[Any], shape: tuple[int, ...] | None) -> NDArray[np.float64]:
        rows: list[Any] = []
        for place, target in enumerate(targets):
            value = to_array(target)
            if value.dtype.kind not in "fiub" or not np.isfinite(value).all():
                raise DataError(f"the target of example {place} is not a finite number.")
            wanted = int(np.prod(shape)) if shape is not None else (len(rows[0]) if rows else value.size)
            if value.size != wanted:
                raise DataError(
                    f"the target of example {place} holds {value.size} numbers; the network gives {wanted}.",
                    "Give one target number an output number.",
                )
            rows.append(value.astype(np.float64).reshape(-1))
        return np.stack(rows)

    def _measure(self, outputs: Outputs, targets: list[Any]) -> Statistics:
        numbers = pick(outputs, self.output, self.metric)
        truth = self._truth(targets, numbers.shape[1:])
        given = numbers.astype(np.float64).reshape(len(truth), -1)
        # What is not finite is as bad as the farthest guess among the targets, once more as far away.
        guess = truth.mean(0) + 2 * np.abs(truth - truth.mean(0)).max(0)
        given = np.where(broken((numbers,))[:, None], guess, given)
        return Sums(self._rows(given, truth), self._rows(np.broadcast_to(guess, truth.shape), truth), self._reduce())

    def _rows(self, given: NDArray[Any], truth: NDArray[np.float64]) -> Values:
        error = given - truth
        if self.metric == "R2":
            return np.concatenate([np.ones((len(truth), 1)), error**2, truth, truth**2], 1)
        each = np.abs(error) if self.metric == "MAE" else error**2
        return np.stack([each.sum(1), np.full(len(truth), float(truth.shape[1]))], 1)

    def _reduce(self) -> Any:
        return {"MAE": mae, "RMSE": rmse, "R2": r2}[self.metric]

    def distance(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """Squared error over the variance per channel."""

        def each(dense: Tensor, other: Tensor) -> Tensor:
            return distances.scaled_error((dense,), (other,))

        return distances.on_output(reference, outputs, self.output, each)

    def loss(self, outputs: Sequence[Tensor], targets: Any) -> Tensor | None:
        """Mean squared error; of the absolute error where the metric is MAE."""
        import torch
        from torch.nn import functional

        numbers = outputs[self.output]
        truth = torch.as_tensor(np.stack([to_array(t) for t in targets]), device=numbers.device).to(numbers.dtype)
        truth = truth.reshape(numbers.shape)
        return functional.l1_loss(numbers, truth) if self.metric == "MAE" else functional.mse_loss(numbers, truth)

    def chance(self, targets: Sequence[Any]) -> float | None:
        """Always the median (MAE) or the mean (RMSE); R2 of that is 0."""
        truth = self._truth(list(targets), None)
        if self.metric == "R2":
            return 0.0
        if self.metric == "MAE":
            return float(np.abs(truth - np.median(truth, 0)).mean())
        return float(np.sqrt(((truth - truth.mean(0)) ** 2).mean()))

    def check(self, outputs: Any, targets: Any) -> None:
        super().check(outputs, targets)
        if (
            self.metric == "R2"
            and count((to_array(targets),)) > 1
            and not np.ptp(self._truth(list(targets), None), axis=0).any()
        ):
            raise DataError("all targets are the same, so R2 has no value.", "Take MAE or RMSE, or other data.")
