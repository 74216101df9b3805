"""The limit of a drop: exact, so that a network that is truly worse passes with at most the stated chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from edgeprune.workload import paired


def chance_to_pass(examples, max_drop, second_only, drop, confidence=0.95):
    """Summed over all answers, exactly: that a network whose true drop is `drop` passes the gate at `max_drop`."""
    total = 0.0
    for second in range(int(binom.ppf(1 - 1e-7, examples, second_only)) + 1):
        low, high = -1, examples - second  # the limit grows with the pairs that only the first gets right
        while low < high:
            middle = (low + high + 1) // 2
            if paired.p_value(middle, second, examples, max_drop) <= 1 - confidence:
                low = middle
            else:
                high = middle - 1
        share = (second_only + drop) / (1 - second_only)
        total += binom.pmf(second, examples, second_only) * binom.cdf(low, examples - second, share)
    return float(total)


@pytest.mark.parametrize("examples", [1, 10, 50, 100, 598, 2000, 20_000])
def test_without_a_pair_that_differs_it_is_the_rule_of_three(examples):
    limit = paired.upper_limit(0, 0, examples, 0.95)
    assert (1 - limit) ** examples == pytest.approx(0.05, rel=0.01)
    assert limit == pytest.approx(paired.smallest_drop(examples, 0.95), abs=2e-6)


@pytest.mark.parametrize(
    ("examples", "max_drop", "second_only"),
    [(10, 0.3, 0.02), (10, 0.5, 0.1), (50, 0.1, 0.0), (100, 0.05, 0.01)],
)
def test_a_network_at_the_limit_passes_with_at_most_five_percent(examples, max_drop, second_only):
    assert chance_to_pass(examples, max_drop, second_only, drop=max_drop) <= 0.05 + 1e-4


def test_of_what_the_attack_released_nothing_passes_but_by_the_stated_chance():
    """max_drop 0.5, truly 5 points worse, errors independent: 52 %, 22 % and 11 % passed on the figure alone."""
    for examples in (10, 50, 100):
        assert paired.upper_limit(0, 0, examples, 0.95) > 0.005  # so few cannot tell 0.5 points at all
    assert chance_to_pass(100, 0.05, 0.01, drop=0.0) > 0.3  # and yet an honest network is not refused always


@pytest.mark.parametrize(("first", "second", "examples"), [(98, 32, 2000), (34, 41, 2000), (900, 700, 10_000)])
def test_with_many_pairs_it_is_what_the_normal_distribution_says(first, second, examples):
    share = (first - second) / examples
    error = math.sqrt((first + second) / examples - share**2) / math.sqrt(examples)
    assert paired.upper_limit(first, second, examples, 0.95) == pytest.approx(share + 1.645 * error, abs=0.25 * error)
    assert paired.lower_limit(first, second, examples, 0.95) == pytest.approx(share - 1.645 * error, abs=0.25 * error)


@pytest.mark.long
def test_more_confidence_more_pairs_and_fewer_examples_make_it_wider():
    assert (
        paired.upper_limit(5, 2, 200, 0.99) > paired.upper_limit(5, 2, 200, 0.95) > paired.upper_limit(5, 2, 200, 0.6)
    )
    assert paired.upper_limit(15, 12, 200, 0.95) > paired.upper_limit(5, 2, 200, 0.95)
    assert paired.upper_limit(5, 2, 200, 0.95) > paired.upper_limit(5, 2, 400, 0.95)
    limits = [paired.upper_limit(first, 3, 60, 0.95) for first in (0, 1, 5, 20, 57)]
    assert all(np.diff(limits) > 0)


def test_the_limit_is_where_the_p_value_is_what_the_confidence_leaves():
    limit = paired.upper_limit(7, 2, 150, 0.95)
    assert paired.p_value(7, 2, 150, limit) <= 0.05 < paired.p_value(7, 2, 150, limit - 1e-4)


@pytest.mark.parametrize("max_drop", [0.1, 0.5, 1.0, 4.0, 30.0])
def test_the_fewest_examples_are_enough_and_one_fewer_are_not(max_drop):
    least = paired.fewest_examples(max_drop / 100, 0.95)
    assert least is not None
    assert paired.upper_limit(0, 0, least, 0.95) <= max_drop / 100 + 2e-6
    assert least == 1 or paired.smallest_drop(least - 1, 0.95) > max_drop / 100
    assert paired.fewest_examples(0.0, 0.95) is None


def test_the_examples_that_the_plan_asks_for_let_an_honest_network_pass_four_times_of_five():
    count = paired.examples_for(0.05, 0.95, errors=0.06)
    assert count is not None and 80 < count < 200
    assert chance_to_pass(count, 0.05, 0.02, drop=0.0) == pytest.approx(0.8, abs=0.1)
