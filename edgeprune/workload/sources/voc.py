"""Boxes of Pascal VOC: Annotations/NAME.xml beside JPEGImages/."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeprune.errors import DataError, did_you_mean
from edgeprune.workload.sources.examples import Examples, SourceKind, boxed, checked_boxes, files, picture_size

MOST = 4 << 20  # bytes of one annotation


def voc_boxes(folder: Path, classes: Sequence[str], prepare: Callable[[Any], Any], difficult: bool = False) -> Examples:
    """Pictures with boxes in parts of their size. Objects that VOC calls difficult are left out and counted.

    Raises:
        DataError: not VOC's form, an unknown class, a missing picture or one of another size, a box outside.
    """
    left_out: Counter[str] = Counter()
    paths, targets = [], []
    numbers = {name: number for number, name in enumerate(classes)}
    for file in files(folder / "Annotations", {".xml"}, left_out):
        try:
            if file.stat().st_size > MOST:
                raise DataError(f"[data] {file} is larger than an annotation is.")
            text = file.read_bytes()
            if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
                raise DataError(f"[data] {file} declares entities; annotations have none.", "Remove the declaration.")
            root = ElementTree.fromstring(text)
            path = folder / "JPEGImages" / str(root.findtext("filename"))
            width, height = (int(float(str(root.findtext(f"size/{side}")))) for side in ("width", "height"))
            rows = [
                (
                    str(part.findtext("name")),
                    part.findtext("difficult") == "1",
                    [float(str(part.findtext(f"bndbox/{side}"))) for side in ("xmin", "ymin", "xmax", "ymax")],
                )
                for part in root.findall("object")
            ]
        except (OSError, ValueError, OverflowError, ElementTree.ParseError) as cause:
            raise DataError(f"[data] {file}: not an annotation of VOC: {cause}.") from None
        if not path.is_file() or path.parent != folder / "JPEGImages":
            raise DataError(f"[data] {path}: no such file, but {file.name} names it.")
        if picture_size(path) != (width, height):
            raise DataError(f"[data] {path} is {picture_size(path)}; {file.name} says {(width, height)}.")
        kept = [row for row in rows if difficult or not row[1]]
        if len(kept) < len(rows):
            left_out["difficult objects"] += len(rows) - len(kept)
        for name, _, _ in kept:
            if name not in numbers:
                raise DataError(f"[data] {file}: class '{name}' is not known.", did_you_mean(name, classes))
        # VOC counts pixels from 1, and the last one belongs to the box.
        boxes = [[(b[0] - 1) / width, (b[1] - 1) / height, b[2] / width, b[3] / height] for _, _, b in kept]
        targets.append(checked_boxes(boxes, [numbers[name] for name, _, _ in kept], str(file), left_out))
        paths.append(path)
    return boxed(paths, targets, prepare, classes, left_out)


SOURCE = SourceKind("voc", voc_boxes, ("folder",), "prepare", classes=True)
