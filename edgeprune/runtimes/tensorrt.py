"""TensorRT: the Q/DQ graph is shipped, the engine is built on the device. And a model of latency, not a measurement."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgeprune.devices.types import Artifact
from edgeprune.errors import TargetError
from edgeprune.runtimes.onnxruntime import copy_graph
from edgeprune.target import Target

LABEL = "model, not measured"
STEPS = {"int8": 32, "fp16": 8}  # channels that TensorRT's kernels pad to
BYTES = {"int8": 1, "fp16": 2}


def build(onnx_path: Path, folder: Path, target: Target, name: str, precision: str) -> Artifact:
    """Copy the graph. FP32 builds without TF32, FP16 or INT8; flavour B (dialect "tensorrt-b") strongly typed."""
    path = copy_graph(onnx_path, folder, name)
    typed = target.dialect == "tensorrt-b" and precision == "int8"
    options: dict[str, Any] = {"precision": precision, **({"strongly_typed": True} if typed else {})}
    return Artifact(name, "tensorrt", precision, {path.name: path}, options)


def modelled_kernel_ms(
    target: Target,
    *,
    inputs: int,
    outputs: int,
    kernel: tuple[int, int],
    input_positions: int,
    output_positions: int,
    groups: int = 1,
    precision: str = "int8",
) -> float:
    """Milliseconds of one convolution at batch 1 by a roofline: a model, not measured, until a device is known.

    The larger of multiplications over `extra.int8_tops` (or fp16_tflops) and bytes over `extra.bandwidth_gb_s`, each at
    `extra.efficiency` of its peak, plus `extra.launch_us`. Channels are padded as TensorRT's kernels pad them: to 32 in
    INT8, 8 in FP16; a grouped convolution pads each group.

    Args:
        target: a profile of family "nvidia"; its [extra] holds the peaks, which are the maker's data, not measurements.
        inputs, outputs: channels.
        kernel: height and width.
        input_positions, output_positions: height x width of the feature maps.

    Raises TargetError when the profile has no such data.
    """
    if precision not in STEPS:
        raise ValueError(f"no model for {precision}")
    step, extra = STEPS[precision], target.extra
    peak_name = "int8_tops" if precision == "int8" else "fp16_tflops"
    missing = [key for key in (peak_name, "bandwidth_gb_s", "efficiency", "launch_us") if key not in extra]
    if missing:
        raise TargetError(f"{target.name}: [extra] {missing[0]} is missing.", "It is needed to model latency.")
    padded_in = groups * _pad(inputs // groups, step if groups == 1 else 4)
    padded_out = groups * _pad(outputs // groups, step if groups == 1 else 4)
    macs = padded_in // groups * padded_out * math.prod(kernel) * output_positions
    elements = padded_in * input_positions + padded_out * output_positions
    weights = padded_in // groups * padded_out * math.prod(kernel)
    compute_s = 2 * macs / (float(extra[peak_name]) * 1e12)
    memory_s = (elements + weights) * BYTES[precision] / (float(extra["bandwidth_gb_s"]) * 1e9)
    return 1e3 * max(compute_s, memory_s) / float(extra["efficiency"]) + float(extra["launch_us"]) / 1e3


def _pad(channels: int, step: int) -> int:
    return -(-channels // step) * step
