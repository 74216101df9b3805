"""Images and labels: every source gives the same splits, every defect one clear error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprune import model
from edgeprune.errors import DataError
from edgeprune.recipe import BudgetSection, DataSection, ModelSection, Recipe

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "train_images": RANDOM.integers(0, 256, (40, 8, 8, 3), np.uint8),
    "train_labels": np.arange(40) % 2,
    "test_images": RANDOM.integers(0, 256, (10, 8, 8, 3), np.uint8),
    "test_labels": np.arange(10) % 2,
}
CIFAR = Path(__file__).parents[2] / "calibration" / "cifar10"


def recipe(source: object, **section: object) -> Recipe:
    section = {"selection": 8, "calibration": 6, **section}
    return Recipe(ModelSection("a:b", (3, 8, 8)), DataSection(str(source), **section), BudgetSection(speedup=2.0))


def as_folder(root: Path) -> Path:
    for split in ("train", "test"):
        for number, (image, label) in enumerate(zip(ARRAYS[f"{split}_images"], ARRAYS[f"{split}_labels"], strict=True)):
            folder = root / split / ("cat", "dog")[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:02}.png")
    return root


def test_npz_and_folder_give_the_same_images_in_the_same_splits(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", **ARRAYS)
    from_npz = model.load_data(recipe(tmp_path / "all.npz"))
    from_folder = model.load_data(recipe(as_folder(tmp_path / "images")))
    assert from_folder.classes == ("cat", "dog")

    def images(*splits: model.Split) -> list[bytes]:
        return sorted(image.tobytes() for split in splits for image in split.arrays())

    assert images(from_npz.test) == images(from_folder.test)
    assert images(from_npz.train, from_npz.selection) == images(from_folder.train, from_folder.selection)


def test_nothing_is_chosen_by_images_that_are_trained_on_or_tested(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", **ARRAYS)
    data = model.load_data(recipe(tmp_path / "all.npz"))
    assert (len(data.train), len(data.selection), len(data.calibration), len(data.test)) == (32, 8, 6, 10)
    assert not set(data.train.indices) & set(data.selection.indices)
    assert set(data.calibration.indices) <= set(data.train.indices)


def test_preprocessing_is_resize_crop_scale_mean_std() -> None:
    prepare = model.Preprocess(16, 8, 1 / 255, (0.5,), (0.25,), (3, 8, 8))
    out = prepare(np.full((32, 64, 3), 255, np.uint8))
    assert out.shape == (3, 8, 8) and out.dtype == np.float32
    np.testing.assert_allclose(out, 2.0)


@pytest.mark.long
def test_the_shipped_cifar10_images_are_whole() -> None:
    data = model.load_data(
        Recipe(ModelSection("a:b", (3, 32, 32)), DataSection(str(CIFAR)), BudgetSection(speedup=2.0))
    )
    assert (len(data.train), len(data.selection), len(data.test), len(data.classes)) == (6000, 1000, 2000, 10)
    for part, each in ((data.train, 600), (data.selection, 100), (data.test, 200)):
        assert np.bincount(part.labels).tolist() == [each] * 10


def test_a_selection_split_of_its_own_is_used_and_nothing_is_held_out(tmp_path: Path) -> None:
    own = {"selection_images": ARRAYS["test_images"][::-1], "selection_labels": ARRAYS["test_labels"][::-1]}
    np.savez(tmp_path / "all.npz", **ARRAYS, **own)
    data = model.load_data(recipe(tmp_path / "all.npz"))
    assert (len(data.train), len(data.selection)) == (40, 10)
    np.testing.assert_array_equal(data.selection.pixels(0), ARRAYS["test_images"][::-1][data.selection.indices[0]])
    assert sorted(data.selection.indices) == list(range(10))


@pytest.mark.long
def test_a_damaged_sheet_is_named(tmp_path: Path) -> None:
    shutil.copytree(CIFAR, tmp_path / "copy")
    sheet = tmp_path / "copy" / "test-1.webp"
    sheet.write_bytes(sheet.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match=r"test-1\.webp is damaged"):
        model.load_data(
            Recipe(ModelSection("a:b", (3, 32, 32)), DataSection(str(tmp_path / "copy")), BudgetSection(2.0))
        )
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(DataError, match="not a manifest of sheets"):
        model.load_data(recipe(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.arange(40) - 1}, "label -1 of train image 0 is out of range"),
        ({"classes": np.array(["cat"])}, "label 1 of train image 1 is out of range: there are 1 classes"),
        ({"test_labels": np.arange(9)}, "10 test images but 9 labels"),
        ({"train_images": ARRAYS["train_images"].astype(np.float32)}, r"train_images is float32 .* must be uint8"),
        ({"test_images": ARRAYS["test_images"][:0], "test_labels": np.arange(0)}, "test split has no images"),
    ],
)
def test_wrong_arrays_are_explained(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "all.npz", **{**ARRAYS, **change})
    with pytest.raises(DataError, match=message):
        model.load_data(recipe(tmp_path / "all.npz"))


def test_wrong_sources_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or file"):
        model.load_data(recipe(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no images[\s\S]*train/CLASS"):
        model.load_data(recipe(tmp_path / "empty"))
    np.savez(tmp_path / "part.npz", train_images=ARRAYS["train_images"])
    with pytest.raises(DataError, match="lacks train_labels"):
        model.load_data(recipe(tmp_path / "part.npz"))
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        model.load_data(recipe(tmp_path / "bad.npz"))
    np.savez(tmp_path / "all.npz", **ARRAYS)
    with pytest.raises(DataError, match="40 training images; selection holds out 40"):
        model.load_data(recipe(tmp_path / "all.npz", selection=40))
    with pytest.raises(DataError, match=r"is \[3, 4, 4\] after preprocessing"):
        model.load_data(recipe(tmp_path / "all.npz", crop=4))


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    folder = as_folder(tmp_path / "images")
    (folder / "test" / "cat" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    with pytest.raises(DataError, match=r"00\.png cannot be read as an image"):
        model.load_data(recipe(folder))
