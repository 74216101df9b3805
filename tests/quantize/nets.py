"""Small float graphs as `model.export_onnx` writes them, with real numbers: for tests of quantize."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]


class Net:
    """Builds a graph node by node; each method returns the name of what it made."""

    def __init__(self, channels: int = 3, size: int = 16, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.shape = (1, channels, size, size)
        self.count = 0

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, operator: str, *inputs: str, name: str = "", **attributes: object) -> str:
        self.count += 1
        name = name or f"/{operator}_{self.count}"
        output = f"{name}_output"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=name, **attributes))
        return output

    def conv(self, x: str, name: str, c_in: int, c_out: int, k: int = 3, group: int = 1, bias: bool = True) -> str:
        fan = c_in // group * k * k
        weight = self.rng.normal(0, (2 / fan) ** 0.5, (c_out, c_in // group, k, k)).astype(np.float32)
        inputs = [x, self.constant(f"{name}.weight", weight)]
        if bias:
            inputs.append(self.constant(f"{name}.bias", self.rng.normal(0, 0.1, c_out).astype(np.float32)))
        return self.node("Conv", *inputs, name=name, kernel_shape=[k, k], pads=[k // 2] * 4, group=group)

    def gemm(self, x: str, name: str, c_in: int, c_out: int) -> str:
        weight = self.rng.normal(0, c_in**-0.5, (c_out, c_in)).astype(np.float32)
        bias = self.constant(f"{name}.bias", np.zeros(c_out, np.float32))
        return self.node("Gemm", x, self.constant(f"{name}.weight", weight), bias, name=name, transB=1)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def clip(self, x: str, high: float = 6.0) -> str:
        low = self.constant(f"low{self.count}", np.array(0, np.float32))
        return self.node("Clip", x, low, self.constant(f"high{self.count}", np.array(high, np.float32)))

    def model(self, output: str, opset: int = 17) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("input", TensorProto.FLOAT, self.shape)
        for node in self.nodes:
            for index, name in enumerate(node.output):
                node.output[index] = "output" if name == output else name
            for index, name in enumerate(node.input):
                node.input[index] = "output" if name == output else name
        y = onnx.ValueInfoProto(name="output")
        graph = helper.make_graph(self.nodes, "net", [x], [y], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 8
        model = onnx.shape_inference.infer_shapes(model)
        del model.graph.value_info[:]
        onnx.checker.check_model(model)
        return model


def residual(channels: int = 16, size: int = 16, classes: int = 10) -> onnx.ModelProto:
    """Stem, a residual block, a block with a projection, average pool, linear: ResNet in small."""
    net = Net(size=size)
    x = net.relu(net.conv("input", "stem", 3, channels))
    y = net.conv(net.relu(net.conv(x, "block1.conv1", channels, channels)), "block1.conv2", channels, channels)
    x = net.relu(net.node("Add", y, x, name="block1.add"))
    y = net.conv(net.relu(net.conv(x, "block2.conv1", channels, channels)), "block2.conv2", channels, channels)
    x = net.relu(net.node("Add", y, net.conv(x, "block2.shortcut", channels, channels, k=1), name="block2.add"))
    x = net.node("Flatten", net.node("GlobalAveragePool", x), axis=1)
    return net.model(net.gemm(x, "head", channels, classes))


def inverted(channels: int = 16, size: int = 16) -> onnx.ModelProto:
    """An inverted bottleneck with ReLU6 and a depthwise convolution: MobileNetV2 in small."""
    net = Net(size=size)
    x = net.clip(net.conv("input", "stem", 3, channels))
    x = net.conv(x, "project0", channels, channels, k=1)
    y = net.clip(net.conv(x, "expand", channels, 4 * channels, k=1))
    y = net.clip(net.conv(y, "depthwise", 4 * channels, 4 * channels, group=4 * channels))
    x = net.node("Add", x, net.conv(y, "project", 4 * channels, channels, k=1), name="add")
    x = net.clip(net.conv(x, "last", channels, channels, k=1))
    x = net.node("Flatten", net.node("GlobalAveragePool", x), axis=1)
    return net.model(net.gemm(x, "head", channels, 10))


def plain(size: int = 16) -> onnx.ModelProto:
    """Convolutions, max pooling, two linear layers: VGG in small."""
    net = Net(size=size)
    x = net.relu(net.conv("input", "features.0", 3, 16))
    x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.relu(net.conv(x, "features.3", 16, 32))
    x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Flatten", x, axis=1)
    x = net.relu(net.gemm(x, "fc1", 32 * (size // 4) ** 2, 32))
    return net.model(net.gemm(x, "fc2", 32, 10))


def concatenated(size: int = 8) -> onnx.ModelProto:
    """Two branches of very different scale that a Concat joins."""
    net = Net(size=size)
    x = net.relu(net.conv("input", "stem", 3, 16))
    a = net.relu(net.conv(x, "a", 16, 16))
    big = net.conv(x, "b", 16, 16)
    net.constants[-2].CopyFrom(
        numpy_helper.from_array(8 * numpy_helper.to_array(net.constants[-2]), net.constants[-2].name)
    )
    x = net.node("Concat", a, net.relu(big), axis=1, name="cat")
    return net.model(net.conv(x, "last", 32, 16, k=1))


def images(count: int = 16, size: int = 16, seed: int = 1) -> Floats:
    """Smooth random images in [0, 1], shape (count, 3, size, size)."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 3, 4, 4)).astype(np.float32)
    smooth = np.kron(coarse, np.ones((1, 1, size // 4, size // 4), np.float32))
    return np.clip(smooth + rng.normal(0, 0.05, smooth.shape), 0, 1).astype(np.float32)


def neck(size: int = 8, times: float = 20.0) -> onnx.ModelProto:
    """A map that a convolution reads, and that a Concat joins with one of `times` its size: a detector's neck."""
    net = Net(size=size)
    x = net.relu(net.conv("input", "stem", 3, 16))
    small = net.relu(net.conv(x, "small", 16, 16))
    large = net.relu(net.conv(x, "large", 16, 16))
    _scale(net, times)
    joined = net.conv(net.node("Concat", small, large, axis=1, name="cat"), "joined", 32, 16, k=1)
    _scale(net, 0.3 / times)
    apart = net.relu(net.conv(small, "apart", 16, 16))
    return net.model(net.conv(net.node("Add", net.relu(joined), apart), "last", 16, 16, k=1))


def _scale(net: Net, times: float) -> None:
    """The weights of the layer that was made last, times a number."""
    value = numpy_helper.to_array(net.constants[-2]) * np.float32(times)
    net.constants[-2].CopyFrom(numpy_helper.from_array(value, net.constants[-2].name))
