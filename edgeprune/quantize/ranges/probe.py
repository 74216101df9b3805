"""Measuring quantisation noise inside the float graph: many small experiments in one pass, with scalars as outputs.

An experiment copies one node, quantises some of its inputs, and compares its output with the float one. All experiments
of a network are branches of one ONNX graph, so a pass over the images measures them together, nothing but sums leaves
the runtime, and memory does not grow with the number of images or experiments.
Rounding is written as Div, Round, Clip, Mul rather than Q/DQ: the same numbers, and no optimiser takes it for INT8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeprune.quantize.effort import threads
from edgeprune.quantize.feeds import Images, feeds
from edgeprune.quantize.ranges.grids import QParams
from edgeprune.quantize.ranges.observe import inference_session
from edgeprune.quantize.view import View

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Experiment:
    """One node with some of its inputs changed.

    Attributes:
        node: the node's name; of several outputs all that hold floating-point numbers are compared, `bias` takes the
            first. "" for a tensor itself, rounded to grids[0].
        grids: input index -> the grid that it is rounded to.
        spread: input index -> factor a channel (axis 1) that the grid's steps are multiplied by there.
        constants: input index -> a constant that replaces it (quantised weights, a corrected bias).
        bias: also measure the mean error of each output channel (axis 1).
        tensor: what is rounded where `node` is "".
    """

    node: str
    grids: Mapping[int, QParams] = field(default_factory=dict)
    spread: Mapping[int, Floats] = field(default_factory=dict)
    constants: Mapping[int, Floats] = field(default_factory=dict)
    bias: bool = False
    tensor: str = ""


@dataclass(frozen=True)
class ProbeOutcome:
    """What an experiment measured, over all images.

    Attributes:
        signal, noise: sums of squares of the float output, and of the difference.
        bias: mean difference of each output channel; empty if it was not asked for.
    """

    signal: float
    noise: float
    bias: NDArray[np.float64]

    @property
    def sqnr_db(self) -> float:
        """Signal to noise in decibels; at most 200 (no noise), at least -200 (no signal)."""
        return sqnr_db(self.signal, self.noise)


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise), kept within [-200, 200]."""
    return float(10 * np.log10(max(signal, 1e-30) / max(noise, signal * 1e-20, 1e-30)))


def probe(model: onnx.ModelProto, experiments: Sequence[Experiment], images: Images, limit: int) -> list[ProbeOutcome]:
    """Run the experiments over up to `limit` images; one outcome each, in their order."""
    if not experiments:
        return []
    view = View.of(model)
    graph = _Graph(view)
    fetched = [graph.add(index, experiment) for index, experiment in enumerate(experiments)]
    outputs = [output for group in fetched for output in group]
    order = {output: index for index, output in enumerate(dict.fromkeys(outputs))}
    runner = inference_session(graph.model(list(order)), threads(view))
    totals: list[NDArray[np.float64]] = [np.zeros(())] * len(order)
    count = 0
    for feed, real in feeds(view, images, limit):
        if count and real < len(next(iter(feed.values()))):
            break  # the padded images of the last batch would count twice
        found = runner.run(list(order), feed)
        totals = [total + np.asarray(value, np.float64) for total, value in zip(totals, found, strict=True)]
        count += 1
    return [
        ProbeOutcome(
            float(totals[order[group[0]]]),
            float(totals[order[group[1]]]),
            np.asarray(totals[order[group[2]]] / count) if len(group) > 2 else np.zeros(0),
        )
        for group in fetched
    ]


class _Graph:
    """The float graph with the experiments' branches."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.by_name = {node.name: node for node in view.nodes}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.rounded: dict[tuple[str, QParams, bytes], str] = {}
        self.signals: dict[str, str] = {}
        self.opset = next(o.version for o in view.model.opset_import if o.domain in ("", "ai.onnx"))

    def add(self, index: int, experiment: Experiment) -> tuple[str, ...]:
        """Add one branch; gives the names of its outputs: signal, noise and, if wanted, bias."""
        node = self._node(experiment)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"probe{index}"
        for position, grid in experiment.grids.items():
            copy.input[position] = self._round(node.input[position], grid, experiment.spread.get(position))
        for position, value in experiment.constants.items():
            constant = self._constant(f"probe{index}.{position}", value)
            if position < len(copy.input):
                copy.input[position] = constant
            else:
                copy.input.append(constant)
        for number, output in enumerate(node.output):
            copy.output[number] = f"probe{index}.y{number}" if output else ""
        self.nodes.append(copy)
        signals, noises, differences = [], [], []
        for number, exact in enumerate(node.output):
            if exact and self.view.is_float(exact):
                name = f"probe{index}.d{number}"
                differences.append(self._emit("Sub", [copy.output[number], exact], name))
                if exact not in self.signals:
                    self.signals[exact] = self._emit("ReduceSumSquare", [exact], f"{exact}.signal", keepdims=0)
                signals.append(self.signals[exact])
                noises.append(self._emit("ReduceSumSquare", [name], f"{name}.noise", keepdims=0))
        signal = self._total(signals, f"probe{index}.signal")
        noise = self._total(noises, f"probe{index}.noise")
        if not experiment.bias:
            return signal, noise
        flat = self._emit("Reshape", [differences[0], self._constant("probe.shape", _SHAPE)], f"probe{index}.flat")
        return signal, noise, self._mean(flat, f"probe{index}.bias")

    def _node(self, experiment: Experiment) -> onnx.NodeProto:
        """The node that is copied; for a tensor itself, one that gives out what it reads."""
        if experiment.node:
            return self.by_name[experiment.node]
        return helper.make_node("Identity", [experiment.tensor], [experiment.tensor])

    def _total(self, parts: list[str], output: str) -> str:
        return parts[0] if len(parts) == 1 else self._emit("Sum", parts, output)

    def _mean(self, tensor: str, output: str) -> str:
        """Mean over axes 0 and 2; axes became an input in opset 18."""
        if self.opset < 18:
            return self._emit("ReduceMean", [tensor], output, keepdims=0, axes=[0, 2])
        axes = self._constant("probe.axes", np.array([0, 2], np.int64))
        return self._emit("ReduceMean", [tensor, axes], output, keepdims=0)

    def _round(self, tensor: str, grid: QParams, spread: Floats | None = None) -> str:
        key = (tensor, grid, b"" if spread is None else spread.tobytes())
        if key not in self.rounded:
            name = f"{tensor}.r{len(self.rounded)}"
            steps_of = np.float32(grid.scale) if spread is None else np.float32(grid.scale) * spread
            scale = self._constant(f"{name}.scale", np.asarray(steps_of, np.float32))
            low = self._constant(f"{name}.low", np.array(grid.low - grid.zero, np.float32))
            high = self._constant(f"{name}.high", np.array(grid.high - grid.zero, np.float32))
            steps = self._emit("Div", [tensor, scale], f"{name}.steps")
            whole = self._emit("Round", [steps], f"{name}.whole")
            kept = self._emit("Clip", [whole, low, high], f"{name}.kept")
            self.rounded[key] = self._emit("Mul", [kept, scale], name)
        return self.rounded[key]

    def _emit(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes))
        return output

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def model(self, outputs: list[str]) -> onnx.ModelProto:
        """The float graph and all branches, giving out `outputs` only."""
        result = onnx.ModelProto()
        result.CopyFrom(self.view.model)
        result.graph.node.extend(self.nodes)
        result.graph.initializer.extend(self.constants.values())
        del result.graph.output[:]
        result.graph.output.extend(onnx.ValueInfoProto(name=output) for output in outputs)
        return result


_SHAPE = np.array([0, 0, -1], np.int64)
