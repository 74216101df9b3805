"""The real aarch64 ONNX Runtime under user-mode emulation: same outputs as the exact pre-check here, and no latency."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import tinynets

from edgeprune import devices, target
from edgeprune.devices import Artifact
from edgeprune.devices.emulation import emulator
from edgeprune.errors import DeviceError, MeasurementError
from edgeprune.target import Target

EXACT = {"session.qdqisint8allowed": "1"}


@pytest.mark.device
@pytest.mark.slow
@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a76"])
def test_int8_outputs_are_those_of_the_exact_pre_check_bit_for_bit(
    ort: Target, int8_artifact: Artifact, cpu: str, emulation: None
) -> None:
    exact = dataclasses.replace(int8_artifact, options=EXACT)
    images = tinynets.images(60)
    with devices.connect(target.load("raspberry-pi-5"), "local") as device:
        (here,) = device.infer(device.load(exact), images)
    with devices.connect(ort, f"qemu-user://{cpu}") as device:
        loaded = device.load(exact)
        (there,) = device.infer(loaded, images)
        fingerprint = device.probe().fingerprint
        with pytest.raises(MeasurementError, match="no meaningful latency"):
            device.measure([loaded], ort.protocol)
    np.testing.assert_array_equal(here, there)
    assert fingerprint["machine"] == "aarch64" and set(fingerprint["cpus"]) == {cpu}
    assert ("asimddp" in fingerprint["features"]) == (cpu == "cortex-a76")


@pytest.mark.device
@pytest.mark.slow
def test_the_true_runtime_optimises_the_graph_for_its_core_and_the_bits_stay(
    ort: Target, int8_artifact: Artifact, tmp_path: Path, emulation: None
) -> None:
    exact, path = dataclasses.replace(int8_artifact, options=EXACT), tmp_path / "optimised.onnx"
    images = tinynets.images(10)
    with devices.connect(ort, "qemu-user://cortex-a76") as device:
        plain = device.load(exact)
        path.write_bytes(device.optimised(plain))
        done = {**EXACT, "graph_optimization_level": "disable"}
        ahead = device.load(dataclasses.replace(exact, files={path.name: path}, options=done))
        (found,), (wanted,) = device.infer(ahead, images), device.infer(plain, images)
    np.testing.assert_array_equal(found, wanted)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QLinearConv") == 3 and not {"Conv", "NhwcConv"} & set(kinds)


def test_an_unknown_core_is_refused(ort: Target) -> None:
    with pytest.raises(DeviceError, match="'i486' is not a core"), devices.connect(ort, "qemu-user://i486"):
        pass


def test_emulation_that_is_not_set_up_names_the_command(ort: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_EMULATOR", "/nowhere")
    with (
        pytest.raises(DeviceError, match="edgeprune doctor raspberry-pi-5 --install-emulator"),
        devices.connect(ort, "qemu-user://cortex-a72"),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "mirror"),
    [
        ("deb http://mirror.example/debian bookworm main\n", "http://mirror.example/debian"),
        ("deb [signed-by=/k.gpg] https://m.example/debian/ trixie main\n", "https://m.example/debian"),
        ("Types: deb\nURIs: http://u.example/debian\nSuites: bookworm\n", "http://u.example/debian"),
        ("deb http://archive.ubuntu.com/ubuntu noble main\n", "http://deb.debian.org/debian"),
        ("URIs: http://m.example/debian-security\n", "http://deb.debian.org/debian"),
    ],
)
def test_the_hosts_own_mirror_is_used(text: str, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "_apt_sources", lambda: text)
    assert emulator.mirror_of_host() == mirror
