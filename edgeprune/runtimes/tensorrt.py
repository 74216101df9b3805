"""TensorRT: the Q/DQ graph is shipped, the engine is built on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprune.devices.roofline import LABEL as LABEL
from edgeprune.devices.roofline import modelled_kernel_ms as modelled_kernel_ms
from edgeprune.devices.types import Artifact
from edgeprune.runtimes.onnxruntime import copy_graph
from edgeprune.target import Target


def build(onnx_path: Path, folder: Path, target: Target, name: str, precision: str) -> Artifact:
    """Copy the graph. FP32 builds without TF32, FP16 or INT8; flavour B (dialect "tensorrt-b") strongly typed."""
    path = copy_graph(onnx_path, folder, name)
    typed = target.dialect == "tensorrt-b" and precision == "int8"
    options: dict[str, Any] = {"precision": precision, **({"strongly_typed": True} if typed else {})}
    return Artifact(name, "tensorrt", precision, {path.name: path}, options)
