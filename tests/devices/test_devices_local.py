"""The door, end to end on this machine: the real agent in its own process with the real runtimes."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import tinynets

from edgeprune import devices, runtimes
from edgeprune.devices import Artifact
from edgeprune.errors import JobFailed, MissingDependency
from edgeprune.target import Target


def reference(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input": image[None]})[0] for image in images])


def test_outputs_are_the_runtimes_own_and_more_than_one_chunk_comes_back_in_order(
    ort: Target, artifact: Artifact
) -> None:
    images = tinynets.images(300)
    with devices.connect(ort) as device:
        (found,) = device.infer(device.load(artifact), images)
    np.testing.assert_array_equal(found, reference(artifact.files["tiny.onnx"], images))


@pytest.mark.long
def test_candidates_are_measured_in_the_order_given(ort: Target, artifact: Artifact, tmp_path: Path) -> None:
    wide = dataclasses.replace(artifact, name="wide", files={"wide.onnx": tinynets.float_net(tmp_path / "w.onnx", 192)})
    with devices.connect(ort) as device:
        narrow, broad = device.load(artifact), device.load(wide)
        timings = device.measure([broad, narrow], ort.protocol)
    assert [timing.unit for timing in timings] == ["ms", "ms"]
    assert all(len(timing.rounds) == 2 and timing.count == 10 for timing in timings)
    assert all(timing.minimum <= timing.median <= timing.p99 for timing in timings)
    assert timings[0].minimum > 5 * timings[1].minimum  # 100 times the multiplications


@pytest.mark.long
def test_the_graph_that_the_devices_runtime_optimised_gives_the_same_bits(
    ort: Target, int8_artifact: Artifact, tmp_path: Path
) -> None:
    exact = dataclasses.replace(int8_artifact, options={"session.qdqisint8allowed": "1"})
    images, path = tinynets.images(20), tmp_path / "optimised.onnx"
    with devices.connect(ort) as device:
        plain = device.load(exact)
        path.write_bytes(device.optimised(plain))
        done = {**exact.options, "graph_optimization_level": "disable"}
        ahead = device.load(dataclasses.replace(exact, files={path.name: path}, options=done))
        (found,), (wanted,) = device.infer(ahead, images), device.infer(plain, images)
        kinds = [[kernel.kind for kernel in device.profile(one, runs=2)] for one in (plain, ahead)]
    np.testing.assert_array_equal(found, wanted)
    assert kinds[0] == kinds[1] and "QLinearConv" in kinds[0]
    written = {node.op_type for node in onnx.load(path).graph.node}
    assert "QLinearConv" in written and "Conv" not in written


@pytest.mark.long
def test_a_runtime_that_writes_no_optimised_graph_says_so(openvino: Target, nets: dict[str, Path]) -> None:
    pytest.importorskip("openvino")
    artifact = Artifact("tiny", "openvino", "fp32", {"tiny.onnx": nets["fp32"]})
    with devices.connect(openvino) as device:
        loaded = device.load(artifact)
        with pytest.raises(JobFailed, match="writes no optimised graph"):
            device.optimised(loaded)
        assert len(device.infer(loaded, tinynets.images(1))) == 1  # and is none the worse for it


@pytest.mark.long
def test_onnxruntime_kernels_lead_back_to_the_layers(ort: Target, artifact: Artifact) -> None:
    with devices.connect(ort) as device:
        kernels = device.profile(device.load(artifact), runs=5)
    layers = [kernel.layers for kernel in kernels if kernel.layers]
    names = [name for part in layers for name in part]
    expected = {"layer1.conv", "relu1", "layer2.conv", "add", "relu2", "layer3.conv", "pool", "flatten"}
    assert set(names) == expected and len(names) == len(expected)  # each layer in exactly one kernel
    assert all(kernel.count == 5 and kernel.median > 0 and kernel.unit == "ms" for kernel in kernels)


@pytest.mark.long
def test_int8_kernels_on_the_arm_path_lead_back_to_the_layers(ort: Target, int8_artifact: Artifact) -> None:
    exact = dataclasses.replace(int8_artifact, options={"session.qdqisint8allowed": "1"})
    with devices.connect(ort) as device:
        kernels = device.profile(device.load(exact), runs=3)
    found = {name: kernel.kind for kernel in kernels for name in kernel.layers}
    assert [found[f"layer{number}.conv"] for number in (1, 2, 3)] == ["QLinearConv"] * 3


@pytest.mark.long
def test_openvino_kernels_say_what_they_fused(openvino: Target, nets: dict[str, Path], tmp_path: Path) -> None:
    artifact = runtimes.build(nets["int8"], tmp_path, openvino, "tiny", "int8")
    with devices.connect(openvino) as device:
        loaded = device.load(artifact)
        kernels = device.profile(loaded, runs=5)
        (timing,) = device.measure([loaded], openvino.protocol)
    convolutions = [kernel for kernel in kernels if kernel.kind == "Convolution"]
    assert [name for kernel in convolutions for name in kernel.layers if name.startswith("layer")] == [
        "layer1.conv",
        "layer2.conv",
        "layer3.conv",
    ]
    assert all(kernel.implementation for kernel in convolutions)
    assert timing.median > 0


@pytest.mark.long
def test_a_hundred_artifacts_pass_through_one_agent(ort: Target, tmp_path: Path) -> None:
    with devices.connect(ort) as device:
        first = device.probe().state["memory_bytes"]["MemTotal"]
        for width in range(1, 41):
            path = tinynets.float_net(tmp_path / f"{width}.onnx", width)
            loaded = device.load(Artifact(f"w{width}", "onnxruntime", "fp32", {path.name: path}))
            (output,) = device.infer(loaded, tinynets.images(1))
            assert output.shape == (1, width)
            device.unload(loaded)
        with pytest.raises(JobFailed, match="not loaded"):
            device.infer(loaded, tinynets.images(1))
        assert device.probe().state["memory_bytes"]["MemTotal"] == first


def test_the_same_artifact_loaded_twice_outlives_one_unload(ort: Target, artifact: Artifact) -> None:
    with devices.connect(ort) as device:
        one, two = device.load(artifact), device.load(artifact)
        device.unload(one)
        assert device.infer(two, tinynets.images(2))[0].shape == (2, 16)


@pytest.mark.long
def test_probe_names_what_latency_depends_on(ort: Target) -> None:
    with devices.connect(ort) as device:
        probe = device.probe()
    assert probe.fingerprint["runtime_version"] == onnxruntime.__version__
    assert probe.fingerprint["cpus"] and probe.fingerprint["threads"] == 1 and probe.fingerprint["emulation"] == ""
    assert probe.state["memory_bytes"]["MemTotal"] > 0


@pytest.mark.long
def test_rounds_are_spread_over_fresh_processes(ort: Target, artifact: Artifact, tmp_path: Path) -> None:
    wide = dataclasses.replace(artifact, name="wide", files={"w.onnx": tinynets.float_net(tmp_path / "w.onnx", 64)})
    spread = msgspec.structs.replace(ort.protocol, rounds=5, processes=3, max_spread=10.0)
    with devices.connect(ort) as device:
        narrow, broad = device.measure([device.load(artifact), device.load(wide)], spread)
        assert len(narrow.rounds) == len(broad.rounds) == 5
        assert narrow.count == broad.count == 5 * ort.protocol.runs
        assert narrow.median < broad.median
        (few,) = device.measure([device.load(artifact)], msgspec.structs.replace(spread, rounds=2))
        assert len(few.rounds) == 2  # no process without a round


@pytest.mark.long
def test_a_real_machine_gives_milliseconds_whatever_the_profile_of_an_emulated_one_says(
    ort: Target, artifact: Artifact
) -> None:
    counted = msgspec.structs.replace(ort.protocol, unit="instructions")
    with devices.connect(ort) as device:
        (timing,) = device.measure([device.load(artifact)], counted)
    assert timing.unit == "ms" and timing.median < 1000


def test_an_unknown_option_is_refused(ort: Target, artifact: Artifact) -> None:
    with devices.connect(ort) as device, pytest.raises(JobFailed, match="no option turbo"):
        device.load(dataclasses.replace(artifact, options={"turbo": 1}))


def test_a_missing_runtime_names_the_command(openvino: Target, tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('not here')")
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    bare.chmod(0o755)
    there = msgspec.structs.replace(openvino, connection=msgspec.structs.replace(openvino.connection, python=str(bare)))
    with pytest.raises(MissingDependency, match=r'pip install "edgeprune\[openvino\]"'), devices.connect(there):
        pass
