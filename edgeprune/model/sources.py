"""Where images and labels come from. See edgeprune/model/data.py for the forms."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError
from edgeprune.model.images import SUFFIXES, printable, read_image
from edgeprune.model.npz import read_npz
from edgeprune.model.preprocess import COLORS, Pixels
from edgeprune.model.usercode import call, load_callable
from edgeprune.recipe import Recipe

SPLITS = ("train", "selection", "test")
STATED = "classes.txt"
_NOT_CLASSES = {"__MACOSX", "__pycache__", "@eaDir"}  # what systems leave in folders, beside names with a dot
_KINDS = ("images", "labels")
_TOLD = 5  # names that one message lists


@dataclass(frozen=True)
class Source:
    """Images and labels as they lie there.

    Attributes:
        read: split -> reads image number i as uint8 [H, W, C] or [H, W].
        labels: split -> [N], indices into `classes` where those are known.
        classes: names in the order of the labels; empty when unknown.
        stated: someone wrote down that order; otherwise it is that of the folders' names.
        digest: changes with what is held.
        files: split -> the files behind `read`, for sources that read each image from one of its own.
        notes: what was left out, and whatever else the user should know.
    """

    read: dict[str, Callable[[int], Pixels]]
    labels: dict[str, NDArray[np.int64]]
    classes: tuple[str, ...]
    stated: bool
    digest: str
    files: dict[str, list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def open_source(recipe: Recipe, returned: Any = None) -> Source:
    """The source that [data] names; raises DataError.

    Args:
        returned: what its function gave, where it was called already.
    """
    name, stated = recipe.data.source, recipe.data.classes
    path = recipe.resolve(name)
    if is_function(recipe):
        return from_arrays(_arrays(call_source(recipe) if returned is None else returned, name), name, stated)
    if path.suffix == ".npz" and path.is_file():
        return from_arrays(read_npz(path, {*_keys(SPLITS), "classes"}), name, stated)
    if not path.is_dir():
        raise DataError(
            f"[data] source: {printable(path)[:300]}: no such folder or file.",
            "The path is relative to where you are, then to the recipe.",
        )
    stated = stated or _stated(path)
    if (path / "manifest.json").is_file():
        return _from_sheets(path, stated)
    if (path / "train.npz").is_file():
        halves = {split: path / f"{split}.npz" for split in SPLITS if (path / f"{split}.npz").is_file()}
        arrays = {f"{s}_{k}": v for s, half in halves.items() for k, v in read_npz(half, _KINDS).items()}
        named = read_npz(path / "train.npz", ("classes",))
        return from_arrays({**arrays, **named}, name, stated)
    return _from_folder(path, stated, recipe.model.input[0])


def is_function(recipe: Recipe) -> bool:
    """Does [data] source name a function?"""
    return ":" in recipe.data.source and not recipe.resolve(recipe.data.source).exists()


def call_source(recipe: Recipe) -> Any:
    """What the function that [data] source names gives, whatever that is; raises DataError."""
    name = recipe.data.source
    function = load_callable(name, "[data] source", Path(recipe.path).parent if recipe.path else None, DataError)
    return call(function, f"[data] source: {name}", DataError)


def _keys(splits: Iterable[str]) -> list[str]:
    return [f"{split}_{kind}" for split in splits for kind in _KINDS]


def _stated(folder: Path) -> tuple[str, ...]:
    """The classes of classes.txt, one a line, in the order of the network's outputs; empty without that file."""
    file = folder / STATED
    if not file.is_file():
        return ()
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"[data] {printable(file)}: cannot be read: {printable(cause)}.") from None
    return tuple(line.strip() for line in lines if line.strip())


def _unique(classes: tuple[str, ...], where: str) -> None:
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise DataError(f"[data] {where} names a class twice: {_list(twice)}.", "Each output has one name.")


def _list(names: Iterable[str]) -> str:
    every = [f"'{printable(name)[:80]}'" for name in names]
    return ", ".join(every[:_TOLD]) + (f" and {len(every) - _TOLD:,} more" if len(every) > _TOLD else "")


# Arrays


def _arrays(given: Any, name: str) -> Mapping[str, object]:
    if not isinstance(given, Mapping):
        raise DataError(
            f"[data] source: {name}() returned {type(given).__name__}, not a mapping.",
            f"Return a dict with {', '.join(_keys(('train', 'test')))}, as arrays; or an edgeprune.Data.",
        )
    return given


def from_arrays(arrays: Mapping[str, object], where: str, stated: tuple[str, ...] = ()) -> Source:
    """A source of arrays with the keys of the .npz; raises DataError."""
    splits = [split for split in SPLITS if split != "selection" or "selection_images" in arrays]
    wanted = _keys(splits)
    lacking = [key for key in wanted if key not in arrays]
    if lacking:
        raise DataError(f"[data] {where} lacks {', '.join(lacking)}.", f"It must have {', '.join(wanted)}.")
    sha, held = hashlib.sha256(), {}
    for key in wanted:
        value = held[key] = _array(arrays[key], key, where)
        if key.endswith("images") and (value.dtype != np.uint8 or value.ndim not in (3, 4)):
            raise DataError(
                f"[data] {where}: {key} is {value.dtype} {list(value.shape)}; it must be uint8 [N, H, W, C].",
                "Scale to 0..255 and convert; [data] scale, mean and std then say what the network wants.",
            )
        if key.endswith("labels") and (value.ndim != 1 or not np.issubdtype(value.dtype, np.integer)):
            raise DataError(f"[data] {where}: {key} is {value.dtype} {list(value.shape)}; it must be integers [N].")
        sha.update(value.tobytes())
    labels = {split: np.asarray(held[f"{split}_labels"], np.int64) for split in splits}
    for split, values in labels.items():
        if len(values) != len(held[f"{split}_images"]):
            raise DataError(f"[data] {where}: {len(held[f'{split}_images'])} {split} images but {len(values)} labels.")
    classes = _named(arrays.get("classes"), where)
    if stated:
        labels, classes = _renumbered(labels, classes, stated, where), stated
        sha.update(repr(stated).encode())
    read: dict[str, Callable[[int], Pixels]] = {split: held[f"{split}_images"].__getitem__ for split in labels}
    return Source(read, labels, classes, bool(classes), f"sha256:{sha.hexdigest()}")


def _array(value: Any, key: str, where: str) -> NDArray[Any]:
    try:
        return np.ascontiguousarray(value)
    except Exception as cause:  # what a user's function returned may be anything
        raise DataError(f"[data] {where}: {key} is {type(value).__name__}, not an array: {str(cause)[:200]}.") from None


def _named(given: Any, where: str) -> tuple[str, ...]:
    if given is None:
        return ()
    names = np.asarray(given)
    if names.ndim != 1 or names.dtype.kind not in "USO" or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(
            f"[data] {where}: classes is {names.dtype} {list(names.shape)}; it must be names [classes].",
            "One name an output, in the order of the labels.",
        )
    classes = tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names)
    _unique(classes, f"{where}: classes")
    return classes


def _renumbered(
    labels: dict[str, NDArray[np.int64]], own: tuple[str, ...], stated: tuple[str, ...], where: str
) -> dict[str, NDArray[np.int64]]:
    """Labels that count in `own` counted in `stated`; without names of its own, a source counts as stated."""
    _unique(stated, "classes")
    if not own or own == stated:
        return labels
    check_labels(labels, own)
    unknown = [name for name in own if name not in stated]
    if unknown:
        raise DataError(f"[data] classes lacks {_list(unknown)}, which {where} has.", "Name every output, in order.")
    place = np.array([stated.index(name) for name in own], np.int64)
    return {split: place[values] for split, values in labels.items()}


def check_labels(labels: Mapping[str, NDArray[np.int64]], classes: tuple[str, ...]) -> None:
    """Refuse splits without images and labels that no class has; raises DataError."""
    for kind, values in labels.items():
        if len(values) == 0:
            raise DataError(f"[data] the {kind} split has no images.", "Give at least one image a class.")
        count = len(classes) or None  # unknown: the network's outputs are the limit
        wrong = np.flatnonzero((values < 0) | (values >= (count or np.inf)))
        if len(wrong):
            there = f"there are {count} classes" if count else "labels count from 0"
            first = int(wrong[0])
            raise DataError(f"[data] label {int(values[first])} of {kind} image {first} is out of range: {there}.")


# Sheets


def _from_sheets(folder: Path, stated: tuple[str, ...]) -> Source:
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_text("utf-8"))
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
        classes = tuple(str(name) for name in manifest["classes"])
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as cause:
        told = f"{type(cause).__name__}: {printable(cause)[:200]}"
        raise DataError(f"[data] {printable(file)}: not a manifest of sheets: {told}.") from None
    sha = hashlib.sha256(file.read_bytes())
    if stated:
        labels, classes = _renumbered(labels, classes, stated, printable(file)), stated
        sha.update(repr(stated).encode())
    return Source(
        {s: array.__getitem__ for s, array in images.items()}, labels, classes, True, f"sha256:{sha.hexdigest()}"
    )


def _read_sheet(path: Path, digest: str, count: int, height: int, width: int, channels: int) -> Pixels:
    if not path.is_file():
        raise DataError(f"[data] {path}: no such file, but the manifest names it.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise DataError(
            f"[data] {path} is damaged: its sha256 is not the manifest's.", "Restore it from the repository."
        )
    sheet = read_image(path, channels)
    rows, columns = sheet.shape[0] // height, sheet.shape[1] // width
    if rows * columns < count:
        raise ValueError(f"{path.name} holds {rows * columns} images, and the manifest has {count} labels for them")
    tiles = sheet.reshape(rows, height, columns, width, channels).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(-1, height, width, channels)[:count]


# Folders


def _from_folder(folder: Path, stated: tuple[str, ...], channels: int) -> Source:
    left: Counter[tuple[str, str]] = Counter()  # (split, what) that is not read
    splits = [split for split in SPLITS if split != "selection" or (folder / split).is_dir()]
    found = {split: _class_folders(folder / split, split, left) for split in splits}
    if not found["train"]:
        raise DataError(
            f"[data] {printable(folder)} holds no images: no train/CLASS folders." + _left_out(left),
            "Lay it out as train/CLASS/*.png and test/CLASS/*.png.",
        )
    if channels not in COLORS:
        raise DataError(
            f"[data] [model] input has {channels} channels; image files give 1 (grey) or 3 (RGB).",
            "Give such images as .npz: uint8 [N, H, W, C].",
        )
    classes = _of_stated(found, stated) if stated else _agreed(folder, found)
    read: dict[str, Callable[[int], Pixels]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    files: dict[str, list[Path]] = {}
    notes: list[str] = []
    sha = hashlib.sha256()
    for split, places in found.items():
        numbered = [
            (path, number)
            for number, name in enumerate(classes)
            if name in places
            for path in _files(places[name], split, left)
        ]
        for path, _ in numbered:
            sha.update(os.fsencode(path.relative_to(folder)) + _state(path))
        paths = files[split] = [path for path, _ in numbered]
        read[split] = lambda index, paths=paths: read_image(paths[index], channels)  # type: ignore[misc]
        labels[split] = np.array([number for _, number in numbered], np.int64)
        if not paths:
            raise DataError(
                f"[data] the {split} split has no images: {printable(folder / split)}." + _left_out(left),
                f"Images are read from {split}/CLASS/ in the formats {', '.join(sorted(SUFFIXES))}.",
            )
        empty = sorted({classes[n] for n in range(len(classes))} - {classes[n] for n in set(labels[split].tolist())})
        if empty:
            notes.append(f"[data] {split}/ has no images of {len(empty):,} of {len(classes):,} classes: {_list(empty)}")
    if stated:
        sha.update(repr(stated).encode())
    notes += [f"[data] {split}/: left out {count:,} {what}" for (split, what), count in sorted(left.items())]
    return Source(read, labels, classes, bool(stated), f"sha256:{sha.hexdigest()}", files, notes)


def _left_out(left: Counter[tuple[str, str]]) -> str:
    return "".join(f" {split}/ holds {count:,} {what}." for (split, what), count in sorted(left.items()))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _NOT_CLASSES


def _class_folders(place: Path, split: str, left: Counter[tuple[str, str]]) -> dict[str, Path]:
    """Class -> folder; what else lies there is counted in `left`."""
    if not place.is_dir():
        return {}
    found = {}
    for entry in sorted(_scan(place), key=lambda one: one.name):
        if _hidden(entry.name):
            left[split, "hidden files or folders"] += 1
        elif Path(entry.path).is_dir():
            found[entry.name] = Path(entry.path)
        else:
            left[split, "files that lie in no class folder"] += 1
    return found


def _scan(place: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(place))
    except OSError as cause:
        raise DataError(
            f"[data] {printable(place)} cannot be read: {cause.strerror}.", "Check its permissions."
        ) from None


def _files(place: Path, split: str, left: Counter[tuple[str, str]]) -> list[Path]:
    """The image files of one class, by name; what else lies there is counted in `left`."""
    found = []
    for entry in sorted(_scan(place), key=lambda one: one.name):
        suffix = Path(entry.name).suffix.lower()
        if _hidden(entry.name):
            left[split, "hidden files or folders"] += 1
        elif Path(entry.path).is_dir():
            inside = sum(len(names) for _, _, names in os.walk(entry.path))
            left[split, "files in folders below a class folder"] += inside
        elif suffix not in SUFFIXES:
            kind = f"{printable(suffix)[:20]} files" if suffix else "files without a suffix"
            left[split, f"{kind} (no image format that is read)"] += 1
        else:
            found.append(Path(entry.path))
    return found


def _state(path: Path) -> bytes:
    try:
        found = path.stat()
    except OSError:  # a dangling link: said when the files are looked at
        return b"?"
    return f"{found.st_size}{found.st_mtime_ns}".encode()


def _of_stated(found: Mapping[str, Mapping[str, Path]], stated: tuple[str, ...]) -> tuple[str, ...]:
    _unique(stated, "classes")
    unknown = [f"{split}/{name}" for split, places in found.items() for name in places if name not in stated]
    if unknown:
        raise DataError(
            f"[data] classes does not name the folder {_list(unknown)}."
            + _near([u.split("/", 1)[1] for u in unknown], stated),
            "Name every output of the network in order; folders that are no classes must go elsewhere.",
        )
    return stated


def _agreed(folder: Path, found: Mapping[str, Mapping[str, Path]]) -> tuple[str, ...]:
    """The classes, by name, when train/ and test/ have the same: otherwise the numbers of the labels are a guess."""
    train, test = set(found["train"]), set(found["test"])
    only = {"train": sorted(train - test), "test": sorted(test - train)}
    only["selection"] = sorted(set(found.get("selection", ())) - train - test)
    if any(only.values()):
        told = "; ".join(f"only in {split}/: {_list(names)}" for split, names in only.items() if names)
        raise DataError(
            f"[data] {printable(folder)}: the class folders of the splits differ: {told}."
            + _near(only["test"] + only["selection"], only["train"] or sorted(train)),
            "Rename or add the folders. If it is meant so, name all classes in the order of the network's outputs: "
            f"[data] classes = [...], or one a line in {printable(folder / STATED)}.",
        )
    return tuple(sorted(train))


def _near(names: Iterable[str], known: Iterable[str]) -> str:
    known = list(known)
    pairs = [(name, difflib.get_close_matches(name, known, n=1, cutoff=0.6)) for name in list(names)[:_TOLD]]
    pairs += [(n, [k for k in known if k.lower() == n.lower()]) for n, near in pairs if not near]
    return "".join(f" Is '{printable(name)}' meant to be '{printable(near[0])}'?" for name, near in pairs if near)
