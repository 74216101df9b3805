"""An ARM target on x86: sums written out in ARM's fixed-point arithmetic, so that outputs are ARM's bit for bit."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tinynets
from onnx import TensorProto, helper, numpy_helper

from edgeprune import devices, target
from edgeprune.devices import Artifact
from edgeprune.devices.precheck import PreCheck, multipliers, unproven, write_out_sums

PAIRS = (1, 256, 256)  # every pair of int8 values
SCALES = [(0.0271, 0.0113, 0.0318), (0.05, 0.05, 0.1), (0.9, 0.31, 1.07), (0.002, 0.0131, 0.0098), (0.31, 0.9, 0.5)]
ZEROS = (17, -128, 5)


def sums(path: Path, *, relu: bool = False, zeros: tuple[int, int, int] = ZEROS) -> onnx.ModelProto:
    """DQ, DQ, Add, (Relu,) Q for each of SCALES, on all pairs."""
    nodes, constants = [], []
    for number, scales in enumerate(SCALES):
        for name, scale, zero in zip("abo", scales, zeros, strict=True):
            constants.append(numpy_helper.from_array(np.float32(scale).reshape(()), f"s{name}{number}"))
            constants.append(numpy_helper.from_array(np.int8(zero).reshape(()), f"z{name}{number}"))
        for name in "ab":
            given = [name, f"s{name}{number}", f"z{name}{number}"]
            nodes.append(helper.make_node("DequantizeLinear", given, [f"d{name}{number}"]))
        nodes.append(helper.make_node("Add", [f"da{number}", f"db{number}"], [f"sum{number}"]))
        if relu:
            nodes.append(helper.make_node("Relu", [f"sum{number}"], [f"relu{number}"]))
        source = f"relu{number}" if relu else f"sum{number}"
        nodes.append(helper.make_node("QuantizeLinear", [source, f"so{number}", f"zo{number}"], [f"out{number}"]))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT8, PAIRS) for name in "ab"]
    outputs = [helper.make_tensor_value_info(f"out{number}", TensorProto.INT8, PAIRS) for number in range(len(SCALES))]
    graph = helper.make_graph(nodes, "sums", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return model


def pairs() -> dict[str, np.ndarray]:
    values = np.arange(-128, 128, dtype=np.int8)
    first, second = np.meshgrid(values, values, indexing="ij")
    return {"a": first[None].copy(), "b": second[None].copy()}


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, pairs())


def arm(scales: tuple[float, float, float], zeros: tuple[int, int, int]) -> np.ndarray:
    """ARM's kernel in whole numbers: 22-bit multipliers, a rounding shift, halves away from zero."""
    first, second, out = (np.float32(scale) for scale in scales)
    found = multipliers(float(first / out), float(second / out))
    assert found is not None
    shift, one, other = found
    given = pairs()
    total = (given["a"].astype(np.int64) - zeros[0]) * one + (given["b"].astype(np.int64) - zeros[1]) * other
    rounded = np.sign(total) * ((np.abs(total) + (1 << (shift - 1))) >> shift)
    return np.clip(rounded + zeros[2], -128, 127).astype(np.int8)


@pytest.mark.parametrize("relu", [False, True])
def test_every_sum_of_two_bytes_is_arms(tmp_path: Path, relu: bool) -> None:
    zeros = (17, -128, -128 if relu else 5)
    model = sums(tmp_path / "sums.onnx", relu=relu, zeros=zeros)
    here = run(model)
    assert write_out_sums(model) == len(SCALES)
    onnx.checker.check_model(model, full_check=True)
    assert not {"Relu", "DequantizeLinear", "QuantizeLinear"} & {node.op_type for node in model.graph.node}
    there = run(model)
    for scales, found in zip(SCALES, there, strict=True):
        np.testing.assert_array_equal(found, arm(scales, zeros))
    apart = [np.count_nonzero(one != other) for one, other in zip(here, there, strict=True)]
    assert max(apart) > 0 and max(np.abs(a.astype(int) - b).max() for a, b in zip(here, there, strict=True)) == 1


def test_what_is_no_quantised_sum_stays(tmp_path: Path) -> None:
    model = sums(tmp_path / "relu.onnx", relu=True)  # output's zero point 5: the activation does something
    before = model.SerializeToString()
    assert write_out_sums(model) == 0 and model.SerializeToString() == before
    model = sums(tmp_path / "read-twice.onnx")
    model.graph.output.append(helper.make_tensor_value_info("sum0", TensorProto.FLOAT, PAIRS))
    assert write_out_sums(model) == len(SCALES) - 1


def test_what_is_not_proven_to_give_arms_bits_is_named(tmp_path: Path, int8_artifact: Artifact) -> None:
    net = onnx.load(int8_artifact.files["int8.onnx"])
    assert unproven(net) == ()
    assert unproven(sums(tmp_path / "sums.onnx")) == ()
    conv = next(node for node in net.graph.node if node.op_type == "Conv")
    quantiser = next(node for node in net.graph.node if conv.input[0] in node.output)
    conv.input[0] = next(node for node in net.graph.node if quantiser.input[0] in node.output).input[0]
    assert unproven(net) == ("float Conv",)  # fed with float
    conv.op_type = "ConvTranspose"
    assert unproven(net) == ("ConvTranspose",)
    far = sums(tmp_path / "far.onnx")
    for tensor in far.graph.initializer:
        if tensor.name == far.graph.node[0].input[1]:
            tensor.CopyFrom(numpy_helper.from_array(np.float32(1e4), tensor.name))
    assert unproven(far) == ("float Add",)  # a ratio of scales at which ARM sums in float


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (0.5, 0.25, (22, 1 << 21, 1 << 20)),
        (1.0, 2.0**-14, (21, 1 << 21, 128)),
        (1.0, 2.0**-15, None),
        (2.0**-11, 2.0**-11, None),
        (256.0, 1.0, None),
        (1.9999999, 1.0, None),  # rounds up to a 23rd bit
    ],
)
def test_multipliers_and_where_arm_sums_in_float(
    first: float, second: float, found: tuple[int, int, int] | None
) -> None:
    assert multipliers(first, second) == found


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the pre-check is for x86 machines")
def test_on_this_machine_an_arm_target_infers_exactly_and_forgets_all_of_it(
    artifact: Artifact, int8_artifact: Artifact
) -> None:
    images = tinynets.images(3)
    with devices.connect(target.load("raspberry-pi-5"), "local") as device:
        check = device._host
        assert isinstance(check, PreCheck)
        int8, fp32 = device.load(int8_artifact), device.load(artifact)
        found, again, floats = (device.infer(one, images)[0] for one in (int8, int8, fp32))
        assert len(check._requests) == 3  # the exact twin of the INT8 artifact alone
        device.unload(int8)
        device.unload(fp32)
        assert not check._requests and not check._exact
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(found, floats, atol=0.3)
