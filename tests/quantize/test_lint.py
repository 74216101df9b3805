"""The linter: each illegal or silently slow pattern, planted one by one, is caught; what apply writes passes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeprune.quantize import LintFinding, apply, dummy_ranges, lint, rtx
from edgeprune.runtimes import DIALECTS

from . import nets

A, B = DIALECTS["tensorrt-a"], DIALECTS["tensorrt-b"]
Plant = Callable[[onnx.ModelProto], None]


def quantised(dialect: str = "tensorrt-b", net: Callable[[], onnx.ModelProto] = nets.residual) -> onnx.ModelProto:
    model = net()
    return apply(model, dummy_ranges(model), DIALECTS[dialect])


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def put(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    constant(model, name).CopyFrom(numpy_helper.from_array(value, name))


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def activation_zero_point(model: onnx.ModelProto) -> None:
    put(model, "input.zero", np.array(3, np.int8))


def uint8_activation(model: onnx.ModelProto) -> None:
    put(model, "input.zero", np.array(0, np.uint8))


def int16_activation(model: onnx.ModelProto) -> None:
    put(model, "input.zero", np.array(0, np.int16))


def uint8_weight(model: onnx.ModelProto) -> None:
    value = numpy_helper.to_array(constant(model, "stem.weight.q"))
    put(model, "stem.weight.q", (value.astype(int) + 128).astype(np.uint8))
    put(model, "stem.weight.zero", np.full(16, 128, np.uint8))


def weight_zero_point(model: onnx.ModelProto) -> None:
    put(model, "stem.weight.zero", np.full(16, 5, np.int8))


def bias_dq(model: onnx.ModelProto) -> None:
    bias = numpy_helper.to_array(constant(model, "stem.bias"))
    put(model, "stem.bias", np.zeros(len(bias), np.int32))
    model.graph.initializer.append(numpy_helper.from_array(np.full(len(bias), 0.01, np.float16), "stem.bias.scale"))
    dq = onnx.helper.make_node(
        "DequantizeLinear", ["stem.bias", "stem.bias.scale"], ["stem.bias.dq"], "stem.bias/DQ", axis=0
    )
    node(model, "stem").input[2] = "stem.bias.dq"
    model.graph.node.insert(0, dq)


def weight_not_quantised(model: onnx.ModelProto) -> None:
    weight = np.zeros((16, 16, 3, 3), np.float16)
    model.graph.initializer.append(numpy_helper.from_array(weight, "plain"))
    node(model, "block1.conv1").input[1] = "plain"


def input_not_quantised(model: onnx.ModelProto) -> None:
    conv = node(model, "block1.conv2")
    conv.input[0] = conv.input[0].removesuffix(".dq")


def per_channel_activation(model: onnx.ModelProto) -> None:
    put(model, "input.scale", np.full(3, 0.01, np.float16))
    put(model, "input.zero", np.zeros(3, np.int8))


def wrong_weight_axis(model: onnx.ModelProto) -> None:
    dq = node(model, "block1.conv1.weight/DQ")
    dq.attribute[0].i = 1


def both_residual_inputs(model: onnx.ModelProto) -> None:
    add = node(model, "block1.add")
    main = add.input[0]
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float16), "extra.scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "extra.zero"))
    position = [n.name for n in model.graph.node].index("block1.add")
    pair = ["extra.scale", "extra.zero"]
    model.graph.node.insert(position, onnx.helper.make_node("QuantizeLinear", [main, *pair], ["extra.q"], "extra/Q"))
    model.graph.node.insert(
        position + 1, onnx.helper.make_node("DequantizeLinear", ["extra.q", *pair], ["extra"], "extra/DQ")
    )
    add.input[0] = "extra"


def between_layer_and_relu(model: onnx.ModelProto) -> None:
    relu = next(n for n in model.graph.node if n.op_type == "Relu")
    source = relu.input[0]
    pair = ["input.scale", "input.zero"]
    position = [n.name for n in model.graph.node].index(relu.name)
    model.graph.node.insert(position, onnx.helper.make_node("QuantizeLinear", [source, *pair], ["extra.q"], "extra/Q"))
    model.graph.node.insert(
        position + 1, onnx.helper.make_node("DequantizeLinear", ["extra.q", *pair], ["extra"], "extra/DQ")
    )
    relu.input[0] = "extra"


def pair_before(model: onnx.ModelProto, name: str, tensor: str) -> None:
    """A node reads `tensor` through Q and DQ."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.03, np.float16), "own.scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "own.zero"))
    position = [n.name for n in model.graph.node].index(name)
    pair = ["own.scale", "own.zero"]
    model.graph.node.insert(position, onnx.helper.make_node("QuantizeLinear", [tensor, *pair], ["own.q"], "own/Q"))
    dq = onnx.helper.make_node("DequantizeLinear", ["own.q", *pair], ["own"], "own/DQ")
    model.graph.node.insert(position + 1, dq)
    reader = node(model, name)
    reader.input[list(reader.input).index(tensor)] = "own"


def pooled_in_int8(model: onnx.ModelProto) -> None:
    pool = next(n for n in model.graph.node if n.op_type == "GlobalAveragePool")
    pool.name = "pool"
    pair_before(model, "pool", pool.input[0])


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 13


def new_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 23


def zero_scale(model: onnx.ModelProto) -> None:
    put(model, "input.scale", np.array(0, np.float16))


PLANTED: dict[str, tuple[Plant, str]] = {
    "zero-point": (activation_zero_point, "error"),
    "activation-type": (uint8_activation, "error"),
    "activation-type ": (int16_activation, "error"),
    "weight-type": (uint8_weight, "error"),
    "weight-zero-point": (weight_zero_point, "error"),
    "bias-quantised": (bias_dq, "error"),
    "weight-float": (weight_not_quantised, "warning"),
    "input-float": (input_not_quantised, "warning"),
    "activation-per-channel": (per_channel_activation, "warning"),
    "weight-axis": (wrong_weight_axis, "warning"),
    "residual-both": (both_residual_inputs, "warning"),
    "activation-unfused": (between_layer_and_relu, "warning"),
    "float-reads-int8": (pooled_in_int8, "warning"),
    "opset-old": (old_opset, "error"),
    "opset-new": (new_opset, "error"),
    "scale-not-positive": (zero_scale, "error"),
}


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_pattern_is_caught_and_nothing_else_is(rule: str) -> None:
    plant, severity = PLANTED[rule]
    model = quantised()
    assert lint(model, B) == []
    plant(model)
    found = lint(model, B)
    assert (rule.strip(), severity) in {(f.rule, f.severity) for f in found}
    assert {f.rule for f in found} <= {rule.strip(), "weight-zero-point", "weight-type"}
    assert all(f.node and f.why and f.remedy and f.rule in str(f) for f in found)


def rules(found: list[LintFinding]) -> set[str]:
    return {finding.rule for finding in found}


def test_int8_initialisers_are_refused_for_tensorrt_8() -> None:
    model = quantised("tensorrt-b")
    assert "weight-stored-int8" in rules(lint(model, A))
    assert lint(quantised("tensorrt-a"), A) == []


def test_depthwise_is_refused_where_it_is_slower() -> None:
    assert "depthwise" in rules(lint(quantised("tensorrt-b", nets.inverted), A))
    assert lint(quantised("tensorrt-a", nets.inverted), A) == []


def test_different_scales_on_a_concat() -> None:
    model = quantised("tensorrt-b", nets.concatenated)
    assert lint(model, B) == []
    cat = node(model, "cat")
    put(model, cat.input[0].removesuffix(".dq") + ".scale", np.array(0.5, np.float16))
    assert rules(lint(model, B)) == {"concat-scales"}


def test_silently_float_operators() -> None:
    model = quantised("tensorrt-b", nets.plain)
    assert lint(model, B) == []
    net = nets.Net()
    x = net.relu(net.conv("input", "stem", 3, 8))
    weight = net.constant("up.weight", net.rng.normal(size=(8, 4, 2, 2)).astype(np.float32))
    up = net.model(net.node("ConvTranspose", x, weight, name="up", strides=[2, 2], kernel_shape=[2, 2]))
    assert rules(lint(apply(up, dummy_ranges(up), DIALECTS["openvino"]), A)) >= {"no-int8-kernel"}


def test_an_activation_that_is_quantised_before_it_is_fused() -> None:
    net = nets.Net()
    x = net.conv("input", "stem", 3, 8)
    x = net.node("Mul", x, net.node("Sigmoid", x, name="sigmoid"), name="silu")
    model = net.model(net.conv(x, "last", 8, 8))
    quantised = apply(model, dummy_ranges(model), B)
    assert lint(quantised, B) == []
    pair_before(quantised, "sigmoid", node(quantised, "sigmoid").input[0])
    assert rules(lint(quantised, B)) == {"float-reads-int8"}


def test_another_scale_after_a_node_that_only_selects() -> None:
    model = quantised("ort-x86", nets.plain)
    dialect = DIALECTS["ort-x86"]
    assert lint(model, dialect) == []
    pool = next(n for n in model.graph.node if n.op_type == "MaxPool")
    after = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == pool.output[0])
    put(model, after.input[1], np.array(0.5, np.float32))
    assert rules(lint(model, dialect)) == {"scale-changed"}


def test_a_residual_with_one_input_in_float_where_both_belong_in_int8() -> None:
    model = quantised("openvino")
    add = node(model, "block1.add")
    add.input[0] = add.input[0].removesuffix(".dq")
    assert rules(lint(model, DIALECTS["openvino"])) == {"residual-one"}


def test_a_linear_layer_in_int8_where_float_is_faster() -> None:
    model = quantised("openvino")
    assert "no-int8-kernel" in {f.rule for f in lint(model, A) if f.node == "head"}


def test_signed_activations_are_slow_on_x86() -> None:
    assert "activation-signed" in rules(lint(quantised("ort-arm64"), DIALECTS["ort-x86"]))


def test_what_runs_on_one_runtime_is_refused_on_another() -> None:
    assert rules(lint(quantised("ort-x86"), B)) >= {"activation-type", "bias-quantised", "opset-old"}
    assert "activation-type" in rules(lint(quantised("ort-x86"), DIALECTS["ort-arm64"]))
    assert "output-float" in rules(lint(quantised("openvino", nets.concatenated), DIALECTS["ort-x86"]))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("net", [nets.residual, nets.inverted, nets.plain, nets.concatenated])
def test_what_apply_writes_passes(net: Callable[[], onnx.ModelProto], dialect: str) -> None:
    assert lint(quantised(dialect, net), DIALECTS[dialect]) == []


@pytest.mark.slow
@pytest.mark.skipif(not rtx.available(), reason='TensorRT-RTX is not installed: pip install "edgeprune[tensorrt-lint]"')
@pytest.mark.parametrize("dialect", ["tensorrt-a", "tensorrt-b"])
@pytest.mark.parametrize("net", [nets.residual, nets.inverted])
def test_tensorrt_rtx_runs_every_intended_convolution_in_int8(net: Callable[[], onnx.ModelProto], dialect: str) -> None:
    compiled = rtx.compile_for(quantised(dialect, net))
    assert compiled.accepted, compiled.errors
    assert not compiled.layers or set(compiled.in_int8) == set(compiled.intended)
    assert rtx.findings(quantised(dialect, net)) == []


@pytest.mark.slow
@pytest.mark.skipif(not rtx.available(), reason='TensorRT-RTX is not installed: pip install "edgeprune[tensorrt-lint]"')
@pytest.mark.parametrize("plant", [activation_zero_point, uint8_weight, int16_activation, bias_dq])
def test_tensorrt_rtx_refuses_what_the_linter_refuses(plant: Plant) -> None:
    model = quantised()
    plant(model)
    assert rules(rtx.findings(model)) == {"rtx-rejected"}
