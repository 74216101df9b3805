"""A run directory as the pipeline leaves it, around a tiny network that really runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune import devices, runtimes, target
from edgeprune.release.bundle import dump

EXAMPLE = Path(__file__).parent.parent / "report" / "example.json"
SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The agent's cache, away from the user's."""
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path_factory.getbasetemp() / "edgeprune-cache"))


def tiny_onnx(path: Path) -> Path:
    """input [1, 3, 8, 8] -> convolution, mean -> output [1, 4]."""
    rng = np.random.default_rng(3)
    weights = {
        "conv.weight": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "conv.bias": rng.standard_normal(4).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight", "conv.bias"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"], name="pool"),
        helper.make_node("Flatten", ["b"], ["output"], name="flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, *SHAPE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session", params=["intel-cpu", "x86-onnxruntime"])
def made(request, tmp_path_factory):
    """(run directory, result) for each runtime that is here."""
    profile = target.load(request.param)
    pytest.importorskip(profile.runtime)
    run = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPRUNE_CACHE", str(tmp_path_factory.getbasetemp() / "edgeprune-cache"))
        return _make(run, profile)


def _make(run: Path, profile: target.Target):
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
    result = json.loads(EXAMPLE.read_text())
    result["name"], result["target"] = "tiny", profile.name
    result["runtime"] = {"name": profile.runtime, "version": runtimes.version(profile.runtime)}
    result["artifact"] = {"files": {name: str(path.relative_to(run)) for name, path in artifact.files.items()}}
    (run / "result.json").write_bytes(dump(result))
    return run, result
