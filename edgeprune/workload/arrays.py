"""Outputs and targets on the host: what a network gave, as a tuple of arrays whose first axis is the example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, ModelError

Outputs = tuple[Any, ...]  # one entry an output: an array [N, ...], or a list of N arrays where shapes vary


def to_array(value: Any) -> NDArray[Any]:
    """A tensor (of any device; bfloat16 becomes float32), an array or a number as an array."""
    if hasattr(value, "detach"):
        value = value.detach()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        return np.asarray(value.cpu().numpy())
    return np.asarray(value)


def as_outputs(outputs: Any) -> Outputs:
    """Whatever a forward pass returned, as a tuple; raises ModelError where examples are not told apart."""
    if isinstance(outputs, Mapping):
        outputs = tuple(outputs.values())
    elif not isinstance(outputs, tuple):
        outputs = (outputs,)
    if not outputs:
        raise ModelError("the network returned no output.", "Its forward pass must return at least one tensor.")
    made = tuple([to_array(v) for v in o] if isinstance(o, list) else to_array(o) for o in outputs)
    counts = set()
    for number, output in enumerate(made):
        if not isinstance(output, list) and output.ndim == 0:
            raise ModelError(
                f"output {number} is a single number; its first axis must be the example.",
                "Return what each example gives, not a sum or a loss.",
            )
        counts.add(len(output))
    if len(counts) > 1:
        raise ModelError(
            f"the outputs hold {', '.join(str(c) for c in sorted(counts))} examples; every output must hold the same.",
            "The first axis of every output must be the example.",
        )
    return made


def count(outputs: Outputs) -> int:
    """How many examples there are."""
    return len(outputs[0])


def pick(outputs: Outputs, number: int, task: str) -> NDArray[Any]:
    """Output `number` as one array [N, ...]; raises ModelError."""
    if number >= len(outputs):
        raise ModelError(
            f"{task} looks at output {number}, but the network has {len(outputs)}.", "Outputs count from 0."
        )
    output = outputs[number]
    if isinstance(output, list):
        shapes = {value.shape for value in output}
        if len(shapes) > 1:
            raise ModelError(f"{task} needs outputs of one shape; output {number} varies: {_some(shapes)}.")
        return np.stack(output)
    return np.asarray(output)


def chosen(outputs: Outputs, places: Any) -> Outputs:
    """Some examples of every output, in the order of `places`."""
    return tuple([o[int(place)] for place in places] if isinstance(o, list) else o[places] for o in outputs)


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Batches one after the other; a list where the shapes of an output differ."""
    every: list[Any] = []
    for columns in zip(*parts, strict=True):
        if all(not isinstance(c, list) and c.shape[1:] == columns[0].shape[1:] for c in columns):
            every.append(np.concatenate(columns))
        else:
            every.append([value for column in columns for value in column])
    return tuple(every)


def examples(output: Any) -> list[NDArray[Any]]:
    """One array an example."""
    return list(output)


def broken(outputs: Outputs) -> NDArray[np.bool_]:
    """[N]: does the example's output hold NaN or infinity?"""
    bad = np.zeros(count(outputs), bool)
    for output in outputs:
        if isinstance(output, list):
            bad |= np.array([not _all_finite(value) for value in output], bool)
        elif np.issubdtype(output.dtype, np.inexact):
            bad |= ~np.isfinite(output).all(axis=tuple(range(1, output.ndim)))
    return bad


def _all_finite(value: NDArray[Any]) -> bool:
    return not np.issubdtype(value.dtype, np.inexact) or bool(np.isfinite(value).all())


def shapes(outputs: Outputs) -> tuple[tuple[int, ...] | None, ...]:
    """The shape of one example of every output; None where it varies."""
    found: list[tuple[int, ...] | None] = []
    for output in outputs:
        if isinstance(output, list):
            every = {value.shape for value in output}
            found.append(every.pop() if len(every) == 1 else None)
        else:
            found.append(output.shape[1:])
    return tuple(found)


def as_targets(targets: Any, wanted: int) -> list[Any]:
    """N targets, one an example, in order; raises DataError where there are more or fewer."""
    if isinstance(targets, Mapping) or not (isinstance(targets, Sequence) or hasattr(targets, "__len__")):
        raise DataError(f"targets are {type(targets).__name__}; they must be a list with one target an example.")
    if hasattr(targets, "detach"):
        targets = to_array(targets)
    listed = list(targets)
    if len(listed) != wanted:
        raise DataError(f"{wanted} examples have outputs, but there are {len(listed)} targets.")
    return listed


def whole_numbers(
    targets: Sequence[Any], classes: int | None, what: str, ignore: int | None = None
) -> NDArray[np.int64]:
    """Class numbers [N]; raises DataError that names the first wrong one."""
    out = np.empty(len(targets), np.int64)
    for place, target in enumerate(targets):
        value = to_array(target)
        if value.size != 1 or not (np.issubdtype(value.dtype, np.integer) or value.dtype == np.bool_):
            raise DataError(
                f"{what}: the target of example {place} is {value.dtype} {list(value.shape)}; "
                "it must be one whole number."
            )
        number = int(value.reshape(()))
        if number != ignore and (number < 0 or (classes is not None and number >= classes)):
            top = "labels count from 0" if classes is None else f"the network has classes 0 to {classes - 1}"
            raise DataError(
                f"{what}: label {number} of example {place} is out of range: {top}.", "Check the labels of the data."
            )
        out[place] = number
    return out


def _some(every: set[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in sorted(every)[:3]) + (", ..." if len(every) > 3 else "")
