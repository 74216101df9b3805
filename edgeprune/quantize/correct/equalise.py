"""Cross-layer equalisation: the channels of a tensor are brought to similar ranges; the network computes the same.

Through operators that commute with a positive factor a channel (Relu, Add, pooling, Flatten), dividing channel c of
every layer that feeds a tensor by s_c and multiplying channel c of every layer that reads it by s_c changes nothing.
With one scale an output channel the weights of the feeding layers lose nothing; the tensors, each with one scale for
all channels, gain; the reading layers' weights may lose, unless they are depthwise. balance.py finds the factors for
which all of this makes the least noise at the logits. The size of a channel is its largest magnitude in an image,
averaged over images: what only a few images reach is cut off anyway when ranges are chosen.
Under a Clip(0, 6) channels can only be enlarged, up to where their seen peak, with some headroom, reaches the bound:
the network computes the same on the images seen, and a channel saturates far beyond them, as with any range.
Sources: Nagel et al. 2019 (arXiv 1906.04721), section 4.1, for pairs of layers; here for residual streams, from
measured activations, as in Xiao et al. 2022 (SmoothQuant, arXiv 2211.10438).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeprune.errors import GraphError
from edgeprune.quantize.correct.balance import Tensor, Weight, least_noise, noise
from edgeprune.quantize.correct.features import rescaled
from edgeprune.quantize.effort import Effort, affordable, threads
from edgeprune.quantize.feeds import Images, feeds
from edgeprune.quantize.ranges.grids import qparams
from edgeprune.quantize.ranges.observe import inference_session, with_outputs
from edgeprune.quantize.ranges.ranges import non_negative
from edgeprune.quantize.view import View, attribute, output_axis
from edgeprune.quantize.write.placement import Placement, place
from edgeprune.runtimes import Dialect

if TYPE_CHECKING:
    from edgeprune.quantize.ranges.influence import Influence
    from edgeprune.quantize.ranges.outputs import Distance

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
WATCHED = (32, 128)  # images whose extremes are seen, whatever they cost, and at most
COMPARED = (16, 24)  # images that influences come from
LARGE = 1 << 21  # of a weight's pairs of channels so many are looked at: more take minutes, and say the same
GAIN = 0.9  # of the noise may be left, or it is not worth it


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


def factors(
    model: onnx.ModelProto,
    dialect: Dialect,
    images: Images,
    limit: int,
    effort: Effort = "default",
    distance: Distance | None = None,
) -> dict[str, tuple[float, ...]]:
    """Factors of every stream that gains from it, by the stream's name; measured on up to `limit` images.

    A stream that no gradient reaches is left as it is.
    """
    from edgeprune.quantize.ranges.influence import Reach, influence  # imports torch

    view = View.of(model)
    placement = place(view, dialect)
    candidates = [stream for stream in streams(view) if any(t in placement.scale_of for t in stream.tensors)]
    if not candidates:
        return {}
    watched = affordable(view, limit, WATCHED, 1, effort)
    seen = _Channels(model, [tensor for s in candidates for tensor in _watched(view, placement, s)], images, watched)
    if not seen.finite:
        return {}  # the network is broken; check.py says where
    tensors = [t for s in candidates for t in s.tensors if t in placement.scale_of]
    layers = list(dict.fromkeys(name for s in candidates for name in s.reads if name in placement.nodes))
    compared, reach = affordable(view, limit, COMPARED, 5, effort), Reach()
    try:
        errors = influence(model, tensors, layers, images, compared, distance=distance, reach=reach)
    except GraphError:
        return {}  # a graph within a graph
    found = {}
    for stream in candidates:
        weights = {view.layers[name].input[1] for name in stream.reads if name in placement.nodes}
        if reach.lost & {*(t for t in stream.tensors if t in placement.scale_of), *weights}:
            continue
        factor = _best(view, placement, stream, seen, errors, dialect)
        if factor is not None:
            found[stream.name] = tuple(float(np.float32(value)) for value in factor)
    return found


def _watched(view: View, placement: Placement, stream: Stream) -> list[str]:
    """Tensors of a stream whose sizes matter: those that are quantised, and what a Clip gives out.

    A tensor between a layer and its activation is neither: the activation is fused.
    """
    return [t for t in stream.tensors if t in placement.scale_of or view.producer[t].op_type == "Clip"]


def _best(
    view: View, placement: Placement, stream: Stream, seen: _Channels, errors: Influence, dialect: Dialect
) -> NDArray[np.float64] | None:
    """The factors with the least noise; None where that is hardly less than without."""
    peaks = {}
    for name in stream.tensors:
        if name in placement.scale_of and len(seen.high[name]) == stream.channels and seen.high[name].any():
            peaks[name] = seen.usual[name]
    if not peaks:
        return None
    tensors = [Tensor(p, errors.tensors[name], _step(view, seen, name, dialect)) for name, p in peaks.items()]
    found = (_weight(view, name, errors.weights[name], dialect) for name in stream.reads if name in errors.weights)
    weights = [weight for weight in found if weight is not None]
    lowest = np.full(stream.channels, 1 / LIMIT)
    for name in stream.tensors:
        if view.producer[name].op_type == "Clip" and len(seen.high[name]) == stream.channels:
            lowest = np.maximum(lowest, np.minimum(HEADROOM * seen.high[name] / stream.ceiling, 1.0))
    factor = least_noise(tensors, weights, lowest)
    alive = np.max(list(peaks.values()), axis=0) > 0
    factor = np.where(alive, np.clip(factor / factor[alive].max(), lowest, 1.0), 1.0)
    before, after = (noise(tensors, weights, np.log(s))[0] for s in (np.ones_like(factor), factor))
    return factor if after < before + np.log(GAIN) else None


def _step(view: View, seen: _Channels, tensor: str, dialect: Dialect) -> float:
    """The step of a tensor's grid where its largest magnitude is 1."""
    low, high = float(seen.low[tensor].min()), float(seen.high[tensor].max())
    return qparams(low, high, dialect, non_negative(view, tensor)).scale / max(-low, high)


def _weight(view: View, name: str, errors: NDArray[np.float64], dialect: Dialect) -> Weight | None:
    """The weight of a layer; None for a depthwise one, where the scale of the output channel takes the factor up."""
    node = view.layers[name]
    if int(attribute(node, "group", 1)) > 1:
        return None
    weight = np.abs(np.asarray(view.constant(node.input[1]), np.float64))
    if node.op_type == "Gemm" and output_axis(node) == 1:
        weight, errors = weight.T, errors.T
    shape = (*weight.shape[:2], -1)
    sizes, influence = weight.reshape(shape).max(axis=2), errors.reshape(shape).sum(axis=2)
    every = -(-sizes.size // LARGE)  # of the outputs one stands for so many
    return Weight(sizes[::every], influence[::every] * every, dialect.weight_levels)


def _on_inputs(node: onnx.NodeProto, factor: NDArray[Any], rank: int) -> NDArray[Any]:
    """`factor`, shaped to multiply the input channels of a layer's weight."""
    depthwise = int(attribute(node, "group", 1)) > 1
    axis = 0 if depthwise else (1 - output_axis(node) if node.op_type == "Gemm" else 1)
    return factor.reshape([-1 if index == axis else 1 for index in range(rank)])


class _Channels:
    """Smallest and largest value of each channel (axis 1) of some tensors, and an image's usual largest magnitude."""

    def __init__(self, model: onnx.ModelProto, tensors: list[str], images: Images, limit: int) -> None:
        self.low: dict[str, Floats] = {}
        self.high: dict[str, Floats] = {}
        self.usual: dict[str, NDArray[np.float64]] = {}
        view = View.of(model)
        tensors = list(dict.fromkeys(tensors))
        opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        nodes: list[onnx.NodeProto] = []
        for tensor in tensors:
            flat = f"{tensor}.flat"
            nodes.append(helper.make_node("Reshape", [tensor, "channels.shape"], [flat]))
            for operator in ("ReduceMin", "ReduceMax"):
                given = [flat] if opset < 18 else [flat, "channels.axes"]
                node = helper.make_node(operator, given, [f"{tensor}.{operator}"], keepdims=0)
                if opset < 18:
                    node.attribute.append(helper.make_attribute("axes", [0, 2]))
                nodes.append(node)
        outputs = [node.output[0] for node in nodes if node.op_type.startswith("Reduce")]
        copy = with_outputs(model, outputs)
        copy.graph.node.extend(nodes)
        copy.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), "channels.shape"))
        copy.graph.initializer.append(numpy_helper.from_array(np.array([0, 2], np.int64), "channels.axes"))
        runner = inference_session(copy, threads(view))
        for count, (feed, _) in enumerate(feeds(view, images, limit), 1):
            found = dict(zip(outputs, runner.run(outputs, feed), strict=True))
            for tensor in tensors:
                low, high = found[f"{tensor}.ReduceMin"], found[f"{tensor}.ReduceMax"]
                peak = np.maximum(high, -low).astype(np.float64)
                self.low[tensor] = np.minimum(self.low[tensor], low) if count > 1 else low
                self.high[tensor] = np.maximum(self.high[tensor], high) if count > 1 else high
                self.usual[tensor] = self.usual.get(tensor, np.zeros_like(peak)) + peak
        self.usual = {tensor: total / count for tensor, total in self.usual.items()}

    @property
    def finite(self) -> bool:
        """Whether nothing was NaN or infinite."""
        return all(bool(np.isfinite(values).all()) for values in (*self.low.values(), *self.high.values()))


def equalised(model: onnx.ModelProto, found: Mapping[str, tuple[float, ...]]) -> onnx.ModelProto:
    """A model that computes the same with the factors moved into its weights; `model` itself if there are none.

    Those of graph inputs are multiplications in front (features.py). Streams that this graph does not have are left
    out: a pruned graph has its own.
    """
    model = rescaled(model, found)
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
