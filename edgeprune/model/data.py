"""Images, labels and preprocessing.

A source is one of

* a folder with `train/CLASS/*.png` and `test/CLASS/*.png` (any format that Pillow reads);
* a folder with `train.npz` and `test.npz` (`images`, `labels`), or one .npz file with `train_images`, `train_labels`,
  `test_images`, `test_labels`: uint8 images [N, H, W, C], integer labels [N];
* a folder with a `manifest.json` of sheets: many small images packed without loss into few files, with their sha256;
* "module:function": called without arguments, returns a mapping with the keys of the .npz.

Four splits come out: `train`, `calibration` (its first images), `selection` and `test`. Nothing is ever chosen by the
test images, which only the gate sees. A source may bring a `selection` split of its own, in the same form as the
others: images that the dense network was never trained on are what accuracy is best chosen by. Otherwise training
images are held out, which the dense network has seen, so that accuracies on them flatter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgeprune.errors import DataError
from edgeprune.model.network import load_callable
from edgeprune.recipe import Recipe

Pixels = NDArray[np.uint8]
SPLITS = ("train", "selection", "test")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}


@dataclass(frozen=True)
class Preprocess:
    """Pixels to network input: resize the shorter side, crop the centre, scale, subtract the mean, divide by std."""

    resize: int
    crop: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, ...]

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        """[H, W, C] uint8 -> [C, H', W'] float32."""
        if self.resize or self.crop:
            pixels = self._fit(pixels)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        scaled = pixels.astype(np.float32) * np.float32(self.scale)
        normal = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)

    def _fit(self, pixels: Pixels) -> Pixels:
        image = Image.fromarray(pixels)
        if self.resize:
            ratio = self.resize / min(image.size)
            size = (max(self.resize, round(image.width * ratio)), max(self.resize, round(image.height * ratio)))
            image = image.resize(size, Image.Resampling.BILINEAR)
        if self.crop:
            left, top = (image.width - self.crop) // 2, (image.height - self.crop) // 2
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return np.asarray(image)

    def to_dict(self) -> dict[str, Any]:
        """As shipped in the bundle."""
        return {**asdict(self), "layout": "NCHW", "color": "RGB"}


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
                raise DataError(
                    f"[data] image {position} of the {self.name} split is {list(image.shape)} after preprocessing; "
                    f"[model] input is {list(self.preprocess.shape)}.",
                    "Set [data] resize and crop.",
                )
            out[row] = image
        return out

    def batches(self, size: int) -> Iterator[NDArray[np.float32]]:
        """All images in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.arrays(range(start, min(start + size, len(self))))

    def take(self, count: int) -> Split:
        """The first `count` images."""
        return Split(self.name, self.read, self.indices[:count], self.labels[:count], self.preprocess)


@dataclass(frozen=True)
class Data:
    """The splits of one source, the names of its classes, and a hash of what it holds."""

    train: Split
    calibration: Split
    selection: Split
    test: Split
    classes: tuple[str, ...]
    digest: str

    @property
    def preprocess(self) -> Preprocess:
        return self.test.preprocess


@dataclass(frozen=True)
class _Source:
    read: dict[str, Callable[[int], Pixels]]
    labels: dict[str, NDArray[np.int64]]
    classes: tuple[str, ...]
    digest: str


def load_data(recipe: Recipe) -> Data:
    """The splits that the recipe's [data] describes; raises DataError."""
    section = recipe.data
    source = _open(recipe)
    shape = tuple(recipe.model.input)
    preprocess = Preprocess(section.resize, section.crop, section.scale, section.mean, section.std, shape)
    _check_labels(source)
    own = "selection" in source.labels
    held = 0 if own else section.selection
    count = len(source.labels["train"])
    if count < held + 1:
        raise DataError(
            f"[data] {section.source} has {count} training images; selection holds out {held} of them.",
            "Lower [data] selection, or give more images.",
        )
    order = np.random.default_rng(0).permutation(count)
    test = np.arange(len(source.labels["test"]))[: section.test or None]

    def split(name: str, kind: str, indices: NDArray[np.int64]) -> Split:
        return Split(name, source.read[kind], tuple(int(i) for i in indices), source.labels[kind][indices], preprocess)

    data = Data(
        train=split("train", "train", order[held:]),
        calibration=split("calibration", "train", order[held:][: section.calibration]),
        selection=split("selection", "selection", np.arange(len(source.labels["selection"])))
        if own
        else split("selection", "train", order[:held]),
        test=split("test", "test", test),
        classes=source.classes,
        digest=source.digest,
    )
    data.test.arrays([0])  # so that a wrong size is said now
    data.train.arrays([0])
    return data


def _check_labels(source: _Source) -> None:
    for kind, labels in source.labels.items():
        if len(labels) == 0:
            raise DataError(f"[data] the {kind} split has no images.", "Give at least one image a class.")
        classes = len(source.classes) or None  # unknown: the network's outputs are the limit, checked by the pipeline
        wrong = np.flatnonzero((labels < 0) | (labels >= (classes or np.inf)))
        if len(wrong):
            there = f"there are {classes} classes" if classes else "labels count from 0"
            first = int(wrong[0])
            raise DataError(f"[data] label {int(labels[first])} of {kind} image {first} is out of range: {there}.")


def _open(recipe: Recipe) -> _Source:
    name = recipe.data.source
    if ":" in name and not recipe.resolve(name).exists():
        function = load_callable(name, "[data] source", Path(recipe.path).parent if recipe.path else None, DataError)
        return _from_arrays(function(), name)
    path = recipe.resolve(name)
    if path.suffix == ".npz" and path.is_file():
        return _from_arrays(_read_npz(path), name)
    if not path.is_dir():
        raise DataError(
            f"[data] source: {path}: no such folder or file.",
            "The path is relative to where you are, then to the recipe.",
        )
    if (path / "manifest.json").is_file():
        return _from_sheets(path)
    if (path / "train.npz").is_file():
        halves = {split: _read_npz(path / f"{split}.npz") for split in SPLITS if (path / f"{split}.npz").is_file()}
        return _from_arrays({f"{s}_{k}": v for s, half in halves.items() for k, v in half.items()}, name)
    return _from_folder(path)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError) as cause:
        raise DataError(f"[data] {path}: cannot be read as .npz: {cause}.") from None


def _from_arrays(arrays: Mapping[str, Any], where: str) -> _Source:
    splits = [split for split in SPLITS if split != "selection" or "selection_images" in arrays]
    wanted = [f"{split}_{kind}" for split in splits for kind in ("images", "labels")]
    lacking = [key for key in wanted if key not in arrays]
    if lacking:
        raise DataError(f"[data] {where} lacks {', '.join(lacking)}.", f"It must have {', '.join(wanted)}.")
    sha = hashlib.sha256()
    for key in wanted:
        value = np.ascontiguousarray(arrays[key])
        if key.endswith("images") and (value.dtype != np.uint8 or value.ndim != 4):
            raise DataError(
                f"[data] {where}: {key} is {value.dtype} {list(value.shape)}; it must be uint8 [N, H, W, C]."
            )
        if key.endswith("labels") and (value.ndim != 1 or not np.issubdtype(value.dtype, np.integer)):
            raise DataError(f"[data] {where}: {key} is {value.dtype} {list(value.shape)}; it must be integers [N].")
        sha.update(value.tobytes())
    labels = {split: np.asarray(arrays[f"{split}_labels"], np.int64) for split in splits}
    for split, values in labels.items():
        if len(values) != len(arrays[f"{split}_images"]):
            raise DataError(
                f"[data] {where}: {len(arrays[f'{split}_images'])} {split} images but {len(values)} labels."
            )
    given = arrays.get("classes")
    classes = tuple(str(c) for c in given) if given is not None else ()
    return _Source({s: arrays[f"{s}_images"].__getitem__ for s in labels}, labels, classes, f"sha256:{sha.hexdigest()}")


def _from_sheets(folder: Path) -> _Source:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        height, width, channels = manifest["image"]
        images: dict[str, NDArray[np.uint8]] = {}
        labels = {}
        for split in (split for split in SPLITS if split != "selection" or split in manifest):
            parts = [
                _read_sheet(folder / e["file"], e["sha256"], len(e["labels"]), height, width, channels)
                for e in manifest[split]
            ]
            images[split] = np.concatenate(parts)
            labels[split] = np.array([int(digit) for entry in manifest[split] for digit in entry["labels"]], np.int64)
        classes = tuple(manifest["classes"])
    except (json.JSONDecodeError, KeyError, ValueError, TypeError) as cause:
        raise DataError(f"[data] {folder / 'manifest.json'}: not a manifest of sheets: {cause}.") from None
    sha = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    return _Source({s: array.__getitem__ for s, array in images.items()}, labels, classes, f"sha256:{sha}")


def _read_sheet(path: Path, digest: str, count: int, height: int, width: int, channels: int) -> Pixels:
    if not path.is_file():
        raise DataError(f"[data] {path}: no such file, but the manifest names it.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise DataError(
            f"[data] {path} is damaged: its sha256 is not the manifest's.", "Restore it from the repository."
        )
    sheet = _read_image(path)
    rows, columns = sheet.shape[0] // height, sheet.shape[1] // width
    tiles = sheet.reshape(rows, height, columns, width, channels).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(-1, height, width, channels)[:count]


def _from_folder(folder: Path) -> _Source:
    classes = (
        tuple(sorted(p.name for p in (folder / "train").iterdir() if p.is_dir())) if (folder / "train").is_dir() else ()
    )
    if not classes:
        raise DataError(
            f"[data] {folder} holds no images: no train/CLASS folders.",
            "Lay it out as train/CLASS/*.png and test/CLASS/*.png.",
        )
    read: dict[str, Callable[[int], Pixels]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    sha = hashlib.sha256()
    for split in (split for split in SPLITS if split != "selection" or (folder / split).is_dir()):
        files = [
            (p, n)
            for n, c in enumerate(classes)
            for p in sorted((folder / split / c).glob("*"))
            if p.suffix.lower() in SUFFIXES
        ]
        for path, _ in files:
            stat = path.stat()
            sha.update(f"{path.relative_to(folder)}{stat.st_size}{stat.st_mtime_ns}".encode())
        paths = [path for path, _ in files]
        read[split] = lambda index, paths=paths: _read_image(paths[index])  # type: ignore[misc]
        labels[split] = np.array([number for _, number in files], np.int64)
    return _Source(read, labels, classes, f"sha256:{sha.hexdigest()}")


def _read_image(path: Path) -> Pixels:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as cause:
        raise DataError(f"[data] {path} cannot be read as an image: {cause}.", "Remove it or restore it.") from None
