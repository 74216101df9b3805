"""Small ONNX networks built by hand, in float and with Q/DQ pairs, for the tests of devices and runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE = (1, 3, 16, 16)


def _constants(name: str, inputs: int, outputs: int, seed: int) -> list[onnx.TensorProto]:
    random = np.random.default_rng(seed)
    weight = (random.standard_normal((outputs, inputs, 3, 3)) * 0.1).astype(np.float32)
    bias = random.standard_normal(outputs).astype(np.float32)
    return [numpy_helper.from_array(weight, f"{name}.weight"), numpy_helper.from_array(bias, f"{name}.bias")]


def _conv(name: str, source: str, result: str) -> onnx.NodeProto:
    inputs = [source, f"{name}.weight", f"{name}.bias"]
    return helper.make_node("Conv", inputs, [result], name=name, pads=[1, 1, 1, 1], kernel_shape=[3, 3])


def _save(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], path: Path, width: int) -> Path:
    ends = [
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, (1, width))],
    ]
    graph = helper.make_graph(nodes, "tiny", *ends, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def float_net(path: Path, width: int = 16) -> Path:
    """Three convolutions, one residual sum, a pooled output."""
    nodes = [
        _conv("layer1.conv", "input", "a"),
        helper.make_node("Relu", ["a"], ["b"], name="relu1"),
        _conv("layer2.conv", "b", "c"),
        helper.make_node("Add", ["c", "b"], ["d"], name="add"),
        helper.make_node("Relu", ["d"], ["e"], name="relu2"),
        _conv("layer3.conv", "e", "f"),
        helper.make_node("GlobalAveragePool", ["f"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["output"], name="flatten"),
    ]
    constants = [
        *_constants("layer1.conv", 3, width, 1),
        *_constants("layer2.conv", width, width, 2),
        *_constants("layer3.conv", width, width, 3),
    ]
    return _save(nodes, constants, path, width)


def int8_net(path: Path, width: int = 16) -> Path:
    """The same network in S8S8 Q/DQ form, written by ONNX Runtime's own quantiser."""
    import logging

    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            self._left = [{"input": random.standard_normal(SHAPE).astype(np.float32)} for _ in range(4)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self._left.pop() if self._left else None

    source = float_net(path.with_suffix(".float.onnx"), width)
    logging.disable(logging.WARNING)
    try:
        types = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
        quantize_static(source, path, Reader(), per_channel=True, **types)
    finally:
        logging.disable(logging.NOTSET)
    return path


def images(count: int) -> np.ndarray:
    """Standard normal images."""
    return np.random.default_rng(7).standard_normal((count, *SHAPE[1:])).astype(np.float32)
