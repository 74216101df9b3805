"""Boxes as YOLO writes them: for `images/NAME.jpg` a `labels/NAME.txt` of "class cx cy w h", parts of the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeprune.errors import DataError
from edgeprune.workload.sources.examples import IMAGES, Examples, SourceKind, boxed, checked_boxes, files


def yolo_boxes(folder: Path, classes: Sequence[str], prepare: Callable[[Any], Any]) -> Examples:
    """Pictures with boxes; a picture without a label file has none, and is counted.

    Args:
        folder: holds images/ and labels/.
        classes: names by number.
        prepare: [H, W, 3] uint8 -> the network's input.

    Raises:
        DataError: a line that is no box, a class out of range, a box outside the picture, labels without a picture.
    """
    left_out: Counter[str] = Counter()
    pictures = files(folder / "images", IMAGES, left_out)
    labels = folder / "labels"
    if not labels.is_dir():
        raise DataError(f"[data] {labels}: no such folder.", "Put NAME.txt there for each images/NAME.jpg.")
    known = {path.stem for path in pictures}
    lone = sorted(path.stem for path in labels.glob("*.txt") if path.stem not in known and path.stem != "classes")
    if lone:
        raise DataError(f"[data] {labels / lone[0]}.txt has no picture in images/.", f"{len(lone)} such files in all.")
    targets = []
    for path in pictures:
        file = labels / f"{path.stem}.txt"
        if not file.is_file():
            left_out["pictures without a label file, which count as empty"] += 1
        targets.append(_read(file, len(classes), left_out))
    return boxed(pictures, targets, prepare, classes, left_out)


def _read(file: Path, classes: int, left_out: Counter[str]) -> dict[str, NDArray[Any]]:
    boxes, labels = [], []
    try:
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"[data] {file} cannot be read: {cause}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            kind, x, y, width, height = (float(part) for part in line.split())
            whole = int(kind)
        except (ValueError, OverflowError):  # also a class that is NaN or infinite
            raise DataError(f"[data] {file}:{number}: '{line[:60]}' is not 'class cx cy w h'.") from None
        if kind != whole or not 0 <= whole < classes:
            raise DataError(f"[data] {file}:{number}: class {kind:g} is out of range: there are {classes}.")
        boxes.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        labels.append(whole)
    return checked_boxes(boxes, labels, str(file), left_out)


SOURCE = SourceKind("yolo", yolo_boxes, ("folder",), "prepare", classes=True)
