"""Artifacts: what stays float, what stays exact, and what is said when something is missing."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import tinynets

from edgeprune import devices, runtimes, target
from edgeprune.errors import MissingDependency, ModelError, TargetError, UsageError
from edgeprune.pipeline.bench import Bench


def outputs(name: str, artifact: devices.Artifact) -> np.ndarray:
    with devices.connect(target.load(name)) as device:
        return device.infer(device.load(artifact), tinynets.images(20))[0]


def test_onnxruntime_ships_the_graph_unchanged(tmp_path: Path) -> None:
    source = tinynets.float_net(tmp_path / "net.onnx")
    artifact = runtimes.build(source, tmp_path / "out", target.load("x86-onnxruntime"), "dense-fp32", "fp32")
    assert artifact.files["dense-fp32.onnx"].read_bytes() == source.read_bytes()
    assert artifact.options == {} and artifact.bytes == source.stat().st_size


def test_openvino_fp32_keeps_every_bit_of_the_weights(tmp_path: Path) -> None:
    source = tinynets.float_net(tmp_path / "net.onnx")
    artifact = runtimes.build(source, tmp_path / "out", target.load("intel-cpu"), "dense-fp32", "fp32")
    binary = artifact.files["dense-fp32.bin"].read_bytes()
    for tensor in onnx.load(source).graph.initializer:
        if tensor.name.endswith(".weight"):
            assert onnx.numpy_helper.to_array(tensor).tobytes() in binary


@pytest.mark.long
def test_fp16_constants_do_not_change_the_int8_result(tmp_path: Path) -> None:
    """The IR of an INT8 artifact stores float constants as FP16 only where that leaves the outputs as they were."""
    openvino = pytest.importorskip("openvino")
    source = tinynets.int8_net(tmp_path / "net.onnx")
    artifact = runtimes.build(source, tmp_path / "out", target.load("intel-cpu"), "dense-int8", "int8")
    exact = tmp_path / "exact.xml"
    openvino.save_model(openvino.Core().read_model(source), exact, compress_to_fp16=False)
    whole = devices.Artifact("exact", "openvino", "int8", {"e.xml": exact, "e.bin": exact.with_suffix(".bin")})
    np.testing.assert_array_equal(outputs("intel-cpu", artifact), outputs("intel-cpu", whole))


def test_nothing_half_written_when_the_graph_is_damaged(tmp_path: Path) -> None:
    damaged = tmp_path / "net.onnx"
    damaged.write_bytes(tinynets.float_net(tmp_path / "whole.onnx").read_bytes()[:500])
    with pytest.raises(ModelError, match=r"net\.onnx: OpenVINO cannot read it"):
        runtimes.build(damaged, tmp_path / "out", target.load("intel-cpu"), "dense", "fp32")
    assert list((tmp_path / "out").iterdir()) == []


def test_unknown_precision_and_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int4"):
        runtimes.build(tmp_path / "net.onnx", tmp_path, target.load("intel-cpu"), "dense", "int4")
    for name in ("intel-cpu", "x86-onnxruntime"):
        with pytest.raises(ModelError, match="no such file"):
            runtimes.build(tmp_path / "none.onnx", tmp_path, target.load(name), "dense", "fp32")


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    assert openvino.__version__.startswith(runtimes.version("openvino"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r'pip install "edgeprune\[openvino\]"'):
        runtimes.version("openvino")


def test_the_schemes_are_found_where_they_were() -> None:
    from edgeprune.runtimes import dialects

    assert dialects.DIALECTS == runtimes.DIALECTS and "openvino" in dialects.DIALECTS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dialect": "local"}, "'local' is no dialect"),
        ({"dialect": "ort-x68"}, "'ort-x68' is no dialect"),
        ({"extra": {"flavours": ["tensorrt-c"]}}, "'tensorrt-c' is no dialect"),
        ({"extra": {"flavours": [7]}}, "'7' is no dialect"),
        ({"extra": {"flavours": "tensorrt-a"}}, "flavours is no list"),
    ],
)
def test_a_dialect_that_no_runtime_has_is_refused_before_a_device_is_asked(change: dict, says: str) -> None:
    known = msgspec.structs.replace(target.load("x86-onnxruntime"), **change)
    with pytest.raises(TargetError, match=says) as caught, contextlib.ExitStack() as stack:
        Bench(known, "", lambda stage, line: None, stack)
    assert "x86-onnxruntime" in caught.value.message
    for name in target.names():
        runtimes.check_schemes(target.load(name))
