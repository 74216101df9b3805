"""Bytes in, classes out: the artifact computes what the network does of scaled pixels, in each runtime."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edgeprune import model
from edgeprune.errors import DataError

MEAN, STD, SCALE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255


class Maps(nn.Module):
    """Two outputs: a number a picture, and scores of four classes a pixel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores, self.number = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.scores(x)
        return self.number(maps.mean((2, 3))), maps


@pytest.fixture
def graph(tmp_path: Path) -> onnx.ModelProto:
    return model.export_onnx(Maps().eval(), torch.zeros(2, 3, 6, 8), tmp_path / "float.onnx")


def pixels() -> Any:
    return np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)


def scaled(given: Any) -> Any:
    """As preprocessing says it, from NHWC."""
    made = (given.astype(np.float32) * np.float32(SCALE) - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(made.transpose(0, 3, 1, 2))


def run(made: onnx.ModelProto, given: Any, runtime: str = "onnxruntime") -> list[Any]:
    if runtime == "openvino":
        openvino = pytest.importorskip("openvino", reason="the extra edgeprune[openvino] is not installed")
        core = openvino.Core()
        graph = core.read_model(io.BytesIO(made.SerializeToString()))
        compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled(given)
        return [found[output] for output in compiled.outputs]
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: given}))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_bytes_give_what_scaled_floats_give(graph: onnx.ModelProto, layout: Any, runtime: str) -> None:
    ends = model.Ends(layout, SCALE, MEAN, STD)
    floats = scaled(pixels())
    (fed,) = ends.fed((floats,))
    wanted = pixels() if layout == "NHWC" else pixels().transpose(0, 3, 1, 2)
    assert fed.dtype == np.uint8 and np.array_equal(fed, wanted)
    made = ends.around(graph)
    assert [value.name for value in made.graph.input] == [value.name for value in graph.graph.input]
    for found, right in zip(run(made, fed, runtime), run(graph, floats), strict=True):
        assert np.abs(found - right).max() < 1e-5 * np.abs(right).max()
    assert graph.graph.node[0].op_type == "Conv"  # the float graph is as it was


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_best_class_and_probabilities(graph: onnx.ModelProto, runtime: str) -> None:
    floats = scaled(pixels())
    number, scores = run(graph, floats)
    found = run(model.Ends(output="argmax", place=1).around(graph), floats, runtime)
    assert found[1].dtype == np.uint8 and np.array_equal(found[1], scores.argmax(1))
    assert np.allclose(found[0], number, atol=1e-5)
    exponent = np.exp(scores - scores.max(1, keepdims=True))
    found = run(model.Ends(output="softmax", place=1).around(graph), floats, runtime)
    assert np.allclose(found[1], exponent / exponent.sum(1, keepdims=True), atol=1e-5)


def test_what_costs_nothing_is_left_out(graph: onnx.ModelProto) -> None:
    kinds = [node.op_type for node in model.Ends("NHWC").around(graph).graph.node]
    assert kinds[:3] == ["Transpose", "Cast", "Conv"]
    kinds = [node.op_type for node in model.Ends("NCHW", SCALE).around(graph).graph.node]
    assert kinds[:3] == ["Cast", "Mul", "Conv"]
    assert model.Ends().around(graph) == graph and not model.Ends()


@pytest.mark.parametrize(("value", "says"), [(0.3, "no byte"), (256.0, "a byte is 0 to 255"), (-1.0, "0 to 255")])
def test_what_is_no_byte_is_refused(value: float, says: str) -> None:
    floats = np.full((1, 3, 2, 2), 7, np.float32)
    floats[0, 1, 1, 0] = value
    with pytest.raises(DataError, match=says):
        model.Ends("NHWC").fed((floats,))
