"""Inputs that are not float32: fed as they are, measured with values that every network takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune import devices
from edgeprune.devices import Artifact, answers, results
from edgeprune.devices.link import AgentError
from edgeprune.devices.types import Unit
from edgeprune.target import Protocol, Target

VOCABULARY = 5


def save(
    path: Path, nodes: list[onnx.NodeProto], kind: int, shape: list[int], constants: list | None = None
) -> Artifact:
    given = helper.make_tensor_value_info("input", kind, shape)
    out = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", [given], [out], constants or [])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return Artifact("net", "onnxruntime", "fp32", {path.name: path})


@pytest.mark.long
@pytest.mark.parametrize("kind", ["int64", "int32"])
def test_tokens_go_in_as_they_are(kind: str, ort: Target, tmp_path: Path) -> None:
    table = np.arange(VOCABULARY * 3, dtype=np.float32).reshape(VOCABULARY, 3)
    nodes = [helper.make_node("Gather", ["table", "input"], ["output"])]
    tensor = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    artifact = save(tmp_path / "tokens.onnx", nodes, tensor, [1, 4], [numpy_helper.from_array(table, "table")])
    tokens = np.array([[0, 1, 2, 3], [4, 4, 0, 1]], kind)
    with devices.connect(ort) as device:
        loaded = device.load(artifact)
        np.testing.assert_array_equal(device.infer(loaded, tokens)[0], table[tokens])  # type: ignore[arg-type]
        (timing,) = device.measure([loaded], ort.protocol)  # noise would be no token of the vocabulary
    assert timing.median > 0


@pytest.mark.long
@pytest.mark.parametrize("kind", ["uint8", "bool", "float64"])
def test_other_types_are_cast_by_the_network_alone(kind: str, ort: Target, tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["input"], ["output"], to=TensorProto.FLOAT)]
    artifact = save(tmp_path / "cast.onnx", nodes, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [1, 3])
    given = np.array([[0, 1, 1], [1, 0, 1]], kind)
    with devices.connect(ort) as device:
        loaded = device.load(artifact)
        np.testing.assert_array_equal(device.infer(loaded, given)[0], given.astype(np.float32))  # type: ignore[arg-type]
        assert device.measure([loaded], ort.protocol)[0].count == 10


@pytest.mark.long
def test_a_type_that_is_not_fed_is_said(ort: Target, tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["input"], ["output"], to=TensorProto.FLOAT)]
    artifact = save(tmp_path / "text.onnx", nodes, TensorProto.STRING, [1, 3])
    with devices.connect(ort) as device, pytest.raises(AgentError, match=r"'input' is a tensor\(string\)"):
        device.load(artifact)


@pytest.mark.parametrize(("unit", "others"), [("ms", 0.6), ("instructions", 0.0)])
def test_other_work_disturbs_a_clock_and_no_count(unit: Unit, others: float) -> None:
    summary = answers.Summary(
        median=2e6, p90=2e6, p99=2e6, minimum=2e6, mean=2e6, spread=0.0, count=1, rounds=[2e6], drift=0.0
    )
    job = answers.MeasureAnswer(summaries=[summary], reasons=[], notes=[], others=0.6)
    assert results.timing(summary, job, Protocol(), unit).others == others
