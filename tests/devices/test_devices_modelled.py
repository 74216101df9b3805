"""In place of a Jetson that nobody has connected: a stated model, in a unit of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tinynets

from edgeprune import devices, quantize, runtimes, target
from edgeprune.devices import Artifact
from edgeprune.devices.modelled import ModelDevice
from edgeprune.devices.roofline import kernels, modelled_kernel_ms
from edgeprune.errors import DeviceError, MeasurementError, TargetError
from edgeprune.latency import Table
from edgeprune.runtimes import DIALECTS

NANO = target.load("jetson-orin-nano")


def quantised(path: Path, dialect: str, width: int = 32) -> Path:
    """The small network in a TensorRT flavour, with ranges that do not matter."""
    network = onnx.shape_inference.infer_shapes(onnx.load(tinynets.float_net(path, width)))
    onnx.save(quantize.apply(network, quantize.dummy_ranges(network), DIALECTS[dialect]), path)
    return path


@pytest.mark.parametrize("dialect", ["tensorrt-a", "tensorrt-b"])
def test_convolutions_take_what_tensorrt_fuses_and_run_in_int8(tmp_path: Path, dialect: str) -> None:
    found = kernels(onnx.load(quantised(tmp_path / "net.onnx", dialect)), NANO, "int8")
    layers = {kernel.name: kernel for kernel in found}
    assert layers["layer2.conv"].layers == ["layer2.conv", "add", "relu2"]
    assert [kernel.precision for kernel in found if kernel.kind == "Conv"] == ["int8"] * 3
    assert layers["pool"].precision == "fp16"
    alone = modelled_kernel_ms(
        NANO, inputs=32, outputs=32, kernel=(3, 3), input_positions=256, output_positions=256, precision="int8"
    )
    assert layers["layer3.conv"].ms == pytest.approx(alone)
    assert layers["layer2.conv"].ms > alone  # the skip is read as well


def test_an_fp32_artifact_is_modelled_in_fp32_and_slower(tmp_path: Path) -> None:
    plain = kernels(onnx.load(tinynets.float_net(tmp_path / "net.onnx", 256)), NANO, "fp32")
    assert {kernel.precision for kernel in plain} == {"fp32"}
    int8 = kernels(onnx.load(quantised(tmp_path / "int8.onnx", "tensorrt-a", 256)), NANO, "int8")
    assert sum(kernel.ms for kernel in int8) < sum(kernel.ms for kernel in plain)


def test_without_a_device_a_jetson_is_modelled_and_says_so(tmp_path: Path) -> None:
    reached = devices.reached(NANO)
    source = quantised(tmp_path / "net.onnx", "tensorrt-a")
    artifact = runtimes.build(source, tmp_path / "out", NANO, "dense-int8", "int8")
    with devices.connect(NANO) as device:
        assert isinstance(device, ModelDevice)
        loaded, probe = device.load(artifact), device.probe()
        (timing,) = device.measure([loaded], reached.protocol)
        profile = device.profile(loaded)
        images = tinynets.images(3)
        (outputs,) = device.infer(loaded, images)
        with pytest.raises(MeasurementError, match="nothing can be measured"):
            device.measure([loaded], NANO.protocol)
        device.unload(loaded)
    assert timing.unit == "modelled ms" and timing.notes == ("latency: model, not measured",)
    assert timing.median == pytest.approx(sum(kernel.median for kernel in profile))
    assert "not measured" in probe.fingerprint["model"] and probe.fingerprint["emulation"] == "model"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    expected = [session.run(None, {"input": image[None]})[0][0] for image in images]
    np.testing.assert_array_equal(outputs, np.stack(expected))


def test_a_table_of_the_model_is_refused_by_a_device(tmp_path: Path) -> None:
    with devices.connect(NANO) as device:
        fingerprint = device.probe().fingerprint
    Table(fingerprint, "modelled ms").save(tmp_path / "table.jsonl")
    with pytest.raises(TargetError, match="it counts modelled ms, the device ms"):
        Table.load(tmp_path / "table.jsonl", fingerprint, "ms")


def test_what_is_no_graph_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with devices.connect(NANO) as device, pytest.raises(DeviceError, match="not an ONNX graph"):
        device.load(Artifact("x", "tensorrt", "int8", {"x.onnx": tmp_path / "x.onnx"}))
