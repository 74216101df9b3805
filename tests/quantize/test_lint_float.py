"""Graphs that ONNX Runtime accepts and computes in float: each is found, is float by the profile, and is not ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeprune.quantize import apply, calibrate, dummy_ranges, lint
from edgeprune.quantize.check.kernels import in_float
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import nets, running

ORT = DIALECTS["ort-x86"]
IMAGE = {"input": np.random.default_rng(0).random((1, 3, 16, 16), np.float32)}


def rules(model: onnx.ModelProto, dialect: str = "ort-x86") -> set[str]:
    return {finding.rule for finding in lint(model, DIALECTS[dialect])}


def dequantised(model: onnx.ModelProto, name: str, index: int) -> None:
    """Put Q and DQ before an input of a node."""
    reader = next(node for node in model.graph.node if node.name == name)
    tensor, own = reader.input[index], f"{name}.{index}"
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.03, np.float32), f"{own}.scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), f"{own}.zero"))
    pair, at = [f"{own}.scale", f"{own}.zero"], list(model.graph.node).index(reader)
    model.graph.node.insert(at, helper.make_node("QuantizeLinear", [tensor, *pair], [f"{own}.q"], f"{own}/Q"))
    model.graph.node.insert(at + 1, helper.make_node("DequantizeLinear", [f"{own}.q", *pair], [own], f"{own}/DQ"))
    reader.input[index] = own


def scaled(name: str, value: float) -> onnx.ModelProto:
    model = nets.residual()
    next(node for node in model.graph.node if node.op_type == "Gemm").attribute.append(
        helper.make_attribute(name, value)
    )
    return model


def attention() -> onnx.ModelProto:
    net = nets.Net()
    a, b = net.conv("input", "a", 3, 8), net.conv("input", "b", 3, 8)
    return net.model(net.node("Softmax", net.node("MatMul", a, b, name="qk"), axis=-1))


def recurrent(operator: str = "LSTM", gates: int = 4) -> onnx.ModelProto:
    net = nets.Net()
    x = net.node("Reshape", net.conv("input", "a", 3, 8), net.constant("to", np.array([16, 1, 128])))
    w = net.constant("w", net.rng.normal(0, 0.1, (1, gates * 16, 128)).astype(np.float32))
    r = net.constant("r", net.rng.normal(0, 0.1, (1, gates * 16, 16)).astype(np.float32))
    return net.model(net.node(operator, x, w, r, name="steps", hidden_size=16))


def gated() -> onnx.ModelProto:
    return recurrent("GRU", 3)


def test_a_float_bias_keeps_a_linear_layer_in_float() -> None:
    model = nets.residual()
    floating = apply(model, dummy_ranges(model), replace(ORT, bias="float"))
    assert rules(floating) == {"bias-float"} and running.kernels(floating, IMAGE)["Gemm"] == 1
    assert running.kernels(apply(model, dummy_ranges(model), ORT), IMAGE)["QGemm"] == 1


@pytest.mark.parametrize(("name", "value"), [("alpha", 0.5), ("beta", 0.5)])
def test_a_scaled_linear_layer_stays_in_float_by_itself(name: str, value: float) -> None:
    plain = nets.residual()
    forced = apply(plain, dummy_ranges(plain), ORT)
    next(node for node in forced.graph.node if node.op_type == "Gemm").attribute.append(
        helper.make_attribute(name, value)
    )
    assert rules(forced) == {"gemm-scaled"} and running.kernels(forced, IMAGE)["Gemm"] == 1
    model = scaled(name, value)
    ours = apply(model, dummy_ranges(model), ORT)
    assert rules(ours) == set() and running.kernels(ours, IMAGE)["DequantizeLinear"] == 1


@pytest.mark.parametrize(
    ("build", "name", "inputs", "dialect", "rule"),
    [
        (attention, "qk", (0, 1), "openvino", "product-zero-point"),
        (attention, "qk", (0, 1), "openvino-avx2", "product-int8"),
        *(
            (build, "steps", inputs, dialect, "recurrent-int8")
            for build in (recurrent, gated)
            for inputs, dialect in (((1, 2), "openvino"), ((0,), "openvino"), ((1, 2), "ort-x86"))
        ),
    ],
)
def test_products_of_activations_and_recurrent_layers_stay_in_float(
    build: Callable[[], onnx.ModelProto], name: str, inputs: tuple[int, ...], dialect: str, rule: str
) -> None:
    model = build()
    assert rules(apply(model, dummy_ranges(model), DIALECTS[dialect]), dialect) == set()
    for index in inputs:
        dequantised(model, name, index)
    assert rule in rules(model, dialect)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("build", [recurrent, gated])
def test_calibration_says_that_a_recurrent_layer_stays_in_float(
    build: Callable[[], onnx.ModelProto], dialect: str
) -> None:
    images = np.random.default_rng(0).random((4, 3, 16, 16), np.float32)
    options = QuantizeSection(method="minmax", equalize=False, bias_correction=False)
    told = calibrate(build(), images, DIALECTS[dialect], options).warnings
    operator = "LSTM" if build is recurrent else "GRU"
    assert any(f"1 {operator} layer stays in float" in line and "'steps'" in line for line in told), told


def test_openvino_multiplies_bytes_in_a_transposed_convolution_without_a_zero_point_alone() -> None:
    pytest.importorskip("openvino")
    net, dialect = nets.Net(size=8), DIALECTS["openvino"]
    weight = net.constant("up.weight", net.rng.normal(0, 0.2, (16, 16, 2, 2)).astype(np.float32))
    x = net.node(
        "ConvTranspose", net.conv("input", "stem", 3, 16), weight, kernel_shape=[2, 2], strides=[2, 2], name="up"
    )
    model = net.model(net.conv(x, "last", 16, 8))
    graph = apply(model, dummy_ranges(model), dialect)
    image = {"input": IMAGE["input"][:, :, :8, :8]}
    assert rules(graph, "openvino") == set() and not in_float(graph, running.openvino_kernels(graph, image), dialect)
    zero = next(tensor for tensor in graph.graph.initializer if tensor.name == "stem_output.zero")
    zero.CopyFrom(numpy_helper.from_array(np.array(5, np.int8), zero.name))
    assert rules(graph, "openvino") == {"transposed-zero-point"}
    found = in_float(graph, running.openvino_kernels(graph, image), dialect)
    assert [one.node for one in found] == ["up"]
