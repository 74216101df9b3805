"""Folders, arrays and functions that are not what they seem: nothing is guessed, nothing left out unsaid."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprune import model
from edgeprune.errors import DataError
from edgeprune.recipe import BudgetSection, DataSection, ModelSection, Recipe

GREY = np.random.default_rng(0).integers(0, 255, (30, 12, 12), np.uint8)
LABELS = np.arange(30) % 3


def recipe(source: object, shape: tuple[int, ...] = (3, 8, 8), **section: object) -> Recipe:
    section = {"selection": 4, "calibration": 4, **section}
    return Recipe(ModelSection("a:b", shape), DataSection(str(source), **section), BudgetSection(speedup=2.0))


def images(root: Path, train: Iterable[str], test: Iterable[str], count: int = 6) -> Path:
    for split, names in (("train", train), ("test", test)):
        for number, name in enumerate(names):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                Image.new("RGB", (8, 8), (number, index, 7)).save(root / split / name / f"{index}.png")
    return root


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("acd", "abcd", r"differ: only in test/: 'b'"),
        ("abcd", "acd", r"differ: only in train/: 'b'"),
        (["cat", "dog"], ["cat", "dgo"], r"only in train/: 'dog'; only in test/: 'dgo'\. Is 'dgo' meant to be 'dog'\?"),
        (["Cat", "dog"], ["cat", "dog"], r"only in train/: 'Cat'; only in test/: 'cat'\. Is 'cat' meant to be 'Cat'\?"),
    ],
)
def test_splits_with_other_class_folders_are_refused_and_named(tmp_path: Path, train, test, message: str) -> None:
    with pytest.raises(DataError, match=message + r"[\s\S]*\[data\] classes = "):
        model.load_data(recipe(images(tmp_path, train, test)))


@pytest.mark.parametrize("by", ["recipe", "file"])
def test_stated_classes_give_the_network_s_own_numbers(tmp_path: Path, by: str) -> None:
    root = images(tmp_path, "acd", "abcd")
    order = ("d", "c", "b", "a")
    if by == "file":
        (root / "classes.txt").write_text("\n".join(order) + "\n")
    data = model.load_data(recipe(root, classes=order if by == "recipe" else ()))
    assert data.classes == order
    assert len(data.test) == 24, "the class without training images is tested too"
    for split, names in ((data.train, "acd"), (data.test, "abcd")):
        for position, label in enumerate(split.labels):
            assert order[label] == names[split.pixels(position)[0, 0, 0]]
    assert "[data] train/ has no images of 1 of 4 classes: 'b'" in data.skipped
    with pytest.raises(DataError, match=r"classes does not name the folder 'train/a', 'test/a'"):
        model.load_data(recipe(root, classes=("d", "c", "b")))
    with pytest.raises(DataError, match="names a class twice: 'd'"):
        model.load_data(recipe(root, classes=("d", "c", "b", "a", "d")))


def test_labels_and_outputs_must_fit_both_ways(tmp_path: Path) -> None:
    data = model.load_data(recipe(images(tmp_path, "abc", "abc")))
    model.check_outputs(data, 3)
    with pytest.raises(DataError, match="labels go up to 2, but the network has 2 outputs"):
        model.check_outputs(data, 2)
    with pytest.raises(DataError, match=r"there are 3 classes, but the network has 10 outputs[\s\S]*classes.txt"):
        model.check_outputs(data, 10)
    model.check_outputs(model.load_data(recipe(tmp_path, classes=("a", "b", "c"))), 10)


def test_selection_labels_are_checked_too(tmp_path: Path) -> None:
    one = {f"{s}_images": GREY for s in ("train", "selection", "test")}
    np.savez(tmp_path / "d.npz", **one, train_labels=LABELS, test_labels=LABELS, selection_labels=LABELS + 5)
    data = model.load_data(recipe(tmp_path / "d.npz", (1, 12, 12)))
    with pytest.raises(DataError, match="selection labels go up to 7, but the network has 3 outputs"):
        model.check_outputs(data, 3)


def test_what_is_left_out_is_counted_and_said(tmp_path: Path) -> None:
    root = images(tmp_path, "ab", "ab")
    for hidden in ("train/.ipynb_checkpoints", "train/__MACOSX"):
        (root / hidden).mkdir()
        Image.new("RGB", (8, 8)).save(root / hidden / "x.png")
    (root / "train/a/._0.png").write_bytes(b"AppleDouble")
    (root / "train/a/more/deep").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "train/a/more/deep/x.png")
    Image.new("L", (8, 8)).save(root / "test/b/x.gif")
    (root / "test/b/y.HEIC").write_bytes(b"")
    (root / "test/list.txt").write_text("")
    data = model.load_data(recipe(root))
    assert data.classes == ("a", "b")
    assert (len(data.train) + len(data.selection), len(data.test)) == (12, 12)
    assert data.skipped == (
        "[data] test/: left out 1 .gif files (no image format that is read)",
        "[data] test/: left out 1 .heic files (no image format that is read)",
        "[data] test/: left out 1 files that lie in no class folder",
        "[data] train/: left out 1 files in folders below a class folder",
        "[data] train/: left out 3 hidden files or folders",
    )


def test_a_folder_of_arrays_says_what_is_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(3):
                np.save(tmp_path / split / name / f"{index}.npy", GREY[0])
    with pytest.raises(DataError, match=r"train split has no images: .* holds 6 \.npy files[\s\S]*formats \.bmp"):
        model.load_data(recipe(tmp_path))


def test_grey_folders_and_arrays_feed_a_network_of_one_channel(tmp_path: Path) -> None:
    for number, (image, label) in enumerate(zip(GREY, LABELS, strict=True)):
        for split in ("train", "test"):
            (tmp_path / "d" / split / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "d" / split / str(label) / f"{number:02}.png")
    for name, arrays in (("hw", GREY), ("hw1", GREY[..., None])):
        np.savez(
            tmp_path / f"{name}.npz", train_images=arrays, train_labels=LABELS, test_images=arrays, test_labels=LABELS
        )
    for size, extra in ((12, {}), (8, {"resize": 8}), (8, {"crop": 8}), (8, {"resize": 9, "crop": 8})):
        found = [
            sorted(
                image.tobytes()
                for image in model.load_data(recipe(tmp_path / name, (1, size, size), **extra)).test.arrays()
            )
            for name in ("d", "hw.npz", "hw1.npz")
        ]
        assert len(found[0]) == 30
        assert found[0] == found[1] == found[2]
    with pytest.raises(DataError, match=r"is \[1, 12, 12\] .* is \[3, 12, 12\][\s\S]*channels differ"):
        model.load_data(recipe(tmp_path / "hw.npz", (3, 12, 12)))


def _zip(path: Path, name: str, content: bytes, flags: int = 0) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    if flags:
        raw = bytearray(path.read_bytes())
        raw[6] |= flags
        raw[raw.rindex(b"PK\x01\x02") + 8] |= flags
        path.write_bytes(bytes(raw))


def _npy(header: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body


HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 9, 9, 9), }\n"


def test_a_bad_npz_is_a_clear_error_and_is_never_unpacked_blindly(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    good = {"train_images": GREY, "train_labels": LABELS, "test_images": GREY, "test_labels": LABELS}

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message):
            model.load_data(recipe(path, (1, 12, 12)))

    path.write_bytes(b"PK\x03\x04 and no more")
    refused(r"cannot be read as \.npz")
    np.save(tmp_path / "d.npy", GREY)
    path.write_bytes((tmp_path / "d.npy").read_bytes())
    refused(r"single array \(\.npy\), not a \.npz")
    _zip(path, "train_images.npy", _npy(HUGE))
    refused("'train_images' is damaged: its header says")
    _zip(path, "train_images.npy", _npy("{'descr': '|u1', " + " " * 30_000 + "}\n"))
    refused(r"cannot be read as \.npz")
    _zip(path, "train_images.npy", _npy("[" * 5000))
    refused(r"cannot be read as \.npz")
    np.savez(path, **good)
    _zip(path, "train_images.npy", (tmp_path / "d.npy").read_bytes(), flags=1)
    refused("'train_images' is encrypted")
    np.savez(path, **{**good, "train_images": np.array([{}, 1], object)})
    refused("holds Python objects")
    np.savez(path, **good, classes=np.array("cat"))
    refused(r"classes is <U3 \[\]; it must be names")
    np.savez(path, **good, classes=np.array([1, 2, 3]))
    refused(r"classes is int64 \[3\]")
    np.savez(path, **good)
    raw = bytearray(path.read_bytes())
    raw[300] ^= 1
    path.write_bytes(bytes(raw))
    refused(r"cannot be read as \.npz: Bad CRC-32")


def test_a_huge_archive_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "d.npz", train_images=GREY, train_labels=LABELS, test_images=GREY, test_labels=LABELS)
    monkeypatch.setattr("edgeprune.model.npz._memory", lambda: 5000)
    with pytest.raises(DataError, match="this machine has 0 GB of memory"):
        model.load_data(recipe(tmp_path / "d.npz"))


FUNCTIONS = """
import sys, numpy as np
def good():
    images, labels = np.zeros((9, 8, 8, 3), np.uint8), np.arange(9) % 3
    return dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels.tolist())
def nothing(): print("as a script does")
def asks(count): return {}
def raises(): raise RuntimeError("no such\\nserver")
def ends(): sys.exit()
def cancels(): raise GeneratorExit("stop")
def odd(): return {**good(), "train_images": "images"}
def torn(): return {**good(), "train_labels": [[1], [1, 2]]}
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"nothing\(\) returned NoneType, not a mapping"),
        ("asks", r"failed: TypeError: asks\(\) missing 1 required positional"),
        ("raises", r"failed: RuntimeError: no such\."),
        ("ends", r"failed: it called sys\.exit\(None\)"),
        ("cancels", "failed: GeneratorExit: stop"),
        ("odd", r"train_images is <U6 \[1?\]?"),
        ("torn", "train_labels is list, not an array"),
    ],
)
def test_a_wrong_data_function_is_a_data_error(tmp_path: Path, capsys, name: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    assert len(model.load_data(recipe(f"{tmp_path / 'mine.py'}:good")).test) == 9
    with pytest.raises(DataError, match=message):
        model.load_data(recipe(f"{tmp_path / 'mine.py'}:{name}"))
    assert capsys.readouterr().out == "", "standard output is for what edgeprune says"


def test_names_that_no_file_can_have_are_explained(tmp_path: Path) -> None:
    for source in ("x" * 5000, "a\0b"):
        with pytest.raises(Exception, match=r"cannot be a path|no such folder") as refused:
            model.load_data(recipe(source))
        assert len(str(refused.value)) < 600


def test_a_name_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    root = images(tmp_path, "ab", "ab")
    (root / "test/a/0.png").rename(os.fsdecode(os.fsencode(root / "test/a") + b"/\xff.png"))
    assert len(model.load_data(recipe(root)).test) == 12
