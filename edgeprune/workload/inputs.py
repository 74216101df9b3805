"""What one example is: its tensors' names, shapes and dtypes, and how examples become a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, did_you_mean
from edgeprune.workload.arrays import to_array

Dtype = Literal["float32", "float16", "int64", "int32", "bool", "uint8"]
DTYPES: tuple[str, ...] = ("float32", "float16", "int64", "int32", "bool", "uint8")


@dataclass(frozen=True)
class Input:
    """One tensor of an example.

    Attributes:
        name: the argument of the network's forward that takes it.
        shape: without the batch axis.
        dtype: as the network takes it.
        below: whole numbers are from 0 to below this (token ids: the size of the vocabulary); None: unknown.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Dtype = "float32"
    below: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise DataError(
                f"input {self.name}: dtype '{self.dtype}' is not supported.", did_you_mean(self.dtype, DTYPES)
            )
        if any(not isinstance(size, int) or size < 1 for size in self.shape):
            raise DataError(f"input {self.name}: shape {list(self.shape)} must be whole numbers of at least 1.")


@dataclass(frozen=True)
class Inputs:
    """The tensors of one example, in the order in which the network's forward takes them.

    Attributes:
        parts: one entry a tensor.
        keywords: the network is called by argument names, since the dataset gives a dict.
    """

    parts: tuple[Input, ...]
    keywords: bool = False

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not names:
            raise DataError("the network has no input.", "Give at least one.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"two inputs are called {twice[0]}.", "Each needs its own name.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    @staticmethod
    def of(example: Any, names: Sequence[str] = (), below: Mapping[str, int] | None = None) -> Inputs:
        """From one example's inputs: a tensor, a tuple of them, or a dict by forward's argument names.

        Args:
            example: without a batch axis. float64 becomes float32, since networks are float32.
            names: of forward's arguments, in order; "input", "input_1", ... where it is empty.
            below: for each name that has one, the size of its vocabulary.
        """
        keywords = isinstance(example, Mapping)
        listed = list(example.items()) if keywords else [*zip(_names(names, example), _listed(example), strict=True)]
        values = [name for name, _ in listed]
        limits = dict(below or {})
        unknown = sorted(set(limits) - set(values))
        if unknown:
            raise DataError(f"a limit is given for {unknown[0]}, which is no input.", did_you_mean(unknown[0], values))
        parts = []
        for name, value in listed:
            array = to_array(value)
            dtype = "float32" if array.dtype == np.float64 else str(array.dtype)
            parts.append(Input(str(name), tuple(array.shape), cast(Dtype, dtype), limits.get(name)))
        return Inputs(tuple(parts), keywords)

    def batch(self, examples: Sequence[Any], first: int = 0) -> tuple[NDArray[Any], ...]:
        """N examples -> one array [N, ...] an input, in order; raises DataError that names the wrong example.

        Args:
            examples: what the dataset gives as inputs, N of them.
            first: the place of the first one in its split; errors count from there.
        """
        if not examples:
            raise DataError("a batch needs at least one example.")
        columns: list[list[NDArray[Any]]] = [[] for _ in self.parts]
        for place, example in enumerate(examples):
            for column, part, value in zip(columns, self.parts, self._values(example, first + place), strict=True):
                column.append(self._checked(part, value, first + place))
        return tuple(np.stack(column) for column in columns)

    def example(self, batch: Sequence[Any], place: int = 0) -> Any:
        """Example `place` of a batch, as the dataset gives it: a dict, a tuple, or one array."""
        values = tuple(to_array(column)[place] for column in batch)
        if self.keywords:
            return dict(zip(self.names, values, strict=True))
        return values[0] if len(values) == 1 else values

    def call(self, network: Any, batch: Sequence[Any]) -> tuple[Any, ...]:
        """The network's outputs, always a tuple; arrays become tensors where the network's parameters are."""
        import torch

        device = (
            next((p.device for p in network.parameters()), torch.device("cpu"))
            if hasattr(network, "parameters")
            else None
        )
        tensors = [torch.as_tensor(column).to(device) for column in batch]
        found = network(**dict(zip(self.names, tensors, strict=True))) if self.keywords else network(*tensors)
        if isinstance(found, Mapping):
            return tuple(found.values())
        return tuple(found) if isinstance(found, tuple | list) else (found,)

    def random(self, count: int, seed: int = 0) -> tuple[NDArray[Any], ...]:
        """Examples of no meaning but of the right shapes, dtypes and ranges, [count, ...] each."""
        draw = np.random.default_rng(seed)
        made: list[NDArray[Any]] = []
        for part in self.parts:
            shape = (count, *part.shape)
            if part.dtype == "bool":
                made.append(np.ones(shape, bool))  # a mask: everything counts
            elif part.dtype in ("float32", "float16"):
                made.append(draw.standard_normal(shape).astype(part.dtype))
            else:
                made.append(draw.integers(0, part.below or 2, shape).astype(part.dtype))
        return tuple(made)

    def _values(self, example: Any, place: int) -> list[Any]:
        if self.keywords:
            if not isinstance(example, Mapping):
                raise DataError(f"example {place} gives no dict; its inputs are {', '.join(self.names)}, by name.")
            lacking = [name for name in self.names if name not in example]
            if lacking:
                raise DataError(
                    f"example {place} lacks the input {lacking[0]}.", did_you_mean(lacking[0], map(str, example))
                )
            extra = [str(name) for name in example if name not in self.names]
            if extra:
                raise DataError(
                    f"example {place} has an input {extra[0]} that is not known.", did_you_mean(extra[0], self.names)
                )
            return [example[name] for name in self.names]
        if isinstance(example, Mapping):
            raise DataError(f"example {place} gives a dict; the first gave {len(self.parts)} inputs without names.")
        values = _listed(example)
        if len(values) != len(self.parts):
            raise DataError(f"example {place} has {len(values)} inputs; the network takes {', '.join(self.names)}.")
        return values

    def _checked(self, part: Input, value: Any, place: int) -> NDArray[Any]:
        array = to_array(value)
        if array.dtype == np.float64 and part.dtype == "float32":
            array = array.astype(np.float32)
        if str(array.dtype) != part.dtype:
            raise DataError(
                f"input {part.name} of example {place} is {array.dtype}; it must be {part.dtype}.",
                "Convert it in the dataset, or say the dtype under [model] inputs.",
            )
        if tuple(array.shape) != part.shape:
            raise DataError(
                f"input {part.name} of example {place} is {list(array.shape)}; it must be {list(part.shape)}.",
                "Every example needs one shape: resize, crop or pad in the dataset.",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"input {part.name} of example {place} holds NaN or infinity.", "Mend it or leave it out.")
        if part.below is not None and array.size and (array.min() < 0 or array.max() >= part.below):
            wrong = int(array.min()) if array.min() < 0 else int(array.max())
            raise DataError(
                f"input {part.name} of example {place} holds {wrong}; it must be from 0 to {part.below - 1}.",
                "Is it the tokenizer that the network was trained with?",
            )
        return array


def collate(items: Sequence[tuple[Any, Any]]) -> tuple[Any, list[Any]]:
    """Items (inputs, target) of a dataset -> (one array [N, ...] an input, in a tuple; list of N targets)."""
    first = items[0][0]
    inputs = Inputs.of(first)
    return inputs.batch([item[0] for item in items]), [item[1] for item in items]


def _listed(example: Any) -> list[Any]:
    return list(example) if isinstance(example, tuple) else [example]


def _names(names: Sequence[str], example: Any) -> list[str]:
    wanted = len(_listed(example))
    if names:
        if len(names) < wanted:
            raise DataError(f"an example has {wanted} inputs; the network takes {', '.join(names)}.")
        return list(names[:wanted])
    return ["input", *(f"input_{number}" for number in range(1, wanted))]
