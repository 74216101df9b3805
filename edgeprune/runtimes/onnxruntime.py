"""ONNX Runtime: the artifact is the ONNX file itself, never optimised here: optimised graphs belong to one CPU."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from edgeprune import files
from edgeprune.devices import Artifact
from edgeprune.errors import ModelError, RunError
from edgeprune.runtimes.dialects import Dialect, roles_of
from edgeprune.runtimes.runtime import Option, Runtime
from edgeprune.target import Target

# ONNX Runtime on x86 leaves S8S8 convolutions in float unless this is set; with it the graph and the outputs are those
# of an ARM CPU, bit for bit (measured with 1.31.1). On an ARM CPU it is already so.
EXACT_S8S8 = {"session.qdqisint8allowed": "1"}


def build(onnx_path: Path, folder: Path, target: Target, name: str, precision: str) -> Artifact:
    """Copy the graph into `folder`; options make an x86 pre-check compute what the ARM target will."""
    path = copy_graph(onnx_path, folder, name)
    options: dict[str, object] = dict(EXACT_S8S8) if precision == "int8" and target.family == "arm" else {}
    return Artifact(name, RUNTIME.name, precision, {path.name: path}, options)


def copy_graph(onnx_path: Path, folder: Path, name: str) -> Path:
    """The graph as `name`.onnx in `folder`, whole or not at all."""
    path = folder / f"{name}.onnx"
    if not onnx_path.is_file():
        raise ModelError(f"{onnx_path}: no such file.")
    if path.resolve() == onnx_path.resolve():
        return path
    try:
        with files.replacing(path) as part:
            shutil.copyfile(onnx_path, part)
    except OSError as cause:
        raise RunError(f"{folder}: cannot be written ({cause}).", "Free space on the disk.") from None
    return path


X86 = Dialect(
    name="ort-x86",
    runtime="onnxruntime",
    title="ONNX Runtime on x86 CPUs",
    roles=roles_of(
        compute="Conv Gemm MatMul",
        sum="Add Mul",
        own="AveragePool GlobalAveragePool Sigmoid LeakyRelu",  # QLinearSoftmax is slower than float (docs/int8.md)
        share="MaxPool Resize Reshape Flatten Transpose Squeeze Unsqueeze Split Slice Gather DepthToSpace Expand Tile",
        join="Concat",
    ),
    unsigned=True,
    signed="asymmetric",
    bias="int32",
    outputs=True,
    fuses_matmul=True,
    scales_gemm=False,
    stacks=False,  # MatMulIntegerToFloat and QLinearMatMul fail when they run
    slow_norms=True,
    slow_pools=True,
    tables=True,
    weights_alone="operator",  # a DQ before a Gemm that a Relu or a Q follows is not fused
    without_vnni="ort-x86-avx2",
    why_int8="x86 runs most layers that read signed activations in float, 2-4 times slower.",
    notes="U8S8: S8S8 leaves most convolutions in float here. Without VNNI two products can saturate 16 bits.",
)

# The reduced twin: 7-bit weights cannot saturate the 16-bit sums of x86 CPUs without VNNI.
X86_AVX2 = replace(
    X86,
    name="ort-x86-avx2",
    title="ONNX Runtime on x86 without VNNI",
    weight_levels=63,
    weights_alone="",  # not measured there
    without_vnni="",
)

ARM64 = replace(
    X86,
    name="ort-arm64",
    weights_alone="",  # not measured there
    slow_norms=False,  # nor this
    slow_pools=False,  # nor this
    title="ONNX Runtime on 64-bit ARM CPUs",
    without_vnni="",
    unsigned=False,
    zero_based=True,
    why_uint8="ARM kernels are made for int8 activations.",
    why_int8="",
    notes="S8S8: the dot-product kernels are made for signed activations.",
)

RUNTIME = Runtime(
    name="onnxruntime",
    title="ONNX Runtime",
    build=build,
    dialects=(X86, X86_AVX2, ARM64),
    packages=("onnxruntime", "numpy"),
    package="onnxruntime",
    extra="onnxruntime",  # part of the core; the extra exists so that every runtime has one
    suffixes=(".onnx",),
    int8_kinds=("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize"),
    weights_kind="MatMulNBits",
    options=(
        Option(
            "--optimization",
            "graph_optimization_level",
            "How far ONNX Runtime rewrites the graph.",
            ("disable", "basic", "extended", "all"),
        ),
    ),
    optimises_on=("arm",),
    ends=True,
    from_memory=True,
)
