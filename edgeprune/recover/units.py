"""Affine units on a tape: a convolution or linear layer, the batch norm after it, and the shortcut that it is added
to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.recover.tape import Name, Ref, Route, Tape, Weights

ACTIVATIONS = {"relu", "relu6", "hardtanh", "clamp", "clamp_min", "hardswish", "silu", "gelu", "leaky_relu"}
ADDS = {"add", "__add__"}


@dataclass(frozen=True)
class Norm:
    """A batch norm in evaluation mode: names of its tensors ('' where it has none)."""

    step: int
    weight: str
    bias: str
    mean: str
    var: str
    eps: float


@dataclass(frozen=True)
class Unit:
    """A convolution or linear layer with its batch norm.

    Attributes:
        name: the layer's qualified name.
        step, out: the layer's own step, and the step that makes the unit's result (the norm's, if there is one).
        source: the step that the layer reads.
        kernel: () for a linear layer.
    """

    name: str
    weight: str
    bias: str
    norm: Norm | None
    step: int
    out: int
    source: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1


def units(tape: Tape, weights: Weights) -> tuple[Unit, ...]:
    """Every convolution (2-d) and linear layer that runs exactly once, in order."""
    counts: dict[str, int] = {}
    for step in tape.steps:
        for name in step.names:
            counts[name] = counts.get(name, 0) + 1
    found = []
    for k, step in enumerate(tape.steps):
        if (
            step.op not in ("conv2d", "linear")
            or not isinstance(step.args[0], Ref)
            or not isinstance(step.args[1], Name)
        ):
            continue
        weight = step.args[1].name
        if counts[weight] != 1:
            continue
        extra = [*step.args[2:], *([None] * 5)]
        bias = extra[0].name if isinstance(extra[0], Name) else ""
        norm = _norm(tape, k, weights)
        conv = step.op == "conv2d"
        padding = extra[2] if conv else 0
        if isinstance(padding, str):
            continue
        found.append(
            Unit(
                name=weight.rsplit(".", 1)[0],
                weight=weight,
                bias=bias,
                norm=norm,
                step=k,
                out=norm.step if norm else k,
                source=step.args[0].step,
                kernel=tuple(weights[weight].shape[2:]),
                stride=_pair(extra[1], 1),
                padding=_pair(padding, 0),
                dilation=_pair(extra[3], 1),
                groups=int(extra[4] or 1) if conv else 1,
            )
        )
    return tuple(found)


def _pair(value: Any, default: int) -> tuple[int, ...]:
    if value is None:
        return (default, default)
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return (int(items[0]), int(items[-1]))


def _norm(tape: Tape, step: int, weights: Weights) -> Norm | None:
    readers = tape.readers(step)
    if len(readers) != 1 or tape.steps[readers[0]].op != "batch_norm":
        return None
    args = tape.steps[readers[0]].args
    names = [item.name if isinstance(item, Name) else "" for item in args[1:5]]
    if not all(names):
        return None
    weight, bias, mean, var = names
    return Norm(readers[0], weight, bias, mean, var, float(args[7]))


@dataclass(frozen=True)
class Target:
    """What a unit's result should be: the dense network's value at `dense`, less the pruned one's at `minus` (-1:
    nothing).
    """

    dense: int
    minus: int = -1


def target(tape: Tape, route: Route, unit: Unit) -> Target:
    """Where the dense network says what this unit should compute, on a route with blocks left out.

    A unit whose result is added to a shortcut aims at the dense *sum* less the pruned shortcut, so that it mends the
    error that the stream has gathered. When removed blocks follow, it aims at what the dense network has after them.
    """
    at, minus = unit.out, -1
    readers = [k for k in tape.readers(at) if k in route.last]
    if len(readers) == 1 and tape.steps[readers[0]].op in ADDS:
        others = [read for read in tape.steps[readers[0]].reads if read != at]
        scaled = len(tape.steps[readers[0]].args) != 2 or tape.steps[readers[0]].kwargs
        if len(others) == 1 and not scaled and route.resolve(others[0]) < unit.step:
            at, minus = readers[0], route.resolve(others[0])
    bypass = {before: after for after, before in route.alias}
    while True:
        follow = _activation(tape, at)
        if at in bypass:
            at = bypass[at]
        elif follow is not None and follow in bypass:
            end = bypass[follow]
            inner = tape.steps[end].reads[0] if tape.steps[end].op == tape.steps[follow].op else -1
            if inner < 0:
                return Target(at, minus)
            at = inner
        else:
            return Target(at, minus)


def _activation(tape: Tape, step: int) -> int | None:
    readers = tape.readers(step)
    return readers[0] if len(readers) == 1 and tape.steps[readers[0]].op in ACTIVATIONS else None


def rows(unit: Unit, value: Tensor, picks: Tensor) -> Tensor:
    """What the layer reads at some output positions, [groups, N * P, taps * channels]; taps first, then channels.

    Args:
        value: the layer's input: [N, C, H, W], or [N, ..., C] for a linear layer.
        picks: positions of the output's flattened grid; linear layers take rows of their flattened input instead.
    """
    if not unit.kernel:
        flat = value.reshape(len(value), -1, value.shape[-1])
        return flat[:, picks % flat.shape[1]].reshape(1, -1, value.shape[-1])
    high, wide = unit.padding
    padded = F.pad(value, (wide, wide, high, high)).permute(0, 2, 3, 1)
    columns = output_size(unit, value)[1]
    top = (picks // columns) * unit.stride[0]
    left = (picks % columns) * unit.stride[1]
    taps_y = torch.arange(unit.kernel[0]) * unit.dilation[0]
    taps_x = torch.arange(unit.kernel[1]) * unit.dilation[1]
    y = (top[:, None, None] + taps_y[None, :, None]).expand(-1, -1, unit.kernel[1])
    x = (left[:, None, None] + taps_x[None, None, :]).expand(-1, unit.kernel[0], -1)
    patch = padded[:, y.reshape(-1), x.reshape(-1)]  # [N, P * taps, C]
    count, taps = len(picks), unit.kernel[0] * unit.kernel[1]
    patch = patch.reshape(len(value) * count, taps, unit.groups, -1)
    return patch.permute(2, 0, 1, 3).reshape(unit.groups, len(value) * count, -1)


def results(unit: Unit, value: Tensor, picks: Tensor) -> Tensor:
    """The layer's results at the same positions, [groups, N * P, channels a group]."""
    if unit.kernel:
        flat = value.flatten(2)[:, :, picks].transpose(1, 2)
    else:
        flat = value.reshape(len(value), -1, value.shape[-1])
        flat = flat[:, picks % flat.shape[1]]
    return flat.reshape(-1, unit.groups, flat.shape[-1] // unit.groups).transpose(0, 1)


def output_size(unit: Unit, value: Tensor) -> tuple[int, int]:
    """Height and width of the layer's output for this input."""
    sizes = [
        (value.shape[2 + a] + 2 * unit.padding[a] - unit.dilation[a] * (unit.kernel[a] - 1) - 1) // unit.stride[a] + 1
        for a in (0, 1)
    ]
    return sizes[0], sizes[1]


def positions(unit: Unit, value: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` output positions, all of them when there are no more."""
    if unit.kernel:
        high, wide = output_size(unit, value)
        total = high * wide
    else:
        total = max(1, value[0].numel() // value.shape[-1])
    return torch.randperm(total, generator=generator)[: max(1, min(count, total))].sort().values


def matrix(unit: Unit, weight: Tensor) -> Tensor:
    """A weight as [groups, taps * channels, outputs a group], in float64."""
    flat = weight.permute(0, *range(2, weight.dim()), 1) if unit.kernel else weight
    flat = flat.reshape(unit.groups, weight.shape[0] // unit.groups, -1)
    return flat.transpose(1, 2).double()


def tensor(unit: Unit, flat: Tensor, like: Tensor) -> Tensor:
    """The way back: [groups, taps * channels, outputs a group] -> a weight of like's shape and type."""
    outputs = flat.transpose(1, 2).reshape(like.shape[0], -1)
    if unit.kernel:
        outputs = outputs.reshape(like.shape[0], *unit.kernel, like.shape[1]).permute(0, 3, 1, 2)
    return outputs.reshape(like.shape).to(like.dtype)
