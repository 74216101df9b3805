"""Embeddings: are examples of one identity near each other?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, ModelError, TaskError
from edgeprune.workload import distances
from edgeprune.workload.arrays import Outputs, broken, pick, to_array, whole_numbers
from edgeprune.workload.statistics import Flags, Statistics, Sums, Values, Weights, whole
from edgeprune.workload.task import BaseTask
from edgeprune.workload.tasks.restoration import mean

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gallery:
    """All embeddings against each other: recall at k, which needs all examples at once.

    A resample draws queries; the gallery stays what it is, since a copy of a query would be its own nearest neighbour.
    """

    vectors: NDArray[np.float64]
    bad: Flags
    identities: NDArray[np.int64]
    k: int
    resamples: int = 2000
    extra: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.vectors) + len(self.extra)

    def hits(self) -> NDArray[np.float64]:
        """[N]: 1 where one of the k nearest others is of the same identity; NaN where nobody else is of it."""
        found = np.empty(len(self.vectors))
        for start in range(0, len(found), 512):
            near = self.vectors[start : start + 512] @ self.vectors.T
            rows = np.arange(len(near))
            near[rows, start + rows] = -np.inf
            near[:, self.bad] = -np.inf
            k = min(self.k, near.shape[1] - 1)
            best = np.argsort(-near, axis=1, kind="stable")[:, :k]
            same = self.identities[best] == self.identities[start : start + 512, None]
            found[start : start + 512] = same.any(1)
        counts = np.bincount(self.identities)
        found[self.bad] = 0.0
        found[counts[self.identities] < 2] = np.nan
        return np.concatenate([found, np.array(self.extra)])

    def values(self, weights: Weights) -> Values:
        hits = self.hits()
        known = ~np.isnan(hits)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(100 * (weights @ np.where(known, hits, 0)) / (weights @ known.astype(np.float64)))

    def extended(self, example: int, failed: bool) -> Gallery:
        hit = 0.0 if failed else float(self.hits()[example])
        return Gallery(self.vectors, self.bad, self.identities, self.k, self.resamples, (*self.extra, hit))

    def ties(self, other: Gallery) -> Flags:
        one, two = self.hits(), other.hits()
        return np.asarray((one == two) | (np.isnan(one) & np.isnan(two)))

    def joined(self, others: Sequence[Gallery]) -> Gallery:
        every = [self, *others]
        return Gallery(
            np.concatenate([part.vectors for part in every]),
            np.concatenate([part.bad for part in every]),
            np.concatenate([part.identities for part in every]),
            self.k,
            self.resamples,
        )


@dataclass(frozen=True)
class Embedding(BaseTask):
    """Embeddings [N, D]; nearness is the cosine.

    Attributes:
        metric: "recall" (at k, among the other examples; targets are identities, whole numbers) or "cosine" (the mean
            cosine to target embeddings [D], those of a teacher for example).
        k: of recall.
        output: the network's output that holds the embeddings.
    """

    kind: Literal["recall", "cosine"] = "recall"
    k: int = 1
    output: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("recall", "cosine"):
            raise TaskError(f'embedding has the metrics "recall" and "cosine", not {self.kind}.')
        if self.k < 1:
            raise TaskError("recall at k needs k of at least 1.")

    @property
    def metric(self) -> str:  # type: ignore[override]
        return f"recall@{self.k}" if self.kind == "recall" else "cosine"

    @property
    def unit(self) -> str:  # type: ignore[override]
        return "points" if self.kind == "recall" else ""

    def _vectors(self, outputs: Outputs) -> tuple[NDArray[np.float64], Flags]:
        vectors = pick(outputs, self.output, self.metric)
        if vectors.ndim < 2 or vectors[0].size < 2:
            raise ModelError(f"output {self.output} is {list(vectors.shape)}; an embedding is [examples, numbers].")
        bad = broken((vectors,))
        flat = vectors.astype(np.float64).reshape(len(vectors), -1)
        flat = np.where(bad[:, None], 0.0, flat)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12), bad

    def _measure(self, outputs: Outputs, targets: list[Any]) -> Statistics:
        vectors, bad = self._vectors(outputs)
        if self.kind == "recall":
            return Gallery(vectors, bad, whole_numbers(targets, None, self.metric), self.k)
        truth = []
        for place, target in enumerate(targets):
            value = to_array(target).astype(np.float64).reshape(-1)
            if value.size != vectors.shape[1] or not np.isfinite(value).all():
                raise DataError(f"the target of example {place} must be {vectors.shape[1]} finite numbers.")
            truth.append(value / max(float(np.linalg.norm(value)), 1e-12))
        ones = np.ones(len(vectors))
        return Sums(np.stack([(vectors * np.stack(truth)).sum(1), ones], 1), np.stack([0 * ones, ones], 1), mean)

    def _check(self, outputs: Outputs, targets: list[Any]) -> None:
        statistics = self._measure(outputs, targets)
        if isinstance(statistics, Gallery) and len(targets) > 64 and np.isnan(whole(statistics)):
            raise DataError("no two examples are of one identity, so recall has no value.", "Give pairs at least.")

    apart = "1 - cosine"

    def distance(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """1 - cosine."""
        return distances.on_output(reference, outputs, self.output, distances.cosine)

    def chance(self, targets: Sequence[Any]) -> float | None:
        """k others by lot: the share of examples that meet one of theirs."""
        if self.kind != "recall":
            return 0.0
        identities = whole_numbers(targets, None, self.metric)
        counts = np.bincount(identities)[identities]
        counts = counts[counts > 1] - 1
        if not len(counts):
            return None
        others, missed = len(identities) - 1, np.ones(len(counts))
        for draw in range(min(self.k, others)):
            missed *= np.clip((others - draw - counts) / (others - draw), 0, 1)
        return float(100 * (1 - missed).mean())
