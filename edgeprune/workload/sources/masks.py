"""Pictures and masks of one name in two folders; a mask holds a class number for every pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, EdgepruneError
from edgeprune.workload.sources.examples import IMAGES, Examples, SourceKind, files, picture_size, read_image


def mask_folder(
    images: Path,
    masks: Path,
    classes: Sequence[str],
    prepare: Callable[[Any, Any], tuple[Any, Any]],
    ignore: int | None = 255,
    numbers: Mapping[int, int] | None = None,
) -> Examples:
    """Examples (picture, mask).

    Args:
        images, masks: the folders; NAME.jpg belongs to NAME.png.
        classes: names by number.
        prepare: ([H, W, 3] uint8, [H, W] int64) -> (the network's input, the mask of the output's size).
        ignore: the number of pixels that do not count.
        numbers: of the file -> of the class; others become `ignore`. None: as they are.

    Raises:
        DataError: a picture without a mask, a mask of another size, with three channels, or with an unknown class.
    """
    left_out: Counter[str] = Counter()
    pictures = {path.stem: path for path in files(images, IMAGES, left_out)}
    drawn = {path.stem: path for path in files(masks, {".png", ".bmp", ".tif", ".tiff"}, left_out)}
    both = sorted(set(pictures) & set(drawn))
    if not both:
        raise DataError(f"[data] no picture of {images} has a mask of its name in {masks}.")
    if len(both) < len(pictures):
        left_out["pictures without a mask"] += len(pictures) - len(both)
    if len(both) < len(drawn):
        left_out["masks without a picture"] += len(drawn) - len(both)
    for name in both:
        if picture_size(pictures[name]) != picture_size(drawn[name]):
            raise DataError(
                f"[data] {drawn[name]} is {picture_size(drawn[name])}; its picture is {picture_size(pictures[name])}.",
                "A mask has its picture's size (width, height).",
            )

    def read(number: int) -> tuple[Any, Any]:
        mask = _read(drawn[both[number]], len(classes), ignore, numbers)
        return prepare(read_image(pictures[both[number]]), mask)

    return Examples(tuple(both), read, tuple(classes), left_out)


def _read(path: Path, classes: int, ignore: int | None, numbers: Mapping[int, int] | None) -> NDArray[np.int64]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                raise DataError(
                    f"[data] {path} has mode {image.mode}; a mask holds one number a pixel, not a colour.",
                    "Save it with indexed colours or as grey.",
                )
            mask = np.asarray(image).astype(np.int64)
    except EdgepruneError:
        raise
    except Exception as cause:
        raise DataError(f"[data] {path} cannot be read as a mask: {cause}.", "Remove it or restore it.") from None
    if numbers is not None:
        if ignore is None:
            raise DataError("[data] numbers of masks need `ignore`: what the others become.")
        mapped = np.full_like(mask, ignore)
        for theirs, ours in numbers.items():
            mapped[mask == theirs] = ours
        mask = mapped
    seen = np.unique(mask)
    wrong = [int(v) for v in seen if v != ignore and not 0 <= v < classes]
    if wrong:
        raise DataError(f"[data] {path} holds class {wrong[0]}; there are {classes} classes.", "Map it by `numbers`.")
    return mask


SOURCE = SourceKind("masks", mask_folder, ("images", "masks"), "prepare", mask=True, classes=True)
