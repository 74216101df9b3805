"""Cross-layer equalisation: the channels of a tensor are brought to similar ranges; the network computes the same.

Through operators that commute with a positive factor a channel (Relu, Add, pooling, Flatten), dividing channel c of
every layer that feeds a tensor by s_c and multiplying channel c of every layer that reads it by s_c changes nothing.
With one scale an output channel the weights of the feeding layers lose nothing; the activation, which has one scale for
all channels, gains; the reading layers' weights may lose, unless they are depthwise. So several s_c are tried, with r_c
the largest magnitude of the channel and w_c of the weights that read it: r_c, sqrt(r_c), sqrt(r_c / w_c), none; the one
with the least noise at the readers' outputs, measured, is taken.
Under a Clip(0, 6) channels can only be enlarged, up to where their seen peak, with some headroom, reaches the bound:
the network computes the same on the images seen, and a channel saturates far beyond them, as with any range.
Sources: Nagel et al. 2019 (arXiv 1906.04721), section 4.1, for pairs of layers; here for residual streams, from
measured activations, as in Xiao et al. 2022 (SmoothQuant, arXiv 2211.10438).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeprune.quantize.grids import grid, rounded_weight
from edgeprune.quantize.observe import Images, batches, input_shape, session, with_outputs
from edgeprune.quantize.probe import Experiment, probe
from edgeprune.quantize.view import View, attribute, output_axis
from edgeprune.runtimes.dialects import Dialect

Floats = NDArray[np.float32]

HOMOGENEOUS = (
    "Relu",
    "Add",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Identity",
)
LIMIT = 32.0  # factors stay within [1/LIMIT, 1]: beyond it weights lose bits for nothing
HEADROOM = 1.2  # a channel under a ceiling may reach this many times what was seen before it saturates
WATCHED = 128  # images whose extremes are seen
COMPARED = 8  # images that a comparison of factors sees


@dataclass(frozen=True)
class Stream:
    """Tensors whose channels carry one factor each.

    Attributes:
        name: its first tensor.
        tensors: all of them.
        feeds: layers whose output channels are divided.
        reads: layers whose input channels are multiplied.
        channels: how many.
        ceiling: the lowest upper bound of a Clip among its operators; infinite without one.
    """

    name: str
    tensors: tuple[str, ...]
    feeds: tuple[str, ...]
    reads: tuple[str, ...]
    channels: int
    ceiling: float = np.inf


def streams(view: View) -> list[Stream]:
    """The streams of a graph that may be equalised, in graph order."""
    parent: dict[str, str] = {}

    def find(tensor: str) -> str:
        while parent.setdefault(tensor, tensor) != tensor:
            tensor = parent[tensor]
        return tensor

    for node in view.nodes:
        if _passes(view, node):
            for index in view.data_inputs(node):
                parent[find(node.output[0])] = find(node.input[index])
    members: dict[str, list[str]] = {}
    for tensor in (output for node in view.nodes for output in node.output):
        members.setdefault(find(tensor), []).append(tensor)
    found = (_stream(view, tuple(tensors)) for tensors in members.values())
    return [stream for stream in found if stream is not None]


def _stream(view: View, tensors: tuple[str, ...]) -> Stream | None:
    """The stream over `tensors`, or None where a factor a channel cannot pass."""
    feeds, reads, ceiling = [], [], np.inf
    for tensor in tensors:
        node = view.producer[tensor]
        if tensor in view.outputs:
            return None
        if node.name in view.layers and node.op_type in ("Conv", "Gemm"):
            feeds.append(node.name)
        elif not _passes(view, node):
            return None
        if node.op_type == "Clip":
            ceiling = min(ceiling, (view.bounds(node) or (0.0, 0.0))[1])
        for reader, index in view.consumers.get(tensor, []):
            if reader.name in view.layers and index == 0 and reader.op_type in ("Conv", "Gemm"):
                reads.append(reader.name)
            elif not _passes(view, reader):
                return None
    sizes = {_outputs(view, name) for name in feeds} | {_inputs(view, name) for name in reads}
    if not feeds or not reads or len(sizes) != 1 or None in sizes:
        return None
    channels = next(iter(sizes))
    assert channels is not None
    return Stream(tensors[0], tensors, tuple(feeds), tuple(dict.fromkeys(reads)), channels, float(ceiling))


def _passes(view: View, node: onnx.NodeProto) -> bool:
    """Whether a factor a channel passes through `node`: a Clip from 0 saturates later, which the ceiling allows for."""
    if node.op_type == "Clip":
        bounds = view.bounds(node)
        return bounds is not None and bounds[0] == 0.0 and bounds[1] > 0
    if node.op_type in ("Reshape", "Squeeze", "Flatten"):
        return len(view.data_inputs(node)) == 1
    return node.op_type in HOMOGENEOUS and len(view.data_inputs(node)) == len([name for name in node.input if name])


def _outputs(view: View, name: str) -> int | None:
    node = view.layers[name]
    weight = view.constant(node.input[1])
    return None if weight is None else int(weight.shape[output_axis(node)])


def _inputs(view: View, name: str) -> int | None:
    """Input channels of a layer; None for grouped convolutions that are not depthwise."""
    node = view.layers[name]
    weight = view.constant(node.input[1])
    if weight is None:
        return None
    if node.op_type == "Gemm":
        return int(weight.shape[1 - output_axis(node)])
    groups = int(attribute(node, "group", 1))
    if groups == 1:
        return int(weight.shape[1])
    return int(weight.shape[0]) if weight.shape[0] == groups and weight.shape[1] == 1 else None


def _read_peaks(view: View, name: str) -> Floats:
    """Largest weight magnitude that reads each input channel, relative to its output channel's own largest."""
    node = view.layers[name]
    weight = np.abs(np.asarray(view.constant(node.input[1]), np.float32))
    if node.op_type == "Gemm":
        weight = weight if output_axis(node) == 0 else weight.T
        weight = weight[:, :, None]
    weight = weight.reshape(weight.shape[0], weight.shape[1], -1).max(axis=2)
    if int(attribute(node, "group", 1)) > 1:
        return np.ones(weight.shape[0], np.float32)  # depthwise: the factor is absorbed by the output channel's scale
    relative = weight / np.maximum(weight.max(axis=1, keepdims=True), 1e-12)
    return np.asarray(relative.max(axis=0), np.float32)


def factors(model: onnx.ModelProto, dialect: Dialect, images: Images, limit: int) -> dict[str, tuple[float, ...]]:
    """Factors of every stream that gains from it, by the stream's name; measured on up to `limit` images."""
    view = View.of(model)
    candidates = streams(view)
    if not candidates:
        return {}
    lows, highs = _channel_extremes(model, [tensor for s in candidates for tensor in s.tensors], images, limit)
    if not all(np.isfinite(values).all() for values in (*lows.values(), *highs.values())):
        return {}  # the network is broken; check.py says where
    experiments: list[Experiment] = []
    owners: list[tuple[int, int]] = []
    options: list[list[Floats]] = []
    for number, stream in enumerate(candidates):
        shown = [tensor for tensor in stream.tensors if len(highs[tensor]) == stream.channels]
        peaks = np.max([np.maximum(highs[tensor], -lows[tensor]) for tensor in shown], axis=0)
        options.append(_variants(view, stream, peaks))
        for position, factor in enumerate(options[-1]):
            for experiment in _trials(view, stream, factor, (lows, highs), dialect):
                experiments.append(experiment)
                owners.append((number, position))
    outcomes = probe(model, experiments, images, min(limit, COMPARED))
    best: dict[tuple[int, int], dict[str, float]] = {}
    for owner, experiment, outcome in zip(owners, experiments, outcomes, strict=True):
        ratio = outcome.noise / max(outcome.signal, 1e-30)
        reached = best.setdefault(owner, {})
        reached[experiment.node] = min(ratio, reached.get(experiment.node, np.inf))  # the best clipping of each
    found = {}
    for number, stream in enumerate(candidates):
        costs = [sum(best[number, position].values()) for position in range(len(options[number]))]
        winner = int(np.argmin(costs))
        if costs[winner] < 0.95 * costs[0]:
            found[stream.name] = tuple(float(value) for value in options[number][winner])
    return found


def _variants(view: View, stream: Stream, peaks: Floats) -> list[Floats]:
    """Factors worth trying, the first of which changes nothing."""
    alive = peaks > 0
    none = np.ones(stream.channels, np.float32)
    if alive.sum() < 2:
        return [none]
    weight = np.max([_read_peaks(view, name) for name in stream.reads], axis=0)
    activation = np.where(alive, peaks / peaks.max(), 1.0)
    weight = np.where(weight > 0, weight / weight.max(), 1.0)
    result = [none]
    for power, share in ((1.0, 0.0), (0.5, 0.0), (0.5, 0.5)):
        factor = activation**power / weight**share
        factor /= factor[alive].max()
        if np.isfinite(stream.ceiling):
            factor = np.maximum(factor, np.minimum(HEADROOM * peaks / stream.ceiling, 1.0))
        result.append(np.where(alive, np.clip(factor, 1 / LIMIT, 1.0), 1.0).astype(np.float32))
    return result


def _trials(
    view: View, stream: Stream, factor: Floats, extremes: tuple[dict[str, Floats], dict[str, Floats]], dialect: Dialect
) -> list[Experiment]:
    """The readers of a stream, input and weight quantised as after equalisation, at three clippings."""
    result = []
    for name in stream.reads:
        node = view.layers[name]
        tensor = node.input[0]
        low, high = (values[tensor] for values in extremes)
        if len(low) != stream.channels:
            continue
        weight = np.asarray(view.constant(node.input[1]), np.float32)
        spread = _on_inputs(node, factor, weight.ndim)
        rounded = rounded_weight(np.asarray(weight * spread, np.float32), node, dialect) / spread
        for clip in (1.0, 0.7, 0.5):
            on = grid(clip * float((low / factor).min()), clip * float((high / factor).max()), dialect)
            shape = [1, -1] + [1] * (weight.ndim - 2)
            constants = {1: np.asarray(rounded, np.float32)}
            result.append(Experiment(name, {0: on}, {0: factor.reshape(shape)}, constants))
    return result


def _on_inputs(node: onnx.NodeProto, factor: NDArray[Any], rank: int) -> NDArray[Any]:
    """`factor`, shaped to multiply the input channels of a layer's weight."""
    depthwise = int(attribute(node, "group", 1)) > 1
    axis = 0 if depthwise else (1 - output_axis(node) if node.op_type == "Gemm" else 1)
    return factor.reshape([-1 if index == axis else 1 for index in range(rank)])


def _channel_extremes(
    model: onnx.ModelProto, tensors: list[str], images: Images, limit: int
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Smallest and largest value of each channel (axis 1), reduced inside the runtime."""
    name, size, shape = input_shape(View.of(model))
    flat = [helper.make_node("Reshape", [tensor, "extremes.shape"], [f"{tensor}.flat"]) for tensor in tensors]
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    reduced: list[onnx.NodeProto] = []
    for tensor in tensors:
        for operator in ("ReduceMin", "ReduceMax"):
            inputs = [f"{tensor}.flat"] if opset < 18 else [f"{tensor}.flat", "extremes.axes"]
            node = helper.make_node(operator, inputs, [f"{tensor}.{operator}"], keepdims=0)
            if opset < 18:
                node.attribute.append(helper.make_attribute("axes", [0, 2]))
            reduced.append(node)
    outputs = [node.output[0] for node in reduced]
    copy = with_outputs(model, outputs)
    copy.graph.node.extend([*flat, *reduced])
    copy.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), "extremes.shape"))
    copy.graph.initializer.append(numpy_helper.from_array(np.array([0, 2], np.int64), "extremes.axes"))
    runner = session(copy)
    lows: dict[str, Floats] = {}
    highs: dict[str, Floats] = {}
    for batch, _ in batches(images, size, min(limit, WATCHED), shape):
        found = dict(zip(outputs, runner.run(outputs, {name: batch}), strict=True))
        for tensor in tensors:
            low, high = found[f"{tensor}.ReduceMin"], found[f"{tensor}.ReduceMax"]
            lows[tensor] = np.minimum(lows[tensor], low) if tensor in lows else low
            highs[tensor] = np.maximum(highs[tensor], high) if tensor in highs else high
    return lows, highs


def equalised(model: onnx.ModelProto, found: Mapping[str, tuple[float, ...]]) -> onnx.ModelProto:
    """A model that computes the same with the factors moved into its weights; `model` itself if there are none.

    Streams that this graph does not have are left out: a pruned graph has its own.
    """
    view = View.of(model)
    wanted = [stream for stream in streams(view) if len(found.get(stream.name, ())) == stream.channels] if found else []
    if not wanted:
        return model
    values: dict[str, NDArray[np.float64]] = {}

    def value(name: str) -> NDArray[np.float64]:
        return values.setdefault(name, np.asarray(view.constant(name), np.float64))

    for stream in wanted:
        factor = np.asarray(found[stream.name], np.float64)
        for name in stream.feeds:
            node = view.layers[name]
            weight = value(node.input[1])
            axis = output_axis(node)
            values[node.input[1]] = weight / factor.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
            if len(node.input) > 2 and node.input[2]:
                values[node.input[2]] = value(node.input[2]) / factor
        for name in stream.reads:
            node = view.layers[name]
            weight = value(node.input[1])
            values[node.input[1]] = weight * _on_inputs(node, factor, weight.ndim)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].astype(np.float32), tensor.name))
    return result
