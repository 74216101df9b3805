"""What a network did on each test example, small enough to travel in a bundle.

Two releases are compared on the same examples, long after both were made: each bundle says which examples it was judged
on (a hash of each, 8 bytes) and what every one of them left. Where an example is right or wrong that is one bit, and
the comparison is exact (workload/paired.py). Of any other metric it is the jackknife's pseudo-values over blocks of
examples that follow each other (Efron and Tibshirani 1993, chapter 11: B * all - (B - 1) * all but the block), whose
differences have a mean and a standard error, whatever the metric is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune import result
from edgeprune.errors import DataError
from edgeprune.result import Comparison
from edgeprune.validate.judge import comparison
from edgeprune.workload import Proportion, Score

FILE = "answers.npz"
BLOCKS = 200  # of pseudo-values, at most
LEAST = 8  # examples, or blocks, below which nothing is told apart
JACKKNIFE = "jackknife over blocks of the same examples"
UNPAIRED = "each network's own interval, not paired"

Array = NDArray[Any]


class ExampleIds:
    """A hash of each example and its target, in their order."""

    def __init__(self) -> None:
        self._found: list[int] = []

    def add(self, inputs: Sequence[Array], targets: Iterable[Any]) -> None:
        """A batch: one array [N, ...] an input, N targets."""
        for place, target in enumerate(targets):
            digest = hashlib.blake2b(digest_size=8)
            for column in inputs:
                _update(digest, np.asarray(column[place]))
            _update(digest, target)
            self._found.append(int.from_bytes(digest.digest(), "little"))

    @property
    def array(self) -> NDArray[np.uint64]:
        """[N]."""
        return np.array(self._found, np.uint64)


@dataclass(frozen=True, eq=False)
class Answers:
    """What one network did on each example.

    Attributes:
        ids: [N], see `ExampleIds`.
        right: [N], where an example is right or wrong.
        pseudo: [at most BLOCKS], in the metric's unit, for other metrics; empty where the metric has none.
    """

    ids: NDArray[np.uint64]
    right: NDArray[np.bool_] | None
    pseudo: NDArray[np.float64] | None

    @staticmethod
    def of(ids: NDArray[np.uint64], score: Score) -> Answers:
        """What the examples left; raises DataError where `ids` are of other examples."""
        if len(ids) != score.examples:
            raise DataError(f"{len(ids)} examples were read, and {score.examples} judged.")
        if isinstance(score.statistics, Proportion):
            return Answers(ids, score.statistics.right, None)
        count = len(ids)
        blocks = np.array_split(np.arange(count), min(count, BLOCKS))
        weights = np.ones((len(blocks), count), np.int64)
        for number, block in enumerate(blocks):
            weights[number, block] = 0
        left_out = score.statistics.values(weights) if len(blocks) > 1 else np.full(len(blocks), math.nan)
        pseudo = len(blocks) * score.value - (len(blocks) - 1) * left_out
        return Answers(ids, None, pseudo if np.isfinite(pseudo).all() else np.zeros(0))

    def save(self, path: Path) -> None:
        """Write answers.npz."""
        left = {"right": self.right} if self.right is not None else {"pseudo": self.pseudo}
        arrays: Any = {"ids": self.ids, **left}
        np.savez(path, **arrays)

    @staticmethod
    def read(arrays: Mapping[str, Array]) -> Answers:
        """From the arrays of answers.npz; raises DataError where they are none."""
        ids, right, pseudo = arrays.get("ids"), arrays.get("right"), arrays.get("pseudo")
        if ids is None or (right is None) == (pseudo is None) or len(arrays) != 2:
            raise DataError("it has no ids, or not exactly one of right and pseudo.")
        if ids.dtype != np.uint64 or ids.ndim != 1 or not len(ids):
            raise DataError("its ids are no hashes of examples.")
        if right is not None and (right.dtype != np.bool_ or right.shape != ids.shape):
            raise DataError("it is not right or wrong once for each example.")
        if pseudo is not None and (
            pseudo.dtype != np.float64
            or pseudo.shape not in ((0,), (min(len(ids), BLOCKS),))
            or not np.isfinite(pseudo).all()
        ):
            raise DataError("its pseudo-values are not one for each block of examples.")
        return Answers(ids, right, pseudo)


def on_the_same(
    new: Answers | None, old: Answers | None, scores: tuple[result.ScoreInfo, result.ScoreInfo], confidence: float
) -> tuple[Comparison, str]:
    """How much worse `new` is than `old`, paired where that can be.

    Args:
        scores: of new and old, as their results state them, in one metric and direction.

    Returns:
        the comparison, and why it is not paired, or not over all examples; empty where it is.
    """
    if new is None or old is None:
        which = "neither bundle has" if new is None and old is None else "one of the bundles has no"
        return unpaired(
            scores, confidence
        ), f"not paired: {which} answers to single examples (made by an older version)"
    if new.right is not None and old.right is not None:
        return _right_or_wrong(new, old, scores, confidence)
    if new.pseudo is None or old.pseudo is None or not np.array_equal(new.ids, old.ids):
        return unpaired(scores, confidence), "not paired: they were judged on different examples"
    if len(new.pseudo) < LEAST or len(new.pseudo) != len(old.pseudo):
        return unpaired(scores, confidence), "not paired: too few examples"
    return _blocks(new.pseudo - old.pseudo, len(new.ids), scores, confidence), ""


def _right_or_wrong(
    new: Answers, old: Answers, scores: tuple[result.ScoreInfo, result.ScoreInfo], confidence: float
) -> tuple[Comparison, str]:
    assert new.right is not None and old.right is not None
    places = {int(one): place for place, one in enumerate(old.ids)}
    common = [(place, places[int(one)]) for place, one in enumerate(new.ids) if int(one) in places]
    if len(common) < LEAST:
        return unpaired(scores, confidence), f"not paired: they share {len(common)} examples"
    mine, theirs = np.array(common).T
    made = [
        Score.of(rated.metric, rated.unit, rated.higher_is_better, Proportion.of(right), 0)
        for rated, right in zip(scores, (new.right[mine], old.right[theirs]), strict=True)
    ]
    most = max(len(new.ids), len(old.ids))
    partly = "" if len(common) == most else f"on the {len(common):,} examples that both share, of {most:,}"
    return comparison(made[0], made[1], confidence), partly


def _blocks(
    apart: NDArray[np.float64], examples: int, scores: tuple[result.ScoreInfo, result.ScoreInfo], confidence: float
) -> Comparison:
    from scipy.special import stdtrit

    error = float(apart.std(ddof=1)) / math.sqrt(len(apart))
    return _stated(scores, confidence, examples, JACKKNIFE, float(stdtrit(len(apart) - 1, confidence)) * error)


def unpaired(scores: tuple[result.ScoreInfo, result.ScoreInfo], confidence: float) -> Comparison:
    """From the two intervals alone, as if the examples were others: wider than what a paired comparison would say."""
    from statistics import NormalDist

    errors = [
        math.inf if one.low is None or one.high is None else (one.high - one.low) / 2 / NormalDist().inv_cdf(0.975)
        for one in scores
    ]
    reach = NormalDist().inv_cdf(confidence) * math.hypot(*errors)
    return _stated(scores, confidence, min(one.examples for one in scores), UNPAIRED, reach)


def _stated(
    scores: tuple[result.ScoreInfo, result.ScoreInfo], confidence: float, examples: int, method: str, reach: float
) -> Comparison:
    new, old = scores
    drop = None
    if new.value is not None and old.value is not None:
        drop = old.value - new.value if new.higher_is_better else new.value - old.value
    known = drop is not None and math.isfinite(reach)
    return Comparison(
        metric=new.metric,
        scale=result.scale(new.unit),
        unit=new.unit,
        reference=old.value,
        value=new.value,
        drop=drop,
        low=(drop or 0.0) - reach if known else None,
        high=(drop or 0.0) + reach if known else None,
        confidence=confidence,
        examples=examples,
        method=method,
        higher_is_better=new.higher_is_better,
    )


def _update(digest: Any, value: Any) -> None:
    """One tensor, number, text, list or mapping, each with its kind, so that no two mean the same bytes."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(f"{{{key}:".encode())
            _update(digest, value[key])
        return
    if isinstance(value, list | tuple) and any(isinstance(one, list | tuple | Mapping | str) for one in value):
        digest.update(f"[{len(value)}".encode())
        for one in value:
            _update(digest, one)
        return
    if isinstance(value, str | bytes) or value is None:
        digest.update(repr(value).encode())
        return
    array = np.ascontiguousarray(value)
    if array.dtype == object:
        digest.update(repr(value).encode())
        return
    kind = "i8" if array.dtype.kind in "iu" and not array.ndim else str(array.dtype)  # a class number is a class number
    digest.update(f"{kind}{array.shape}".encode())
    digest.update((array.astype(np.int64) if kind == "i8" else array).tobytes())
