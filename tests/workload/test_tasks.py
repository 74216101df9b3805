"""Each built-in task against figures worked out another way, its distance, and input that does not fit."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from edgeprune import tasks
from edgeprune.errors import DataError, ModelError, TaskError
from edgeprune.workload import Task, check_metric, score_batches
from edgeprune.workload.statistics import bootstrap
from edgeprune.workload.tasks.sequence import edits

RANDOM = np.random.default_rng(5)
LOGITS = np.random.default_rng(6).normal(size=(60, 4))
YES = (np.random.default_rng(7).random((60, 4)) < 0.4).astype(int)


def halves(task, outputs, targets):
    """The same score from two batches as from one."""
    one = task.score(outputs, targets)
    cut = len(targets) // 3
    two = score_batches(task, [(outputs[:cut], targets[:cut]), (outputs[cut:], targets[cut:])])
    assert two.value == pytest.approx(one.value, rel=1e-12)
    return one


def test_every_kind_has_a_name_and_is_a_task():
    for kind, make in tasks.KINDS.items():
        task = make(decode=len) if kind == "detection" else make()
        assert isinstance(task, Task), kind
        assert task.metric and isinstance(task.higher_is_better, bool)


def average_precision(scores, truth):
    order = np.argsort(-scores)
    hits = truth[order].cumsum()
    return (hits / np.arange(1, len(scores) + 1))[truth[order] == 1].mean()


def test_multilabel_map_and_f1():
    wanted = np.mean([average_precision(LOGITS[:, k], YES[:, k]) for k in range(4)])
    found = halves(tasks.MultiLabel(), LOGITS, list(YES))
    assert found.value == pytest.approx(100 * wanted) and found.low < found.value < found.high
    said = LOGITS > 0
    f1 = [2 * (said[:, k] & YES[:, k]).sum() / (said[:, k].sum() + YES[:, k].sum()) for k in range(4)]
    assert halves(tasks.MultiLabel("F1"), LOGITS, list(YES)).value == pytest.approx(100 * np.mean(f1))
    chance = np.mean([YES[:, k].mean() for k in range(4)])
    assert tasks.MultiLabel().chance(list(YES)) == pytest.approx(100 * chance)
    with pytest.raises(DataError, match=r"of 0 and 1"):
        tasks.MultiLabel().score(LOGITS, [2 * row for row in YES])
    with pytest.raises(DataError, match="example 0"):
        tasks.MultiLabel().score(LOGITS, [row[:3] for row in YES])


def test_binary_accuracy_and_area_with_ties():
    scores, truth = np.round(LOGITS[:, :1], 1), list(YES[:, 0])
    assert halves(tasks.Binary(), scores, truth).value == pytest.approx(100 * np.mean((scores[:, 0] > 0) == truth))
    positive, negative = scores[YES[:, 0] == 1], scores[YES[:, 0] == 0]
    area = np.mean((positive > negative.T) + 0.5 * (positive == negative.T))
    assert halves(tasks.Binary("AUC"), scores, truth).value == pytest.approx(100 * area)
    sure = np.array(truth)[:, None] * 4.0 - 2
    assert tasks.Binary("AUC").score(sure, truth).value == 100.0
    assert tasks.Binary("AUC").score(np.zeros((60, 1)), truth).value == 50.0
    broken = sure.copy()
    broken[0] = np.nan
    assert tasks.Binary().score(broken, truth).value == pytest.approx(100 * 59 / 60)
    assert tasks.Binary("AUC").score(broken, truth).value < 100
    assert tasks.Binary().constant(np.full((5, 1), 2.0)) and not tasks.Binary().constant(sure)
    with pytest.raises(ModelError, match="classification"):
        tasks.Binary().score(LOGITS, truth)
    with pytest.raises(DataError, match="label 2"):
        tasks.Binary().score(scores, [2] * 60)


def test_mean_iou_is_over_all_pixels_and_ignored_ones_do_not_count():
    truth = RANDOM.integers(0, 3, (20, 6, 5))
    scores = RANDOM.normal(size=(20, 3, 6, 5))
    np.put_along_axis(scores, truth[:, None], np.take_along_axis(scores, truth[:, None], 1) + 1, 1)
    truth[:, 0] = 255
    said, counts = scores.argmax(1), truth != 255
    each = [
        (said[counts] == k)[truth[counts] == k].sum() / ((said[counts] == k) | (truth[counts] == k)).sum()
        for k in range(3)
    ]
    found = halves(tasks.Segmentation(), scores, list(truth))
    assert found.value == pytest.approx(100 * np.mean(each)) and found.low < found.value < found.high
    right = np.mean(said[counts] == truth[counts])
    assert halves(tasks.Segmentation(metric="pixel accuracy"), scores, list(truth)).value == pytest.approx(100 * right)
    assert tasks.Segmentation(classes=3).score(said, list(truth)).value == found.value
    scores[4, 0, 2, 2] = np.nan
    worse = tasks.Segmentation().score(scores, list(truth))
    assert worse.broken == 1 and worse.value < found.value
    assert tasks.Segmentation().constant(np.zeros((3, 2, 4, 4)))
    assert tasks.Segmentation().chance([np.array([[0, 0, 1, 255]])]) == pytest.approx(100 * (1 / 2 + 1 / 5) / 2)
    mask, rng = np.random.default_rng(0).integers(0, 3, (200, 200)), np.random.default_rng(1)
    by_lot = tasks.Segmentation().score((rng.random((1, 3, 200, 200)),), [mask]).value
    assert tasks.Segmentation().chance([mask]) == pytest.approx(by_lot, abs=0.5)  # 20 %, where one class has 11 %
    assert tasks.Segmentation(metric="pixel accuracy").chance([mask]) == pytest.approx(100 / 3, abs=1)


@pytest.mark.parametrize(
    ("scores", "mask", "text"),
    [
        (np.zeros((1, 3, 4, 4)), np.full((4, 4), 3), "class 3"),
        (np.zeros((1, 3, 4, 4)), np.full((4, 4), -1), "class -1"),
        (np.zeros((1, 3, 4, 4)), np.zeros((5, 4), int), r"\[5, 4\].*\[4, 4\]"),
        (np.zeros((1, 3, 4, 4)), np.zeros((4, 4)), "whole numbers"),
        (np.zeros((1, 3)), np.zeros((4, 4), int), r"\[classes, H, W\]"),
    ],
)
def test_masks_that_do_not_fit_are_refused(scores, mask, text):
    with pytest.raises((DataError, ModelError), match=text):
        tasks.Segmentation().score(scores, [mask])


def test_masks_of_another_size_are_fitted_only_when_asked():
    scores = np.zeros((1, 2, 2, 2))
    scores[0, 1, :, 1] = 5
    mask = np.repeat([[0, 0, 1, 1]], 4, 0)
    assert tasks.Segmentation(resize=True).score(scores, [mask]).value == 100.0


def test_psnr_and_ssim():
    true = RANDOM.integers(0, 256, (4, 3, 20, 24)).astype(float)
    off = np.clip(true + RANDOM.normal(0, 8, true.shape), 0, 255)
    task = tasks.Restoration(peak=255, crop=2)
    rounded = np.round(off)[:, :, 2:-2, 2:-2]
    wanted = np.mean(
        [10 * np.log10(255**2 / np.mean((a - b) ** 2)) for a, b in zip(rounded, true[:, :, 2:-2, 2:-2], strict=True)]
    )
    assert halves(task, off, list(true)).value == pytest.approx(wanted)
    assert task.unit == "dB" and tasks.Restoration(peak=255).score(true, list(true)).value == 100.0
    assert tasks.Restoration("SSIM", peak=255).score(true, list(true)).value == pytest.approx(1.0)
    scikit = 0.5  # halving the contrast of both leaves SSIM's structure term alone
    low = tasks.Restoration("SSIM", peak=255).score(off, list(true)).value
    assert scikit < low < 1
    grey = [np.full((3, 12, 12), 100.0)]
    brighter = tasks.Restoration("PSNR", peak=255, on="Y").score(np.full((1, 3, 12, 12), 110.0), grey).value
    assert brighter == pytest.approx(20 * np.log10(255 / (10 * 219 / 255)))  # Y spans 219 of 255
    for target, text in ((np.zeros((3, 5, 5)), "one size"), (np.full((3, 12, 12), 300.0), "peak")):
        with pytest.raises(DataError, match=text):
            tasks.Restoration(peak=255).score(np.zeros((1, 3, 12, 12)), [target])
    sizes = ([np.zeros((3, 12, 12)), np.zeros((3, 9, 16))],)
    assert tasks.Restoration().score(sizes, [np.ones((3, 12, 12)), np.ones((3, 9, 16))]).value == pytest.approx(0)


def test_regression_metrics():
    truth = RANDOM.normal(size=(50, 2))
    given = truth + RANDOM.normal(0, 0.3, (50, 2))
    for kind, wanted in (
        ("MAE", np.abs(given - truth).mean()),
        ("RMSE", np.sqrt(((given - truth) ** 2).mean())),
        ("R2", np.mean(1 - ((given - truth) ** 2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0))),
    ):
        task = tasks.Regression(kind)
        found = halves(task, given, list(truth))
        assert found.value == pytest.approx(wanted) and found.low < found.value < found.high
        worse = task.score(given + 0.5, list(truth)).against(found)
        assert worse.drop > 0 and worse.low > 0
        check_metric(task, given, list(truth))
        broken = given.copy()
        broken[0] = np.inf
        assert task.score(broken, list(truth)).against(found).drop > 0
    assert tasks.Regression("R2").chance(list(truth)) == 0.0
    assert tasks.Regression("MAE").score(given[:, :1], list(truth[:, 0])).unit == ""
    with pytest.raises(DataError, match="2 numbers"):
        tasks.Regression().score(given[:, :1], list(truth))
    with pytest.raises(DataError, match="finite"):
        tasks.Regression().score(given, [np.array([np.nan, 0])] * 50)
    with pytest.raises(DataError, match="all targets are the same"):
        tasks.Regression("R2").check(given, [np.zeros(2)] * 50)


def test_recall_and_cosine():
    identities = np.repeat(np.arange(12), 3)
    centres = RANDOM.normal(size=(12, 8))
    vectors = centres[identities] + RANDOM.normal(0, 0.7, (36, 8))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit @ unit.T
    np.fill_diagonal(near, -9)
    wanted = np.mean([np.any(identities[np.argsort(-row)[:2]] == k) for row, k in zip(near, identities, strict=True)])
    task = tasks.Embedding(k=2)
    found = halves(task, vectors, list(identities))
    assert found.value == pytest.approx(100 * wanted) and task.metric == "recall@2"
    assert found.low <= found.value <= found.high
    drop = task.score(RANDOM.normal(size=(36, 8)), list(identities)).against(found)
    assert drop.low > 0
    assert 5 < task.chance(list(identities)) < 15
    cosine = tasks.Embedding("cosine").score(vectors, list(vectors * 3))
    assert cosine.value == pytest.approx(1.0)


def test_character_and_word_errors():
    alphabet = "_ab "
    task = tasks.SequenceLabels(alphabet)
    spelled = [[1, 1, 0, 1, 2, 0], [2, 3, 3, 1, 0, 0]]  # "aab", "b a"
    scores = np.eye(4)[np.array(spelled)]
    assert [task.read(s) for s in scores] == ["aab", "b a"]
    assert halves(task, scores, ["aab", "b a"]).value == 0.0
    assert task.score(scores, ["ab", "b b"]).value == pytest.approx(100 * 2 / 5)
    assert tasks.SequenceLabels(alphabet, metric="WER").score(scores, ["aab", "b b"]).value == pytest.approx(100 / 3)
    assert task.higher_is_better is False
    flipped = tasks.SequenceLabels(alphabet, axis=0).score(scores.transpose(0, 2, 1), ["aab", "b a"])
    assert flipped.value == 0.0
    for target, text in (("x", "'x'"), ([7], "label 7"), ([0.5], "label numbers")):
        with pytest.raises(DataError, match=text):
            task.score(scores, [target, "b a"])
    loss = task.loss((torch.tensor(scores * 30, dtype=torch.float32),), ["aab", "b a"])
    assert 0 <= float(loss) < 0.1
    scores[0, 0, 0] = np.nan
    assert task.score(scores, ["aab", "b a"]).value == pytest.approx(50.0)


CASES = [
    (tasks.Classification(), (torch.randn(6, 5),)),
    (tasks.MultiLabel(), (torch.randn(6, 5),)),
    (tasks.Binary(), (torch.rand(6, 1),)),
    (tasks.Segmentation(), (torch.randn(6, 3, 4, 4),)),
    (tasks.Segmentation(), (torch.randn(6, 1, 4, 4),)),
    (tasks.Detection(len), (torch.randn(6, 9, 4, 4), torch.randn(6, 20, 4))),
    (tasks.Restoration(), (torch.rand(6, 3, 8, 8),)),
    (tasks.Regression(), (torch.randn(6),)),
    (tasks.Regression(), (torch.randn(6, 2),)),
    (tasks.Embedding(), (torch.randn(6, 16),)),
    (tasks.SequenceLabels(), (torch.randn(6, 7, 5),)),
    (tasks.Custom(len, "m"), (torch.randn(6, 3, 5, 5), torch.randint(0, 9, (6, 4)))),
]


@pytest.mark.parametrize(
    ("task", "dense"), CASES, ids=lambda value: type(value).__name__ if not isinstance(value, tuple) else ""
)
def test_distances_are_zero_where_equal_grow_and_have_a_gradient(task, dense):
    assert torch.equal(task.distance(dense, dense), torch.zeros(6))
    torch.manual_seed(1)
    noise = tuple(torch.randn(d.shape) * 0.1 for d in dense)
    floats = [d.is_floating_point() for d in dense]

    def moved(size):
        return tuple(
            (d + size * n).clamp(0.0, 1.0) if isinstance(task, tasks.Binary) else d + size * n if f else d
            for d, n, f in zip(dense, noise, floats, strict=True)
        )

    near, far = task.distance(dense, moved(0.5)), task.distance(dense, moved(3.0))
    assert near.shape == far.shape == (6,) and (near >= 0).all() and far.mean() > near.mean() > 0
    leaf = [m.detach().requires_grad_() if f else m for m, f in zip(moved(0.5), floats, strict=True)]
    task.distance(dense, tuple(leaf)).sum().backward()
    assert all(torch.isfinite(m.grad).all() and m.grad.abs().sum() > 0 for m, f in zip(leaf, floats, strict=True) if f)
    broken = list(moved(0.5))
    broken[0] = broken[0].clone()
    broken[0][2] = math.nan
    assert torch.isinf(task.distance(dense, tuple(broken))).tolist() == [False, False, True, False, False, False]
    with pytest.raises(ModelError, match="that of the dense network"):
        task.distance(dense, tuple(d[:, :1] if d.ndim > 1 and d.shape[1] > 1 else d[:3] for d in dense))


@pytest.mark.parametrize(
    "make",
    [
        lambda: tasks.MultiLabel("top-1"),
        lambda: tasks.Binary(threshold=1.5),
        lambda: tasks.Segmentation(classes=1),
        lambda: tasks.Restoration("MSE"),
        lambda: tasks.Regression("R2", unit="m"),
        lambda: tasks.Embedding("far"),
        lambda: tasks.SequenceLabels(metric="WER"),
        lambda: tasks.Detection("boxes"),
        lambda: tasks.Classification(top=0),
    ],
)
def test_impossible_tasks_are_refused(make):
    with pytest.raises(TaskError):
        make()


class TestGuessedSequences:
    """What a guess is worth: always the most frequent sequence, held against the others."""

    def test_of_one_sequence_that_most_examples_have(self):
        targets = [[1, 2, 3, 4]] * 8 + [[4, 3, 2, 1]] * 2
        assert tasks.SequenceLabels().chance(targets) == pytest.approx(
            100 * (2 * 4) / (9 * 4)
        )  # two of nine others, 4 edits

    def test_of_sequences_that_have_nothing_in_common_it_is_that_of_saying_nothing(self):
        assert tasks.SequenceLabels().chance([[n] * 4 for n in range(1, 30)]) == 100.0
        assert tasks.SequenceLabels().chance([[], []]) == 100.0
        assert tasks.SequenceLabels().chance([[1, 2]]) == 100.0  # one example says nothing of others

    def test_letters_drawn_by_chance_are_worth_what_a_guess_of_them_is(self):
        rng = np.random.default_rng(0)
        targets = rng.integers(1, 5, (400, 4)).tolist()
        guessed = np.mean([edits(targets[0], other) for other in targets[1:]]) / 4 * 100
        assert tasks.SequenceLabels().chance(targets) == pytest.approx(guessed, abs=6)
        assert 50 < guessed < 75

    def test_long_texts_take_no_time(self):
        letters = "abcdefghij"
        rng = np.random.default_rng(0)
        texts = ["".join(rng.choice(list(letters), 2000)) for _ in range(64)]
        began = time.process_time()
        assert 60 < tasks.SequenceLabels(alphabet=letters).chance(texts) <= 100
        assert time.process_time() - began < 2


def test_a_metric_that_fails_on_a_draw_of_the_examples_is_the_users_error() -> None:
    """As an area under a curve does where a class is missing; it is fine on all examples."""

    def area(outputs: Any, targets: list[Any]) -> float:
        if len(set(targets)) < 4:
            raise ValueError("only some classes")
        return 1.0

    task = tasks.Custom(area, "area")
    found = score_batches(task, [((np.zeros((4, 1), np.float32),), [0, 1, 2, 3])])
    with pytest.raises(TaskError, match="the metric area failed on 4 examples: ValueError: only some classes"):
        bootstrap(found.statistics)
