"""Images, labels and preprocessing.

A source is one of

* a folder with `train/CLASS/*.png` and `test/CLASS/*.png` (see images.py for what is read, and how);
* a folder with `train.npz` and `test.npz` (`images`, `labels`), or one .npz file with `train_images`, `train_labels`,
  `test_images`, `test_labels`: uint8 images [N, H, W, C] or grey [N, H, W], integer labels [N];
* a folder with a `manifest.json` of sheets: many small images packed without loss into few files, with their sha256;
* "module:function": called without arguments, returns a mapping with the keys of the .npz.

Four splits come out: `train`, `calibration` (some of its images), `selection` and `test`. Nothing is ever chosen by the
test images, which only the gate sees. A source may bring a `selection` split of its own, in the same form as the
others: images that the dense network was never trained on are what accuracy is best chosen by. Otherwise training
images are held out, which the dense network has seen, so that accuracies on them flatter.

Wherever only some images are taken, `spread` says which: never the first ones as they lie there, which are of one class
in most folders.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError
from edgeprune.model.images import look
from edgeprune.model.images import read_image as _read_image
from edgeprune.model.preprocess import Pixels, Preprocess
from edgeprune.model.sources import Source, check_labels, open_source
from edgeprune.recipe import Recipe

__all__ = ["ImageData", "Pixels", "Preprocess", "Split", "_read_image", "check_outputs", "load_data", "spread"]


def spread(labels: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
    """A seeded order of all images [N] in which every beginning holds the classes in proportion, and is random in each.

    Stratified systematic sampling: Cochran, Sampling Techniques, 3rd edition, sections 5 and 8.
    """
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(labels))
    kinds, inverse, counts = np.unique(labels[shuffled], return_inverse=True, return_counts=True)
    by_class = np.argsort(inverse, kind="stable")
    rank = np.empty(len(labels))
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = (rank + random.random(len(kinds))[inverse]) / counts[inverse]
    return shuffled[np.argsort(place, kind="stable")]


@dataclass(frozen=True)
class Split:
    """Some images of the source, in a fixed order. Images are read when they are asked for."""

    name: str
    read: Callable[[int], Pixels]
    indices: tuple[int, ...]
    labels: NDArray[np.int64]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.indices)

    def pixels(self, position: int) -> Pixels:
        """Image number `position` as uint8 [H, W, C]."""
        return self.read(self.indices[position])

    def arrays(self, positions: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Preprocessed images [N, C, H, W] float32; all of them when `positions` is None."""
        chosen = range(len(self)) if positions is None else positions
        first = next(iter(chosen), None)
        if first is None:
            return np.zeros((0, *self.preprocess.shape), np.float32)
        out = np.empty((len(chosen), *self.preprocess.shape), np.float32)
        for row, position in enumerate(chosen):
            image = self.preprocess(self.pixels(position))
            if image.shape != self.preprocess.shape:
                same = image.shape[0] == self.preprocess.shape[0]
                raise DataError(
                    f"[data] image {position} of the {self.name} split is {list(image.shape)} after preprocessing; "
                    f"[model] input is {list(self.preprocess.shape)}.",
                    "Set [data] resize and crop." if same else "The numbers of channels differ: convert the images.",
                )
            out[row] = image
        return out

    def batches(self, size: int) -> Iterator[NDArray[np.float32]]:
        """All images in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.arrays(range(start, min(start + size, len(self))))

    def take(self, count: int) -> Split:
        """The first `count` images; `load_data` puts every split in an order in which they are a fair draw."""
        return self._chosen(range(min(count, len(self))))

    def spanning(self, count: int) -> Split:
        """`count` images of as many classes as can be: one of each in turn."""
        seen: dict[int, int] = {}
        turns = []
        for label in self.labels.tolist():
            turns.append(seen.get(label, 0))
            seen[label] = turns[-1] + 1
        return self._chosen(np.argsort(np.array(turns, np.int64), kind="stable")[:count].tolist())

    def _chosen(self, positions: Sequence[int]) -> Split:
        indices = tuple(self.indices[position] for position in positions)
        return Split(self.name, self.read, indices, self.labels[list(positions)], self.preprocess)


@dataclass(frozen=True)
class ImageData:
    """The splits of one source, the names of its classes, and a hash of what it holds.

    Attributes:
        classes: in the order of the labels; empty when nobody named them.
        stated: their order was written down, and is not just that of the folders' names.
        skipped: what was left out or could not be looked at, and whatever else the user should know; one sentence each.
    """

    train: Split
    calibration: Split
    selection: Split
    test: Split
    classes: tuple[str, ...]
    digest: str
    stated: bool = True
    skipped: tuple[str, ...] = ()

    @property
    def preprocess(self) -> Preprocess:
        return self.test.preprocess


def _size(given: int | tuple[int, ...]) -> int | tuple[int, int]:
    return given if isinstance(given, int) else (given[0], given[1])


def load_data(recipe: Recipe, returned: Any = None) -> ImageData:
    """The splits that the recipe's [data] describes, every file looked at; raises DataError.

    Args:
        returned: what the function that [data] source names gave, where it was called already.
    """
    section = recipe.data
    source = open_source(recipe, returned)
    shape = tuple(recipe.model.input)
    resize, crop = _size(section.resize), _size(section.crop)
    preprocess = Preprocess(resize, crop, section.scale, section.mean, section.std, shape, section.fit, section.order)
    check_labels(source.labels, source.classes)
    own = "selection" in source.labels
    held = 0 if own else section.selection
    count = len(source.labels["train"])
    if count < held + 1:
        raise DataError(
            f"[data] {section.source} has {count} training images; selection holds out {held} of them.",
            "Lower [data] selection, or give more images.",
        )

    def split(name: str, kind: str, indices: NDArray[np.int64]) -> Split:
        return Split(name, source.read[kind], tuple(int(i) for i in indices), source.labels[kind][indices], preprocess)

    drawn = {kind: spread(labels) for kind, labels in source.labels.items()}
    order = np.random.default_rng(0).permutation(count)
    train = order[~np.isin(order, drawn["train"][:held])]
    calibration = train[spread(source.labels["train"][train])][: section.calibration]
    data = ImageData(
        train=split("train", "train", train),
        calibration=split("calibration", "train", calibration),
        selection=split("selection", "selection", drawn["selection"])
        if own
        else split("selection", "train", drawn["train"][:held]),
        test=split("test", "test", drawn["test"][: section.test or None]),
        classes=source.classes,
        digest=source.digest,
        stated=source.stated,
    )
    seen = _look(data, source)
    data.test.arrays([0])  # so that a wrong size is said now
    data.train.arrays([0])
    return dataclasses.replace(data, skipped=(*source.notes, *seen))


def _look(data: ImageData, source: Source) -> list[str]:
    """Look at the files, those of which most depends first."""
    if not source.files:
        return []
    files: dict[Path, None] = {}
    for split, kind in (
        (data.test, "test"),
        (data.selection, "selection" if "selection" in source.files else "train"),
        (data.calibration, "train"),
        (data.train, "train"),
    ):
        files.update(dict.fromkeys(source.files[kind][index] for index in split.indices))
    return look(list(files), data.preprocess).notes()


def check_outputs(data: ImageData, outputs: int) -> None:
    """Refuse labels and classes that do not fit a network of so many outputs; raises DataError.

    Folders that are fewer than the outputs give labels that mean other outputs, unless their order was stated.
    """
    for split in (data.train, data.selection, data.test):
        highest = int(split.labels.max(initial=-1))
        if highest >= outputs:
            raise DataError(
                f"[data] {split.name} labels go up to {highest}, but the network has {outputs} outputs.",
                "Labels count from 0.",
            )
    count = len(data.classes)
    if count > outputs or (count < outputs and count and not data.stated):
        raise DataError(
            f"[data] there are {count} classes, but the network has {outputs} outputs.",
            "Which output means which class is not known. Name all of them in the order of the outputs: "
            "[data] classes = [...], or one a line in classes.txt beside train/.",
        )
