"""A model of a device's latency for when there is no device: padded multiplications and bytes. Never a measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeprune.errors import TargetError
from edgeprune.target import Target

LABEL = "model, not measured"
STEPS = {"int8": 32, "fp16": 8, "fp32": 1}  # channels that TensorRT's kernels pad to; a CPU's are in its profile
BYTES = {"int8": 1, "fp16": 2, "fp32": 4}
PEAKS = {"int8": "int8_tops", "fp16": "fp16_tflops", "fp32": "fp32_tflops"}
FREE = frozenset({"Flatten", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Cast", "Constant", "Dropout"})
FUSED = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"})
_CASTS = ("QuantizeLinear", "DequantizeLinear", "Cast")


@dataclass
class ModelledKernel:
    """One kernel of the model: a layer with what TensorRT fuses into it.

    Attributes:
        name, kind: of its first node; layers: of all its nodes.
        precision: "int8", "fp16" or "fp32".
        ms: modelled milliseconds.
    """

    name: str
    kind: str
    precision: str
    ms: float
    layers: list[str] = field(default_factory=list)


def modelled_kernel_ms(
    target: Target,
    *,
    inputs: int,
    outputs: int,
    kernel: Sequence[int],
    input_positions: int,
    output_positions: int,
    groups: int = 1,
    precision: str = "int8",
) -> float:
    """Milliseconds of one convolution at batch 1 by a roofline: a model, not measured, until a device is known.

    The larger of multiplications over `extra.int8_tops` (or fp16_tflops, fp32_tflops) and bytes over
    `extra.bandwidth_gb_s`, each at `extra.efficiency` of its peak, plus `extra.launch_us`. Channels are padded as
    TensorRT's kernels pad them: to 32 in INT8, 8 in FP16; a grouped convolution pads each group to 4. On a CPU those of
    INT8 are padded to the profile's [channels], and groups are not.

    Args:
        target: its [extra] holds the peaks of what runs there, which are the maker's data, not measurements.
        inputs, outputs: channels.
        kernel: height and width.
        input_positions, output_positions: height x width of the feature maps.

    Raises TargetError when the profile has no such data.
    """
    if precision not in STEPS:
        raise ValueError(f"no model for {precision}")
    steps = _steps(target, precision, groups)
    padded_in, padded_out = groups * _pad(inputs // groups, steps[0]), groups * _pad(outputs // groups, steps[1])
    weights = padded_in // groups * padded_out * math.prod(kernel)
    elements = padded_in * input_positions + padded_out * output_positions + weights
    compute_s = 2 * weights * output_positions / (_peak(target, PEAKS[precision]) * 1e12)
    return _whole_ms(target, compute_s, elements * BYTES[precision])


def _steps(target: Target, precision: str, groups: int) -> tuple[int, int]:
    """Channels in and out to which a group is padded."""
    if target.family == "nvidia":
        step = STEPS[precision] if groups == 1 else min(4, STEPS[precision])
        return step, step
    channels = target.channels
    return (channels.input_step, channels.step) if precision == "int8" and groups == 1 else (1, 1)


def modelled_memory_ms(target: Target, elements: int, precision: str, launch: bool = True) -> float:
    """Milliseconds to move so many elements; with a kernel's launch, or as part of another kernel."""
    return _whole_ms(target, 0.0, elements * BYTES[precision], launch)


def kernels(model: Any, target: Target, precision: str) -> list[ModelledKernel]:
    """The kernels that the runtime is expected to make of a graph, in order.

    A convolution takes the activation behind it and, as the later of two branches, the residual sum. It runs in INT8
    when its data and its weights come out of DequantizeLinear; all else in FP16, or in FP32 when `precision` says so
    and on a CPU.
    """
    return _Fusion(model, target, precision).kernels


class _Fusion:
    """Walks a graph in order and gives each node to a kernel."""

    def __init__(self, model: Any, target: Target, precision: str) -> None:
        import onnx

        self._target = target
        self._rest = "fp32" if precision == "fp32" or target.family != "nvidia" else "fp16"
        graph = onnx.shape_inference.infer_shapes(model).graph
        values = (*graph.input, *graph.value_info, *graph.output)
        self._shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
        self._shapes.update({tensor.name: tuple(tensor.dims) for tensor in graph.initializer})
        self._constants = {tensor.name for tensor in graph.initializer}
        self._producer = {name: node for node in graph.node for name in node.output}
        self._home: dict[str, ModelledKernel] = {}
        self.kernels: list[ModelledKernel] = []
        for node in graph.node:
            if node.op_type not in FREE and node.op_type not in _CASTS:
                self._place(node)

    def _place(self, node: Any) -> None:
        data = [name for name in node.input if name and not self._constant(name)]
        makers = [self._home[name] for name in map(self._origin, data) if name in self._home]
        if node.op_type in ("Conv", "Gemm", "MatMul") and len(data) == 1:
            self._new(node, self._layer_ms(node), self._precision(node))
        elif node.op_type in FUSED and makers:
            self._join(node, makers[0])
        elif node.op_type == "Add" and any(maker.kind == "Conv" for maker in makers):
            last = max((m for m in makers if m.kind == "Conv"), key=self.kernels.index)
            last.ms += modelled_memory_ms(self._target, self._size(node.output[0]), last.precision, launch=False)
            self._join(node, last)
        else:
            elements = sum(self._size(name) for name in (*data, *node.output))
            self._new(node, modelled_memory_ms(self._target, elements, self._rest), self._rest)

    def _new(self, node: Any, ms: float, precision: str) -> None:
        kernel = ModelledKernel(node.name, node.op_type, precision, ms)
        self.kernels.append(kernel)
        self._join(node, kernel)

    def _join(self, node: Any, kernel: ModelledKernel) -> None:
        kernel.layers.append(node.name)
        self._home.update(dict.fromkeys(node.output, kernel))

    def _layer_ms(self, node: Any) -> float:
        before, after = self._shapes[node.input[0]], self._shapes[node.output[0]]
        attributes = {attribute.name: attribute for attribute in node.attribute}
        groups = attributes["group"].i if "group" in attributes else 1
        weight = self._shapes[node.input[1]]
        return modelled_kernel_ms(
            self._target,
            inputs=before[1] if len(before) > 1 else before[0],
            outputs=after[1] if len(after) > 1 else after[0],
            kernel=weight[2:] if node.op_type == "Conv" else (),
            input_positions=before[0] * math.prod(before[2:]),
            output_positions=after[0] * math.prod(after[2:]),
            groups=groups,
            precision=self._precision(node),
        )

    def _precision(self, node: Any) -> str:
        makers = [self._producer.get(name) for name in node.input[:2]]
        quantised = all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
        return "int8" if quantised else self._rest

    def _origin(self, name: str) -> str:
        """The tensor that a tensor is, but for casts and shapes."""
        maker = self._producer.get(name)
        while maker is not None and maker.op_type in FREE.union(_CASTS) and maker.input:
            name = maker.input[0]
            maker = self._producer.get(name)
        return name

    def _constant(self, name: str) -> bool:
        return self._origin(name) in self._constants

    def _size(self, name: str) -> int:
        return math.prod(self._shapes.get(name, ()))


def _whole_ms(target: Target, compute_s: float, size: int, launch: bool = True) -> float:
    memory_s = size / (_peak(target, "bandwidth_gb_s") * 1e9)
    overhead = _peak(target, "launch_us") / 1e3 if launch else 0.0
    return 1e3 * max(compute_s, memory_s) / _peak(target, "efficiency") + overhead


def _peak(target: Target, name: str) -> float:
    if name not in target.extra:
        raise TargetError(f"{target.name}: [extra] {name} is missing.", "It is needed to model latency.")
    return float(target.extra[name])


def _pad(channels: int, step: int) -> int:
    return -(-channels // step) * step
