"""From one network's outputs to what the gates ask, whatever the task: a score, a comparison, a check against chance.

Where an example is right or wrong, limits are exact (workload/paired.py); of any other score they come from the seeded
bootstrap over examples (workload/statistics.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune import result
from edgeprune.errors import EdgepruneError
from edgeprune.result import Comparison, DifferenceInfo, Network, Sanity
from edgeprune.workload import (
    Outputs,
    Proportion,
    Score,
    Tally,
    agresti_min,
    bootstrap,
    chosen,
    count,
    joined,
    shuffled,
    task,
)
from edgeprune.workload import paired as pairs

EXACT = "exact unconditional limits for paired proportions, ordered by Tango's score"
RESAMPLED = "seeded bootstrap over examples, widened for few of them (Hesterberg 2015)"
SHUFFLED = "its own outputs against shuffled targets"
KEPT = 128 << 20  # bytes of outputs and targets that are kept for the look at chance
RESAMPLES = 20  # at least, for a deviation


class Judge(Tally):
    """A network's outputs on the test examples, taken a batch at a time, and what can be said of them at the end.

    Attributes:
        classes: their names, where they are known.
    """

    def __init__(self, task: Any, classes: Sequence[str] = ()) -> None:
        super().__init__(task)
        self.classes = tuple(classes)
        self._answers: list[NDArray[np.int64]] | None = []
        self._targets, self._sample = Kept(), Kept()
        self._seen: set[int] = set()
        self._known = 0
        self._named = True
        self._score: Score | None = None

    def add(self, outputs: Any, targets: Any) -> Outputs:
        """Take a batch; raises as `score_batches`."""
        listed = list(targets)
        made = super().add(outputs, listed)
        self._score = None
        if not listed:
            return made
        answers = getattr(self.task, "answers", lambda _: None)(made)
        if answers is None:
            self._answers = None
        elif self._answers is not None:
            self._answers.append(answers)
        self._look_at_classes(made, listed)
        self._targets.add(None, listed)
        if not isinstance(self.task, task.BaseTask) or self._is_shuffled(listed):
            self._sample.add(made, listed)
        return made

    def _is_shuffled(self, targets: list[Any]) -> bool:
        return type(self.task).chance is task.BaseTask.chance or self._chance(targets) is None

    def _look_at_classes(self, outputs: Outputs, targets: list[Any]) -> None:
        look = getattr(self.task, "shown", None)
        found = look(outputs, targets) if look is not None and self._named and targets else None
        if found is None:
            self._named = False
            return
        self._seen |= found[0]
        self._known = max(self._known, found[1])

    @property
    def answers(self) -> NDArray[np.int64] | None:
        """[N], where the task has one answer an example."""
        return np.concatenate(self._answers) if self._answers else None

    def score(self, confidence: float = 0.95) -> Score:
        if self._score is None or self._score.confidence != confidence:
            self._score = super().score(confidence)
        return self._score

    def network(self, reference: Judge | None = None) -> Network:
        """Its figures as in result.json, without latency and size."""
        found = self.score()
        value, low, high = (float(one) if math.isfinite(one) else None for one in (found.value, found.low, found.high))
        rated = result.ScoreInfo(
            metric=found.metric,
            unit=found.unit,
            higher_is_better=found.higher_is_better,
            value=value,
            low=low,
            high=high,
            examples=found.examples,
            broken=found.broken,
        )
        agreement = agreed(self.answers, reference.answers if reference else None)
        if not isinstance(found.statistics, Proportion) or self.answers is None:
            return Network(score=rated, agreement=agreement, broken=self.broken)
        correct = int(found.statistics.right.sum())
        return Network(
            score=rated,
            accuracy=correct / found.examples,
            correct=correct,
            images=found.examples,
            low=found.low / 100,
            high=found.high / 100,
            agreement=agreement,
            broken=self.broken,
        )

    def _chance(self, targets: Sequence[Any]) -> float | None:
        try:
            found = self.task.chance(targets)
        except EdgepruneError:
            return None
        return None if found is None or not math.isfinite(found) else float(found)

    def sanity(self, more: Sequence[Any] = ()) -> Sanity:
        """Held against chance; `more`: class numbers of further examples, which count for what is missing."""
        found = self.score()
        value = found.value if math.isfinite(found.value) else None
        chance, blind = self._blind()
        errors = smallest = deviation = None
        if isinstance(found.statistics, Proportion):
            right = int(found.statistics.right.sum())
            p_value, errors = _by_luck(right, found.examples, chance), 1 - right / found.examples
        else:
            graded = bool(getattr(found.statistics, "graded", False))
            smallest = 0.0 if graded else _finite(found.against(found).upper(0.95))
            sample = bootstrap(found.statistics) if found.examples > 1 else np.zeros(0)
            deviation = float(sample.std(ddof=1)) if len(sample) >= RESAMPLES else None
            p_value = _by_deviation(found, chance, deviation)
        return Sanity(
            metric=found.metric,
            scale=result.scale(found.unit),
            unit=found.unit,
            higher_is_better=found.higher_is_better,
            examples=found.examples,
            broken=found.broken,
            value=value,
            chance=chance,
            blind=blind,
            p_value=p_value,
            constant=self._sameness(),
            errors=errors,
            missing=self._missing(more),
            smallest=smallest,
            deviation=deviation,
        )

    def _blind(self) -> tuple[float | None, str]:
        chance = self._chance(self._targets.targets)
        if chance is None:
            if self._sample.outputs is None:
                return None, ""
            dealt = shuffled(self.task, self._sample.outputs, self._sample.targets)
            return (dealt, SHUFFLED) if math.isfinite(dealt) else (None, "")
        if not self._answers or self._seen is None:
            return chance, "the best guess that does not look"
        counts = np.bincount([int(target) for target in self._targets.targets])
        top = int(getattr(self.task, "top", 1))
        if self._known:
            chance = max(chance, 100 * min(top, self._known) / self._known)
        if top > 1:
            return chance, f"always answering the {top} most frequent classes"
        return chance, f"always answering {self._name(int(counts.argmax()))}"

    def _sameness(self) -> str:
        if not self.told:
            return ""  # one answer has nothing to differ from
        if self.same:
            return "its outputs are the same for every example"
        if not self.constant:
            return ""
        answers = self.answers
        if answers is None or not (answers >= 0).any():
            return "it says the same of every example"
        return f"it answers {self._name(int(answers[answers >= 0][0]))} for every example"

    def _missing(self, more: Sequence[Any]) -> tuple[str, ...]:
        if not self._named:
            return ()
        known = self._known or len(self.classes)
        absent = sorted(set(range(known)) - self._seen - {int(one) for one in more})
        return tuple(self._name(number) for number in absent)

    def _name(self, number: int) -> str:
        return f"'{self.classes[number]}'" if number < len(self.classes) else f"class {number}"


class Kept:
    """Some of the examples, spread over all of them: every 2nd, every 4th, ... where they are too large to be kept."""

    def __init__(self) -> None:
        self.outputs: Outputs | None = None
        self.targets: list[Any] = []
        self._step, self._next, self._seen = 1, 0, 0

    def add(self, outputs: Outputs | None, targets: list[Any]) -> None:
        places = list(range(-self._seen % self._step, len(targets), self._step))
        self._seen += len(targets)
        self.targets += [targets[place] for place in places]
        if outputs is not None and places:
            some = chosen(outputs, places)
            self.outputs = some if self.outputs is None else joined([self.outputs, some])
        while len(self.targets) > 64 and self._bytes() > KEPT:
            self.targets, self._step = self.targets[::2], 2 * self._step
            if self.outputs is not None:
                self.outputs = chosen(self.outputs, list(range(0, count(self.outputs), 2)))

    def _bytes(self) -> int:
        one = _size(self.targets[0])
        held = sum(sum(map(_size, o)) if isinstance(o, list) else o.nbytes for o in self.outputs or ())
        return held + one * len(self.targets)


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return int(getattr(value, "nbytes", 64))


def agreed(mine: NDArray[np.int64] | None, others: NDArray[np.int64] | None) -> float | None:
    """The share of examples with the same answer; None where there are no answers."""
    if mine is None or others is None:
        return None
    return float(np.mean((mine == others) & (mine >= 0)))


def network(task: Any, outputs: Any, targets: Sequence[Any], reference: Any = None) -> Network:
    """The figures of outputs that are all there, and of how far they agree with the `reference`'s."""
    judge, other = Judge(task), Judge(task)
    judge.add(outputs, targets)
    if reference is not None:
        other.add(reference, targets)
    return judge.network(other if reference is not None else None)


def comparison(pruned: Score, dense: Score, confidence: float) -> Comparison:
    """How much worse `pruned` is than `dense` in the metric's own unit and direction, and how sure that is."""
    found = pruned.against(dense)
    if found.pairs is None:
        smallest, method = dense.against(dense).upper(confidence), RESAMPLED
    else:
        smallest, method = 100 * pairs.smallest_drop(found.examples, confidence), EXACT
    return Comparison(
        metric=found.metric,
        scale=result.scale(found.unit),
        unit=found.unit,
        reference=_finite(dense.value),
        value=_finite(pruned.value),
        drop=_finite(found.drop),
        low=_finite(found.limit(1 - confidence)),
        high=_finite(found.upper(confidence)),
        confidence=confidence,
        examples=found.examples,
        smallest=_finite(smallest),
        method=method,
        higher_is_better=dense.higher_is_better,
    )


def difference(first: Score, second: Score) -> DifferenceInfo | None:
    """First minus second where an example is right or wrong, as it is shown; None for other scores."""
    found = second.against(first)  # how much worse the second is
    if found.pairs is None:
        return None
    one, two = found.pairs
    low, high = (100 * agresti_min(one, two, found.examples, level) for level in (0.025, 0.975))
    points, p_value = 100 * (one - two) / found.examples, pairs.mcnemar(one, two)
    return DifferenceInfo(
        points=points, low=low, high=high, p_value=p_value, only_first=one, only_second=two, images=found.examples
    )


def _by_luck(right: int, examples: int, chance: float | None) -> float:
    """The exact chance that one which is right with `chance` is right as often."""
    from scipy.stats import binom

    return 0.0 if chance is None else float(binom.sf(right - 1, examples, min(1.0, chance / 100)))


def _by_deviation(found: Score, chance: float | None, deviation: float | None) -> float:
    """The chance to be that much better than `chance` by luck, by the bootstrap's deviation and Student's t."""
    if not math.isfinite(found.value):
        return 1.0
    if chance is None:
        return 0.0
    better = found.value - chance if found.higher_is_better else chance - found.value
    if better <= 0 or found.examples < 2 or deviation is None:
        return 1.0
    least = 0.5**found.examples  # as a sign test would say at most
    if deviation == 0:
        return least
    from scipy.special import stdtr

    return max(least, float(stdtr(found.examples - 1, -better / deviation)))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
