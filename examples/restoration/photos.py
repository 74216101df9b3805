"""Photographs at half their size and whole: the data of the super-resolution example.

    python examples/restoration/photos.py      # fetch; prints what there is

The photographs lie in the wheel of scikit-image 0.25.2 (BSD-3), which is fetched once into `.cache/examples` and
opened, not installed. By its `skimage/data/_fetchers.py` those used here are CC0, in the public domain, or without
known copyright. Small pictures are made by Pillow's bicubic filter. No photograph is in two splits.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import packages

import edgeprune

SIDE = 32  # of a small picture; the whole one is twice that
PHOTOS = {
    "train": ("astronaut.png", "brick.png", "coins.png", "grass.png", "gravel.png", "rocket.jpg"),
    "selection": ("ihc.png", "moon.png"),
    "test": ("camera.png", "chelsea.png", "coffee.png"),
}
STEP = {"train": 40, "selection": 64, "test": 64}  # pixels from one cut to the next; training cuts overlap
WHEEL = ("scikit-image", "0.25.2", "24cc986e1f4187a12aa319f777b36008764e856e5013666a4a83f8df083c2641")


@functools.cache
def photo(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(half, whole) of a photograph: RGB uint8, sides cut to multiples of two."""
    with packages.wheel(*WHEEL, platform="manylinux2014_x86_64") as wheel, wheel.open(f"skimage/data/{name}") as file:
        image = Image.open(file).convert("RGB")
    width, height = image.width // 2 * 2, image.height // 2 * 2
    image = image.crop((0, 0, width, height))
    return np.asarray(image.resize((width // 2, height // 2), Image.Resampling.BICUBIC)), np.asarray(image)


@functools.cache
def cuts(split: str) -> list[tuple[str, int, int]]:
    """(photograph, top, left) of every cut, in pixels of the whole picture."""
    found = []
    for name in PHOTOS[split]:
        height, width = photo(name)[1].shape[:2]
        tops = range(0, height - 2 * SIDE + 1, STEP[split])
        found += [(name, top, left) for top in tops for left in range(0, width - 2 * SIDE + 1, STEP[split])]
    return found


@dataclass(frozen=True)
class Photos:
    """A split as a map-style dataset: ([3, 32, 32] float32 in 0..1, the right [3, 64, 64])."""

    split: str

    def __len__(self) -> int:
        return len(cuts(self.split))

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        name, top, left = cuts(self.split)[index]
        half, whole = photo(name)
        small = half[top // 2 : top // 2 + SIDE, left // 2 : left // 2 + SIDE]
        large = whole[top : top + 2 * SIDE, left : left + 2 * SIDE]
        pair = (np.ascontiguousarray(x.transpose(2, 0, 1), np.float32) / np.float32(255) for x in (small, large))
        return next(pair), next(pair)


def data() -> edgeprune.Data:
    """The splits, by photograph."""
    return edgeprune.Data(train=Photos("train"), selection=Photos("selection"), test=Photos("test"))


def bicubic(small: np.ndarray) -> np.ndarray:
    """What to beat: [3, H, W] in 0..1 enlarged by Pillow's bicubic filter."""
    image = Image.fromarray(np.round(small * 255).astype(np.uint8).transpose(1, 2, 0))
    made = image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)
    return np.asarray(made, np.float32).transpose(2, 0, 1) / 255


if __name__ == "__main__":
    for part in PHOTOS:
        print(f"{part}: {len(Photos(part))} cuts of {', '.join(PHOTOS[part])}")
