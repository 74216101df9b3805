"""Boxes of a COCO annotation file: {"images", "annotations", "categories"}."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import DataError
from edgeprune.files import read_json
from edgeprune.workload.sources.examples import Examples, SourceKind, boxed, checked_boxes

Prepare = Callable[[Any], Any]
MOST = 2 << 30  # bytes of the annotation file; COCO's own training set has 0.5 GB


def coco_boxes(annotations: Path, images: Path, prepare: Prepare) -> Examples:
    """Pictures with boxes in parts of their size; pictures without any are kept.

    Args:
        annotations: the JSON file. Category ids become 0, 1, ... in their order.
        images: the folder of the pictures.
        prepare: [H, W, 3] uint8 -> the network's input. It may squash the picture, since boxes are parts of its size.

    Raises:
        DataError: not COCO's form; an unknown category or picture; a picture that is missing; a box outside.
    """
    try:
        table = read_json(annotations, DataError, limit=MOST)
        categories = sorted((int(c["id"]), str(c["name"])) for c in table["categories"])
        pictures = {int(i["id"]): (str(i["file_name"]), float(i["width"]), float(i["height"])) for i in table["images"]}
        labels = [
            (int(a["image_id"]), int(a["category_id"]), [float(v) for v in a["bbox"]], bool(a.get("iscrowd", 0)))
            for a in table["annotations"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as cause:
        raise DataError(
            f"[data] {annotations}: not an annotation file of COCO: {type(cause).__name__}: {cause}."
        ) from None
    if len(pictures) != len(table["images"]) or len({name for name, *_ in pictures.values()}) != len(pictures):
        raise DataError(f"[data] {annotations} has two pictures of one id or name.", "Each needs its own.")
    for name, width, height in pictures.values():
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise DataError(f"[data] {annotations}: picture '{name[:80]}' is {width:g} x {height:g} pixels.")
    numbers = {identity: number for number, (identity, _) in enumerate(categories)}
    if len(numbers) != len(categories):
        raise DataError(f"[data] {annotations} has two categories of one id.")
    of_picture: dict[int, list[tuple[list[float], int, bool]]] = {identity: [] for identity in pictures}
    for place, (picture, category, box, crowd) in enumerate(labels):
        if picture not in pictures or category not in numbers or len(box) != 4:
            raise DataError(
                f"[data] {annotations}: annotation {place} names picture {picture} and category {category}; "
                "one of them is unknown, or its box is not x, y, width, height."
            )
        of_picture[picture].append((box, numbers[category], crowd))
    left_out: Counter[str] = Counter()
    order = sorted(pictures, key=lambda identity: pictures[identity][0])
    targets = []
    for identity in order:
        name, width, height = pictures[identity]
        if not (images / name).is_file():
            raise DataError(f"[data] {images / name}: no such file, but {annotations.name} names it.")
        rows = of_picture[identity]
        parts = [[b[0] / width, b[1] / height, (b[0] + b[2]) / width, (b[1] + b[3]) / height] for b, _, _ in rows]
        plain = [n for n, (_, _, crowd) in enumerate(rows) if not crowd]
        many = [n for n, (_, _, crowd) in enumerate(rows) if crowd]
        made = [
            checked_boxes([parts[n] for n in chosen], [rows[n][1] for n in chosen], f"{annotations}: {name}", left_out)
            for chosen in (plain, many)
        ]
        flags = np.repeat([False, True], [len(m["labels"]) for m in made])
        targets.append({key: np.concatenate([m[key] for m in made]) for key in ("boxes", "labels")} | {"crowd": flags})
    names = tuple(pictures[identity][0] for identity in order)
    return boxed([images / name for name in names], targets, prepare, [name for _, name in categories], left_out, names)


SOURCE = SourceKind("coco", coco_boxes, ("annotations", "images"), "prepare")
