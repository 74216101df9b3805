"""Arrays as they lie about: .npz and .npy files by their usual names, or one .npy an example in class folders.

`[data] kind = "arrays"` reads one .npz with train_inputs, train_targets, test_inputs, test_targets. What lies there
under other names, or in many files, is written as that, beside the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune import files
from edgeprune.errors import DataError
from edgeprune.pipeline.layout import ARRAYS, HELD, READ, Layout, Tree, by_role, census, role, told

LARGEST = 4 << 30  # bytes that are written anew
_INPUTS = {"x", "input", "inputs", "feature", "features", "data", "image", "images", "signals", "windows"}
_TARGETS = {"y", "target", "targets", "label", "labels", "values"}
Array = NDArray[Any]


@dataclass(frozen=True)
class Unwritten(Layout):
    """A layout whose arrays have to be written as one .npz first.

    Attributes:
        read: gives split_inputs, split_targets, and perhaps classes.
    """

    read: Callable[[], dict[str, Array]] | None = None


def of_file(path: Path) -> Layout:
    """An .npz; raises DataError for one whose names say nothing."""
    if path.suffix.lower() != ".npz":
        raise DataError(f"--data {path}: one array alone holds inputs or targets, not both.", READ)
    try:
        with np.load(path, allow_pickle=False) as held:
            names = list(held.files)
            shapes = {name: (held[name].shape, held[name].dtype) for name in names}
    except (OSError, ValueError) as cause:
        raise DataError(f"--data {path}: cannot be read as .npz: {files.reason(cause)}.") from None
    said = f"arrays {', '.join(f'{name} {list(shape)}' for name, (shape, _) in list(shapes.items())[:6])}"
    if {"train_images", "train_labels", "test_images", "test_labels"} <= set(names):
        counts = {split: shapes[f"{split}_labels"][0][0] for split in ("train", "test")}
        size = tuple(int(side) for side in shapes["test_images"][0][1:3])
        return Layout("images", said, str(path), task="classification", counts=counts, size=size)
    if {"train_targets", "test_targets"} <= set(names):
        counts = {split: shapes[f"{split}_targets"][0][0] for split in ("train", "test")}
        return Layout("arrays", said, str(path), counts=counts)

    def read(name: str) -> Array:
        with np.load(path, allow_pickle=False) as held:
            return np.asarray(held[name])

    return _named({name: name for name in names}, read, said, str(path))


def of_folder(tree: Tree, classes: tuple[str, ...] = ()) -> Layout | None:
    """.npy files called x_train, y_train and the like, or class folders of them; None where there are none."""
    suffixes, root = frozenset({".npy"}), tree.root
    splits = by_role((one.name, one) for one in tree.below(root) if tree.classes(one, suffixes))
    if splits:
        return _of_classes(
            tree, {split: tree.classes(folder, suffixes) for split, folder in splits.items()}, True, classes
        )
    whole = tree.classes(root, suffixes)
    if len(whole) > 1 and not any(role(name) for name in whole):
        return _of_classes(tree, {"": whole}, False, classes)
    paths = {
        f"{folder.name}_{file.stem}" if folder != root else file.stem: file
        for folder in (root, *tree.below(root))
        for file in tree.of(folder, ARRAYS)
    }
    if not paths:
        return None
    archives = [path for path in paths.values() if path.suffix.lower() == ".npz"]
    if len(archives) == 1:
        return of_file(archives[0])
    arrays = {name: path for name, path in paths.items() if path.suffix.lower() == ".npy"}
    shapes = [f"{name} {list(_read(path, 'r').shape)}" for name, path in list(arrays.items())[:6]]
    return _named(arrays, _read, f"arrays {', '.join(shapes)}", str(root))


def written(layout: Layout, path: Path, takes: Callable[[tuple[int, ...]], bool]) -> Layout:
    """The layout of the .npz at `path`, written where it has to be. Raises OSError, DataError.

    Args:
        takes: does the network take an example of this shape? Where it does not, an axis of one channel is tried.
    """
    if not isinstance(layout, Unwritten) or layout.read is None:
        return layout
    given = layout.read()
    if given["train_inputs"].dtype == np.uint8 and given["train_inputs"].ndim == 4 and given["train_targets"].ndim == 1:
        return _pixels(layout, given, path)
    arrays = {name: _plain(name, value) for name, value in given.items()}
    shape = arrays["train_inputs"].shape[1:]
    if not takes(shape) and takes((1, *shape)):
        arrays = {name: value[:, None] if name.endswith("_inputs") else value for name, value in arrays.items()}
    if sum(value.nbytes for value in arrays.values()) > LARGEST:
        raise DataError(f"{layout.said}: more than {LARGEST >> 30} GiB to write anew.", READ)
    with files.replacing(path) as partial:
        np.savez(partial, **arrays)  # type: ignore[arg-type]
    counts = {split: len(arrays[f"{split}_targets"]) for split in ("train", "test")}
    said = f"written as {path.name}: {told(counts)}"
    return Layout("arrays", said, str(path), task=layout.task, counts=counts, classes=layout.classes)


def _pixels(layout: Layout, given: Mapping[str, Array], path: Path) -> Layout:
    """8-bit images [N, H, W, C] with classes: [data] scale, mean and std are theirs too."""
    arrays = {name.replace("_inputs", "_images").replace("_targets", "_labels"): one for name, one in given.items()}
    with files.replacing(path) as partial:
        np.savez(partial, **arrays)  # type: ignore[arg-type]
    counts = {split: len(arrays[f"{split}_labels"]) for split in ("train", "test")}
    said = f"8-bit images, written as {path.name}: {told(counts)}"
    size = tuple(int(side) for side in arrays["test_images"].shape[1:3])
    return Layout("images", said, str(path), task="classification", counts=counts, size=size)


def guess(targets: Array, outputs: tuple[int, ...]) -> str:
    """The task that targets [N, ...] and an example's outputs look like; "" where nothing tells."""
    whole = targets.dtype.kind in "iub"
    if (
        targets.ndim == 1
        and whole
        and len(outputs) == 1
        and outputs[0] > 1
        and 0 <= targets.min() <= targets.max() < outputs[0]
    ):
        return "classification"
    if targets.ndim == 1 and outputs in ((), (1,)) and set(np.unique(targets[:4096]).tolist()) <= {0, 1}:
        return "binary"
    if targets.shape[1:] == outputs and targets.ndim == 2 and set(np.unique(targets[:4096]).tolist()) <= {0, 1}:
        return "multilabel"
    if len(outputs) == 3 and targets.ndim == 3 and whole:
        return "segmentation"
    if len(outputs) == 3 and targets.ndim == 4 and not whole:
        return "restoration"
    size = int(np.prod(outputs)) if outputs else 1
    return "regression" if targets.dtype.kind in "fiu" and int(np.prod(targets.shape[1:])) == size else ""


def _read(path: Any, how: Literal["r"] | None = None) -> Array:
    try:
        return np.asarray(np.load(path, mmap_mode=how, allow_pickle=False))
    except (OSError, ValueError, EOFError) as cause:
        raise DataError(f"{path} cannot be read as .npy: {files.reason(cause)}.", "Remove it or restore it.") from None


def _named(held: Mapping[str, object], read: Callable[[Any], Array], said: str, source: str) -> Layout:
    """Arrays whose names say the split and the side."""
    sides: dict[tuple[str, str], Any] = {}
    for name, place in held.items():
        words = re.findall(r"[a-z]+", re.sub(r"([xXyY])(?=[tTvV])", r"\1_", name).lower())
        side = next((s for s, known in (("targets", _TARGETS), ("inputs", _INPUTS)) if known & set(words)), "")
        if side:
            sides.setdefault((role(name.lower().replace("x", "x_").replace("y", "y_")) or role(name), side), place)
    if ("test", "inputs") not in sides:
        sides = {("test" if split == "val" else split, side): place for (split, side), place in sides.items()}
    ends = {split: {side: sides[split, side] for side in ("inputs", "targets") if (split, side) in sides}
            for split in ("train", "test", "")}  # fmt: skip

    def split() -> dict[str, Array]:
        return {f"{name}_{side}": read(ends[name][side]) for name in ("train", "test") for side in ends[name]}

    if len(ends["train"]) == len(ends["test"]) == 2:
        return Unwritten("arrays", said, source, read=split)
    one = next((ends[name] for name in ("", "train") if len(ends[name]) == 2), None)
    if one is None:
        raise DataError(
            f"--data {source}: {said}: which are inputs and which targets?",
            "Name them x_train, y_train, x_test, y_test (or train_inputs, train_targets, ...).",
        )
    made = one

    def draw() -> dict[str, Array]:
        return _held_out(read(made["inputs"]), read(made["targets"]))

    return Unwritten(
        "arrays", f"{said}, not split: a seeded draw of {100 * HELD:.0f} % is the test split", source, read=draw
    )


def _held_out(inputs: Array, targets: Array) -> dict[str, Array]:
    if len(inputs) != len(targets):
        raise DataError(f"--data: {len(inputs):,} inputs, but {len(targets):,} targets.", "Give one target an example.")
    order = np.random.default_rng(0).permutation(len(targets))
    test, train = np.split(order, [max(1, round(HELD * len(order)))])
    return {
        f"{split}_{side}": values[np.sort(chosen)]
        for split, chosen in (("train", train), ("test", test))
        for side, values in (("inputs", inputs), ("targets", targets))
    }


def _of_classes(
    tree: Tree, found: Mapping[str, Mapping[str, list[Path]]], split: bool, stated: tuple[str, ...]
) -> Layout:
    folders = {name for classes in found.values() for name in classes}
    names = stated or tuple(sorted(folders))
    if folders - set(names):
        raise DataError(f"--classes lacks {sorted(folders - set(names))[0]}, a folder.", "Name every output, in order.")

    def stacked(classes: Mapping[str, list[Path]]) -> tuple[Array, Array]:
        listed = [(path, names.index(name)) for name, paths in classes.items() for path in sorted(paths)]
        first = _read(listed[0][0])
        made = np.empty((len(listed), *first.shape), first.dtype)
        for row, (path, _) in enumerate(listed):
            one = _read(path)
            if one.shape != first.shape:
                raise DataError(
                    f"{path} is {list(one.shape)}; {listed[0][0].name} is {list(first.shape)}.",
                    "Arrays of one network have one shape.",
                )
            made[row] = one
        return made, np.array([number for _, number in listed], np.int64)

    def read() -> dict[str, Array]:
        if not split:
            return {**_held_out(*stacked(found[""])), "classes": np.array(names)}
        made: dict[str, Array] = {"classes": np.array(names)}
        for name in ("train", "test"):
            made[f"{name}_inputs"], made[f"{name}_targets"] = stacked(found[name])
        return made

    said = f"{census(tree)} in {len(names)} class folders"
    return Unwritten("arrays", said, str(tree.root), classes=names, task="classification", read=read)


def _plain(name: str, value: Array) -> Array:
    """What an array of a recipe may be: numbers, and no wider than a network takes."""
    if value.dtype.kind not in "fiubSU" or (name == "classes") != (value.dtype.kind in "SU"):
        raise DataError(f"--data: {name} is {value.dtype} {list(value.shape)}; it must be numbers.", READ)
    if name.endswith("_inputs") and value.dtype.kind == "f":
        return value.astype(np.float32)
    if name.endswith("_inputs") and value.dtype == np.uint8:
        return value.astype(np.float32)
    return value.astype(np.float32) if value.dtype == np.float64 else value
