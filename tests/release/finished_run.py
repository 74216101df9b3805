"""A run directory as the pipeline leaves it, around a tiny network that really runs: what conftest's `made` is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprune import claims, devices, files, runtimes, target, validate
from edgeprune.recipe import BudgetSection
from edgeprune.release.bundle import dump

EXAMPLE = Path(__file__).parent.parent / "report" / "example.json"
SHAPE = (3, 8, 8)


def tiny_onnx(path: Path) -> Path:
    """input [1, 3, 8, 8] -> convolution in INT8, mean -> output [1, 4]."""
    rng = np.random.default_rng(3)
    weights = {
        "conv.weight": rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "conv.bias": rng.standard_normal(4).astype(np.float32),
        "scale": np.float32(0.03),
        "zero": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"], name="dq"),
        helper.make_node("DequantizeLinear", ["conv.weight", "scale", "zero"], ["w"], name="dqw"),
        helper.make_node("Conv", ["x", "w", "conv.bias"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"], name="pool"),
        helper.make_node("Flatten", ["b"], ["output"], name="flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, *SHAPE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, path)
    return path


def judge(result):
    """Give a result whose figures were changed the gates that they pass."""
    result["gates"] = [gate.to_dict() for gate in validate.gates(result, BudgetSection(**result["budget"]))]
    assert all(gate["passed"] for gate in result["gates"]), result["gates"]


def make(run: Path, profile: target.Target):
    for folder in ("graph", "search", "validate"):
        (run / folder).mkdir()
    source = tiny_onnx(run / "graph" / "float.onnx")
    artifact = runtimes.build(source, run / "artifacts", profile, "pruned-int8", "int8")
    images = np.random.default_rng(1).standard_normal((6, *SHAPE)).astype(np.float32)
    with devices.connect(profile) as device:
        (outputs,) = device.infer(device.load(artifact), images)
    np.savez(run / "validate" / "samples.npz", input=images, output=outputs)
    (run / "search" / "plan.json").write_text('{"version": 1}\n')
    preprocessing = {"resize": 0, "crop": 0, "scale": 1 / 255, "mean": [0.0], "std": [1.0], "shape": list(SHAPE)}
    (run / "validate" / "preprocessing.json").write_text(json.dumps(preprocessing))
    (run / "validate" / "labels.json").write_text(json.dumps(["ant", "bee", "cat", "dog"]))
    (run / "recipe.lock.toml").write_text("[model]\n")
    (run / "quantize").mkdir()
    (run / "quantize" / "pruned-fp32.onnx").write_bytes(source.read_bytes())
    measured = sorted(path for path in run.rglob("*") if path.is_file() and path.parent != run)
    hashes = {path.relative_to(run).as_posix(): files.sha256(path) for path in measured}
    (run / "validate" / "measured.json").write_text(json.dumps({"sha256": hashes}))
    result = json.loads(EXAMPLE.read_text())
    result["name"], result["target"] = "tiny", profile.name
    result["runtime"] = {"name": profile.runtime, "version": runtimes.version(profile.runtime)}
    result["artifact"] = {
        "files": {name: str(path.relative_to(run)) for name, path in artifact.files.items()},
        "sha256": {path.name: files.sha256(path) for path in artifact.files.values()},
    }
    result["inputs"] = [{"name": "input", "shape": list(SHAPE), "dtype": "float32"}]
    result["device"] |= {"runtime": profile.runtime, "runtime_version": result["runtime"]["version"]}
    result["claim"] = claims.judge(profile, "local", result["device"]).to_dict()
    judge(result)
    (run / "result.json").write_bytes(dump(result))
    return run, result
