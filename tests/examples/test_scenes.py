"""The scenes of examples/detection and examples/segmentation: the same everywhere, and true by construction."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from example_code import items, module

scenes = module("scenes")


@pytest.fixture(autouse=True)
def _items() -> None:
    items()


def test_scenes_are_the_same_on_every_machine():
    found = hashlib.sha256()
    for split in ("train", "selection", "test"):
        made = scenes.scene(split, 7)
        for part in (made.boxes, made.labels, made.mask):
            found.update(np.ascontiguousarray(part).tobytes())
    assert np.array_equal(scenes.scene("train", 7).picture, scenes.scene("train", 7).picture)
    assert found.hexdigest()[:16] == "8d399585b2f1f8c3"


def test_no_item_and_no_texture_is_in_two_splits():
    digests = {split: {image.tobytes() for image in scenes.items(split)[0]} for split in ("train", "selection", "test")}
    assert len(digests["selection"]) >= 4900 and len(digests["test"]) >= 9900
    grounds = {split: {tile.tobytes() for tile in scenes.textures(split)} for split in digests}
    for one, other in (("train", "selection"), ("train", "test"), ("selection", "test")):
        assert not digests[one] & digests[other]
        assert not grounds[one] & grounds[other]


def test_boxes_are_as_tight_as_the_masks():
    single = [made for number in range(200) if len((made := scenes.scene("test", number)).labels) == 1]
    assert len(single) > 5
    for made in single:
        rows, columns = np.flatnonzero(made.mask.any(1)), np.flatnonzero(made.mask.any(0))
        tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / scenes.SIDE
        assert np.allclose(made.boxes[0], tight)
        assert set(np.unique(made.mask)) == {0, made.labels[0] + 1}


def test_the_datasets_give_what_the_tasks_take():
    inputs, target = scenes.Scenes("selection")[3]
    assert inputs.shape == (3, 96, 96) and inputs.dtype == np.float32 and 0 <= inputs.min() < inputs.max() <= 1
    assert target["boxes"].shape == (len(target["labels"]), 4) and target["boxes"].max() <= 1
    _, mask = scenes.Scenes("selection", True)[3]
    assert mask.shape == (96, 96) and mask.max() <= len(scenes.CLASSES)
    with pytest.raises(IndexError):
        scenes.Scenes("selection")[len(scenes.Scenes("selection"))]
