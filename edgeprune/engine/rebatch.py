"""The tape of a network that was captured on other examples: one capture serves, whatever the batch.

The graph of a capture holds sizes, among them its own batch. Here it runs once on a batch of another size; where a
step writes a size that the batch is part of, the size follows, as it would in a capture of this batch. Then the outputs
must be the network's own, or there is no such tape: some networks mix the batch into numbers that no rule finds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.engine.examples import Batch, Examples, call, parts
from edgeprune.engine.tape import OperatorCall, Ref, Shape, Tape, Values, Weights, record
from edgeprune.graph import Capture

_RESHAPES = frozenset(["view", "reshape", "_unsafe_view"])
_FOLLOWS = _RESHAPES | {"expand", "repeat"}  # their sizes may follow from what they read
_SIZES = {  # which argument holds the sizes
    0: frozenset(["zeros", "ones", "empty", "full", "rand", "randn"]),
    1: _FOLLOWS | {"new_zeros", "new_ones", "new_empty", "new_full"},
}
_UNCHECKED = frozenset(["lstm", "gru", "rnn_tanh", "rnn_relu"])  # write past their states where these are too small
TOLERANCE = 1e-3  # of an output's largest number


def rebatched(capture: Capture, model: nn.Module, examples: Examples, weights: Weights) -> Tape | None:
    """The tape of `model` for the batch of `examples`, from its capture on others; None where there is none.

    Recurrent layers and operators that are not torch's own are never tried with sizes that may be wrong: they need not
    check what they are given.

    Args:
        model: in any mode; it runs once, in eval mode.
        examples: one batch.
        weights: of `model`, by name.
    """
    batch = parts(examples)
    if not _same_form(capture, examples):
        return None
    tape, shapes = record(capture)
    before = {shape[0] for shape in shapes[: tape.first] if shape}
    if len(before) != 1 or (before != {len(batch[0])} and not all(map(_checked, tape.steps[tape.first :]))):
        return None
    size = before.pop()
    try:
        with torch.no_grad():
            if size != len(batch[0]):
                tape = _followed(tape, shapes, batch, weights, size)
            values = tape.begin(batch)
            tape.run(values, tape.route(), weights)
            found = tape.results(values, weights)
            return tape if _agree(_outputs(model, examples), found) else None
    except (RuntimeError, IndexError, TypeError, ValueError):  # torch's word for sizes that do not fit
        return None


def _checked(step: OperatorCall) -> bool:
    """Does the operator refuse sizes that do not fit?"""
    own = getattr(step.call, "namespace", "aten") == "aten"
    return own and step.op not in _UNCHECKED


def _same_form(capture: Capture, examples: Examples) -> bool:
    """Are the examples given as those of the capture were: as many, by the same names, in the same order?"""
    args, named = capture.program.example_inputs or ((), {})
    if isinstance(examples, Mapping):
        return not args and list(named) == list(examples) and len(capture.inputs) == len(named)
    return not named and len(args) == len(parts(examples)) == len(capture.inputs)


def _outputs(model: nn.Module, examples: Examples) -> tuple[Tensor, ...]:
    modes = {module: module.training for module in model.modules()}
    try:
        return call(model.eval(), examples)
    finally:
        for module, training in modes.items():
            module.training = training


def _agree(wanted: Sequence[Tensor], found: Sequence[Any]) -> bool:
    if len(wanted) != len(found):
        return False
    for one, two in zip(wanted, found, strict=True):
        if one.shape != two.shape or one.dtype != two.dtype:
            return False
        if one.is_floating_point():
            size = float(one.abs().max()) if one.numel() else 0.0
            if not torch.allclose(one, two, rtol=0, atol=TOLERANCE * max(size, 1e-6), equal_nan=True):
                return False
        elif float((one != two).float().mean()) > TOLERANCE:
            return False
    return True


def _followed(tape: Tape, shapes: Sequence[Shape], batch: Batch, weights: Weights, before: int) -> Tape:
    """The tape with sizes that fit another batch. Raises ValueError where a size cannot be told."""
    values = tape.begin(batch)
    last = {read: k for k, step in enumerate(tape.steps) for read in step.reads}
    steps = list(tape.steps)
    for k in range(tape.first, len(steps)):
        steps[k] = _fitted(steps[k], shapes, shapes[k], values, before, len(batch[0]))
        values[k] = steps[k].run(values, weights, {})
        for read in steps[k].reads:
            if last[read] == k:
                values.pop(read, None)
    return Tape(steps, tape.outputs, len(batch[0]), tape.first)


def _fitted(
    step: OperatorCall, shapes: Sequence[Shape], made: Shape, values: Values, before: int, after: int
) -> OperatorCall:
    """The step with its sizes in terms of the batch `after`; it made a value of shape `made` of the batch `before`."""
    at = next((place for place, kinds in _SIZES.items() if step.op in kinds), None)
    sizes = step.args[at] if at is not None and at < len(step.args) else None
    if not isinstance(sizes, list | tuple) or not all(isinstance(size, int) for size in sizes):
        return step
    read = step.args[0]
    old: Shape = ()
    now: Shape = ()
    if step.op in _FOLLOWS and isinstance(read, Ref):
        old, now = shapes[read.step], tuple(values[read.step].shape)
    axis = next((d for d, (one, two) in enumerate(zip(old, now, strict=True)) if one != two), None)
    if axis is None:  # of nothing that holds the batch: a first size like the batch is the batch
        place = 0 if step.op not in _RESHAPES and sizes and sizes[0] == before else None
    elif step.op == "repeat":
        place = None
    elif step.op == "expand":
        place = axis + len(sizes) - len(old)
    else:
        place = _place(math.prod(old[:axis]), old[axis], made, before)
    if place is None or sizes[place] == -1:
        return step
    if sizes[place] % before:
        raise ValueError("the batch is part of a size that it does not divide")
    new = [size // before * after if d == place else size for d, size in enumerate(sizes)]
    return replace(step, args=tuple(new if d == at else item for d, item in enumerate(step.args)))


def _place(start: int, size: int, made: Shape, batch: int) -> int:
    """Which axis of `made` holds the batch that was in an axis of `size`, which began after `start` numbers: of those
    that it became, the first as long as the batch, or else the first that the batch divides.
    """
    starts = [1, *accumulate(made, mul)][: len(made)]
    inside = [d for d, begin in enumerate(starts) if start <= begin < start * size or begin == start]
    fits = [d for d in inside if made[d] == batch] or [d for d in inside if made[d] % batch == 0]
    return fits[0] if fits else 0
