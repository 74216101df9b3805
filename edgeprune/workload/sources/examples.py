"""What every source gives, and the checks that several of them share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, EdgepruneError

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
SLACK = 0.01  # of the picture: how far a box may stand out, from rounding; it is clipped then


@dataclass(frozen=True, eq=False)
class Examples:
    """A map-style dataset of one split.

    Attributes:
        names: of the examples, in order (a file's name mostly).
        read: number -> (inputs, target).
        classes: their names, by number; empty where there are none.
        left_out: reason -> how many files, rows or boxes.
    """

    names: tuple[str, ...]
    read: Callable[[int], tuple[Any, Any]] = field(repr=False)
    classes: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not 0 <= index < len(self.names):
            raise IndexError(index)
        return self.read(index)

    def said(self) -> str:
        """One line for the user: "128 examples of 80 classes; left out: 2 hidden files"."""
        classes = f" of {len(self.classes)} classes" if self.classes else ""
        out = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        return f"{len(self):,} examples{classes}" + (f"; left out: {out}" if out else "")


@dataclass(frozen=True)
class SourceKind:
    """A source as a recipe asks for it; each file of this folder has one, `SOURCE`, and is found by it.

    Attributes:
        name: [data] kind.
        read: gives one split's `Examples`; its arguments are the keys of [data] splits.NAME and options.
        paths: arguments that are paths, relative to where the user is, then to the recipe.
        own: the argument that makes the network's input: "prepare" (of a picture: [data] resize, scale, mean, std, or
            the user's function), "features" (of a sound); empty: none.
        mask: `prepare` gets a mask of the picture's size too.
        classes: takes [data] classes.
        tokenizer: the argument that names a tokenizer's file, which travels in the bundle; empty: none.
    """

    name: str
    read: Callable[..., Examples]
    paths: tuple[str, ...]
    own: str = ""
    mask: bool = False
    classes: bool = False
    tokenizer: str = ""


def files(folder: Path, suffixes: set[str], left_out: Counter[str], deep: bool = False) -> list[Path]:
    """The files of a folder with one of the suffixes, sorted by name; others are counted. Raises DataError."""
    if not folder.is_dir():
        raise DataError(
            f"[data] {folder}: no such folder.", "The path is relative to where you are, then to the recipe."
        )
    found = []
    for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
        inside = path.relative_to(folder).parts
        if path.is_dir():
            if not deep:
                left_out["nested folders"] += 1
        elif any(part.startswith(".") for part in inside):
            left_out["hidden files"] += 1
        elif path.suffix.lower() not in suffixes:
            left_out[f"{path.suffix.lower() or 'suffixless'} files"] += 1
        elif not path.is_file():
            left_out["things that are no files"] += 1
        else:
            found.append(path)
    if not found:
        raise DataError(f"[data] {folder} holds no {', '.join(sorted(suffixes))} files.", "Check the path.")
    twice = [stem for stem, count in Counter(path.with_suffix("") for path in found).items() if count > 1]
    if twice:
        raise DataError(
            f"[data] {folder} holds {twice[0].name} twice, with two suffixes.", "Labels belong to a name: remove one."
        )
    return found


def read_image(path: Path) -> NDArray[np.uint8]:
    """RGB [H, W, 3] uint8; raises DataError for what cannot be read or would lose depth."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise DataError(
                    f"[data] {path} has mode {image.mode}; 8 bits a channel are read.",
                    "Convert it, or bring a dataset.",
                )
            return np.asarray(image.convert("RGB"))
    except EdgepruneError:
        raise
    except Exception as cause:  # Pillow raises what its plugins raise
        raise DataError(f"[data] {path} cannot be read as an image: {cause}.", "Remove it or restore it.") from None


def boxed(
    paths: Sequence[Path],
    targets: Sequence[Mapping[str, NDArray[Any]]],
    prepare: Callable[[Any], Any],
    classes: Sequence[str],
    left_out: Mapping[str, int],
    names: Sequence[str] = (),
) -> Examples:
    """Pictures with boxes, which go where they are in the network's input, as `prepare.moved` may know."""
    moved = getattr(prepare, "moved", lambda boxes, height, width: boxes)

    def read(number: int) -> tuple[Any, Any]:
        picture, target = read_image(paths[number]), targets[number]
        return prepare(picture), {**target, "boxes": moved(target["boxes"], *picture.shape[:2])}

    return Examples(tuple(names) or tuple(path.name for path in paths), read, tuple(classes), left_out)


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header; raises DataError."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except Exception as cause:
        raise DataError(f"[data] {path} cannot be read as an image: {cause}.", "Remove it or restore it.") from None


def checked_boxes(
    boxes: Iterable[Any], labels: Iterable[int], where: str, left_out: Counter[str]
) -> dict[str, NDArray[Any]]:
    """A target of parts of the picture (x0, y0, x1, y1 in 0..1): boxes outside are an error, the same box twice goes.

    Raises:
        DataError: a box outside the picture by more than 1 %, turned inside out, or not finite.
    """
    made = np.array(list(boxes), np.float64).reshape(-1, 4)
    kinds = np.array(list(labels), np.int64)
    for number, box in enumerate(made):
        if not np.isfinite(box).all() or (box[2:] < box[:2]).any():
            raise DataError(f"[data] {where}: box {number} has no size: {_round(box)}.", "Mend the labels.")
        if box.min() < -SLACK or box.max() > 1 + SLACK:
            raise DataError(
                f"[data] {where}: box {number} reaches outside the picture: {_round(box)} in parts of its size.",
                "Are the labels those of this picture, and in the right unit and order?",
            )
    made = made.clip(0, 1)
    flat = ((made[:, 2:] - made[:, :2]) <= 0).any(1)
    left_out["boxes without area"] += int(flat.sum())
    made, kinds = made[~flat], kinds[~flat]
    rows = np.concatenate([made, kinds[:, None]], 1)
    first = np.sort(np.unique(rows, axis=0, return_index=True)[1]) if len(rows) else np.zeros(0, np.int64)
    left_out["boxes that stand twice"] += len(rows) - len(first)
    if not left_out["boxes that stand twice"]:
        del left_out["boxes that stand twice"]
    if not left_out["boxes without area"]:
        del left_out["boxes without area"]
    return {"boxes": made[first], "labels": kinds[first]}


def function(make: Callable[..., Any], name: str) -> Examples:
    """A function of the user's: called without arguments, gives a map-style dataset; raises DataError."""
    try:
        dataset = make()
        count = len(dataset)
        read = dataset.__getitem__
    except EdgepruneError:
        raise
    except Exception as cause:
        raise DataError(
            f"[data] {name} failed: {type(cause).__name__}: {cause}.", "It must give a dataset with len() and [i]."
        ) from cause
    classes = tuple(str(c) for c in getattr(dataset, "classes", ()))
    return Examples(tuple(str(n) for n in range(count)), read, classes)


def _round(box: NDArray[Any]) -> list[float]:
    return [round(float(value), 4) for value in box]
