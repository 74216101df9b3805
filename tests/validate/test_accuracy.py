"""Top-1 accuracy, its uncertainty, and the paired comparison of two artifacts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgeprune import validate
from edgeprune.errors import DataError, ModelError
from edgeprune.validate.accuracy import mcnemar, wilson

LABELS = np.array([0, 1, 2, 1])
SCORES = np.array([[3.0, 1, 0], [0, 2, 1], [5, 1, 2], [0, 9, 1]])  # right, right, wrong, right


def test_counts_what_is_right():
    scored = validate.accuracy(SCORES, LABELS)
    assert (scored.accuracy, scored.correct, scored.images) == (0.75, 3, 4)
    assert scored.low < 0.75 < scored.high
    assert scored.to_dict()["correct"] == 3
    assert "agreement" not in scored.to_dict()


def test_agreement_is_with_the_reference_not_with_the_labels():
    scored = validate.accuracy(SCORES, LABELS, reference=SCORES[:, ::-1])
    assert scored.agreement == 0.5  # the two rows whose best class is the middle one
    assert validate.accuracy(SCORES, LABELS, reference=SCORES).agreement == 1.0


def test_broken_outputs_count_as_wrong_even_where_argmax_would_be_lucky():
    broken = SCORES.copy()
    broken[0] = [np.nan, 0, 0]  # argmax says 0, which is the label
    broken[1] = [np.inf, np.inf, 0]
    scored = validate.accuracy(broken, LABELS, reference=broken)
    assert (scored.correct, scored.broken) == (1, 2)
    assert scored.agreement == 0.5
    assert scored.to_dict()["broken"] == 2


@pytest.mark.parametrize("labels", [[0, 1, 3, 1], [0, -1, 2, 1]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(DataError, match="out of range"):
        validate.accuracy(SCORES, labels)


@pytest.mark.parametrize(
    ("outputs", "labels", "error"),
    [
        (SCORES, [0, 1], DataError),
        (SCORES, [0.5, 1, 2, 1], DataError),
        (np.zeros((0, 3)), np.zeros(0, int), DataError),
        (np.zeros((2, 3, 4, 4)), [0, 1], ModelError),
    ],
)
def test_shapes_that_do_not_fit_are_refused(outputs, labels, error):
    with pytest.raises(error):
        validate.accuracy(outputs, labels)


def test_difference_looks_at_the_images_where_they_differ():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 1000)
    dense = labels.copy()
    dense[:50] = (dense[:50] + 1) % 10  # 95 %
    pruned = labels.copy()
    pruned[30:90] = (pruned[30:90] + 1) % 10  # 94 %, 20 of them shared
    found = validate.difference(dense, pruned, labels)
    assert found.points == pytest.approx(1.0)
    assert (found.only_first, found.only_second) == (40, 30)
    assert found.low < 0 < 1 < found.high  # so small a difference is not certain on 1,000 images
    assert found.p_value == pytest.approx(binomtest(30, 70).pvalue)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(first, second):
    expected = binomtest(min(first, second), first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_the_proportion(images, data):
    correct = data.draw(st.integers(0, images))
    low, high = wilson(correct, images)
    interval = binomtest(correct, images).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=1e-9)
