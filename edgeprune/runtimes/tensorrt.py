"""TensorRT: the Q/DQ graph is shipped, the engine is built on the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeprune.devices import Artifact
from edgeprune.runtimes.dialects import Dialect, roles_of
from edgeprune.runtimes.onnxruntime import copy_graph
from edgeprune.runtimes.runtime import DIALECT, Option, Runtime
from edgeprune.target import Target


def build(onnx_path: Path, folder: Path, target: Target, name: str, precision: str) -> Artifact:
    """Copy the graph. FP32 builds without TF32, FP16 or INT8; flavour B (dialect "tensorrt-b") strongly typed."""
    path = copy_graph(onnx_path, folder, name)
    typed = target.dialect == "tensorrt-b" and precision == "int8"
    options: dict[str, object] = {"precision": precision, **({"strongly_typed": True} if typed else {})}
    return Artifact(name, RUNTIME.name, precision, {path.name: path}, options)


FLAVOUR_A = Dialect(
    name="tensorrt-a",
    runtime="tensorrt",
    title="TensorRT 8.5 to 10.x",
    roles=roles_of(
        compute="Conv MatMul",
        sum="Add",
        share="MaxPool Resize Reshape Flatten Transpose Squeeze Unsqueeze",
        join="Concat",
    ),
    unsigned=False,
    signed="symmetric",
    store_float=True,
    strict=True,
    interpolates=True,
    why_uint8="TensorRT retypes it to int8 without a word, so values above 127 saturate.",
    residual="skip",
    depthwise=False,
    narrow=8,  # TensorRT-RTX makes no INT8 kernel of EfficientNet-B0's 4 -> 96 squeeze-excite; 8 -> 32 is one
    opset=13,
    opset_max=17,
    notes="Gemm, of one row, stays float: FP16 is faster. Depthwise stays float below TensorRT 10.",
)

FLAVOUR_B = replace(
    FLAVOUR_A,
    name="tensorrt-b",
    title="TensorRT 10.12 and later, strongly typed",
    store_float=False,
    depthwise=True,
    float_type="float16",
    since="11",
    opset=19,
    opset_max=21,
    notes="FP16 around INT8; input and output stay FP32 and are cast at the ends.",
)

RUNTIME = Runtime(
    name="tensorrt",
    title="TensorRT",
    build=build,
    dialects=(FLAVOUR_A, FLAVOUR_B),
    packages=("numpy",),  # TensorRT itself comes with JetPack
    suffixes=(".onnx",),
    int8_words=("int8", "i8"),
    options=(
        Option("--workspace", "workspace_mib", "MiB that TensorRT may use while it builds."),
        Option(
            "--flavour",
            DIALECT,
            "a: FP32 around INT8, TensorRT 8.5 to 10; b: FP16, 10.12 and up.",
            ("tensorrt-a", "tensorrt-b"),
        ),
    ),
    flavours=True,
    clocks=True,
)
