"""Calibration data as the graph's inputs: one float image, or several tensors of any type by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from edgeprune.errors import DataError, GraphError
from edgeprune.quantize.view import View

Array = NDArray[Any]
Feed = dict[str, Array]
Source = Callable[[], Iterable[Any]] | Sequence[Any] | NDArray[Any]


@dataclass(frozen=True)
class Counted:
    """Examples that say how many of them were used.

    Attributes:
        source: where they come from.
        used: called with the number of examples of each batch once it was used.
    """

    source: Source
    used: Callable[[int], None]


Images = Source | Counted


@dataclass(frozen=True)
class GraphInput:
    """One input of a graph: its name, element type, and the shape of one example.

    `whole`: it does not lead with the batch (a recurrent state: layers x batch x width); its shape is all of it.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    whole: bool = False


def inputs_of(view: View) -> tuple[int, tuple[GraphInput, ...]]:
    """The graph's batch and its inputs; raises GraphError where a shape is not fixed, or no batch can be made.

    The batch is what the first input leads with, or 1 where any leads with 1.
    """
    found: list[tuple[str, np.dtype[Any], list[int]]] = []
    for value in view.model.graph.input:
        if value.name in view.initializers:
            continue
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if not sizes or any(size < 1 for size in sizes[1:]):
            raise GraphError(
                f"input '{value.name}' has no fixed shape ({sizes}).", "Export the network with static shapes."
            )
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        found.append((value.name, kind, [max(sizes[0], 1), *sizes[1:]]))
    if not found:
        raise GraphError("the graph has no inputs: there is nothing to calibrate with.")
    leads = [sizes[0] for _, _, sizes in found]
    batch = 1 if 1 in leads else leads[0]
    whole = [name for name, _, sizes in found if sizes[0] != batch]
    if whole and batch > 1:
        raise GraphError(
            f"input '{whole[0]}' does not lead with the batch of {batch}: it cannot be put together from examples.",
            "Export the network with a batch of 1.",
        )
    return batch, tuple(GraphInput(n, k, tuple(s if n in whole else s[1:]), n in whole) for n, k, s in found)


def feeds(view: View, images: Images, limit: int) -> Iterator[tuple[Feed, int]]:
    """Batches of exactly the graph's size, by input name, and how many of each are real (the rest repeats).

    Args:
        images: a callable that gives an iterable, or a sequence; each item is one example or a batch of them: an array
            where the graph has one input, else a mapping by input name or a tuple in the graph's order.
        limit: stop after this many examples.

    Raises:
        DataError: an item does not fit the graph's inputs, or there are none.
    """
    size, inputs = inputs_of(view)
    pending: list[tuple[Array, ...]] = []
    done = 0
    source = images.source if isinstance(images, Counted) else images
    used = images.used if isinstance(images, Counted) else None
    for example in _examples(source() if callable(source) else source, inputs):
        pending.append(example)
        done += 1
        if len(pending) == size:
            yield _stacked(pending, inputs), size
            pending = []
            if used is not None:
                used(size)
        if done == limit:
            break
    if pending:
        real = len(pending)
        yield _stacked((pending * size)[:size], inputs), real
    if not done:
        raise DataError("calibration has no images.", "Check [data] source and [quantize] images.")


def _stacked(examples: Sequence[tuple[Array, ...]], inputs: Sequence[GraphInput]) -> Feed:
    columns = zip(inputs, zip(*examples, strict=True), strict=True)
    return {one.name: column[0] if one.whole else np.stack(column) for one, column in columns}


def _examples(items: Iterable[Any], inputs: Sequence[GraphInput]) -> Iterator[tuple[Array, ...]]:
    for item in items:
        arrays = [_batched(value, one) for value, one in zip(parts(item, inputs), inputs, strict=True)]
        sizes = {len(array) for array in arrays}
        if len(sizes) > 1:
            raise DataError(f"a calibration item has inputs of {sorted(sizes)} examples: they must go together.")
        yield from zip(*arrays, strict=True)


def parts(item: Any, inputs: Sequence[GraphInput]) -> list[Any]:
    """An item's arrays in the graph's order; raises DataError where it does not fit."""
    names = [one.name for one in inputs]
    if isinstance(item, Mapping):
        if set(item) != set(names):
            raise DataError(
                f"a calibration item has the inputs {sorted(map(str, item))}, but the network reads {names}.",
                "Give each input by its name.",
            )
        return [item[name] for name in names]
    if len(names) == 1:
        return [item[0]] if isinstance(item, tuple) and len(item) == 1 else [item]
    if isinstance(item, tuple) and len(item) == len(names):
        return list(item)
    raise DataError(
        f"the network reads {len(names)} inputs ({', '.join(names)}), but a calibration item is one array.",
        "Give a mapping by input name, or a tuple in this order.",
    )


def _batched(value: Any, wanted: GraphInput) -> Array:
    """A batch of one input, in its type."""
    array = np.asarray(value)
    if array.ndim == len(wanted.shape):
        array = array[None]
    if array.shape[1:] != wanted.shape:
        raise DataError(
            f"a calibration image has shape {list(array.shape[1:])}, but the network reads {list(wanted.shape)}"
            + (f" as '{wanted.name}'." if wanted.name != "input" else "."),
            "Check [data] resize and crop, and [model] input.",
        )
    if wanted.dtype.kind in "iu" and array.dtype.kind == "f" and np.any(array % 1):
        raise DataError(
            f"'{wanted.name}' takes whole numbers ({wanted.dtype}), and a calibration item has fractions.",
            "Give tokens or indices, not features.",
        )
    return array.astype(wanted.dtype, copy=False)
