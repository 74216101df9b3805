"""OpenVINO: ONNX becomes an IR, an .xml file and a .bin file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edgeprune.devices.types import Artifact
from edgeprune.errors import ModelError, RunError
from edgeprune.runtimes.versions import require
from edgeprune.target import Target


def build(onnx_path: Path, folder: Path, target: Target, name: str, precision: str) -> Artifact:
    """Convert the graph. Float constants of an INT8 artifact are stored as FP16; an FP32 artifact keeps every bit."""
    require("openvino")
    import openvino

    if not onnx_path.is_file():
        raise ModelError(f"{onnx_path}: no such file.")
    xml, binary = folder / f"{name}.xml", folder / f"{name}.bin"
    part = folder / f".{name}.part.xml"
    try:
        model = openvino.Core().read_model(onnx_path)
    except RuntimeError as cause:
        raise ModelError(f"{onnx_path}: OpenVINO cannot read it ({str(cause).strip().splitlines()[-1]}).") from None
    with _disk(folder, part):
        openvino.save_model(model, part, compress_to_fp16=precision == "int8")
        part.with_suffix(".bin").replace(binary)
        part.replace(xml)
    return Artifact(name, "openvino", precision, {xml.name: xml, binary.name: binary})


@contextlib.contextmanager
def _disk(folder: Path, part: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as cause:
        raise RunError(f"{folder}: the IR cannot be written ({cause}).", "Free space on the disk.") from None
    finally:
        part.unlink(missing_ok=True)
        part.with_suffix(".bin").unlink(missing_ok=True)
