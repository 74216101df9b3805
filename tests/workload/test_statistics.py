"""Intervals and paired differences: against formulas, simulation, and what nobody may be sure of."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from edgeprune.errors import DataError
from edgeprune.workload import paired
from edgeprune.workload.score import Score
from edgeprune.workload.statistics import Proportion, Sums, agresti_min, bootstrap, draws, whole, wilson
from edgeprune.workload.tasks import Classification


def mean(sums):
    return sums[:, 0] / sums[:, 1]


def means(values, failed=0.0):
    values = np.asarray(values, float)
    ones = np.ones(len(values))
    return Sums(np.stack([values, ones], 1), np.stack([ones * failed, ones], 1), mean)


def score(statistics, higher=True):
    return Score.of("m", "", higher, statistics, 0)


def test_wilson_and_paired_intervals_are_the_published_ones():
    # Newcombe (1998), case 81 of 263: Wilson's 95 % interval 0.2553 to 0.3662.
    assert wilson(81, 263, 0.025) == pytest.approx(0.2553, abs=5e-5)
    assert wilson(81, 263, 0.975) == pytest.approx(0.3662, abs=5e-5)
    # Agresti and Min by hand: b = 10.5, c = 4.5, n = 102.
    centre, half = 6 / 102, 1.959964 * math.sqrt(15 - 36 / 102) / 102
    assert agresti_min(10, 4, 100, 0.975) == pytest.approx(centre + half, abs=1e-6)
    assert agresti_min(10, 4, 100, 0.025) == pytest.approx(centre - half, abs=1e-6)


def test_the_bootstrap_of_a_mean_is_the_t_interval():
    values = np.random.default_rng(3).normal(30, 2, 200)
    found = score(means(values))
    from scipy.stats import t

    half = t.ppf(0.975, 199) * values.std(ddof=1) / math.sqrt(200)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


@pytest.mark.long
def test_intervals_cover_what_they_promise():
    """One-sided 95 % limits of a small, skewed difference of 40 pairs hold about 95 times of 100."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        reference = random.normal(30, 3, 40)
        drop = random.gamma(2.0, 0.1, 40)  # true mean 0.2
        held += score(means(reference - drop)).against(score(means(reference))).upper(0.95) >= 0.2
    assert 0.90 <= held / 300 <= 0.985


@pytest.mark.long
def test_few_examples_that_do_not_differ_prove_little():
    """Ten examples on which both are right: nobody knows that the drop is below a point."""
    for statistics in (Proportion.of(np.ones(10, bool)), means(np.ones(10))):
        one = score(statistics)
        assert one.against(one).drop == 0
        assert one.against(one).upper(0.95) > (5 if isinstance(statistics, Proportion) else 0.05)
    many = score(means(np.ones(3000)))
    assert many.against(many).upper(0.95) < 0.002
    lone = score(means([1.0]))
    assert lone.low == -math.inf and lone.high == math.inf
    assert lone.to_dict()["low"] is None


def test_a_drop_is_positive_when_worse_whichever_direction_is_better():
    good, bad = means(np.linspace(1, 2, 50)), means(np.linspace(1, 2, 50) + 0.1)
    assert score(bad, higher=False).against(score(good, higher=False)).drop == pytest.approx(0.1)
    assert score(bad).against(score(good)).drop == pytest.approx(-0.1)
    worse = score(bad, higher=False).against(score(good, higher=False))
    assert worse.low == pytest.approx(0.1) and worse.high == pytest.approx(0.1)  # each pair differs by exactly that
    right = np.arange(400) % 10 > 0
    fewer = right & (np.arange(400) % 20 != 1)
    found = (
        Classification()
        .score(np.eye(2)[fewer.astype(int)], [1] * 400)
        .against(Classification().score(np.eye(2)[right.astype(int)], [1] * 400))
    )
    assert found.drop == pytest.approx(5.0) and found.pairs == (20, 0)
    assert found.low < 5 < found.high
    assert found.upper(0.95) == 100 * paired.upper_limit(20, 0, 400, 0.95)  # what a gate decides by is exact


@pytest.mark.long
def test_the_same_seed_gives_the_same_interval_and_resampling_is_quick():
    values = means(np.random.default_rng(0).random(5000))
    start = time.process_time()
    one = bootstrap(values)
    taken = time.process_time() - start
    assert np.array_equal(one, bootstrap(values)) and not np.array_equal(one, bootstrap(values, seed=1))
    assert taken / len(one) < 0.01
    assert all((part.sum(1) == 17).all() for part in draws(17, 300, 0))


def test_examples_that_do_not_belong_together_are_refused():
    with pytest.raises(DataError, match="compared"):
        score(means([1, 2])).against(score(means([1, 2, 3])))
    with pytest.raises(DataError, match="cannot be compared"):
        score(means([1, 2])).against(score(means([1, 2]), higher=False))
    with pytest.raises(DataError, match="no example"):
        score(means([]))


def test_joining_batches_changes_nothing():
    values = np.random.default_rng(0).random(30)
    parts = [means(values[:7]), means(values[7:8]), means(values[8:])]
    assert whole(parts[0].joined(parts[1:])) == whole(means(values))
