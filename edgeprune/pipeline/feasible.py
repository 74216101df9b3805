"""The dense network on the device, in FP32 and INT8: what every budget is a fraction of."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import onnx

from edgeprune import model, quantize, runtimes
from edgeprune.devices import Artifact, Loaded
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.rundir import write_json


def measure_dense(context: Context, folder: Path) -> None:
    """dense.onnx, dense.json: latency of both artifacts, interleaved, and the INT8 one by kernel."""
    dense = model.export_onnx(context.model, context.example, folder / "dense.onnx")
    float_artifact = runtimes.build(folder / "dense.onnx", folder, context.target, "dense-fp32", "fp32")
    int8_artifact = build_int8(context, dense, folder, "dense-int8")
    loaded = [context.device.load(artifact) for artifact in (float_artifact, int8_artifact)]
    timings = context.device.measure(loaded, context.target.protocol)
    kernels = context.device.profile(loaded[1])
    for one in loaded:
        context.device.unload(one)
    write_json(
        folder / "dense.json",
        {
            "unit": timings[0].unit,
            "fp32": asdict(timings[0]),
            "int8": asdict(timings[1]),
            "kernels": [asdict(kernel) for kernel in kernels],
            "device": context.probe.fingerprint,
        },
    )


def build_int8(context: Context, float_graph: onnx.ModelProto, folder: Path, name: str) -> Artifact:
    """An INT8 artifact for latency alone: its ranges are right in sign and arbitrary in size, which changes no kernel."""
    quantised = quantize.apply(float_graph, quantize.dummy_ranges(float_graph), context.dialect)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.qdq.onnx"
    onnx.save(quantised, path)
    return runtimes.build(path, folder, context.target, name, "int8")


def load_dense(context: Context) -> Loaded:
    """The dense INT8 artifact of the latency stage, on the device: the anchor of every measurement."""
    folder = context.folder("latency")
    float_graph = onnx.load(folder / "dense.onnx")
    scratch = context.run.path / ".scratch"
    return context.device.load(build_int8(context, float_graph, scratch, "dense-int8"))
