"""What `plan --accuracy` says of the accuracy that is left before training."""

from __future__ import annotations

import pytest

from edgeprune.pipeline.expected import in_words
from edgeprune.result import Comparison


def _of(drop: float | None, high: float | None, unit: str = "points") -> Comparison:
    return Comparison(
        metric="top-1", scale=100.0, unit=unit, reference=90.0, value=90.0 - (drop or 0.0), drop=drop, low=0.1,
        high=high, confidence=0.95, examples=1000, smallest=0.1, method="", higher_is_better=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("drop", "high", "end"),
    [
        (0.4, 0.9, "That is within it; INT8 and the test split are for the gates to judge."),
        (0.8, 1.3, "Training has to make it sure."),
        (3.5, 4.0, "Training has to win back 2.50 points at least."),
        (None, None, "max_drop is 1."),
    ],
)
def test_the_words_say_what_training_has_to_do(drop: float | None, high: float | None, end: str) -> None:
    assert in_words(_of(drop, high), 1.0).endswith(end)


def test_the_words_hold_the_figures_with_their_limits() -> None:
    told = in_words(_of(3.5, 4.0), 1.0)
    assert "top-1 86.50 points where the dense network has 90.00: 3.50 worse (95 %: 0.10 to 4.00)" in told
    assert "on 1,000 held-out examples" in told
    assert "win back 2.50 at least" in in_words(_of(3.5, 4.0, ""), 1.0)
