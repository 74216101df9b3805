"""What a folder of data may look like: the layout that is found, and the names that say what is what.

`layout_folders`, `layout_arrays` and `layout_tables` find it; `draft` makes a recipe of it.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})
SOUNDS, ARRAYS, MASKS = frozenset({".wav"}), frozenset({".npy", ".npz"}), frozenset({".png", ".bmp", ".tif", ".tiff"})
HELD = 0.2  # of unsplit examples, for the test split
MOST, DEEP = 1_000_000, 5  # entries and levels that are looked at
READ = (
    "Read are: class folders of images or .wav, .npz and .npy arrays, boxes of COCO, YOLO and VOC, pictures with "
    "masks, tables of text (.csv, .tsv, .parquet); anything else by a function, --data file.py:function (recipe.md)."
)
_SYSTEM = {"__MACOSX", "__pycache__", "@eaDir"}
_ROLE = re.compile(r"(?:.*[^a-z])?(train|test|val|eval|dev)(?:ing|id|idation|uation)?\d*(?:[^a-z]|$)")


@dataclass(frozen=True)
class Layout:
    """What was found.

    Attributes:
        kind, source, splits, options, classes: as [data] states them; paths as the user wrote the folder's.
        task: what it looks like, as [task] kind; "" where nothing tells.
        said: what was found, for the user.
        counts: split -> examples.
        some: a few files, to look at; size: (height, width) of pictures in arrays.
        links: where to lay out by links, name -> the file or folder that it leads to; `source` and `splits` are then
            of the folder of links.
    """

    kind: str
    said: str
    source: str = ""
    splits: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    task: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    some: tuple[Path, ...] = ()
    size: tuple[int, ...] = ()
    links: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    """Folder -> its files and folders, by name; what is hidden is not in it."""

    root: Path
    files: Mapping[Path, tuple[str, ...]]
    folders: Mapping[Path, tuple[str, ...]]

    def of(self, folder: Path, suffixes: frozenset[str]) -> list[Path]:
        """The files of a folder with one of the suffixes."""
        return [folder / name for name in self.files.get(folder, ()) if Path(name).suffix.lower() in suffixes]

    def below(self, folder: Path) -> list[Path]:
        """The folders in a folder."""
        return [folder / name for name in self.folders.get(folder, ())]

    def classes(self, folder: Path, suffixes: frozenset[str]) -> dict[str, list[Path]]:
        """Class -> its files."""
        found = {one.name: self.of(one, suffixes) for one in self.below(folder)}
        return {name: paths for name, paths in found.items() if paths}


def census(tree: Tree) -> str:
    """3,000 .npy files, 2 .txt files."""
    suffixes = Counter(Path(name).suffix.lower() for names in tree.files.values() for name in names)
    told = [f"{count:,} {suffix or 'suffixless'} file{'s'[: count > 1]}" for suffix, count in suffixes.most_common(4)]
    return ", ".join(told) or "no files"


def tree_of(root: Path) -> Tree:
    """Every folder with its files, DEEP levels down."""
    held: dict[Path, tuple[str, ...]] = {}
    folders: dict[Path, tuple[str, ...]] = {}
    count = 0
    for place, below, names in os.walk(root, followlinks=True):
        here = Path(place)
        below[:] = sorted(n for n in below if n[0] != "." and n not in _SYSTEM)
        held[here], folders[here] = tuple(sorted(n for n in names if n[0] != ".")), tuple(below)
        count += len(names)
        if len(here.relative_to(root).parts) >= DEEP or count > MOST:
            below.clear()
        if count > MOST:
            break
    return Tree(root, held, folders)


def role(name: str) -> str:
    """The split that a name means: "train", "test" or "val"; "" for none."""
    word = _ROLE.match(name.lower())
    return "" if word is None else {"train": "train", "test": "test"}.get(word[1], "val")


def by_role(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Split -> path, of names that say it: what is called val is the test split, or selection beside a test split."""
    found: dict[str, Path] = {}
    for name, path in named:
        if role(name):
            found.setdefault(role(name), path)
    val = found.pop("val", None)
    if val is not None:
        found["selection" if "test" in found else "test"] = val
    return found if {"train", "test"} <= set(found) else {}


def told(counts: Mapping[str, int]) -> str:
    """train 5,394, test 600."""
    return ", ".join(f"{split} {count:,}" for split, count in counts.items())


def drawn(classes: Mapping[str, list[Path]]) -> dict[str, Path]:
    """Every class's files, dealt out to train/ and test/ by a seed."""
    made: dict[str, Path] = {}
    for name, paths in classes.items():
        order = sorted(paths)
        random.Random(0).shuffle(order)
        held = max(1, round(HELD * len(order)))
        for place, path in enumerate(order):
            made[f"{'test' if place < held else 'train'}/{name}/{path.name}"] = path
    return made
