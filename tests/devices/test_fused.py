"""Which layers ONNX Runtime put into which kernel, on float graphs whose convolutions it lays out anew (NCHWc)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgeprune.devices.fused import layers_of

WIDTH = 32


class Graph:
    """Nodes of a float graph on [1, 32, 8, 8]."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [
            numpy_helper.from_array(np.array([1, 2, WIDTH // 2, 8, 8], np.int64), "shape"),
            numpy_helper.from_array(np.array([1, WIDTH, 8, 8], np.int64), "back"),
        ]

    def conv(self, x: str, name: str, output: str) -> str:
        values = np.random.default_rng(len(self.nodes)).normal(0, 0.1, (WIDTH, WIDTH, 3, 3)).astype(np.float32)
        self.constants.append(numpy_helper.from_array(values, f"{name}.weight"))
        return self.node("Conv", [x, f"{name}.weight"], name, output, pads=[1, 1, 1, 1], kernel_shape=[3, 3])

    def node(self, kind: str, inputs: list[str], name: str, output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def kernels(self, folder: Path, output: str) -> dict[tuple[str, ...], str]:
        """The layers of each kernel -> its kind; kernels without a layer are left out."""
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, WIDTH, 8, 8)) for n in ("x", output)]
        graph = helper.make_graph(self.nodes, "g", ends[:1], ends[1:], self.constants)
        onnx.save(
            helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), folder / "float.onnx"
        )
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(folder / "fused.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(str(folder / "float.onnx"), options, providers=["CPUExecutionProvider"])
        fused = onnx.load(folder / "fused.onnx").graph.node
        found = layers_of([node.name for node in fused], folder / "float.onnx", folder / "fused.onnx")
        return {own: node.op_type for own, node in zip(found, fused, strict=True) if own}


def test_a_convolution_and_the_relu_fused_into_it_are_one_kernel(tmp_path: Path) -> None:
    """The kernel is called after the tensor `relu`, and there is a node of that name elsewhere."""
    graph = Graph()
    x = graph.node("Relu", [graph.conv("x", "first", "a")], "first/act", "relu")
    x = graph.conv(x, "second", "b")
    graph.node("Relu", [x], "relu", "c")
    found = graph.kernels(tmp_path, "c")
    assert found.get(("first", "first/act")) == found.get(("second", "relu")) == "Conv", found


def test_a_sum_belongs_to_the_convolution_that_it_was_fused_into(tmp_path: Path) -> None:
    """Both of its sides are convolutions; one of them is a kernel of its own."""
    graph = Graph()
    x = graph.node("Relu", [graph.conv("x", "stem", "a")], "stem/act", "b")
    left = graph.node("Relu", [graph.conv(x, "left", "c")], "left/act", "d")
    right = graph.conv(left, "right", "e")
    short = graph.conv(x, "short", "f")
    x = graph.node("Add", [right, short], "sum", "g")
    graph.node("Relu", [x], "act", "h")
    found = graph.kernels(tmp_path, "h")
    layers = sorted(name for own in found for name in own)
    assert layers == sorted(["stem", "stem/act", "left", "left/act", "right", "short", "sum", "act"]), found
    assert all(sum(name in own for name in ("stem", "left", "right", "short")) <= 1 for own in found), found


def test_a_shape_that_two_reshapes_share_does_not_join_what_lies_between(tmp_path: Path) -> None:
    """As in a channel shuffle: reshape, transpose, reshape, several times, with the same constants."""
    graph, x = Graph(), "x"
    for k in (1, 2):
        x = graph.node("Relu", [graph.conv(x, f"conv{k}", f"a{k}")], f"act{k}", f"b{k}")
        x = graph.node("Reshape", [x, "shape"], f"apart{k}", f"c{k}")
        x = graph.node("Transpose", [x], f"turn{k}", f"d{k}", perm=[0, 2, 1, 3, 4])
        x = graph.node("Reshape", [x, "back"], f"back{k}", f"e{k}")
    found = graph.kernels(tmp_path, x)
    assert found.get(("conv1", "act1")) == found.get(("conv2", "act2")) == "Conv", found
    assert found.get(("back2",)) == "Reshape", found
