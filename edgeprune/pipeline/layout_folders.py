"""Data in folders: class folders of images and sounds, boxes of COCO, YOLO and VOC, pictures with masks.

Names alone are looked at, and the few files that say what the others are (annotations, some masks and clips). What no
source reads as it lies (class folders without splits, `val` in the place of `test`) is laid out by links, beside the
recipe; see `laid_out`.
"""

from __future__ import annotations

import contextlib
import os
import re
import wave
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from edgeprune import files
from edgeprune.errors import DataError
from edgeprune.pipeline import layout_arrays, layout_tables
from edgeprune.pipeline.layout import (
    ARRAYS,
    IMAGES,
    MASKS,
    READ,
    SOUNDS,
    Layout,
    Tree,
    by_role,
    census,
    drawn,
    role,
    told,
    tree_of,
)

_MASKS = re.compile(r"mask|label|annot|seg|^gt", re.IGNORECASE)


def look(path: Path, classes: tuple[str, ...] = (), tokenizer: str = "", beside: tuple[Path, ...] = ()) -> Layout:
    """What lies there; raises DataError where nothing is read, saying what was found.

    Args:
        classes: in the order of the network's outputs; empty: by name.
        tokenizer: a file, of texts; empty: the one beside them, or in the folders `beside`.
    """
    if not path.exists():
        raise DataError(f"--data {path}: no such file or folder.", READ)
    if path.is_file():
        if path.suffix.lower() in ARRAYS:
            return layout_arrays.of_file(path)
        if path.suffix.lower() in layout_tables.TABLES:
            return layout_tables.of_file(path, tokenizer, beside)
        raise DataError(f"--data {path}: a {path.suffix or 'suffixless'} file alone is not read.", READ)
    tree = tree_of(path)
    yolo, arrays = partial(_yolo, classes=classes), partial(layout_arrays.of_folder, classes=classes)
    texts = partial(layout_tables.of_folder, tokenizer=tokenizer, beside=beside)
    for find in (_own, _coco, yolo, _voc, _masks, _classes, arrays, texts):
        found = find(tree)
        if found is not None:
            return found
    raise DataError(f"--data {path}: {census(tree)}: no layout that is read.", READ)


def laid_out(layout: Layout, folder: Path) -> Layout:
    """Make the links of a layout in `folder`, and give the layout of it; an earlier call's are taken as they are.

    Raises OSError, DataError.
    """
    if os.path.lexists(folder):
        if all((folder / name).resolve() == leads.resolve() for name, leads in layout.links.items()):
            return look(folder, layout.classes)
        raise DataError(f"{folder} is there already; the splits would be laid out in it.", "Remove it, or give --name.")
    for name, leads in layout.links.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(leads.resolve(), target_is_directory=leads.is_dir())
    return look(folder, layout.classes)


def _own(tree: Tree) -> Layout | None:
    """Sheets, and .npz of train and test: as the readers of images have them."""
    names = set(tree.files[tree.root])
    if "manifest.json" in names:
        with contextlib.suppress(DataError, ValueError, LookupError, TypeError, AttributeError):
            given = files.read_json(tree.root / "manifest.json", DataError)
            counts = {split: sum(len(one["labels"]) for one in given[split]) for split in ("train", "test")}
            what = f"sheets of images of {len(given['classes'])} classes"
            return Layout(
                "images",
                f"{what}: {told(counts)}",
                str(tree.root),
                classes=tuple(map(str, given["classes"])),
                task="classification",
                counts=counts,
                size=(int(given["image"][0]), int(given["image"][1])),
            )
    if {"train.npz", "test.npz"} <= names:
        return Layout("images", "train.npz and test.npz", str(tree.root), task="classification")
    return None


def _classes(tree: Tree) -> Layout | None:
    """Class folders of images or sounds: in splits, or without."""
    for suffixes, what, kind in ((IMAGES, "images", "images"), (SOUNDS, ".wav files", "wav")):
        splits = by_role((one.name, one) for one in tree.below(tree.root) if tree.classes(one, suffixes))
        if splits:
            return _split_classes(tree, splits, suffixes, what, kind)
        whole = tree.classes(tree.root, suffixes)
        only = next((one for one in tree.below(tree.root) if role(one.name) and tree.classes(one, suffixes)), None)
        if only is not None:
            whole = tree.classes(only, suffixes)
        if len(whole) > 1:
            links = drawn(whole)
            count, made = sum(map(len, whole.values())), Counter(name.split("/")[0] for name in links)
            said = f"{count:,} {what} in {len(whole)} class folders, not split: a seeded draw of {told(made)} as links"
            return Layout(kind, said, links=links, classes=tuple(sorted(whole)), task="classification", counts=made)
    return None


def _split_classes(
    tree: Tree, splits: Mapping[str, Path], suffixes: frozenset[str], what: str, kind: str
) -> Layout | None:
    found = {split: tree.classes(folder, suffixes) for split, folder in splits.items()}
    counts = {split: sum(map(len, classes.values())) for split, classes in found.items()}
    names = tuple(sorted(found["train"]))
    some = tuple(paths[0] for paths in found["test"].values())[:8]
    said = f"{sum(counts.values()):,} {what} in {len(names)} class folders: {told(counts)}"
    if kind == "wav":
        options = _clip(next(iter(found["train"].values())))
        paths = {split: {"folder": str(folder)} for split, folder in splits.items()}
        said += f"; {options['rate']:,} Hz, {options['samples']:,} samples"
        return Layout(kind, said, "", paths, options, names, "classification", counts, some)
    if all(split == folder.name for split, folder in splits.items()):
        return Layout(kind, said, str(tree.root), classes=names, task="classification", counts=counts, some=some)
    named = {split: folder.name for split, folder in splits.items() if split != folder.name}
    said += f" ({', '.join(f'{theirs}/ as {ours}' for ours, theirs in named.items())}, by links)"
    return Layout(kind, said, classes=names, task="classification", counts=counts, some=some, links=dict(splits))


def _clip(paths: list[Path]) -> dict[str, object]:
    """Rate, and the usual length, of some .wav files; raises DataError."""
    rates, lengths = Counter[int](), Counter[int]()
    for path in paths[:64]:
        try:
            with wave.open(str(path), "rb") as clip:
                rates[clip.getframerate()] += 1
                lengths[clip.getnframes()] += 1
        except (OSError, EOFError, wave.Error) as cause:
            raise DataError(f"{path} cannot be read as wav: {cause}.", "PCM of 8, 16 or 32 bits is read.") from None
    return {"rate": rates.most_common(1)[0][0], "samples": lengths.most_common(1)[0][0]}


def _coco(tree: Tree) -> Layout | None:
    """Annotation files of COCO, and the folder of each one's pictures."""
    tables = []
    for folder in tree.files:
        for file in tree.of(folder, frozenset({".json"})):
            with contextlib.suppress(DataError, KeyError, TypeError, IndexError, AttributeError):
                given = files.read_json(file, DataError)
                if given["annotations"] and given["categories"] and given["images"][0]["file_name"]:
                    names = [str(one["name"]) for one in sorted(given["categories"], key=lambda one: one["id"])]
                    tables.append((file, str(given["images"][0]["file_name"]), len(given["images"]), tuple(names)))
    if not tables:
        return None
    named = [(file.stem if role(file.stem) else file.parent.name, file) for file, *_ in tables]
    splits = by_role(named)
    if not splits:
        listed = ", ".join(str(file.relative_to(tree.root)) for file, *_ in tables[:3])
        raise DataError(
            f"--data {tree.root}: annotations of COCO ({listed}), but none for train and one for test.",
            "Name them so that it shows, such as train.json and val.json.",
        )
    found = {}
    for split, file in splits.items():
        first = next(name for path, name, *_ in tables if path == file)
        near = sorted(
            tree.files, key=lambda folder: (folder != file.parent and role(folder.name) != role(file.stem), folder)
        )
        place = next((folder for folder in near if (folder / first).is_file()), None)
        if place is None:
            raise DataError(f"{file} names {first}, which lies in no folder of {tree.root}.", "Where are its pictures?")
        found[split] = {"annotations": str(file), "images": str(place)}
    counts = {split: count for split, path in splits.items() for file, _, count, _ in tables if file == path}
    classes = next(names for file, _, _, names in tables if file == splits["train"])
    said = f"pictures with COCO boxes of {len(classes)} classes: {told(counts)}"
    return Layout("coco", said, "", found, {}, classes, "detection", counts, _some(tree, found["test"]["images"]))


def _yolo(tree: Tree, classes: tuple[str, ...] = ()) -> Layout | None:
    """images/ and labels/ of .txt, in each split or with the splits in each."""
    text = frozenset({".txt"})
    pairs = [
        (one.name, one)
        for one in tree.below(tree.root)
        if tree.of(one / "labels", text) and tree.of(one / "images", IMAGES)
    ]
    splits, links = by_role(pairs), dict[str, Path]()
    if not splits:
        inner = by_role((one.name, one) for one in tree.below(tree.root / "images") if tree.of(one, IMAGES))
        for split, folder in inner.items():
            labels = tree.root / "labels" / folder.name
            if not tree.of(labels, text):
                return None
            links |= {f"{split}/images": folder, f"{split}/labels": labels}
        if not links:
            return None
        splits = dict.fromkeys(inner, tree.root)
        pictures = inner
    else:
        pictures = {split: folder / "images" for split, folder in splits.items()}
    counts = {split: len(tree.of(folder, IMAGES)) for split, folder in pictures.items()}
    classes = classes or _yolo_names(tree)
    if not classes:
        raise DataError(
            f"--data {tree.root}: boxes of YOLO ({told(counts)}), but nothing names their classes.",
            "Name them: --classes car,person,...; or in a data.yaml with names, or a classes.txt with one a line.",
        )
    folders = {split: {"folder": str(folder)} for split, folder in splits.items()}
    if links:
        links |= {name: tree.root / name for name in ("data.yaml", "classes.txt") if name in tree.files[tree.root]}
    said = f"pictures with YOLO boxes of {len(classes)} classes: {told(counts)}"
    some = _some(tree, pictures["test"])
    return Layout("yolo", said, "", folders, {}, classes, "detection", counts, some, links=links)


def _yolo_names(tree: Tree) -> tuple[str, ...]:
    """Of classes.txt, or of `names` in a .yaml, which is a list or numbers with names."""
    for file in (*tree.of(tree.root, frozenset({".yaml", ".yml"})), tree.root / "classes.txt"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = file.read_text("utf-8")
            if file.suffix == ".txt":
                return tuple(line.strip() for line in text.splitlines() if line.strip())
            inline = re.search(r"^names:\s*\[(.*?)\]", text, re.MULTILINE | re.DOTALL)
            rows = re.search(r"^names:\s*\n((?:\s*(?:-|\d+:).*\n?)+)", text, re.MULTILINE)
            parts = inline[1].split(",") if inline else rows[1].splitlines() if rows else []
            names = [re.sub(r"^\s*(?:-|\d+:)?\s*", "", part).strip().strip("'\"") for part in parts]
            if any(names):
                return tuple(name for name in names if name)
    return ()


def _voc(tree: Tree) -> Layout | None:
    """Annotations/ and JPEGImages/ in each split."""
    xml = frozenset({".xml"})
    splits = by_role((one.name, one) for one in tree.below(tree.root) if tree.of(one / "Annotations", xml))
    if not splits:
        return None
    names: set[str] = set()
    for folder in splits.values():
        for file in tree.of(folder / "Annotations", xml):
            names.update(re.findall(r"<object>\s*<name>\s*([^<]+?)\s*</name>", file.read_text("utf-8", "replace")))
    counts = {split: len(tree.of(folder / "Annotations", xml)) for split, folder in splits.items()}
    paths = {split: {"folder": str(folder)} for split, folder in splits.items()}
    classes = tuple(sorted(names))
    said = f"pictures with VOC boxes of {len(classes)} classes: {told(counts)}"
    some = _some(tree, splits["test"] / "JPEGImages")
    return Layout("voc", said, "", paths, {}, classes, "detection", counts, some)


def _masks(tree: Tree) -> Layout | None:
    """Two folders with files of the same names, the one called like masks."""
    root, pairs = tree.root, dict[str, tuple[Path, Path]]()
    for one in tree.files:
        for other in tree.files:
            if one != other and tree.of(one, IMAGES) and _MASKS.search(other.name) and not _MASKS.search(one.name):
                mine, theirs = ({path.stem for path in tree.of(p, s)} for p, s in ((one, IMAGES), (other, MASKS)))
                same = one.parent == other.parent or one.name == other.name
                if same and len(mine & theirs) * 2 > len(mine):
                    pairs[str(one.relative_to(root))] = (one, other)
        inner = one.parent.name != one.name and next(
            (p for p in tree.files if p.name == one.name and p != one and _MASKS.search(p.parent.name)), None
        )
        if inner and tree.of(one, IMAGES) and not _MASKS.search(str(one.relative_to(root))):
            pairs[str(one.relative_to(root))] = (one, inner)
    if not pairs:
        return None
    splits = by_role((name, one) for name, (one, _) in pairs.items())
    of = dict(pairs.values())
    classes, options = _mask_classes(tree.of(next(iter(of.values())), MASKS))
    if splits:
        counts = {split: len(tree.of(one, IMAGES)) for split, one in splits.items()}
        paths = {split: {"images": str(one), "masks": str(of[one])} for split, one in splits.items()}
        said = f"pictures with masks of {len(classes)} classes: {told(counts)}"
        some = _some(tree, splits["test"])
        return Layout("masks", said, "", paths, options, classes, "segmentation", counts, some)
    images, masks = next(iter(pairs.values()))
    of_stem = {path.stem: path for path in tree.of(masks, MASKS)}
    dealt = drawn({"": [path for path in tree.of(images, IMAGES) if path.stem in of_stem]})
    links: dict[str, Path] = {}
    for name, path in dealt.items():
        split, mask = name.split("/")[0], of_stem[path.stem]
        links |= {f"{split}/images/{path.name}": path, f"{split}/masks/{mask.name}": mask}
    counts = dict(Counter(name.split("/")[0] for name in dealt))
    said = f"pictures with masks of {len(classes)} classes, not split: a seeded draw of {told(counts)} as links"
    return Layout("masks", said, "", {}, options, classes, "segmentation", counts, links=links)


def _some(tree: Tree, folder: str | Path) -> tuple[Path, ...]:
    """A few pictures, whose size says what the network takes."""
    return tuple(tree.of(Path(folder), IMAGES)[:8])


def _mask_classes(paths: list[Path]) -> tuple[tuple[str, ...], dict[str, object]]:
    """The classes that some masks hold, as numbers; 0 and 255 alone are two classes."""
    import numpy as np
    from PIL import Image

    seen: set[int] = set()
    for path in paths[:64]:
        with contextlib.suppress(OSError), Image.open(path) as image:
            seen.update(int(value) for value in np.unique(np.asarray(image)))
    if seen and seen <= {0, 255}:
        return ("0", "255"), {"numbers": {"0": 0, "255": 1}, "ignore": 254}
    return tuple(str(number) for number in range(max(seen - {255}, default=0) + 1)), {}
