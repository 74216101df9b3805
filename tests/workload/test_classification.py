"""Classification and tasks of one's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import edgeprune
from edgeprune import tasks
from edgeprune.errors import DataError, ModelError, TaskError
from edgeprune.workload import BaseTask, Task, check_metric, score_batches, shuffled


def random_scores(count=500, classes=7, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    scores = random.normal(size=(count, classes)).astype(np.float32)
    scores[np.arange(count), labels] += 1.5
    return scores, labels


def test_top_1_is_what_it_was_ties_and_broken_rows_too():
    scores, labels = random_scores()
    scores[3] = 0.0  # all tie: the first class wins
    labels[3] = 0
    scores[4, 2] = np.nan
    scores[5, 1] = np.inf
    whole = np.isfinite(scores).all(axis=1)
    right = int((scores[whole].argmax(1) == labels[whole]).sum())
    found = edgeprune.tasks.Classification().score(scores, labels)
    assert found.value == pytest.approx(100 * right / 500, abs=1e-12)
    interval = binomtest(right, 500).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((100 * interval.low, 100 * interval.high), abs=1e-9)
    assert found.broken == 2
    assert found.examples == 500 and found.unit == "points" and found.metric == "top-1"


def test_top_5_counts_the_five_highest():
    scores, labels = random_scores(classes=20)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    wanted = 100 * np.mean((best == labels[:, None]).any(1))
    assert tasks.Classification(top=5).score(scores, labels).value == pytest.approx(wanted)
    with pytest.raises(ModelError, match="always right"):
        tasks.Classification(top=5).score(scores[:, :5], labels % 5)


def test_class_numbers_of_an_argmax_in_the_graph_are_scored():
    scores, labels = random_scores()
    assert tasks.Classification().score(scores.argmax(1), labels).value == pytest.approx(
        tasks.Classification().score(scores, labels).value
    )


def test_batches_score_as_one():
    scores, labels = random_scores()
    batches = [(scores[i : i + 64], list(labels[i : i + 64])) for i in range(0, 500, 64)]
    task = tasks.Classification()
    assert score_batches(task, iter(batches)).value == task.score(scores, labels).value


def test_chance_and_constant_guesses_are_known():
    task = tasks.Classification()
    labels = [0] * 70 + [1] * 20 + [2] * 10
    assert task.chance(labels) == 70.0 and tasks.Classification(top=2).chance(labels) == 90.0
    assert task.constant(np.tile([0.1, 3.0, 1.0], (9, 1)))
    assert task.constant(np.array([[1.0, 0.0], [2.0, 0.0]])) and not task.constant(np.eye(3))
    assert task.constant(np.full((4, 3), np.nan))


@pytest.mark.parametrize("make", [lambda s: s, lambda s: s.softmax(1)], ids=["logits", "probabilities"])
def test_the_distance_is_a_divergence(make):
    torch.manual_seed(0)
    scores = torch.randn(6, 5, dtype=torch.float64).float()
    dense = make(scores)
    other = make(scores + torch.linspace(0, 1, 6)[:, None] * torch.randn(6, 5)).requires_grad_()
    distance = tasks.Classification().distance((dense,), (other,))
    p = scores.softmax(1)
    q = other if make(scores) is not scores else other.softmax(1)
    wanted = (p * (p.log() - q.log())).sum(1)
    assert distance.shape == (6,) and torch.allclose(distance, wanted.detach(), atol=1e-5)
    assert float(distance[0].detach()) == pytest.approx(0.0, abs=1e-6) and (distance >= 0).all()
    distance.sum().backward()
    assert torch.isfinite(other.grad).all()
    assert torch.equal(tasks.Classification().distance((dense,), (dense,)), torch.zeros(6))


def test_an_output_that_is_not_finite_is_infinitely_far():
    dense = torch.randn(2, 3)
    broken = dense.clone()
    broken[1, 0] = torch.nan
    assert tasks.Classification().distance((dense,), (broken,)).tolist() == [pytest.approx(0, abs=1e-6), math.inf]


def test_the_labels_loss_is_cross_entropy_of_logits_and_of_probabilities():
    scores, labels = torch.randn(8, 4), [0, 1, 2, 3, 0, 1, 2, 3]
    wanted = torch.nn.functional.cross_entropy(scores, torch.tensor(labels))
    assert torch.allclose(tasks.Classification().loss((scores,), labels), wanted)
    assert torch.allclose(tasks.Classification().loss((scores.softmax(1),), labels), wanted)


@pytest.mark.parametrize(
    ("outputs", "targets", "error", "text"),
    [
        (np.zeros((2, 3)), [0, 3], DataError, "label 3 of example 1 is out of range"),
        (np.zeros((2, 3)), [0, -1], DataError, "label -1"),
        (np.zeros((2, 3)), [0, 1.5], DataError, "one whole number"),
        (np.zeros((2, 3)), [0], DataError, "2 examples have outputs, but there are 1 targets"),
        (np.zeros((2, 1)), [0, 0], ModelError, "two or more"),
        (np.zeros((2, 3, 4)), [0, 0], ModelError, "segmentation"),
        ((np.zeros((2, 3)), np.zeros((3, 3))), [0, 0], ModelError, "2, 3 examples"),
        (np.float32(1), [0], ModelError, "single number"),
        ([np.zeros(3), np.zeros(4)], [0, 0], ModelError, "changes its shape"),
    ],
)
def test_what_does_not_fit_is_refused(outputs, targets, error, text):
    wrapped = (outputs,) if isinstance(outputs, list) else outputs
    with pytest.raises(error, match=text):
        tasks.Classification().score(wrapped, targets)


def test_outputs_that_change_shape_between_batches_are_refused():
    with pytest.raises(ModelError, match=r"from example 2 on"):
        score_batches(tasks.Classification(), [(np.zeros((2, 3)), [0, 0]), (np.zeros((2, 4)), [0, 0])])


def test_a_metric_is_all_that_a_task_needs():
    def error(outputs, targets):
        first, second = outputs
        assert isinstance(first, np.ndarray) and isinstance(targets, list)
        return float(np.mean(np.abs(first[:, 0] + second[:, 0] - np.asarray(targets))))

    task = tasks.Custom(error, "absolute error", unit="m", higher_is_better=False)
    assert isinstance(task, Task) and task.metric == "absolute error"
    random = np.random.default_rng(0)
    targets = list(random.normal(size=80))
    outputs = np.array(targets)[:, None] + random.normal(0, 0.1, (80, 1)), np.zeros((80, 1))
    good = task.score(outputs, targets)
    worse = task.score((outputs[0] + random.normal(0, 0.4, (80, 1)), outputs[1]), targets)
    assert worse.against(good).drop == pytest.approx(worse.value - good.value) and worse.against(good).low > 0
    assert good.low < good.value < good.high
    check_metric(task, outputs, targets)
    dense = torch.randn(16, 4), torch.randn(16, 2, 8)
    assert torch.equal(task.distance(dense, dense), torch.zeros(16))
    off = dense[0] + dense[0].std(0, unbiased=False), dense[1]
    assert task.distance(dense, off).mean() == pytest.approx(0.5, rel=1e-4)  # one deviation off in one of two outputs
    assert task.loss(dense, targets) is None


def test_a_metric_whose_direction_is_wrong_is_found():
    scores, labels = random_scores()
    targets = [int(v) for v in labels]

    def wrong_way(outputs, targets):
        return float(np.mean(outputs[0].argmax(1) == np.asarray(targets)))

    check_metric(tasks.Custom(wrong_way, "accuracy"), scores, targets)
    assert shuffled(tasks.Custom(wrong_way, "accuracy"), scores, targets) == pytest.approx(1 / 7, abs=0.05)
    with pytest.raises(TaskError, match="higher_is_better"):
        check_metric(tasks.Custom(wrong_way, "accuracy", higher_is_better=False), scores, targets)
    with pytest.raises(TaskError, match="shuffled"):
        check_metric(tasks.Custom(lambda o, t: float(len(t)), "count"), scores, targets)


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (lambda o, t: 1 / 0, "ZeroDivisionError"),
        (lambda o, t: float("nan"), "gave nan"),
        (lambda o, t: "high", "one number"),
        (lambda o, t: np.zeros(3), "one number"),
        (lambda o: 1.0, "TypeError"),
    ],
)
def test_a_metric_that_fails_is_a_task_error(metric, text):
    task = tasks.Custom(metric, "mine")
    with pytest.raises(TaskError, match=text):
        task.check(np.zeros((3, 2)), [0, 0, 0])
    if text != "gave nan":
        with pytest.raises(TaskError, match="mine"):
            task.score(np.zeros((3, 2)), [0, 0, 0])
    else:
        with pytest.raises(TaskError, match="nan"):
            check_metric(task, np.zeros((3, 2)), [0, 0, 0])


def test_broken_examples_of_an_unknown_metric_are_counted_and_reach_it_as_zeros():
    outputs = np.ones((4, 2))
    outputs[2, 0] = np.nan
    found = tasks.Custom(lambda o, t: float(o[0].sum()), "sum").score(outputs, [0] * 4)
    assert found.broken == 1 and found.value == 6.0


def test_distances_and_losses_of_ones_own_are_checked():
    outputs = (torch.zeros(3, 2),)
    with pytest.raises(TaskError, match=r"must give \[3\]"):
        tasks.Custom(len, "m", distance=lambda r, o: o[0].sum()).distance(outputs, outputs)
    with pytest.raises(TaskError, match="below 0"):
        tasks.Custom(len, "m", distance=lambda r, o: o[0].sum(1) - 1).distance(outputs, outputs)
    with pytest.raises(TaskError, match="one number"):
        tasks.Custom(len, "m", loss=lambda o, t: o[0]).loss(outputs, [])
    with pytest.raises(TaskError, match="needs a name"):
        tasks.Custom(len, "")
    with pytest.raises(TaskError, match="callable"):
        tasks.Custom(3, "m")


def test_torchmetrics_by_name():
    pytest.importorskip("torchmetrics", reason="the extra edgeprune[metrics] is not installed")
    scores, labels = random_scores()
    task = tasks.Custom(
        "torchmetrics.classification:MulticlassF1Score", arguments={"num_classes": 7, "average": "macro"}
    )
    predicted = scores.argmax(1)
    f1 = []
    for c in range(7):
        tp = np.sum((predicted == c) & (labels == c))
        f1.append(2 * tp / (np.sum(predicted == c) + np.sum(labels == c)))
    found = task.score(scores, [int(v) for v in labels])
    assert task.metric == "MulticlassF1Score" and found.value == pytest.approx(np.mean(f1), abs=1e-6)
    assert found.low < found.value < found.high
    for name, arguments, text in (
        ("torchmetrics.classification:MulticlassF1", {}, "Did you mean"),
        ("torchmetrics.nothing:F1", {}, "module"),
        ("torchmetrics.classification:MulticlassF1Score", {"classes": 7}, "does not take"),
        ("os:getcwd", {}, "torchmetrics"),
    ):
        with pytest.raises(TaskError, match=text):
            tasks.Custom(name, arguments=arguments)


def test_a_task_class_of_ones_own_needs_only_what_it_knows():
    from edgeprune.workload.statistics import Proportion

    class Sign(BaseTask):
        metric, unit = "sign", "points"

        def _measure(self, outputs, targets):
            return Proportion.of((outputs[0][:, 0] > 0) == np.asarray(targets))

    assert isinstance(Sign(), Task)
    assert Sign().score(np.array([[1.0], [-1.0], [2.0]]), [True, True, True]).value == pytest.approx(200 / 3)


def test_kinds_are_made_by_name():
    assert tasks.create("classification", top=5) == tasks.Classification(top=5)
    with pytest.raises(TaskError, match="Did you mean 'classification'"):
        tasks.create("clasification")
    with pytest.raises(TaskError, match="unexpected keyword"):
        tasks.create("classification", topk=5)
