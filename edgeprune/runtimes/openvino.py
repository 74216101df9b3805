"""OpenVINO: ONNX becomes an IR, an .xml file and a .bin file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgeprune import files
from edgeprune.devices import Artifact
from edgeprune.errors import ModelError, RunError
from edgeprune.runtimes.dialects import Dialect, roles_of
from edgeprune.runtimes.runtime import Option, Runtime
from edgeprune.target import Target


def build(onnx_path: Path, folder: Path, target: Target, name: str, precision: str) -> Artifact:
    """Convert the graph. Float constants of an INT8 artifact are stored as FP16; an FP32 artifact keeps every bit."""
    RUNTIME.require()
    import openvino

    if not onnx_path.is_file():
        raise ModelError(f"{onnx_path}: no such file.")
    xml, binary = folder / f"{name}.xml", folder / f"{name}.bin"
    try:
        model = openvino.Core().read_model(onnx_path)
    except RuntimeError as cause:
        raise ModelError(f"{onnx_path}: OpenVINO cannot read it ({str(cause).strip().splitlines()[-1]}).") from None
    with _disk(folder), files.replacing(xml) as part:
        weights = part.with_suffix(".bin")
        try:
            openvino.save_model(model, part, compress_to_fp16=precision == "int8")
            files.settle(weights, binary)
        finally:
            weights.unlink(missing_ok=True)
    return Artifact(name, RUNTIME.name, precision, {xml.name: xml, binary.name: binary})


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as cause:
        raise RunError(f"{folder}: the IR cannot be written ({cause}).", "Free space on the disk.") from None


QDQ = Dialect(
    name="openvino",
    runtime="openvino",
    title="OpenVINO on x86 CPUs",
    roles=roles_of(
        compute="Conv ConvTranspose Gemm MatMul",
        sum="Add",
        own="AveragePool GlobalAveragePool",
        share="MaxPool Resize Reshape Flatten Transpose Squeeze Unsqueeze Split Slice Gather DepthToSpace",
        join="Concat",
    ),
    unsigned=True,
    signed="asymmetric",
    fuses_attention=True,
    products=True,
    even_transposed=True,
    weights_alone="pair",
    tables=True,
    appends_ones=False,  # 2026.4: "ReshapeTransformation ... CALLBACK HAS THROWN", and nothing compiles
    without_vnni="openvino-avx2",
)

# 255 * 127 twice passes the 16 bits that such CPUs sum in, 255 * 63 does not (docs/int8.md).
AVX2 = replace(
    QDQ,
    name="openvino-avx2",
    title="OpenVINO on x86 without VNNI",
    weight_levels=63,
    products=False,  # a tenth slower: its brgemm multiplies floats there
    weights_alone="",  # not measured there
    without_vnni="",
)

RUNTIME = Runtime(
    name="openvino",
    title="OpenVINO",
    build=build,
    dialects=(QDQ, AVX2),
    packages=("openvino", "numpy"),
    package="openvino",
    extra="openvino",
    suffixes=(".xml", ".bin"),
    int8_words=("i8", "u8"),
    weights_kind="FullyConnectedCompressed",
    ends=True,
    options=(Option("--streams", "NUM_STREAMS", "Requests that OpenVINO runs side by side."),),
    from_memory=True,
    float_hint="INFERENCE_PRECISION_HINT",
    shorter={"bf16": ("avx512_bf16", "amx_bf16")},
)
