"""How much an error anywhere moves what the network decides: to first order, from gradients of the float graph.

With v_k y the lead of the first class over the k-th in the logits y, J the Jacobian of y with respect to a tensor or a
weight, and g_k = v_k J, averages over images and k say what an error costs, whatever lies between: (g_k . e)^2 that of
a known error, as a clipped range makes; g_k^2 that of independent ones, as rounding makes. All are shares of the leads'
own sum of squares. What moves all logits alike is not counted. An output that is not [N, classes] takes random v
(Hutchinson's estimator) in place of leads.
Errors of weights are the same at every position and image: their gradients are summed before they are squared. What a
bias can take back, the mean of the input times the error, is left out of them, as bias correction does take it.

Noise at the outputs of the layers that read a tensor says something else: MobileNetV2's last residual sum is best cut
to a fifth of its range, 10 dB better at the logits, and there that seems to lose 20 dB. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgeprune.quantize.grids import Grid
from edgeprune.quantize.interpret import constants, interpret
from edgeprune.quantize.observe import Images, batches, input_shape, with_outputs
from edgeprune.quantize.view import View, attribute

Array = NDArray[np.float64]
Values = dict[str, torch.Tensor]


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
    model: onnx.ModelProto, tensors: Sequence[str], layers: Sequence[str], images: Images, limit: int, vectors: int = 2
) -> Influence:
    """The influence of `tensors` and of the weights of `layers` over up to `limit` images.

    Raises:
        GraphError: the graph has an operator that `interpret` does not know.
    """
    nodes = View.of(model).layers
    on_tensors: dict[str, Array] = {}
    on_weights: dict[str, Array] = {}
    signal = 0.0
    around = [t for layer in layers for t in (nodes[layer].input[0], nodes[layer].output[0])]
    weights = [nodes[layer].input[1] for layer in layers]
    for values, slopes, energy in _passes(model, [*tensors, *around], weights, images, limit, vectors):
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
    groups: Mapping[str, tuple[Sequence[str], Sequence[Grid]]],
    images: Images,
    limit: int,
    vectors: int = 4,
) -> dict[str, list[float]]:
    """Noise over signal in the leads from rounding a group of tensors to each of several grids, by the group's name.

    Args:
        groups: name -> (tensors, grids that are tried on all of them).

    Raises:
        GraphError: the graph has an operator that `interpret` does not know.
    """
    totals = {name: np.zeros(len(grids)) for name, (_, grids) in groups.items()}
    signal = 0.0
    several: dict[int, Values] = {}
    tensors = [tensor for members, _ in groups.values() for tensor in members]
    for turn, (values, slopes, energy) in enumerate(_passes(model, tensors, [], images, limit, vectors)):
        signal += energy
        several[turn % vectors] = slopes
        if len(several) < vectors:
            continue
        for name, (members, grids) in groups.items():
            for index, grid in enumerate(grids):
                moved = torch.zeros(vectors)
                for tensor in members:
                    error = _error(values[tensor], grid).reshape(-1)
                    moved += torch.stack([torch.dot(several[v][tensor].reshape(-1), error) for v in range(vectors)])
                totals[name][index] += float(moved.double().square().sum())
        several = {}
    return {name: [float(value) / max(signal, 1e-30) for value in total] for name, total in totals.items()}


def _error(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    whole = torch.round(x / grid.scale).clamp_(grid.low - grid.zero, grid.high - grid.zero)
    return whole.mul_(grid.scale).sub_(x)


def _passes(
    model: onnx.ModelProto, tensors: Sequence[str], weights: Sequence[str], images: Images, limit: int, vectors: int
) -> Iterator[tuple[Values, Values, float]]:
    """For each batch and rival: values, gradients of tensors and weights, the leads' sum of squares."""
    view = View.of(model)
    name, size, shape = input_shape(view)
    fixed = constants(model, torch.float32)
    for weight in weights:
        fixed[weight].requires_grad_()
    wanted = list(dict.fromkeys([*(t for t in tensors if t != name), view.outputs[0]]))
    graph = with_outputs(model, wanted)
    generator = torch.Generator().manual_seed(0)
    for number, (batch, real) in enumerate(batches(images, size, limit, shape)):
        if real < size and number:
            break  # the padded images of the last batch would count twice
        given = torch.from_numpy(batch).requires_grad_()
        values = dict(zip(wanted, interpret(graph, fixed, {name: given}), strict=True)) | {name: given}
        logits = values[view.outputs[0]]
        asked = {t: values[t] for t in tensors} | {w: fixed[w] for w in weights}
        for turn in range(vectors):
            vector = _direction(logits.detach(), turn, generator)
            leads = (logits * vector).flatten(1).sum(1)
            energy, target = float(leads.detach().square().sum()), leads.sum()
            kept = turn + 1 < vectors
            found = torch.autograd.grad(target, list(asked.values()), retain_graph=kept, allow_unused=True)
            slopes = {n: torch.zeros_like(asked[n]) if g is None else g for n, g in zip(asked, found, strict=True)}
            yield {n: value.detach() for n, value in values.items()}, slopes, energy


def _direction(logits: torch.Tensor, turn: int, generator: torch.Generator) -> torch.Tensor:
    """What the logits are multiplied with to give the lead of the first class over the second, the third, ..."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        return torch.randn(logits.shape, generator=generator)
    order = logits.argsort(1, descending=True)
    rival = 1 + turn % (logits.shape[1] - 1)
    vector = torch.zeros_like(logits).scatter_(1, order[:, :1], 1.0)
    return vector.scatter_(1, order[:, rival : rival + 1], -1.0)


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
