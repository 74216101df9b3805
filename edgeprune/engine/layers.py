"""Affine layers on a tape: a convolution (1-, 2- or 3-d) or linear layer, the batch norm after it, and the shortcut
that it is added to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.engine.tape import Name, Ref, Route, Tape, Weights

ACTIVATIONS = {"relu", "relu6", "hardtanh", "clamp", "clamp_min", "hardswish", "silu", "gelu", "leaky_relu"}
ADDS = {"add", "__add__"}
CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
ROWS = 24  # rows of data for each unknown of a fit, as far as the examples go
LEAST, MOST = 8192, 32768


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
class AffineLayer:
    """A convolution or linear layer with its batch norm.

    Attributes:
        name: the layer's qualified name.
        step, out: the layer's own step, and the step that makes the result (the norm's, if there is one).
        source: the step that the layer reads.
        kernel, stride, padding, dilation: one number a spatial axis; kernel is () for a linear layer.
    """

    name: str
    weight: str
    bias: str
    norm: Norm | None
    step: int
    out: int
    source: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


def layers_of(tape: Tape, weights: Weights) -> tuple[AffineLayer, ...]:
    """Every convolution (1-, 2- or 3-d) and linear layer that runs exactly once, in order."""
    counts: dict[str, int] = {}
    for step in tape.steps:
        for name in step.names:
            counts[name] = counts.get(name, 0) + 1
    found = []
    for k, step in enumerate(tape.steps):
        axes = CONVOLUTIONS.get(step.op, 0)
        if not axes and step.op != "linear":
            continue
        if not isinstance(step.args[0], Ref) or not isinstance(step.args[1], Name):
            continue
        weight = step.args[1].name
        if counts[weight] != 1:
            continue
        extra = [*step.args[2:], *([None] * 5)]
        bias = extra[0].name if isinstance(extra[0], Name) else ""
        norm = _norm(tape, k, weights)
        padding = extra[2] if axes else 0
        if isinstance(padding, str):
            continue
        found.append(
            AffineLayer(
                name=weight.rsplit(".", 1)[0],
                weight=weight,
                bias=bias,
                norm=norm,
                step=k,
                out=norm.step if norm else k,
                source=step.args[0].step,
                kernel=tuple(weights[weight].shape[2:]),
                stride=_each(extra[1], 1, axes),
                padding=_each(padding, 0, axes),
                dilation=_each(extra[3], 1, axes),
                groups=int(extra[4] or 1) if axes else 1,
            )
        )
    return tuple(found)


def _each(value: Any, default: int, axes: int) -> tuple[int, ...]:
    """One number a spatial axis."""
    if value is None:
        return (default,) * axes
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(int(item) for item in (items if len(items) == axes else items[:1] * axes))


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
class Goal:
    """What a layer's result should be: the dense network's value at `dense`, less the pruned one's at `minus` (-1:
    nothing).
    """

    dense: int
    minus: int = -1


def goal_of(tape: Tape, route: Route, layer: AffineLayer) -> Goal:
    """Where the dense network says what this layer should compute, on a route with blocks left out.

    A layer whose result is added to a shortcut aims at the dense *sum* less the pruned shortcut, so that it mends the
    error that the stream has gathered. When removed blocks follow, it aims at what the dense network has after them.
    """
    at, minus = layer.out, -1
    readers = [k for k in tape.readers(at) if k in route.last]
    if len(readers) == 1 and tape.steps[readers[0]].op in ADDS:
        others = [read for read in tape.steps[readers[0]].reads if read != at]
        scaled = len(tape.steps[readers[0]].args) != 2 or tape.steps[readers[0]].kwargs
        if len(others) == 1 and not scaled and route.resolve(others[0]) < layer.step:
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
                return Goal(at, minus)
            at = inner
        else:
            return Goal(at, minus)


def _activation(tape: Tape, step: int) -> int | None:
    readers = tape.readers(step)
    return readers[0] if len(readers) == 1 and tape.steps[readers[0]].op in ACTIVATIONS else None


def rows(layer: AffineLayer, value: Tensor, picks: Tensor) -> Tensor:
    """What the layer reads at some output positions, [groups, N * P, taps * channels]; taps first, then channels.

    Args:
        value: the layer's input: [N, C, spatial...], or [N, ..., C] for a linear layer.
        picks: positions of the output's flattened grid; linear layers take rows of their flattened input instead.
    """
    if not layer.kernel:
        flat = value.reshape(len(value), -1, value.shape[-1])
        return flat[:, picks % flat.shape[1]].reshape(1, -1, value.shape[-1])
    around = [side for padding in reversed(layer.padding) for side in (padding, padding)]
    padded = F.pad(value, around).movedim(1, -1)
    places = torch.unravel_index(picks, output_size(layer, value))
    axes = range(len(layer.kernel))
    taps = torch.meshgrid(
        *(torch.arange(layer.kernel[a], device=value.device) * layer.dilation[a] for a in axes), indexing="ij"
    )
    index = [(places[a] * layer.stride[a])[:, None] + taps[a].reshape(1, -1) for a in axes]  # [P, taps] an axis
    where: tuple[slice | Tensor, ...] = (slice(None), *(at.reshape(-1) for at in index))
    patch = padded[where]  # [N, P * taps, C]
    patch = patch.reshape(len(value) * len(picks), math.prod(layer.kernel), layer.groups, -1)
    return patch.permute(2, 0, 1, 3).reshape(layer.groups, len(value) * len(picks), -1)


def results(layer: AffineLayer, value: Tensor, picks: Tensor) -> Tensor:
    """The layer's results at the same positions, [groups, N * P, channels a group]."""
    if layer.kernel:
        flat = value.flatten(2)[:, :, picks].transpose(1, 2)
    else:
        flat = value.reshape(len(value), -1, value.shape[-1])
        flat = flat[:, picks % flat.shape[1]]
    return flat.reshape(-1, layer.groups, flat.shape[-1] // layer.groups).transpose(0, 1)


def output_size(layer: AffineLayer, value: Tensor) -> tuple[int, ...]:
    """The spatial size of a convolution's output for this input."""
    return tuple(
        (value.shape[2 + a] + 2 * layer.padding[a] - layer.dilation[a] * (layer.kernel[a] - 1) - 1) // layer.stride[a]
        + 1
        for a in range(len(layer.kernel))
    )


def positions(layer: AffineLayer, value: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` output positions, all of them when there are no more. `generator` is a CPU generator on any device."""
    if layer.kernel:
        total = math.prod(output_size(layer, value))
    else:
        total = max(1, value[0].numel() // value.shape[-1])
    chosen = torch.randperm(total, generator=generator)[: max(1, min(count, total))].sort().values
    return chosen.to(value.device)


def positions_each(layer: AffineLayer, weights: Weights, examples: int) -> int:
    """How many positions of each example a fit of this layer looks at: the one sampling rule."""
    unknowns = int(weights[layer.weight][0].numel())
    return -(-min(max(ROWS * unknowns, LEAST), MOST) // examples)


def matrix(layer: AffineLayer, weight: Tensor) -> Tensor:
    """A weight as [groups, taps * channels, outputs a group], in float64."""
    flat = weight.movedim(1, -1) if layer.kernel else weight
    flat = flat.reshape(layer.groups, weight.shape[0] // layer.groups, -1)
    return flat.transpose(1, 2).double()


def tensor(layer: AffineLayer, flat: Tensor, like: Tensor) -> Tensor:
    """The way back: [groups, taps * channels, outputs a group] -> a weight of like's shape and type."""
    outputs = flat.transpose(1, 2).reshape(like.shape[0], -1)
    if layer.kernel:
        outputs = outputs.reshape(like.shape[0], *layer.kernel, like.shape[1]).movedim(-1, 1)
    return outputs.reshape(like.shape).to(like.dtype)
