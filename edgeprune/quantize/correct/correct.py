"""The quantised network beside the float one, a layer at a time: what went wrong by each layer is put right there.

Both graphs advance together over a few images. The input of each INT8 layer holds all the noise of the layers before.
With reconstruction the weights are rounded so that what they make of that very input changes least (rounding.py); then
the usual difference from the float network that is left in each output channel goes into the bias (bias.py), and the
layers after it see the corrected values. So errors are met where they arise and are not handed on.
Source: Nagel et al., "Data-free quantization through weight equalization and bias correction" (arXiv 1906.04721),
section 4.2, measured rather than derived, and in sequence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeprune.quantize.correct.bias import seen_between, usual_error
from edgeprune.quantize.correct.rounding import SecondMoment, fits, pack, round_weight
from edgeprune.quantize.effort import Effort, affordable, threads
from edgeprune.quantize.feeds import Feed, Images, feeds
from edgeprune.quantize.ranges.grids import rounded_weight
from edgeprune.quantize.ranges.observe import inference_session
from edgeprune.quantize.ranges.probe import sqnr_db
from edgeprune.quantize.ranges.ranges import Ranges
from edgeprune.quantize.view import View
from edgeprune.quantize.write.insert import simulated
from edgeprune.quantize.write.placement import place
from edgeprune.runtimes import Dialect

IMAGES = (32, 64)  # whatever they cost, and at most
PASSES = 6  # runs of the network that an image costs: layer by layer, in both graphs, and what is compared
MEMORY = 1 << 30  # bytes of activations, at most; networks with large ones use fewer images
CHECKED = 8  # of the images only judge whether reconstruction helped
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Corrections:
    """What was found.

    Attributes:
        bias: layer -> what is added to its bias, one value an output channel.
        rounding: layer -> integers that are better than the nearest, packed.
        sqnr_db: layer -> signal to noise at its output with everything before it quantised, after correction.
    """

    bias: Mapping[str, tuple[float, ...]]
    rounding: Mapping[str, str]
    sqnr_db: Mapping[str, float]


def correct(
    model: onnx.ModelProto,
    ranges: Ranges,
    dialect: Dialect,
    images: Images,
    limit: int,
    correct_bias: bool = True,
    rounded: Collection[str] = (),
    effort: Effort = "default",
) -> Corrections:
    """Walk through `model` and its quantised self, and correct each INT8 layer in turn.

    Args:
        model: the float graph, before equalisation; that of `ranges` is applied to it.
        limit: images to use, at most; see IMAGES and MEMORY.
        correct_bias: False only measures.
        rounded: layers whose rounding is to be reconstructed.
    """
    exact, quantised = simulated(model, replace(ranges, bias={}, rounding={}), dialect)
    layers = [n for n, role in place(View.of(exact), dialect, ranges.precision).nodes.items() if role == "compute"]
    view = View.of(exact)
    count = min(affordable(view, limit, IMAGES, PASSES, effort), _affordable(exact))
    fed = list(_whole(view, images, count))
    given = {name: [feed[name] for feed in fed] for name in fed[0]}
    float_walk, walk = _Walk(exact, given, threads(view)), _Walk(quantised, given, threads(view))
    nodes = {node.name: node for node in exact.graph.node}
    bias: dict[str, tuple[float, ...]] = {}
    rounding: dict[str, str] = {}
    reached: dict[str, float] = {}
    for node in quantised.graph.node:
        twin = nodes.get(node.name)
        if node.name not in layers or twin is None:
            walk.later(node)
            if twin is not None:
                float_walk.later(twin)
            continue
        wanted = float_walk.reach(twin)
        weight = np.asarray(float_walk.view.constant(twin.input[1]), np.float32)
        if node.name in rounded and fits(node, weight.shape):
            walk.arrive()
            integers = _reconstruct(walk, node, weight, dialect)
            if integers is not None:
                rounding[node.name] = pack(integers)
        got = walk.reach(node)
        error = usual_error(got, wanted, seen_between(view, twin))
        if correct_bias and node.op_type != "MatMul":
            bias[node.name] = tuple(float(np.float32(-value)) for value in error)
            for value in got:
                value -= error.reshape(1, -1, *[1] * (value.ndim - 2))
        reached[node.name] = round(_sqnr(got, wanted), 3)
        walk.free(node)
        float_walk.free(twin)
    return Corrections(bias, rounding, reached)


def _whole(view: View, images: Images, count: int) -> Iterator[Feed]:
    """Batches without padding; a padded one where there is no other."""
    for number, (feed, real) in enumerate(feeds(view, images, count)):
        if not number or real == len(next(iter(feed.values()))):
            yield feed


def _reconstruct(walk: _Walk, node: onnx.NodeProto, weight: Floats, dialect: Dialect) -> NDArray[np.int8] | None:
    """Integers for a layer, put in place in `walk`; None where the nearest ones serve the images kept apart better.

    The target is what the float weight makes of the same noisy input. Aiming at the float network's output instead
    lowers each layer's error by shrinking its output, and what shrinks at every layer is lost at the end: MobileNetV2's
    logits lose 5 dB.
    """
    seen = walk.values[node.input[0]]
    learnt = max(1, len(seen) - CHECKED)
    moments = SecondMoment(node, weight.shape)
    for z in seen[:learnt]:
        moments.add(z)
    integers = round_weight(node, weight, moments, dialect)
    nearest = walk.constants[node.input[1]]
    checked = slice(learnt, None) if learnt < len(seen) else slice(None)
    found = []
    for tried in (weight, nearest, rounded_weight(weight, node, dialect, integers)):
        walk.constants[node.input[1]] = tried
        found.append(walk.peek(node, checked))
    if _spread(found[2], found[0]) < _spread(found[1], found[0]):
        return integers
    walk.constants[node.input[1]] = nearest
    return None


def _spread(got: list[Floats], wanted: list[Floats]) -> float:
    """Sum of squared errors less each channel's mean error, which the bias will take."""
    error = usual_error(got, wanted, None)
    shape = (1, -1, *[1] * (got[0].ndim - 2))
    return sum(
        float(np.square((a - b) - error.reshape(shape), dtype=np.float64).sum())
        for a, b in zip(got, wanted, strict=True)
    )


def _sqnr(got: list[Floats], wanted: list[Floats]) -> float:
    noise = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(got, wanted, strict=True))
    return sqnr_db(sum(float(np.square(b, dtype=np.float64).sum()) for b in wanted), noise)


def _affordable(model: onnx.ModelProto) -> int:
    """Batches whose activations fit into MEMORY: at the widest place some six tensors are held at once."""
    known = onnx.shape_inference.infer_shapes(model).graph
    sizes = [
        int(np.prod([max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim]))
        for value in (*known.value_info, *known.input)
    ]
    return max(2 * CHECKED, MEMORY // (6 * 4 * max(sizes, default=1)))


class _Walk:
    """A graph that is run from layer to layer over all images; what nothing reads any more is forgotten.

    Nodes wait until a layer needs them, and run in one session with it.
    """

    def __init__(self, model: onnx.ModelProto, given: Mapping[str, list[Any]], threads: int) -> None:
        self.view, self.threads = View.of(model), threads
        self.constants: dict[str, NDArray[Any]] = {
            n: numpy_helper.to_array(t) for n, t in self.view.initializers.items()
        }
        self.values: dict[str, list[Any]] = dict(given)
        self.left = {name: len(readers) for name, readers in self.view.consumers.items()}
        self.opset = list(model.opset_import)
        self.waiting: list[onnx.NodeProto] = []

    def later(self, node: onnx.NodeProto) -> None:
        """Run a node when a layer needs it; what depends on constants alone becomes one."""
        if all(name in self.constants or not name for name in node.input):
            found = self._session([node], list(node.output)).run(None, {})
            self.constants.update(zip(node.output, found, strict=True))
        else:
            self.waiting.append(node)

    def arrive(self) -> None:
        """Run what waits, so that the next layer's inputs are there."""
        if self.waiting:
            self._advance([])

    def reach(self, node: onnx.NodeProto) -> list[Any]:
        """Run a layer with all that waits; the values of its first output."""
        self.waiting.append(node)
        self._advance([node.output[0]])
        return self.values[node.output[0]]

    def peek(self, node: onnx.NodeProto, some: slice) -> list[Any]:
        """The first output for some of the images; changes nothing."""
        return self._run([node], [node.output[0]], some)[0]

    def free(self, node: onnx.NodeProto) -> None:
        """Forget outputs that nothing reads."""
        for name in node.output:
            if not self.left.get(name):
                self.values.pop(name, None)

    def _advance(self, wanted: list[str]) -> None:
        """Run what waits; what it makes stays where something reads it later, or where it is wanted."""
        nodes, self.waiting = self.waiting, []
        for name in (name for node in nodes for name in node.input):
            if name in self.left:
                self.left[name] -= 1
        kept = dict.fromkeys(name for node in nodes for name in node.output if name and self.left.get(name))
        names = list(kept | dict.fromkeys(wanted))
        if names:
            self.values.update(zip(names, self._run(nodes, names, slice(None)), strict=True))
        for name in (name for node in nodes for name in node.input):
            if name in self.left and not self.left[name]:
                self.values.pop(name, None)

    def _run(self, nodes: list[onnx.NodeProto], outputs: list[str], some: slice) -> list[list[Any]]:
        """What the nodes make, a list over images for each of `outputs`."""
        runner = self._session(nodes, outputs)
        names = [name for name in self._read(nodes) if name not in self.constants]
        columns = [self.values[name][some] for name in names]
        rows = [runner.run(outputs, dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
        return [list(column) for column in zip(*rows, strict=True)]

    def _session(self, nodes: list[onnx.NodeProto], outputs: list[str]) -> Any:
        names = self._read(nodes)
        fixed = [numpy_helper.from_array(self.constants[name], name) for name in names if name in self.constants]
        fed = [self._info(name) for name in names if name not in self.constants]
        made = [onnx.ValueInfoProto(name=name) for name in outputs if name]
        model = helper.make_model(helper.make_graph(nodes, "part", fed, made, fixed), opset_imports=self.opset)
        model.ir_version = min(model.ir_version, 10)
        return inference_session(model, self.threads)

    @staticmethod
    def _read(nodes: list[onnx.NodeProto]) -> list[str]:
        """What the nodes read that none of them makes."""
        made = {name for node in nodes for name in node.output}
        return [name for name in dict.fromkeys(n for node in nodes for n in node.input) if name and name not in made]

    def _info(self, name: str) -> onnx.ValueInfoProto:
        value = self.values[name][0]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
