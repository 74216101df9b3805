"""Scenes with true boxes and masks, by construction: Fashion-MNIST items, tinted, on textures cut from CIFAR-10.

    python examples/scenes.py            # fetch the items and show the first scenes: .cache/examples/scenes.png

Every scene is drawn from its own seed, once, into `.cache/examples`. The items come from the Debian package
dataset-fashion-mnist (MIT; 31 MB), the textures from this repository's `calibration/cifar10`. No item and no texture is
in two splits; the ten kinds of item make six classes.
"""

from __future__ import annotations

import functools
import gzip
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # what lies beside this file

import packages  # noqa: E402

import edgeprune  # noqa: E402
from edgeprune.model import Preprocess  # noqa: E402

SIDE = 96
CLASSES = ("top", "trousers", "dress", "shoe", "bag", "boot")
KINDS = ((0, 2, 4, 6), (1,), (3,), (5, 7), (8,), (9,))  # of Fashion-MNIST's ten, in each class
SCENES = {"train": 4000, "selection": 400, "test": 600}
_FIRST = {"train": 0, "selection": 1_000_000, "test": 2_000_000}  # of the seeds


@dataclass(frozen=True)
class Scene:
    """A picture [96, 96, 3] uint8, boxes [M, 4] (x0, y0, x1, y1 in 0..1), labels [M], mask [96, 96]: 0 is ground."""

    picture: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


@functools.cache
def items(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Items [N, 28, 28] uint8 and their classes [N]; for selection the last 5,000 training items."""
    folder = packages.debian("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    stem = "t10k" if split == "test" else "train"
    with gzip.open(folder / f"{stem}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{stem}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    part = {"train": slice(0, 55_000), "selection": slice(55_000, None), "test": slice(None)}[split]
    ours = np.array([next(n for n, kinds in enumerate(KINDS) if kind in kinds) for kind in range(10)])
    return images[part], ours[labels[part]]


@functools.cache
def places(split: str) -> list[np.ndarray]:
    """Of each class, where its items are."""
    return [np.flatnonzero(items(split)[1] == label) for label in range(len(CLASSES))]


@functools.cache
def textures(split: str) -> np.ndarray:
    """[N, 32, 32, 3] uint8 out of the sheets of calibration/cifar10."""
    folder = HERE.parent / "calibration" / "cifar10"
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    found = []
    for sheet in manifest[split]:
        pixels = np.asarray(Image.open(folder / sheet["file"]).convert("RGB"))
        columns = manifest["columns"]
        tiles = pixels.reshape(-1, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
        found.append(tiles[: len(sheet["labels"])])
    return np.concatenate(found)


def scene(split: str, number: int) -> Scene:
    """Scene `number` of a split: up to seven items of 24 to 44 pixels, of which none covers much of another."""
    draw = np.random.default_rng(_FIRST[split] + number)
    ground = textures(split)
    side = int(draw.integers(12, 33))  # of the cut that becomes the ground: from smooth to busy
    x, y = draw.integers(0, 33 - side, 2)
    cut = ground[draw.integers(len(ground))][y : y + side, x : x + side]
    picture = np.asarray(Image.fromarray(cut).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.float32)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    images = items(split)[0]
    boxes: list[np.ndarray] = []
    labels: list[int] = []
    for _ in range(int(draw.integers(3, 8))):
        label = int(draw.integers(len(CLASSES)))
        chosen = int(draw.choice(places(split)[label]))
        size = int(draw.integers(24, 45))
        grey = np.asarray(Image.fromarray(images[chosen]).resize((size, size), Image.Resampling.BICUBIC), np.float32)
        tint = draw.uniform(0.35, 1.0, 3).astype(np.float32)
        left, top = draw.integers(0, SIDE - size + 1, 2)
        body = grey > 24
        rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
        if len(rows) < 8 or len(columns) < 8:
            continue
        box = np.array([left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1], np.float32)
        if any(_shared(box, other) > 0.15 for other in boxes):
            continue
        window = slice(top, top + size), slice(left, left + size)
        alpha = np.clip(grey / 48, 0, 1)[..., None]
        shade = (64 + 0.75 * grey)[..., None] * tint
        picture[window] = alpha * shade + (1 - alpha) * picture[window]
        mask[window][body] = label + 1
        boxes.append(box)
        labels.append(label)
    noisy = picture + draw.normal(0, 4, picture.shape)
    table = np.stack(boxes) / np.float32(SIDE) if boxes else np.zeros((0, 4), np.float32)
    return Scene(np.clip(noisy, 0, 255).astype(np.uint8), table, np.array(labels, np.int64), mask)


@functools.cache
def drawn(split: str) -> list[Scene]:
    """Every scene of a split; they are drawn once, into `.cache/examples/scenes-SPLIT.npz`."""
    path = packages.CACHE / f"scenes-{split}.npz"
    if not path.exists():
        made = [scene(split, number) for number in range(SCENES[split])]
        arrays = {
            "pictures": np.stack([one.picture for one in made]),
            "masks": np.stack([one.mask for one in made]),
            "boxes": np.concatenate([one.boxes for one in made]),
            "labels": np.concatenate([one.labels for one in made]),
            "ends": np.cumsum([len(one.labels) for one in made]),
        }
        partial = path.with_suffix(".part.npz")
        np.savez(partial, **arrays)
        partial.rename(path)
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    boxes, labels = (np.split(found[name], found["ends"][:-1]) for name in ("boxes", "labels"))
    return [Scene(*one) for one in zip(found["pictures"], boxes, labels, found["masks"], strict=True)]


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    """The overlap as a part of the smaller box."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    area = float(np.prod(np.clip(high - low, 0, None)))
    return area / min(float(np.prod(one[2:] - one[:2])), float(np.prod(other[2:] - other[:2])))


@dataclass(frozen=True)
class Scenes:
    """A split as a map-style dataset: ([3, 96, 96] float32 in 0..1, boxes and labels, or the mask)."""

    split: str
    masks: bool = False
    classes: tuple[str, ...] = CLASSES

    def __len__(self) -> int:
        return SCENES[self.split]

    def __getitem__(self, index: int) -> tuple[np.ndarray, object]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        made = drawn(self.split)[index]
        inputs = np.ascontiguousarray(made.picture.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
        return inputs, made.mask if self.masks else {"boxes": made.boxes, "labels": made.labels}


PREPARE = Preprocess((SIDE, SIDE), 0, 1 / 255, (0.0,), (1.0,), (3, SIDE, SIDE))  # of a picture, on the board


def detection() -> edgeprune.Data:
    """Scenes with boxes in parts of the picture."""
    splits = {split: Scenes(split) for split in SCENES}
    return edgeprune.Data(**splits, prepare=PREPARE)


def segmentation() -> edgeprune.Data:
    """Scenes with masks: 0 is ground, then the six classes."""
    names = ("ground", *CLASSES)
    splits = {split: Scenes(split, True, names) for split in SCENES}
    return edgeprune.Data(**splits, prepare=PREPARE)


def sheet(path: Path, split: str = "test", count: int = 24) -> None:
    """The first scenes beside their masks, for a look."""
    made = [scene(split, number) for number in range(count)]
    colours = np.random.default_rng(1).integers(40, 256, (len(CLASSES) + 1, 3)).astype(np.uint8)
    colours[0] = 0
    pairs = [np.concatenate([one.picture, colours[one.mask]], 1) for one in made]
    rows = [np.concatenate(pairs[at : at + 6], 1) for at in range(0, count, 6)]
    Image.fromarray(np.concatenate(rows)).save(path)


if __name__ == "__main__":
    target = packages.CACHE / "scenes.png"
    packages.CACHE.mkdir(parents=True, exist_ok=True)
    sheet(target)
    print(target)
