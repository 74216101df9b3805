"""Input features of very different sizes: a factor a channel in front of the layers that read them, and its inverse in
their weights.

One grid holds all channels of a tensor. Of the coefficients of a sound, the columns of a table or the sensors of a
device one may be fifty times as large as the others, which are then left a few steps each. No layer makes a graph
input, so that equalise.py finds nobody who could divide it; a multiplication in front of the quantiser does, and the
layers behind it multiply their weights by the inverse: the network computes the same. It is written only where much of
what these layers tell is noise, and most of that noise goes. balance.py finds the factors, as for streams.
Source: Xiao et al. 2022 (SmoothQuant, arXiv 2211.10438), where the division is not folded into the layer before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeprune.quantize.correct.balance import Tensor, Weight, least_noise, noise
from edgeprune.quantize.feeds import Images, feeds
from edgeprune.quantize.ranges.grids import qparams
from edgeprune.quantize.view import View, attribute, output_axis
from edgeprune.quantize.write.placement import place
from edgeprune.runtimes import Dialect

Floats = NDArray[np.float64]

LIMIT = 1024.0  # factors stay within [1/LIMIT, 1]
LOUD = 1e-3  # noise over signal at the outputs of the layers (30 dB); below it nothing is written
LEFT = 0.25  # of that noise, at most: a multiplication takes time
SEEN = 64  # examples that are looked at, at most


@dataclass(frozen=True)
class InputChannels:
    """A graph input whose channels may each have a factor.

    Attributes:
        name: of the input.
        axis: of its channels.
        layers: nodes that read it along them, and nothing else of it.
        channels: how many.
    """

    name: str
    axis: int
    layers: tuple[str, ...]
    channels: int


def inputs(view: View) -> list[InputChannels]:
    """The inputs of a graph that layers read directly, along one axis."""
    found = []
    for name in view.inputs:
        reads = [_read(view, name, node, index) for node, index in view.consumers.get(name, [])]
        of_layers = [read for read in reads if read is not None]
        if of_layers and len({read[1:] for read in of_layers}) == 1 and of_layers[0][2] > 1:
            found.append(InputChannels(name, of_layers[0][1], tuple(read[0] for read in of_layers), of_layers[0][2]))
    return found


def _read(view: View, tensor: str, node: onnx.NodeProto, index: int) -> tuple[str, int, int] | None:
    """(layer, axis of its channels in `tensor`, how many); None for what is no such layer."""
    shape = view.shape(tensor)
    weight = view.constant(node.input[1]) if node.name in view.layers and index == 0 else None
    if shape is None or weight is None:
        return None
    if node.op_type == "Conv" and int(attribute(node, "group", 1)) == 1:
        axis = 1
    elif node.op_type == "MatMul" and weight.ndim == 2:
        axis = len(shape) - 1
    elif node.op_type == "Gemm" and not int(attribute(node, "transA", 0)):
        axis = 1
    else:
        return None
    return node.name, axis, int(weight.shape[_channels_at(node)])


def feature_factors(
    model: onnx.ModelProto, dialect: Dialect, images: Images, limit: int, precision: Mapping[str, str]
) -> dict[str, tuple[float, ...]]:
    """Factors of every graph input that gains much from them, by its name; seen on up to `limit` examples.

    Args:
        precision: of layers that are not to be INT8: what they read is not quantised.
    """
    view = View.of(model)
    placement = place(view, dialect, precision)
    candidates = [
        one for one in inputs(view) if one.name in placement.scale_of and set(one.layers) <= set(placement.nodes)
    ]
    if not candidates:
        return {}
    seen: dict[str, list[_Seen]] = {one.name: [] for one in candidates}
    for feed, real in feeds(view, images, min(limit, SEEN)):
        for one in candidates:
            seen[one.name].append(_Seen.of(np.asarray(feed[one.name][:real], np.float64), one.axis))
    found = {}
    for one in candidates:
        factor = _best(view, one, seen[one.name], dialect)
        if factor is not None:
            found[one.name] = tuple(float(np.float32(value)) for value in factor)
    return found


@dataclass(frozen=True)
class _Seen:
    """A batch of an input, by channel."""

    low: float
    high: float
    peak: Floats
    mean: Floats
    square: Floats

    @staticmethod
    def of(values: Floats, axis: int) -> _Seen:
        flat = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        return _Seen(
            float(flat.min()), float(flat.max()), np.abs(flat).max(1), flat.mean(1), np.square(flat).mean(1)
        )  # fmt: skip


def _best(view: View, one: InputChannels, seen: list[_Seen], dialect: Dialect) -> Floats | None:
    """The factors with the least noise at the layers' outputs; None where that is little, or not much less."""
    peaks = np.mean([batch.peak for batch in seen], axis=0)
    if not np.isfinite(peaks).all() or not peaks.any():
        return None  # check.py says what is wrong with them
    low, high = min(batch.low for batch in seen), max(batch.high for batch in seen)
    square = np.mean([batch.square for batch in seen], axis=0)
    spread = square - np.square(np.mean([batch.mean for batch in seen], axis=0))  # what varies tells something
    given, weights = np.zeros(one.channels), list[Weight]()
    outputs = sum(_weight(view, name).shape[0] for name in one.layers)
    for name in one.layers:
        weight = _weight(view, name)
        powers = np.square(weight).sum(axis=2)
        signal = np.maximum(powers @ spread, 1e-30)[:, None] * outputs
        given += (powers / signal).sum(axis=0)
        sizes = np.abs(weight).max(axis=2)
        weights.append(Weight(sizes, weight.shape[2] * square / signal, dialect.weight_levels))
    tensor = Tensor(peaks, given, qparams(low, high, dialect).scale / max(-low, high))
    lowest = np.full(one.channels, 1 / LIMIT)
    factor = least_noise([tensor], weights, lowest)
    factor = np.where(peaks > 0, np.clip(factor / factor[peaks > 0].max(), lowest, 1.0), 1.0)
    before, after = (noise([tensor], weights, np.log(each))[0] for each in (np.ones_like(factor), factor))
    return factor if before > np.log(LOUD) and after < before + np.log(LEFT) else None


def _channels_at(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that indexes the channels which it reads."""
    return {"Conv": 1, "MatMul": 0}.get(node.op_type, 1 - output_axis(node))


def _weight(view: View, name: str) -> Floats:
    """A layer's weight as [outputs, channels, places]."""
    node = view.layers[name]
    weight = np.asarray(view.constant(node.input[1]), np.float64)
    if _channels_at(node) == 0:
        weight = weight.T
    return np.asarray(weight.reshape(*weight.shape[:2], -1))


def rescaled(model: onnx.ModelProto, found: Mapping[str, tuple[float, ...]]) -> onnx.ModelProto:
    """A model that computes the same with the factors of its inputs written in; `model` itself if there are none."""
    view = View.of(model)
    wanted = [one for one in inputs(view) if len(found.get(one.name, ())) == one.channels] if found else []
    if not wanted:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for one in reversed(wanted):
        factor = np.asarray(found[one.name], np.float64)
        divided, by = f"{one.name}.divided", f"{one.name}.factors"
        axes = len(view.shape(one.name) or ())
        _put(graph, by, (1 / factor).reshape([-1 if axis == one.axis else 1 for axis in range(axes)]))
        for node in (node for node in graph.node if node.name in one.layers):
            weight = np.asarray(view.constant(node.input[1]), np.float64)
            factors = factor.reshape([-1 if axis == _channels_at(node) else 1 for axis in range(weight.ndim)])
            shared = any(reader.name not in one.layers for reader, _ in view.consumers[node.input[1]])
            node.input[0] = divided
            if shared or node.input[1] not in view.initializers:
                node.input[1] = f"{node.name}.multiplied"
            _put(graph, node.input[1], weight * factors)
        graph.node.insert(0, helper.make_node("Mul", [one.name, by], [divided], name=divided))
    return result


def _put(graph: onnx.GraphProto, name: str, value: Floats) -> None:
    """A constant of this value, in place of one by this name."""
    made = numpy_helper.from_array(value.astype(np.float32), name)
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(made)
            return
    graph.initializer.append(made)
