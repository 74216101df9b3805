"""The workload of a run: from images and labels as a recipe names them, or from what the user's own code hands over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune import model
from edgeprune.errors import DataError, EdgepruneError, ModelError
from edgeprune.pipeline.rundir import key_of
from edgeprune.recipe import Recipe
from edgeprune.tasks import Classification
from edgeprune.workload import (
    Data,
    Features,
    Input,
    Inputs,
    Task,
    Workload,
    argument_names,
    as_outputs,
    broken,
    settings,
)

if TYPE_CHECKING:
    from torch import nn

TRIED = 8  # real examples of each split, whenever a run begins; the plan tries more
Examples = torch.Tensor | tuple[torch.Tensor, ...] | dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Objects:
    """What `compress` was given in place of a recipe's names.

    Attributes:
        factory: makes the trained network anew.
        trainer: the user's own, see `recovery`; None: edgeprune's.
    """

    factory: Callable[[], nn.Module]
    data: Data
    task: Task
    trainer: Callable[..., Any] | None = None


@dataclass(frozen=True, eq=False)
class Pictures:
    """A split of images as a map-style dataset: ([C, H, W] float32, class number)."""

    split: model.Split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
        if not 0 <= index < len(self.split):
            raise IndexError(index)
        return self.split.arrays([index])[0], int(self.split.labels[index])


def of_images(
    recipe: Recipe,
    build: Callable[[], nn.Module],
    images: model.ImageData,
    task: Task,
    network: nn.Module,
    weights: str,
) -> Workload:
    """The workload of a network of one image; every example, in its place, is the one that the splits give.

    Args:
        build: makes the trained network.
        images: the splits; they are in a fair order already.
        weights: a digest of the network.

    Raises:
        ModelError, DataError, TaskError: the network's outputs on a few test images do not fit the task.
    """
    data = Data(
        train=Pictures(images.train),
        test=Pictures(images.test),
        calibration=Pictures(images.calibration),
        selection=Pictures(images.selection),
        seed=None,
        classes=images.classes,
    )
    inputs = Inputs((Input("input", tuple(recipe.model.input)),))
    digest = key_of(recipe.section("model"), recipe.data.as_read(), images.digest, weights, settings(task))
    made = Workload(build, inputs, data, task, digest)
    if not is_top_class(task):  # a classifier of images is checked by `check_outputs`
        made.check(network)
    return made


def network(factory: Callable[[], nn.Module]) -> nn.Module:
    """The network that the user's code makes, in eval mode; raises ModelError."""
    from torch import nn

    try:
        made = factory()
    except EdgepruneError:
        raise
    except Exception as cause:
        raise ModelError(f"the function that makes the network failed: {type(cause).__name__}: {cause}.") from cause
    if not isinstance(made, nn.Module):
        raise ModelError(f"the network is {type(made).__name__}; it must be a torch.nn.Module, or make one.")
    model.check_finite(made, "the network")
    return made.eval()


def of_objects(build: Callable[[], nn.Module], network: nn.Module, data: Data, task: Task, recipe: Recipe) -> Workload:
    """The workload of datasets; the network is run on a few examples of each split.

    Raises:
        ModelError, DataError, TaskError: what does not fit, whichever split it is in.
    """
    inputs = _inputs(recipe, network, data)
    check_prepare(data.prepare, inputs)
    made = Workload.of(build, data, task, inputs, network)
    for name in ("train", "selection", "test"):
        batch, targets = next(data.batches(name, made.inputs, TRIED, TRIED))
        with torch.inference_mode():
            outputs = as_outputs(made.inputs.call(network, batch))
        bad = int(broken(outputs).sum())
        if bad:
            raise ModelError(
                f"[model] the network's output is NaN or infinite on {bad} of {len(targets)} examples of the {name} "
                "split.",
                "Check the weights, and what the dataset does to its inputs.",
            )
        if name != "train":  # training targets may be missing where only the dense network teaches
            task.check(outputs, targets)
    return made


def check_prepare(given: Any, inputs: Inputs) -> None:
    """Would what the data states make an input of a file on the device? Raises DataError."""
    if given is None:
        return
    shape, wanted = inputs.parts[0].shape, "a model.Preprocess, Features, or the file of a tokenizer"
    if isinstance(given, str | Path):
        if not Path(given).is_file():
            raise DataError(f"[data] prepare: {given}: no such file.", f"It is {wanted}.")
    elif isinstance(given, model.Preprocess):
        if tuple(given.shape) != shape:
            raise DataError(f"[data] prepare makes {list(given.shape)}; an example's input is {list(shape)}.")
    elif not isinstance(given, Features):
        raise DataError(f"[data] prepare is {type(given).__name__}; it must be {wanted}.")
    elif len(shape) != len(given.layout) or given(np.zeros(given.samples(shape), np.float32)).shape != shape:
        raise DataError(f"[data] prepare: these features never are {list(shape)}, as an example's input is.")


def _inputs(recipe: Recipe, network: nn.Module, data: Data) -> Inputs:
    """As the first test example has them; names, shapes and types that the recipe states are held against it."""
    section = recipe.model
    names = list(section.inputs) or argument_names(network)
    found = data.inputs(names, {name: one.below for name, one in section.inputs.items() if one.below is not None})
    if section.input:
        if len(found.parts) != 1:
            raise DataError(
                f"[model] input states one tensor; an example has {len(found.parts)}: {', '.join(found.names)}.",
                'State them by name: inputs.NAME = { shape = [...], dtype = "int64" }.',
            )
        return Inputs((Input(found.names[0], tuple(section.input)),), found.keywords)
    if not section.inputs:
        return found
    if set(section.inputs) != set(found.names):
        raise DataError(
            f"[model.inputs] states {', '.join(section.inputs)}; an example has {', '.join(found.names)}.",
            "Name them as the arguments of forward.",
        )
    parts = [
        Input(name, tuple(stated.shape) or by_name.shape, stated.dtype, stated.below)
        for name, stated in section.inputs.items()
        for by_name in (next(one for one in found.parts if one.name == name),)
    ]
    return Inputs(tuple(parts), found.keywords)


def tensors(inputs: Inputs, batch: Sequence[NDArray[Any]]) -> Examples:
    """A batch as the network takes it: one tensor, several in order, or several by name."""
    made = [torch.from_numpy(np.ascontiguousarray(column)) for column in batch]
    if inputs.keywords:
        return dict(zip(inputs.names, made, strict=True))
    return made[0] if len(made) == 1 else tuple(made)


def examples(work: Workload, split: str, count: int) -> Examples:
    """The first `count` examples of a split, as the network takes them; a fair draw of train and calibration."""
    columns: list[list[NDArray[Any]]] = [[] for _ in work.inputs.parts]
    for batch, _ in work.data.batches(split, work.inputs, 64, count):
        for column, part in zip(columns, batch, strict=True):
            column.append(part)
    return tensors(work.inputs, [np.concatenate(column) for column in columns])


def example(work: Workload, batch: int) -> Examples:
    """One batch of real examples: random numbers are no tokens, and a mask of nothing is none."""
    first = examples(work, "calibration", batch)

    def whole(part: torch.Tensor) -> torch.Tensor:
        return part[torch.arange(batch) % len(part)].contiguous()

    if isinstance(first, torch.Tensor):
        return whole(first)
    if isinstance(first, dict):
        return {name: whole(part) for name, part in first.items()}
    return tuple(whole(part) for part in first)


def feeds(work: Workload, split: str, count: int, size: int = 32) -> Callable[[], Iterator[Any]]:
    """Batches for calibration, from their beginning at each call: an array, or arrays by the graph's input names."""

    def run() -> Iterator[Any]:
        for batch, _ in work.data.batches(split, work.inputs, size, count):
            yield batch[0] if len(batch) == 1 else dict(zip(work.inputs.names, batch, strict=True))

    return run


def targets(work: Workload, split: str, count: int) -> list[Any]:
    """The targets of the first `count` examples."""
    return [target for _, found in work.data.batches(split, work.inputs, 64, count) for target in found]


def is_top_class(task: Task) -> bool:
    """Is it the class with the highest score, of the network's first output?"""
    return isinstance(task, Classification) and task.output == 0


__all__ = [
    "Examples",
    "Objects",
    "argument_names",
    "as_outputs",
    "check_prepare",
    "example",
    "examples",
    "feeds",
    "is_top_class",
    "network",
    "of_images",
    "of_objects",
    "targets",
    "tensors",
]
