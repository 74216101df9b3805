"""Running graphs on the runtimes of this machine, with their own profilers: for tests of quantize."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from edgeprune import runtimes
from edgeprune.devices.types import KernelTime
from edgeprune.model import export_onnx
from edgeprune.quantize import inference_session

Feeds = Mapping[str, np.ndarray]


def scheme(name: str) -> Any:
    """A dialect as this machine's CPU gets it: without VNNI, its twin of fewer weight steps."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().partition("flags")[2].partition("\n")[0].split() if cpuinfo.is_file() else []
    return runtimes.for_cpu(name, flags)


def exported(module: nn.Module, example: Any) -> onnx.ModelProto:
    """The float graph of a module with random weights from seed 0 (set before the module is made)."""
    with tempfile.TemporaryDirectory() as folder:
        return export_onnx(module.eval(), example, Path(folder) / "net.onnx")


def kernels(model: onnx.ModelProto, feeds: Feeds, **options: str) -> Counter[str]:
    """How many kernels of each kind ONNX Runtime, optimised, runs."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level, settings.enable_profiling = 1, 3, True
    for key, value in options.items():
        settings.add_session_config_entry(key.replace("__", "."), value)
    with tempfile.TemporaryDirectory() as folder:
        settings.profile_file_prefix = str(Path(folder) / "profile")
        runner = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        runner.run(None, dict(feeds))
        events = json.loads(Path(runner.end_profiling()).read_text())
    return Counter(e["args"]["op_name"] for e in events if e.get("cat") == "Node" and "kernel_time" in e["name"])


def outputs(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    """What a graph computes as it is written: no optimiser, so no kernel of this CPU's own arithmetic."""
    return list(inference_session(model).run(None, dict(feeds)))


def optimised(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    """What ONNX Runtime makes of a graph on this CPU."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    runner = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return list(runner.run(None, dict(feeds)))


def openvino_kernels(model: onnx.ModelProto, feeds: Feeds) -> list[KernelTime]:
    """The kernels that OpenVINO ran, `implementation` as its profiler names them."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        options = {"PERF_COUNT": "YES", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
        request.infer(dict(feeds))
        return [
            KernelTime(p.node_name, p.node_type, (p.node_name,), p.real_time.total_seconds(), 0, 1, "ms", p.exec_type)
            for p in request.profiling_info
            if str(p.status).endswith("EXECUTED")
        ]


def openvino(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    """What OpenVINO makes of a graph on this CPU."""
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    made = core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)
    return [np.array(value) for value in made(dict(feeds)).values()]


def sqnr(exact: np.ndarray, got: np.ndarray) -> float:
    """Signal to noise, in decibels."""
    noise = float(np.square(np.asarray(exact, np.float64) - got).sum())
    return float(10 * np.log10(float(np.square(exact, dtype=np.float64).sum()) / max(noise, 1e-30)))


def seeded(build: Any) -> nn.Module:
    """What `build` makes with torch's seed 0."""
    torch.manual_seed(0)
    return build()  # type: ignore[no-any-return]
