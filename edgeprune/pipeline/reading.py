"""The data that a recipe's [data] means, where it is more than images in class folders."""

from __future__ import annotations

import functools
import inspect
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, RecipeError, did_you_mean
from edgeprune.model import Preprocess, call_source, load_callable, read_npz
from edgeprune.recipe import Recipe
from edgeprune.workload import SPLITS, Data, Features, Subset, sources

Say = Callable[[str], None]


OWN = ("images", "arrays", "function")  # kinds of [data] that are no files of `sources`


def check_kind(recipe: Recipe) -> None:
    """Raises RecipeError for a kind of data that there is none of."""
    kind = recipe.data.kind
    if kind not in OWN and kind not in sources.KINDS:
        known = (*OWN, *sources.KINDS)
        raise RecipeError(f"[data] kind: '{kind[:100]}' is not known.", did_you_mean(kind, known))


def is_datasets(given: Any) -> bool:
    """Is it what a user's function gives in place of arrays of images: a Data, or datasets by split?"""
    return isinstance(given, Data) or (isinstance(given, Mapping) and {"train", "test"} <= set(given))


def of_recipe(recipe: Recipe, given: Any, say: Say) -> Data:
    """The splits; raises DataError, MissingDependency.

    Args:
        given: what the function that [data] source names returned, where it was called already.
        say: is told how much there is, and what was left out.
    """
    check_kind(recipe)
    section = recipe.data
    if is_datasets(given) or section.kind == "function":
        return _limited(recipe, _handed(recipe, call_source(recipe) if given is None else given))
    if section.kind == "arrays":
        return _limited(recipe, _of_datasets(recipe, _arrays(recipe)))
    made: dict[str, sources.Examples] = {}
    for name in section.splits:
        made[name] = found = _read(recipe, name)
        say(f"{name}: {found.said()}")
        if found.classes != made["train"].classes if "train" in made else False:
            raise DataError(
                f"[data] the classes of {name} are not those of train.", "State them: [data] classes = [...]."
            )
    return _limited(recipe, _of_datasets(recipe, made))


def _read(recipe: Recipe, name: str) -> sources.Examples:
    """One split of a source with files."""
    section, kind = recipe.data, sources.KINDS[recipe.data.kind]
    arguments: dict[str, Any] = {**section.options, **section.splits[name]}  # type: ignore[index]
    for key in kind.paths:
        if key in arguments:
            arguments[key] = recipe.resolve(str(arguments[key]))
    if kind.classes and section.classes and "classes" not in arguments:
        arguments["classes"] = section.classes
    if kind.own:
        arguments[kind.own] = _own(recipe, kind.own, arguments.get(kind.own), arguments.get("ignore", 255))
    if isinstance(arguments.get("numbers"), Mapping):
        arguments["numbers"] = {int(key): int(value) for key, value in arguments["numbers"].items()}
    known = inspect.signature(kind.read).parameters
    where = f'[data] splits.{name}, kind = "{section.kind}"'
    for key in arguments:
        if key not in known:
            raise DataError(f"{where}: '{key}' is not known.", did_you_mean(key, known))
    lacking = [key for key, one in known.items() if one.default is one.empty and key not in arguments]
    if lacking:
        told = "[data] classes" if lacking[0] == "classes" else f"splits.{name} or options"
        raise DataError(f"{where} lacks {lacking[0]}.", f"Give it in {told}.")
    try:
        return kind.read(**arguments)
    except (TypeError, AttributeError) as cause:  # a setting of another type than it must be
        raise DataError(f"{where}: a setting has a wrong type: {cause}.", "See docs/tasks.md.") from None


def _own(recipe: Recipe, key: str, given: Any, ignore: int | None = None) -> Callable[..., Any]:
    """What makes the network's input: the user's function, stated features, or [data] resize, scale, mean and std."""
    if isinstance(given, str):
        base = Path(recipe.path).parent if recipe.path else None
        return load_callable(given, f"[data] {key}", base, DataError)
    if key == "features":
        try:
            return Features(**(given or {}))
        except TypeError as cause:
            raise DataError(f"[data] features: {cause}.", "See docs/tasks.md.") from None
    if recipe.data.crop:
        raise DataError("[data] crop would cut objects away from their labels.", "Use resize = [height, width].")
    made = preprocess(recipe)
    if not sources.KINDS[recipe.data.kind].mask:
        return made
    return functools.partial(_with_mask, made, ignore)


def preprocess(recipe: Recipe) -> Preprocess:
    """What [data] resize, scale, mean and std make of a picture with boxes or a mask."""
    section = recipe.data
    size = section.resize if isinstance(section.resize, int) else (section.resize[0], section.resize[1])
    shape = recipe.model.input or next((tuple(one.shape) for one in recipe.model.inputs.values()), ())
    return Preprocess(size, 0, section.scale, section.mean, section.std, tuple(shape), section.fit, section.order)


def _with_mask(preprocess: Preprocess, ignore: int | None, picture: Any, mask: NDArray[np.int64]) -> tuple[Any, Any]:
    """A picture and its mask, of the size that the picture has then; a mask's numbers are never mixed.

    What stands around a letterboxed picture does not count, or is class 0 where every pixel does.
    """
    from PIL import Image

    made = preprocess(picture)
    height, width = made.shape[1:]
    if mask.shape != (height, width):
        top, left, inner, across = preprocess.place(*mask.shape)
        small = Image.fromarray(mask.astype(np.int32)).resize((across, inner), Image.Resampling.NEAREST)
        mask = np.full((height, width), 0 if ignore is None else ignore, np.int64)
        mask[top : top + inner, left : left + across] = np.asarray(small, np.int64)
    return made, mask


def _handed(recipe: Recipe, given: Any) -> Data:
    """What a function of the user's gave: a Data, or datasets by split."""
    if isinstance(given, Data):
        return given
    if not is_datasets(given):
        raise DataError(
            f"[data] source: {recipe.data.source}() returned {type(given).__name__}.",
            "Return an edgeprune.Data, or a dict of datasets: train and test; calibration and selection may be there.",
        )
    return _of_datasets(recipe, given)


def _of_datasets(recipe: Recipe, given: Mapping[str, Any]) -> Data:
    unknown = sorted(str(key) for key in given if key not in (*SPLITS, "classes", "prepare"))
    if unknown:
        raise DataError(f"[data] there is no split '{unknown[0][:100]}'.", did_you_mean(unknown[0], SPLITS))
    section = recipe.data
    classes = section.classes or tuple(map(str, given.get("classes") or getattr(given["test"], "classes", None) or ()))
    splits: dict[str, Any] = {name: given.get(name) for name in SPLITS}
    return Data(
        **splits,
        calibration_examples=section.calibration,
        selection_examples=section.selection,
        classes=classes,
        prepare=given.get("prepare"),
    )


def _limited(recipe: Recipe, data: Data) -> Data:
    """[data] test = N: a seeded draw of the test split."""
    count, test = recipe.data.test, data.split("test")
    if not count or count >= len(test):
        return data
    chosen = sorted(int(i) for i in np.random.default_rng(0).permutation(len(test))[:count])
    parts: dict[str, Any] = {name: getattr(data, name) for name in SPLITS if name != "test"}
    return Data(
        **parts,
        test=Subset(test, tuple(chosen)),
        calibration_examples=data.calibration_examples,
        selection_examples=data.selection_examples,
        seed=data.seed,
        classes=data.names,
        prepare=data.prepare,
    )


# Arrays


class _OfSplits(frozenset[str]):
    """Every name that begins with a split's."""

    def __contains__(self, name: object) -> bool:
        return str(name).partition("_")[0] in SPLITS or name == "classes"


@dataclass(frozen=True, eq=False)
class Arrays:
    """Arrays [N, ...] as a dataset: one array an input, and one of targets."""

    inputs: Mapping[str, NDArray[Any]]
    targets: NDArray[Any]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        target = self.targets[index]
        if set(self.inputs) == {"inputs"}:
            return self.inputs["inputs"][index], target
        return {name: values[index] for name, values in self.inputs.items()}, target


def _arrays(recipe: Recipe) -> dict[str, object]:
    """SPLIT_inputs (or SPLIT_NAME for each argument of forward) and SPLIT_targets of an .npz."""
    path = recipe.resolve(recipe.data.source)
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise DataError(f"[data] source: {path} is no .npz.", "Make it with numpy.savez.")
    arrays = read_npz(path, _OfSplits())
    made: dict[str, object] = {}
    for split in SPLITS:
        own = {key.removeprefix(f"{split}_"): value for key, value in arrays.items() if key.startswith(f"{split}_")}
        if not own:
            continue
        targets = own.pop("targets", None)
        if targets is None or not own:
            raise DataError(
                f"[data] {path.name} lacks {split}_{'targets' if targets is None else 'inputs'}.",
                f"It has {', '.join(sorted(arrays))[:300]}.",
            )
        lengths = {name: len(value) if value.ndim else -1 for name, value in {**own, "targets": targets}.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"[data] {path.name}: {split} has arrays of different lengths: {lengths}.")
        made[split] = Arrays(own, targets)
    lacking = [split for split in ("train", "test") if split not in made]
    if lacking:
        raise DataError(
            f"[data] {path.name} lacks {lacking[0]}_inputs and {lacking[0]}_targets.",
            f"It has {', '.join(sorted(arrays))[:300] or 'nothing'}.",
        )
    if "classes" in arrays:
        made["classes"] = [str(name) for name in arrays["classes"]]
    return made
