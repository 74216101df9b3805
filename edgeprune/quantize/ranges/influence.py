"""How much an error anywhere moves what the network decides: to first order, from gradients of the float graph.

With v a vector over the outputs (outputs.py: the lead of the first class over the k-th, or what a task's own distance
or the outputs' variance make of it), J the Jacobian of the outputs with respect to a tensor or a weight, and g = v J,
averages over images and vectors say what an error costs, whatever lies between: (g . e)^2 that of a known error, as a
clipped range makes; g^2 that of independent ones, as rounding makes. All are shares of the outputs' own sum of squares.
Errors of weights are the same at every position and image: their gradients are summed before they are squared. What a
bias can take back, the mean of the input times the error, is left out of them, as bias correction does take it.

Noise at the outputs of the layers that read a tensor says something else: MobileNetV2's last residual sum is best cut
to a fifth of its range, 10 dB better at the logits, and there that seems to lose 20 dB. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgeprune.quantize.feeds import Images, feeds
from edgeprune.quantize.ranges.grids import QParams
from edgeprune.quantize.ranges.observe import with_outputs
from edgeprune.quantize.ranges.outputs import Distance, Vectors
from edgeprune.quantize.train.interpret import constants, interpret
from edgeprune.quantize.view import View, attribute

Array = NDArray[np.float64]
Values = dict[str, torch.Tensor]
RIVALS = 4  # classes that the first one's lead over is taken, in turn over images, where grids are compared
EARLY = 8  # images after which grids are dropped that make
HOPELESS = 10.0  # times the noise of the best
PIECE = 4096  # values that are rounded to all grids at once: a core's own cache holds them


@dataclass
class Reach:
    """Where gradients could not be followed.

    Attributes:
        beyond: nodes that ONNX Runtime ran.
        lost: tensors and weights that no gradient reached.
    """

    beyond: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Influence:
    """What independent errors of variance 1 cost, as a share of the leads' sum of squares.

    Attributes:
        tensors: tensor -> by channel (axis 1), for an error in each value that is not zero (zeros stay exact).
        weights: layer -> for an error in each weight, in the weight's shape.
    """

    tensors: Mapping[str, Array]
    weights: Mapping[str, Array]


def influence(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    layers: Sequence[str],
    images: Images,
    limit: int,
    vectors: int = 2,
    distance: Distance | None = None,
    reach: Reach | None = None,
) -> Influence:
    """The influence of `tensors` and of the weights of `layers` over up to `limit` images.

    Args:
        distance: of the task; None: see outputs.py.
        reach: takes what no gradient reached; its influence is 0 here.

    Raises:
        GraphError: a part of the graph that not even ONNX Runtime runs alone.
    """
    nodes = View.of(model).layers
    on_tensors: dict[str, Array] = {}
    on_weights: dict[str, Array] = {}
    signal = 0.0
    around = [t for layer in layers for t in (nodes[layer].input[0], nodes[layer].output[0])]
    weights = [nodes[layer].input[1] for layer in layers]
    for values, slopes, energy in _passes(
        model, [*tensors, *around], weights, images, limit, vectors, distance, reach or Reach()
    ):
        signal += energy
        for tensor in tensors:
            slope = slopes[tensor].square() * (values[tensor] != 0)
            found = slope.sum([axis for axis in range(slope.ndim) if axis != 1]).double().numpy()
            on_tensors[tensor] = on_tensors[tensor] + found if tensor in on_tensors else found
        for layer in layers:
            found = _centred(nodes[layer], values, slopes).square().double().numpy()
            on_weights[layer] = on_weights[layer] + found if layer in on_weights else found
    scale = 1 / max(signal, 1e-30)
    return Influence({t: v * scale for t, v in on_tensors.items()}, {n: v * scale for n, v in on_weights.items()})


def costs(
    model: onnx.ModelProto,
    groups: Mapping[str, tuple[Sequence[str], Sequence[QParams]]],
    images: Images,
    limit: int,
    vectors: int = 2,
    distance: Distance | None = None,
    reach: Reach | None = None,
) -> dict[str, list[float]]:
    """Noise over signal in the leads from rounding a group of tensors to each of several grids, by the group's name.

    Args:
        groups: name -> (tensors, grids that are tried on all of them).
        vectors: slopes an image, each another lead (RIVALS) or another random vector.
        distance: of the task; None: see outputs.py.
        reach: takes what no gradient reached; a group of such tensors is left out of the answer.

    Raises:
        GraphError: a part of the graph that not even ONNX Runtime runs alone.
    """
    reach = reach or Reach()
    tallies = {name: _Tally(tensors, grids) for name, (tensors, grids) in groups.items()}
    signal = 0.0
    several: dict[int, Values] = {}
    asked = [tensor for members, _ in groups.values() for tensor in members]
    for turn, (values, slopes, energy) in enumerate(
        _passes(model, asked, [], images, limit, vectors, distance, reach, max(RIVALS, vectors))
    ):
        signal += energy
        several[turn % vectors] = slopes
        if len(several) < vectors:
            continue
        for tally in tallies.values():
            tally.add(values, [several[v] for v in range(vectors)])
            if turn + 1 == EARLY * vectors:
                tally.drop(signal)
        several = {}
    return {name: tally.noise(signal) for name, tally in tallies.items() if not reach.lost.issuperset(groups[name][0])}


class _Tally:
    """Sums of squares that several grids make of one group of tensors; hopeless grids are dropped on the way."""

    def __init__(self, tensors: Sequence[str], grids: Sequence[QParams]) -> None:
        self.tensors, self.grids = tensors, grids
        self.left = list(range(len(grids)))
        self.totals = np.zeros(len(grids))
        self.dropped: dict[int, float] = {}

    def add(self, values: Values, slopes: Sequence[Values]) -> None:
        """What one image's errors make along each slope."""
        grids = [self.grids[index] for index in self.left]
        moved = torch.zeros(len(slopes), len(grids))
        for tensor in self.tensors:
            moved += _moved(values[tensor], [slope[tensor] for slope in slopes], grids)
        self.totals[self.left] += moved.double().square().sum(0).numpy()

    def drop(self, signal: float) -> None:
        """Leave grids out that make HOPELESS times the noise of the best so far."""
        worst = HOPELESS * self.totals.min()
        self.dropped = {i: float(self.totals[i]) / max(signal, 1e-30) for i in self.left if self.totals[i] > worst}
        self.left = [index for index in self.left if index not in self.dropped]

    def noise(self, signal: float) -> list[float]:
        """Noise over signal of each grid, in its order."""
        return [self.dropped.get(i, float(total) / max(signal, 1e-30)) for i, total in enumerate(self.totals)]


def _moved(x: torch.Tensor, slopes: Sequence[torch.Tensor], grids: Sequence[QParams]) -> torch.Tensor:
    """What the error of rounding `x` to each grid makes along each slope, [slopes, grids]."""
    flat, along = x.reshape(-1), torch.stack([slope.reshape(-1) for slope in slopes])
    scale, low, high = (
        torch.tensor(column, dtype=x.dtype)[:, None]
        for column in zip(*((g.scale, g.low - g.zero, g.high - g.zero) for g in grids), strict=True)
    )
    total, space = x.new_zeros(len(slopes), len(grids)), x.new_empty(len(grids), min(PIECE, len(flat)))
    for start in range(0, len(flat), PIECE):
        part = flat[start : start + PIECE]
        error = torch.div(part, scale, out=space[:, : len(part)]).round_()
        torch.minimum(torch.maximum(error, low, out=error), high, out=error)  # clamp_ with tensors is ten times slower
        error.mul_(scale).sub_(part)
        total += along[:, start : start + PIECE] @ error.T
    return total


def _passes(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    weights: Sequence[str],
    images: Images,
    limit: int,
    vectors: int,
    distance: Distance | None,
    reach: Reach,
    rivals: int = 0,
) -> Iterator[tuple[Values, Values, float]]:
    """For each batch and vector: values, gradients of tensors and weights, the outputs' sum of squares."""
    view = View.of(model)
    outputs = [name for name in view.outputs if view.is_float(name)] or view.outputs[:1]
    fixed = constants(model, torch.float32)
    for weight in weights:
        fixed[weight].requires_grad_()
    wanted = list(dict.fromkeys([*(t for t in tensors if t in view.producer), *outputs]))
    graph = with_outputs(model, wanted)
    steer = Vectors(model, outputs, images, distance)
    reached, asking = set[str](), frozenset(tensors)
    for number, (feed, real) in enumerate(feeds(view, images, limit)):
        if number and real < len(next(iter(feed.values()))):
            break  # the padded images of the last batch would count twice
        given = {name: torch.from_numpy(value) for name, value in feed.items()}
        for value in given.values():
            if value.is_floating_point():
                value.requires_grad_()
        values = dict(zip(wanted, interpret(graph, fixed, given, reach.beyond, asking), strict=True)) | given
        asked = {t: values[t] for t in tensors} | {w: fixed[w] for w in weights}
        followed = {name: value for name, value in asked.items() if value.requires_grad}
        for turn in range(vectors):
            target, energy = steer([values[name] for name in outputs], (number * vectors + turn) % (rivals or vectors))
            kept = turn + 1 < vectors
            slopes: Values = {}
            if followed and target.requires_grad:
                found = torch.autograd.grad(target, list(followed.values()), retain_graph=kept, allow_unused=True)
                for name, gradient in zip(followed, found, strict=True):
                    if gradient is not None:
                        slopes[name] = gradient
                        reached.add(name)
            slopes |= {name: torch.zeros_like(value) for name, value in asked.items() if name not in slopes}
            yield {n: value.detach() for n, value in values.items()}, slopes, energy
    reach.lost.update(name for name in (*tensors, *weights) if name not in reached)


def _centred(node: onnx.NodeProto, values: Values, slopes: Values) -> torch.Tensor:
    """The slope of a weight less what the bias can take: the bias's slope times the mean input of the channel."""
    slope, output, read = slopes[node.input[1]], slopes[node.output[0]], values[node.input[0]]
    if node.op_type != "Conv":
        return slope
    bias = output.sum([axis for axis in range(output.ndim) if axis != 1])
    mean = read.mean([axis for axis in range(read.ndim) if axis != 1])
    shape = [1] * (slope.ndim - 2)
    if int(attribute(node, "group", 1)) > 1:
        return slope - (bias * mean.repeat_interleave(len(bias) // len(mean))).reshape(-1, 1, *shape)
    return slope - bias.reshape(-1, 1, *shape) * mean.reshape(1, -1, *shape)
