"""From outputs to figures: right answers as version 1 had them, and any other task in its own unit and direction."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgeprune import tasks, validate
from edgeprune.errors import DataError, ModelError
from edgeprune.recipe import BudgetSection
from edgeprune.workload.paired import mcnemar, smallest_drop, upper_limit
from edgeprune.workload.statistics import wilson

LABELS = np.array([0, 1, 2, 1])
SCORES = np.array([[3.0, 1, 0], [0, 2, 1], [5, 1, 2], [0, 9, 1]])  # right, right, wrong, right
RANDOM = np.random.default_rng(0)


def judged(outputs, targets, task=None, batch=7, classes=()):
    found = validate.Judge(task or tasks.Classification(), classes)
    for start in range(0, len(targets), batch):
        found.add(outputs[start : start + batch], targets[start : start + batch])
    return found


def test_counts_what_is_right():
    found = validate.network(tasks.Classification(), SCORES, LABELS)
    assert (found.accuracy, found.correct, found.images) == (0.75, 3, 4)
    assert found.low < 0.75 < found.high and found.agreement is None
    assert found.score.to_dict() == {
        "metric": "top-1", "unit": "points", "higher_is_better": True, "value": 75.0,
        "low": pytest.approx(100 * found.low), "high": pytest.approx(100 * found.high), "examples": 4, "broken": 0,
    }  # fmt: skip


def test_agreement_is_with_the_reference_not_with_the_labels():
    mine, others = judged(SCORES, LABELS), judged(SCORES[:, ::-1], LABELS)
    assert mine.network(others).agreement == 0.5  # the two rows whose best class is the middle one
    assert mine.network(mine).agreement == 1.0


def test_broken_outputs_count_as_wrong_even_where_argmax_would_be_lucky():
    broken = SCORES.copy()
    broken[0] = [np.nan, 0, 0]  # argmax says 0, which is the label
    broken[1] = [np.inf, np.inf, 0]
    found = judged(broken, LABELS, batch=2)
    assert (found.network(found).correct, found.network(found).broken) == (1, 2)
    assert found.network(found).agreement == 0.5
    assert found.sanity().broken == 2


@pytest.mark.parametrize("labels", [[0, 1, 3, 1], [0, -1, 2, 1]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(DataError, match="out of range"):
        validate.network(tasks.Classification(), SCORES, labels)


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
        validate.network(tasks.Classification(), outputs, labels)


def two(count=1000):
    """Dense 95 %, pruned 94 % of `count`, 2 % of the errors shared."""
    labels = np.random.default_rng(0).integers(0, 10, count)
    dense, pruned = labels.copy(), labels.copy()
    dense[:50] = (dense[:50] + 1) % 10
    pruned[30:90] = (pruned[30:90] + 1) % 10
    return labels, np.eye(10)[dense], np.eye(10)[pruned]


def test_difference_looks_at_the_examples_where_they_differ():
    labels, dense, pruned = two()
    first, second = judged(dense, labels).score(), judged(pruned, labels).score()
    found = validate.difference(first, second)
    assert found.points == pytest.approx(1.0)
    assert (found.only_first, found.only_second) == (40, 30)
    assert found.low < 0 < 1 < found.high  # so small a difference is not certain on 1,000 images
    assert found.p_value == pytest.approx(binomtest(30, 70).pvalue)
    compared = validate.comparison(second, first, 0.95)
    assert (compared.metric, compared.scale, compared.unit) == ("top-1", "%", "points")
    assert (compared.reference, compared.value, compared.drop) == pytest.approx((95.0, 94.0, 1.0))
    assert compared.high == 100 * upper_limit(40, 30, 1000, 0.95) and compared.low == -100 * upper_limit(
        30, 40, 1000, 0.95
    )
    assert compared.smallest == 100 * smallest_drop(1000, 0.95) and "exact" in compared.method


def test_sanity_of_a_classifier_is_against_its_most_frequent_class():
    labels, dense, _ = two()
    labels[:200] = 3
    found = judged(dense, labels, classes=[f"c{n}" for n in range(10)]).sanity()
    share = np.bincount(labels).max() / 1000
    assert found.chance == pytest.approx(100 * share) and found.blind == "always answering 'c3'"
    right = int((dense.argmax(1) == labels).sum())
    assert found.p_value == pytest.approx(binomtest(right, 1000, share, alternative="greater").pvalue)
    assert found.errors == pytest.approx(1 - right / 1000) and found.missing == ()


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_outputs_that_say_the_same_are_found_across_batches(batch):
    labels = np.arange(40) % 4
    same = np.tile([0.0, 3.0, 1.0, 0.0], (40, 1))
    assert judged(same, labels, batch=batch).sanity().constant == "its outputs are the same for every example"
    varied = same + 0.1 * np.random.default_rng(0).random((40, 4))
    found = judged(varied, labels, batch=batch, classes=["a", "b", "c", "d", "e"]).sanity()
    assert found.constant == "it answers 'b' for every example" and found.missing == ()
    varied[39, 0] = 9.0
    assert judged(varied, labels, batch=batch).sanity().constant == ""
    lacking = judged(varied, labels % 3, batch=batch).sanity()
    assert lacking.missing == ("class 3",)
    assert judged(varied, labels % 3, batch=batch).sanity(more=[3]).missing == ()


def regression(noise, count=300):
    truth = np.random.default_rng(1).normal(10, 3, count)
    return (truth + np.random.default_rng(2).normal(0, noise, count))[:, None], list(truth)


@pytest.mark.long
def test_where_lower_is_better_all_figures_turn_round():
    task = tasks.Regression("MAE", unit="kg")
    dense, targets = regression(0.5)
    worse, _ = regression(0.9)
    first, second = judged(dense, targets, task), judged(worse, targets, task)
    found = validate.comparison(second.score(), first.score(), 0.95)
    assert found.scale == found.unit == "kg" and not found.higher_is_better
    assert found.drop == pytest.approx(np.abs(worse[:, 0] - targets).mean() - np.abs(dense[:, 0] - targets).mean())
    assert 0 < found.low < found.drop < found.high and 0 < found.smallest < found.high and "bootstrap" in found.method
    assert validate.difference(second.score(), first.score()) is None
    sane = first.sanity()
    assert sane.value < 1 < 2 < sane.chance and sane.p_value < 1e-9 and not sane.constant and sane.errors is None
    blind, _ = regression(0)
    assert judged(np.full_like(blind, 10.0), targets, task).sanity().p_value > 0.05
    assert (
        judged(np.full_like(blind, 10.0), targets, task).sanity().constant
        == "its outputs are the same for every example"
    )
    network = second.network(first)
    assert (
        network.accuracy is None and network.agreement is None and network.score.text == f"{network.score.value:.4g} kg"
    )


def test_a_metric_of_which_nobody_knows_chance_is_held_against_shuffled_targets():
    def metric(outputs, targets):
        return -float(np.abs(outputs[0][:, 0] - np.array(targets)).mean())

    task = tasks.Custom(metric, "closeness", resamples=50)
    outputs, targets = regression(0.5, 120)
    found = judged(outputs, targets, task).sanity()
    assert found.blind == "its own outputs against shuffled targets" and found.chance < found.value < 0
    assert found.p_value < 1e-6
    unrelated = judged(outputs, targets[60:] + targets[:60], task).sanity()
    assert unrelated.p_value > 0.01


def photos(noise, count=80):
    """Pictures that differ much in what can be seen of them: their PSNR is from 20 to 40 dB."""
    draw = np.random.default_rng(3)
    truth, size = draw.random((count, 3, 8, 8)), draw.uniform(0.01, 0.1, (count, 1, 1, 1))
    return truth + (size + noise) * draw.normal(0, 1, truth.shape), list(truth)


def test_a_drop_far_below_what_a_graded_metric_deviates_is_told_and_not_refused_beforehand():
    """Two networks never tie on a photograph; that one might fail it wholly must not be taken for what can be told."""
    task = tasks.Restoration("PSNR", peak=1.0)
    (outputs, targets), (others, _) = photos(0), photos(0.0005)
    first, second = judged(outputs, targets, task), judged(others, targets, task)
    found = validate.comparison(second.score(), first.score(), 0.95)
    assert 0 < found.drop < found.high < 0.5 < first.sanity().deviation
    asked = validate.ask(first.sanity(), len(targets), BudgetSection(speedup=2.0, max_drop=0.5))
    assert [one.severity for one in asked] == ["warning"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["multilabel", "custom", "detection"])
def test_a_ranking_that_two_networks_never_tie_on_is_not_refused_beforehand(kind):
    """Ten honest networks meet max_drop at the gate: then the plan must not say that no network could."""
    draw = np.random.default_rng(0)
    truth = draw.random((200, 4)) < 0.4
    scores = 4.0 * truth - 2 + 1.2 * draw.standard_normal(truth.shape)
    near = scores + 0.02 * draw.standard_normal(truth.shape)
    task, max_drop, targets = tasks.MultiLabel(), 5.0, list(truth.astype(np.int64))
    if kind == "custom":
        ranked = task
        task = tasks.Custom(lambda outputs, given: ranked.score(outputs, given).value, "mAP", unit="points")
    if kind == "detection":
        boxes = np.array([0.1, 0.1, 0.4, 0.4])
        task, max_drop = tasks.Detection(lambda out: (out[0][:, :4], out[0][:, 4], out[0][:, 5].astype(np.int64))), 10.0
        targets = [{"boxes": boxes[None], "labels": np.array([n % 2])} for n in range(len(truth))]
        labels = np.arange(len(truth)) % 2

        def picture(sure):
            return np.stack([np.append(boxes, (0.5 + 0.01 * s[0], n)) for s, n in zip(sure, labels, strict=True)])[
                :, None
            ]

        scores, near = picture(scores), picture(near)
    first, second = judged(scores, targets, task), judged(near, targets, task)
    assert validate.comparison(second.score(), first.score(), 0.95).high < max_drop
    asked = validate.ask(first.sanity(), len(targets), BudgetSection(speedup=2.0, max_drop=max_drop))
    assert "error" not in [one.severity for one in asked]


def masks(count=200):
    draw = np.random.default_rng(4)
    truth = draw.integers(0, 2, (count, 2, 2))
    scores = np.eye(2)[np.where(draw.random(truth.shape) < 0.1, 1 - truth, truth)].transpose(0, 3, 1, 2)
    return scores, list(truth)


@pytest.mark.parametrize(
    ("kind", "max_drop", "severity"),
    [("MAE", 1.0, None), ("MAE", 0.002, "warning"), ("mIoU", 0.05, "warning"), ("mIoU", 0.001, "error")],
)
def test_the_plan_says_whether_a_bootstrapped_metric_can_tell_the_drop(kind, max_drop, severity):
    (outputs, targets), task = (
        (regression(0.5), tasks.Regression("MAE", unit="kg")) if kind == "MAE" else (masks(), tasks.Segmentation())
    )
    dense = judged(outputs, targets, task).sanity()
    found = validate.ask(dense, 30_000, BudgetSection(speedup=2.0, max_drop=max_drop))
    assert [one.severity for one in found] == ([severity] if severity else [])
    for one in found:
        assert (
            one.name == "accuracy"
            and f"bootstrap of the dense network's {kind}" in one.message
            and task.unit in one.message
        )
    many = validate.ask(dense, 10**12, BudgetSection(speedup=2.0, max_drop=max_drop))
    assert many == ()
    assert msgspec.convert(dense.to_dict(), validate.Sanity) == dense


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(first, second):
    expected = binomtest(min(first, second), first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.long
@given(st.integers(1, 5000), st.data())
def test_wilson_holds_the_proportion(images, data):
    correct = data.draw(st.integers(0, images))
    interval = binomtest(correct, images).proportion_ci(method="wilson")
    limits = wilson(correct, images, 0.025), wilson(correct, images, 0.975)
    assert limits == pytest.approx((interval.low, interval.high), abs=1e-9)
