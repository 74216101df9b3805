"""Sequences of labels by CTC: speech and text lines. CER and WER."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, ModelError, TaskError
from edgeprune.workload import distances
from edgeprune.workload.arrays import Outputs, broken, pick, to_array
from edgeprune.workload.statistics import Statistics, Sums, points
from edgeprune.workload.task import BaseTask

if TYPE_CHECKING:
    from torch import Tensor


GUESSES, BEGINNING = 2, 60  # most frequent sequences that are tried as a guess, and how many units of them
GUESS_STEPS = 300_000  # of edit distances, at most about


def edits(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Levenshtein's distance: insertions, deletions and replacements."""
    row = list(range(len(second) + 1))
    for place, one in enumerate(first, 1):
        before, row[0] = row[0], place
        for other, two in enumerate(second, 1):
            before, row[other] = row[other], min(row[other] + 1, row[other - 1] + 1, before + (one != two))
    return row[-1]


def greedy(labels: NDArray[np.int64], blank: int) -> list[int]:
    """The best label of each step -> the sequence: equal neighbours are one, blanks go."""
    changed = np.append(True, labels[1:] != labels[:-1])[: len(labels)]
    return [int(label) for label in labels[changed] if label != blank]


@dataclass(frozen=True)
class SequenceLabels(BaseTask):
    """Scores [N, steps, labels] (or [N, labels, steps]) against sequences of label numbers, or text.

    Attributes:
        alphabet: the letter of each label; needed for text targets and for WER. The blank's own letter is not used.
        blank: the label that says nothing.
        metric: "CER" (edits a letter, or label) or "WER" (a word, where a space parts them); lower is better.
        axis: of one example's scores that the labels are on: 1 for [steps, labels], 0 for [labels, steps].
        output: the network's output that holds the scores.
    """

    alphabet: str = ""
    blank: int = 0
    metric: Literal["CER", "WER"] = "CER"
    axis: Literal[0, 1] = 1
    output: int = 0

    unit = "points"
    higher_is_better = False

    def __post_init__(self) -> None:
        if self.metric not in ("CER", "WER") or self.axis not in (0, 1):
            raise TaskError('sequence has the metrics "CER" and "WER", and the axis 0 or 1.')
        if self.metric == "WER" and not self.alphabet:
            raise TaskError("WER needs the alphabet: the letter of each label.")
        if self.blank < 0 or (self.alphabet and self.blank >= len(self.alphabet)):
            raise TaskError(
                f"blank is label {self.blank}; it must be one of the {len(self.alphabet) or 'network'} labels."
            )

    def read(self, scores: NDArray[Any]) -> list[int] | str:
        """What one example's scores say, greedily: label numbers, or text where there is an alphabet."""
        labels = greedy(scores.argmax(self.axis), self.blank)
        return "".join(self.alphabet[label] for label in labels) if self.alphabet else labels

    def _truth(self, target: Any, place: int) -> list[int] | str:
        if isinstance(target, str):
            if not self.alphabet:
                raise DataError(f"the target of example {place} is text, but the task has no alphabet.")
            strange = sorted(set(target) - set(self.alphabet))
            if strange:
                raise DataError(f"the target of example {place} holds {strange[0]!r}, which is not in the alphabet.")
            return target
        labels = to_array(target).reshape(-1)
        if labels.size and (labels.dtype.kind not in "iu" or labels.min() < 0):
            raise DataError(f"the target of example {place} is no sequence of label numbers.")
        numbers = [int(label) for label in labels]
        if self.alphabet:
            if numbers and max(numbers) >= len(self.alphabet):
                raise DataError(
                    f"label {max(numbers)} of example {place} is out of range: {len(self.alphabet)} letters."
                )
            return "".join(self.alphabet[n] for n in numbers)
        return numbers

    def _measure(self, outputs: Outputs, targets: list[Any]) -> Statistics:
        scores = pick(outputs, self.output, self.metric)
        if scores.ndim != 3:
            raise ModelError(f"output {self.output} is {list(scores.shape)}; CTC needs [examples, steps, labels].")
        labels = scores.shape[1 + self.axis]
        if self.alphabet and labels != len(self.alphabet):
            raise ModelError(
                f"output {self.output} has {labels} labels on axis {self.axis}; the alphabet has {len(self.alphabet)}.",
                "Set [task] axis to the axis of an example's scores that the labels are on.",
            )
        bad = broken((scores,))
        rows, failed = [], []
        for place, target in enumerate(targets):
            true = self._units(self._truth(target, place))
            if not self.alphabet and true and max(true) >= labels:
                raise DataError(f"label {max(true)} of example {place} is out of range: the network has {labels}.")
            said = self._units(self.read(scores[place]))
            failed.append([float(len(true)), float(len(true))])
            rows.append(failed[-1] if bad[place] else [float(edits(said, true)), float(len(true))])
        return Sums(np.array(rows).reshape(-1, 2), np.array(failed).reshape(-1, 2), points)

    def _units(self, sequence: list[int] | str) -> Sequence[Any]:
        return sequence.split() if self.metric == "WER" and isinstance(sequence, str) else sequence

    def _check(self, outputs: Outputs, targets: list[Any]) -> None:
        self._measure(outputs, targets)
        if not any(len(self._truth(target, place)) for place, target in enumerate(targets)):
            raise DataError("all targets are empty, so there is no error rate.", "Check the labels of the data.")

    apart = "KL divergence of each step's labels"

    def distance(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """KL divergence of each step's labels, mean over steps."""

        def each(dense: Tensor, other: Tensor) -> Tensor:
            return distances.divergence(dense, other, axis=1 + self.axis)

        return distances.on_output(reference, outputs, self.output, each)

    def loss(self, outputs: Sequence[Tensor], targets: Any) -> Tensor | None:
        """The CTC loss."""
        import torch
        from torch.nn import functional

        scores = outputs[self.output]
        steps = scores if self.axis == 1 else scores.transpose(1, 2)
        logs = steps.log_softmax(-1).transpose(0, 1)
        truth = [self._numbers(target, place) for place, target in enumerate(targets)]
        return functional.ctc_loss(
            logs,
            torch.tensor([label for labels in truth for label in labels]),
            torch.full((len(truth),), logs.shape[0]),
            torch.tensor([len(labels) for labels in truth]),
            blank=self.blank,
            zero_infinity=True,
        )

    def _numbers(self, target: Any, place: int) -> list[int]:
        true = self._truth(target, place)
        return [self.alphabet.index(letter) for letter in true] if isinstance(true, str) else true

    def chance(self, targets: Sequence[Any]) -> float | None:
        """What guessing gives: always one of the most frequent sequences, or nothing, where every unit is missed.

        A guess is held against the others' sequences, not against itself; of long ones the beginnings are compared.
        """
        truth = [tuple(self._units(self._truth(target, place)))[:BEGINNING] for place, target in enumerate(targets)]
        steps = GUESSES * max(map(len, truth), default=0) ** 2
        some = truth[:: max(1, min(len(truth) // 20, len(truth) * steps // GUESS_STEPS))]
        worth = [100.0]
        for guess, _ in Counter(truth).most_common(GUESSES):
            others = list(some)
            if guess in others:
                others.remove(guess)
            if units := sum(map(len, others)):
                worth.append(100 * sum(edits(guess, one) for one in others) / units)
        return min(worth)
