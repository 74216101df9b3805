"""What lies in a folder is recognised by its names, and said; what is laid out anew is what was there."""

from __future__ import annotations

import json
import wave

import numpy as np
import pytest
from PIL import Image

from edgeprune.errors import DataError
from edgeprune.pipeline.layout import role
from edgeprune.pipeline.layout_arrays import Unwritten, guess, written
from edgeprune.pipeline.layout_folders import laid_out, look


def picture(path, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("instances_val2017", "val"),
        ("x_test", "test"),
        ("validation", "val"),
        ("devices", ""),
        ("contest", ""),
        ("values", ""),
        ("cats", ""),
    ],
)
def test_a_name_says_its_split(name, split):
    assert role(name) == split


def test_class_folders_in_splits_of_any_usual_name(tmp_path):
    for split, count in (("train", 5), ("val", 2)):
        for kind in ("cat", "dog"):
            for n in range(count):
                picture(tmp_path / "photos" / split / kind / f"{n}.png")
    found = look(tmp_path / "photos")
    assert (found.kind, found.task, dict(found.counts)) == ("images", "classification", {"train": 10, "test": 4})
    assert "val/ as test" in found.said
    laid = laid_out(found, tmp_path / "laid")
    assert laid.source == str(tmp_path / "laid")
    assert not laid.links
    assert (tmp_path / "laid" / "test" / "dog" / "1.png").is_file()


def test_class_folders_without_splits_are_dealt_out_whole_and_without_overlap(tmp_path):
    for kind in ("cat", "dog"):
        for n in range(10):
            picture(tmp_path / "photos" / kind / f"{n}.png")
    laid = laid_out(look(tmp_path / "photos"), tmp_path / "laid")
    assert dict(laid.counts) == {"train": 16, "test": 4}
    parts = [{p.name for p in (tmp_path / "laid" / split / "cat").iterdir()} for split in ("train", "test")]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 10


def test_boxes_of_coco_and_yolo(tmp_path):
    for split in ("train2017", "val2017"):
        picture(tmp_path / "coco" / split / "1.jpg")
        table = {
            "images": [{"id": 1, "file_name": "1.jpg", "width": 8, "height": 8}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4]}],
            "categories": [{"id": 3, "name": "boat"}],
        }
        (tmp_path / "coco" / "annotations").mkdir(exist_ok=True)
        (tmp_path / "coco" / "annotations" / f"instances_{split}.json").write_text(json.dumps(table))
    found = look(tmp_path / "coco")
    assert (found.kind, found.task, found.classes) == ("coco", "detection", ("boat",))
    assert found.splits["test"]["images"].endswith("coco/val2017")
    assert [path.name for path in found.some] == ["1.jpg"], "their size is tried as the network's input"

    for split in ("train", "val"):
        picture(tmp_path / "yolo" / "images" / split / "1.jpg")
        (tmp_path / "yolo" / "labels" / split).mkdir(parents=True)
        (tmp_path / "yolo" / "labels" / split / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "yolo" / "data.yaml").write_text("nc: 2\nnames:\n  0: boat\n  1: 'car'\n")
    found = laid_out(look(tmp_path / "yolo"), tmp_path / "laid")
    assert (found.kind, found.classes, dict(found.counts)) == ("yolo", ("boat", "car"), {"train": 1, "test": 1})
    assert [path.name for path in found.some] == ["1.jpg"]
    (tmp_path / "yolo" / "data.yaml").unlink()
    with pytest.raises(DataError) as told:
        look(tmp_path / "yolo")
    assert "--classes" in told.value.remedy
    stated = laid_out(look(tmp_path / "yolo", ("ship", "van")), tmp_path / "stated")
    assert (stated.kind, stated.classes) == ("yolo", ("ship", "van"))


def test_pictures_with_masks(tmp_path):
    for split in ("train", "test"):
        picture(tmp_path / split / "images" / "a.jpg")
        (tmp_path / split / "masks").mkdir()
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / split / "masks" / "a.png")
    found = look(tmp_path)
    assert (found.kind, found.task, found.classes) == ("masks", "segmentation", ("0", "255"))
    assert found.options["numbers"] == {"0": 0, "255": 1}
    assert found.splits["train"]["masks"].endswith("train/masks")
    assert [path.name for path in found.some] == ["a.jpg"]


def test_sounds_say_their_rate_and_length(tmp_path):
    for split in ("train", "test"):
        for word in ("yes", "no"):
            (tmp_path / split / word).mkdir(parents=True)
            with wave.open(str(tmp_path / split / word / "1.wav"), "wb") as clip:
                clip.setparams((1, 2, 8000, 0, "NONE", ""))
                clip.writeframes(b"\0\0" * 8000)
    found = look(tmp_path)
    assert (found.kind, found.options) == ("wav", {"rate": 8000, "samples": 8000})


@pytest.mark.parametrize(
    "names", [("x_train", "y_train", "x_test", "y_test"), ("Xtr", "y", "", ""), ("inputs", "targets", "", "")]
)
def test_arrays_by_their_names(tmp_path, names):
    if names[0] == "Xtr":
        names = ("X", "y", "", "")
    rng = np.random.default_rng(0)
    for name, shape in zip(names, ((20, 6), (20,), (10, 6), (10,)), strict=True):
        if name:
            np.save(tmp_path / f"{name}.npy", rng.random(shape))
    found = written(look(tmp_path), tmp_path / "made.npz", lambda shape: len(shape) == 2)
    arrays = np.load(tmp_path / "made.npz")
    assert arrays["train_inputs"].shape[1:] == (1, 6)  # the network takes a channel
    assert arrays["train_inputs"].dtype == np.float32
    assert found.counts["train"] == len(arrays["train_targets"]) == (20 if names[2] else 16)


def test_class_folders_of_arrays(tmp_path):
    for kind, value in (("no", 0.0), ("yes", 1.0)):
        (tmp_path / "words" / kind).mkdir(parents=True)
        for n in range(5):
            np.save(tmp_path / "words" / kind / f"{n}.npy", np.full((4, 3), value))
    found = look(tmp_path / "words")
    assert isinstance(found, Unwritten)
    assert found.said.startswith("10 .npy files in 2 class folders")
    written(found, tmp_path / "made.npz", lambda shape: True)
    arrays = np.load(tmp_path / "made.npz")
    assert (arrays["train_inputs"][:, 0, 0] == arrays["train_targets"]).all()
    assert len(arrays["test_targets"]) == 2


def test_what_is_not_read_is_said_with_what_was_found(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.mp4").touch()
    with pytest.raises(DataError, match=r"3 \.mp4 files: no layout that is read"):
        look(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        look(tmp_path / "gone")


@pytest.mark.parametrize(
    ("targets", "outputs", "task"),
    [
        (np.arange(6) % 3, (3,), "classification"),
        (np.arange(6) % 7, (3,), ""),
        (np.arange(6) % 2, (1,), "binary"),
        (np.linspace(0, 1, 6), (1,), "regression"),
        (np.ones((6, 4)) * [0, 1, 1, 0], (4,), "multilabel"),
        (np.zeros((6, 8, 8), np.int64), (3, 8, 8), "segmentation"),
    ],
)
def test_the_task_that_targets_look_like(targets, outputs, task):
    assert guess(targets, outputs) == task
