"""Which images are taken where only some are: a seeded draw that holds the classes in proportion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprune import model
from edgeprune.model.data import spread
from edgeprune.recipe import BudgetSection, DataSection, ModelSection, Recipe

COUNTS = {"ant": 60, "bee": 20, "cat": 20}


def recipe(source: object, **section: object) -> Recipe:
    section = {"selection": 20, "calibration": 10, **section}
    return Recipe(ModelSection("a:b", (3, 4, 4)), DataSection(str(source), **section), BudgetSection(speedup=2.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as every folder is: all of one class, then all of the next."""
    root = tmp_path_factory.mktemp("classes")
    for split in ("train", "test"):
        for number, (name, count) in enumerate(COUNTS.items()):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (4, 4), (number, index, 0)).save(root / split / name / f"{index:03}.bmp")
    return root


def held(split: model.Split) -> list[int]:
    return np.bincount(split.labels, minlength=3).tolist()


def test_every_draw_holds_the_classes_in_proportion(folder: Path) -> None:
    data = model.load_data(recipe(folder, test=20))
    assert held(data.test) == [12, 4, 4]
    assert held(data.selection) == [12, 4, 4]
    assert held(data.calibration) == [6, 2, 2]
    assert held(data.train) == [48, 16, 16]
    assert not set(data.train.indices) & set(data.selection.indices)
    assert set(data.calibration.indices) <= set(data.train.indices)
    colours = {tuple(data.test.pixels(n)[0, 0][:1].tolist()) == (data.test.labels[n],) for n in range(20)}
    assert colours == {True}, "an image keeps its label"


def test_all_test_images_are_all_of_them_and_a_beginning_of_them_is_a_fair_draw(folder: Path) -> None:
    data = model.load_data(recipe(folder))
    assert sorted(data.test.indices) == list(range(100))
    assert held(data.test.take(10)) == [6, 2, 2]
    assert held(data.test.take(1000)) == [60, 20, 20]


def test_samples_span_the_classes_even_where_one_has_nearly_all_images(folder: Path) -> None:
    data = model.load_data(recipe(folder))
    assert held(data.test.spanning(8)) == [3, 3, 2] or sorted(held(data.test.spanning(8))) == [2, 3, 3]
    rare = model.Split(
        "test", lambda _: np.zeros((4, 4, 3), np.uint8), tuple(range(100)), np.arange(100) // 99, data.preprocess
    )
    assert held(rare.take(8)) == [8, 0, 0]
    assert held(rare.spanning(8)) == [7, 1, 0]


def test_a_draw_is_unbiased_seeded_and_not_in_the_order_of_storage() -> None:
    labels = np.repeat(np.arange(10), [1, 1, 1, 1, 1, 1, 1, 1, 1, 91])
    first = spread(labels)
    assert first.tolist() == spread(labels).tolist()
    assert sorted(first.tolist()) == list(range(100))
    assert first[:9].tolist() != sorted(first[:9].tolist())
    rare = [int((labels[spread(labels, seed)[:10]] < 9).sum()) for seed in range(400)]
    assert 0.75 < np.mean(rare) < 1.05, "one image in ten of a class with one image, so 0.9 of nine such classes"
