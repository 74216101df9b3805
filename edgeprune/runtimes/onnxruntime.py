"""ONNX Runtime: the artifact is the ONNX file itself, never optimised here: optimised graphs belong to one CPU."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeprune.devices.types import Artifact
from edgeprune.errors import ModelError, RunError
from edgeprune.target import Target

# ONNX Runtime on x86 leaves S8S8 convolutions in float unless this is set; with it the graph and the outputs are those
# of an ARM CPU, bit for bit (measured with 1.31.1). On an ARM CPU it is already so.
EXACT_S8S8 = {"session.qdqisint8allowed": "1"}


def build(onnx_path: Path, folder: Path, target: Target, name: str, precision: str) -> Artifact:
    """Copy the graph into `folder`; options make an x86 pre-check compute what the ARM target will."""
    path = copy_graph(onnx_path, folder, name)
    options = dict(EXACT_S8S8) if precision == "int8" and target.family == "arm" else {}
    return Artifact(name, "onnxruntime", precision, {path.name: path}, options)


def copy_graph(onnx_path: Path, folder: Path, name: str) -> Path:
    """The graph as `name`.onnx in `folder`, whole or not at all."""
    path = folder / f"{name}.onnx"
    if not onnx_path.is_file():
        raise ModelError(f"{onnx_path}: no such file.")
    if path.resolve() == onnx_path.resolve():
        return path
    part = path.with_suffix(".part")
    try:
        shutil.copyfile(onnx_path, part)
        part.replace(path)
    except OSError as cause:
        part.unlink(missing_ok=True)
        raise RunError(f"{folder}: cannot be written ({cause}).", "Free space on the disk.") from None
    return path
