"""COCO's mAP against the field's own code, decoders, and decodes that fail."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgeprune import tasks
from edgeprune.errors import DataError, ModelError, TaskError
from edgeprune.tasks import decoders
from edgeprune.workload.boxes import nms, overlap
from edgeprune.workload.statistics import whole
from edgeprune.workload.tasks.detection import coco_figures


def scene(seed, pictures=30, classes=4, crowds=False, digits=1):
    """Labelled boxes, and what a mediocre detector makes of them: misses, doubles, shifts, equal scores."""
    random = np.random.default_rng(seed)
    targets, outputs = [], []
    for _ in range(pictures):
        count = int(random.integers(0, 7))
        corner, size = random.random((count, 2)) * 0.7, 0.05 + random.random((count, 2)) * 0.25
        boxes, labels = np.concatenate([corner, corner + size], 1), random.integers(0, classes, count)
        targets.append({"boxes": boxes, "labels": labels})
        if crowds:
            targets[-1]["crowd"] = random.random(count) < 0.3
        seen = np.repeat(np.arange(count), random.integers(0, 3, count))
        shifted = boxes[seen] + random.normal(0, 0.02, (len(seen), 4))
        shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 0.01)
        noise = random.random((5, 2)) * 0.8
        found = np.concatenate([shifted, np.concatenate([noise, noise + 0.1], 1)])
        kinds = np.concatenate([labels[seen], random.integers(0, classes, 5)])
        kinds = np.where(random.random(len(kinds)) < 0.1, random.integers(0, classes, len(kinds)), kinds)
        scores = np.round(np.concatenate([0.3 + 0.7 * random.random(len(seen)), random.random(5) * 0.6]), digits)
        outputs.append(np.concatenate([found, scores[:, None], kinds[:, None]], 1))
    return ([*outputs],), targets


def read(outputs):
    return outputs[0][:, :4], outputs[0][:, 4], outputs[0][:, 5].astype(int)


class Varying(tasks.Detection):
    varying = True


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_our_figure_is_that_of_faster_coco_eval(seed, crowds):
    pytest.importorskip("faster_coco_eval", reason="the extra edgeprune[detection] is not installed")
    outputs, targets = scene(seed, crowds=crowds)
    wanted = Varying(read).coco(outputs, targets)
    assert 5 < wanted["AP"] < 95
    assert Varying(read).score(outputs, targets).value == pytest.approx(wanted["AP"], abs=1e-9)
    assert Varying(read, thresholds=(0.5,)).score(outputs, targets).value == pytest.approx(wanted["AP50"], abs=1e-9)


def test_a_resample_is_what_the_field_says_of_the_pictures_drawn():
    pytest.importorskip("faster_coco_eval", reason="the extra edgeprune[detection] is not installed")
    outputs, targets = scene(1, digits=12)
    task = Varying(read)
    statistics = task.measure(outputs, targets)
    random = np.random.default_rng(0)
    for _ in range(4):
        drawn = np.sort(random.integers(0, len(targets), len(targets)))
        weights = np.bincount(drawn, minlength=len(targets))[None]
        truth = [task.target(targets[i]) for i in drawn]
        wanted = coco_figures([task.found((outputs[0][i],)) for i in drawn], truth)["AP"]
        assert statistics.values(weights)[0] == pytest.approx(wanted, abs=1e-9)


def test_thousands_of_resamples_take_seconds():
    outputs, targets = scene(2, pictures=500, classes=20)
    statistics = Varying(read).measure(outputs, targets)
    start = time.process_time()
    statistics.values(np.random.default_rng(0).multinomial(500, np.full(500, 1 / 500), size=100))
    assert (time.process_time() - start) / 100 < 0.02


@pytest.mark.long
def test_a_worse_detector_drops_and_batches_join():
    outputs, targets = scene(3)
    task = Varying(read)
    dense = task.score(outputs, targets)
    fewer = ([o[o[:, 4] > 0.6] for o in outputs[0]],)
    drop = task.score(fewer, targets).against(dense)
    assert drop.drop > 0 and drop.low > 0 and dense.low < dense.value < dense.high
    parts = [task.measure((list(outputs[0][a:b]),), targets[a:b]) for a, b in ((0, 9), (9, 10), (10, 30))]
    assert whole(parts[0].joined(parts[1:])) == pytest.approx(dense.value, abs=1e-9)
    assert dense.against(dense).drop == 0 and dense.against(dense).upper(0.95) > 0


def test_no_boxes_at_all_is_a_figure_not_a_failure():
    _, targets = scene(4)
    nothing = (np.zeros((30, 0, 6)),)
    found = tasks.Detection(read).score(nothing, targets)
    assert found.value == 0.0 and found.broken == 0
    broken = np.ones((30, 1, 6))
    broken[:, 0, 0] = np.nan
    found = tasks.Detection(read).score((broken,), targets)
    assert found.value == 0.0 and found.broken == 30


@pytest.mark.parametrize(
    ("decode", "text"),
    [
        (lambda o: 1 / 0, r"ZeroDivisionError[^$]*empty arrays"),
        (lambda o: o[0].max(0), "must give boxes, scores, labels"),
        (lambda o: (o[0][:, :3], o[0][:, 4], o[0][:, 5]), r"\[2, 3\]"),
        (lambda o: (o[0][:, :4], o[0][:, 4], o[0][:, 4]), "whole numbers"),
        (lambda o: (o[0][:, :4], o[0][:, 4], -o[0][:, 5]), "whole numbers"),
    ],
)
def test_a_decode_that_fails_is_named(decode, text):
    outputs = np.array([[[0.1, 0.1, 0.2, 0.2, 0.5, 1.0], [0.1, 0.1, 0.2, 0.2, 0.5, 1.0]]])
    target = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0)}
    with pytest.raises(TaskError, match=text):
        tasks.Detection(decode).score(outputs, [target])


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ([0, 1], "must be a dict"),
        ({"boxes": np.zeros((2, 4)), "labels": [1]}, "2 boxes, 1 labels"),
        ({"boxes": [[0.5, 0.5, 0.1, 0.1]], "labels": [0]}, "x1 >= x0"),
        ({"boxes": [[0, 0, np.nan, 1]], "labels": [0]}, "x1 >= x0"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [-1]}, "label -1"),
    ],
)
def test_labels_that_are_no_boxes_are_refused(target, text):
    with pytest.raises(DataError, match=text):
        tasks.Detection(read).score(np.zeros((1, 0, 6)), [target])


def test_pixels_against_parts_of_the_picture_are_found_before_anything_is_measured():
    outputs = np.tile([[[0.1, 0.1, 0.6, 0.6, 0.9, 1.0]]], (3, 1, 1))
    pixels = [{"boxes": [[32, 32, 190, 190]], "labels": [1]}] * 3
    with pytest.raises(TaskError, match="not in one unit"):
        tasks.Detection(read).check(outputs, pixels)
    tasks.Detection(read).check(outputs, [{"boxes": [[0.1, 0.1, 0.5, 0.5]], "labels": [1]}] * 3)


def test_suppression_keeps_the_best_of_each_class():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10], [20, 20, 30, 30.0]])
    assert overlap(boxes[:1], boxes)[0] == pytest.approx([1, 81 / 119, 1, 0])
    assert nms(boxes, np.array([0.8, 0.9, 0.7, 0.1]), np.array([0, 0, 1, 0])).tolist() == [1, 2, 3]
    assert nms(boxes, np.array([0.8, 0.9, 0.7, 0.1]), np.array([0, 0, 1, 0]), most=2).tolist() == [1, 2]
    assert nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0)).tolist() == []


BOX = np.array([0.25, 0.25, 0.75, 0.5])  # x0, y0, x1, y1; its centre is (0.5, 0.375)


def logit(p):
    return np.log(p / (1 - p))


def yolo_free():
    """A raw map of 8 x 8 cells with 4 bins: the box of cell (3, 4) reaches 2.5, 1.5 strides and so on."""
    level = np.full((4 * 4 + 2, 8, 8), -9.0)
    y, x = 2, 4
    for side, reach in enumerate((x + 0.5 - 2.0, y + 0.5 - 2.0, 6.0 - x - 0.5, 4.0 - y - 0.5)):
        low = int(reach)
        level[4 * side + low, y, x] = np.log(1 - (reach - low)) + 20
        level[4 * side + min(low + 1, 3), y, x] = np.log(max(reach - low, 1e-9)) + 20
    level[16 + 1, y, x] = logit(0.9)
    return decoders.YoloAnchorFree(size=(64, 64), bins=4), (level,)


def yolo_decoded():
    table = np.full((6, 5), 0.0)
    table[:4] = 1.0
    table[:, 2] = [32, 24, 32, 16, 0.0, 0.9]
    return decoders.YoloAnchorFree(size=(64, 64)), (table,)


def yolo_anchors():
    level = np.full((2 * 7, 8, 8), -9.0)
    head = level.reshape(2, 7, 8, 8)
    head[1, :, 3, 4] = [logit(0.25), logit(0.25), 0.0, 0.0, 30.0, -9.0, logit(0.9)]  # 2 * 0.25 - 0.5 = 0
    return decoders.YoloAnchors(anchors=(((10, 10), (32, 16)),), size=(64, 64)), (level,)


def ssd():
    priors = np.array([[0.4, 0.4, 0.4, 0.2], [0.1, 0.1, 0.1, 0.1]])
    offsets = np.array([[2.5, -1.25, np.log(1.25) / 0.2, np.log(1.25) / 0.2], [0, 0, 0, 0]])
    scores = np.log([[0.05, 0.05, 0.9], [0.999, 0.0005, 0.0005]])
    return decoders.SSD(priors=priors), (scores, offsets)


def detr():
    logits = np.log([[0.05, 0.9, 0.05], [0.002, 0.003, 0.995]])
    return decoders.DETR(), (logits, np.array([[0.5, 0.375, 0.5, 0.25], [0.1, 0.1, 0.1, 0.1]]))


def fastest():
    head = np.zeros((7, 8, 8))
    head[:, 3, 4] = [0.9, 0, 0, 0, logit(0.25), 0, 0.9]
    return decoders.FastestDet(), (head,)


@pytest.mark.parametrize("make", [yolo_free, yolo_decoded, yolo_anchors, ssd, detr, fastest], ids=lambda f: f.__name__)
def test_decoders_find_the_box_that_was_written(make):
    decode, outputs = make()
    boxes, scores, labels = decode(outputs)
    assert len(boxes) == 1 and labels.tolist() == [1]
    assert boxes[0] == pytest.approx(BOX, abs=1e-3) and scores[0] == pytest.approx(0.9, abs=1e-3)
    low = tuple(np.full_like(o, -20.0) for o in outputs)
    empty = decode(low) if make not in (ssd, fastest, detr) else decode(tuple(np.zeros_like(o) for o in outputs))
    if make in (ssd, detr):  # without any opinion a softmax still has one
        empty = type(decode)(**{**vars(decode), "score": 0.99})(outputs)
    assert [len(part) for part in empty] == [0, 0, 0]
    with pytest.raises(ModelError):
        decode((np.zeros((3, 3, 3)), np.zeros(3), np.zeros(2)))
