"""Networks, targets and a private cache for the tests of devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest
import tinynets

from edgeprune import target
from edgeprune.devices import Artifact
from edgeprune.devices.emulation import emulator
from edgeprune.target import Protocol, Target

QUICK = Protocol(warmup_runs=2, runs=5, rounds=2, max_spread=1e9)


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own agent's folder; emulators stay in the user's cache."""
    monkeypatch.setenv("EDGEPRUNE_EMULATOR", str(emulator.folder()))
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def emulation() -> None:
    """Skip where user-mode emulation is not set up."""
    if not emulator.installed():
        pytest.skip("ARM emulation is not set up: edgeprune doctor raspberry-pi-5 --install-emulator")


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """precision -> an ONNX file."""
    folder = tmp_path_factory.mktemp("nets")
    return {"fp32": tinynets.float_net(folder / "float.onnx"), "int8": tinynets.int8_net(folder / "int8.onnx")}


@pytest.fixture
def ort() -> Target:
    """ONNX Runtime on this machine, measured quickly."""
    return msgspec.structs.replace(target.load("x86-onnxruntime"), protocol=QUICK)


@pytest.fixture
def openvino() -> Target:
    """OpenVINO on this machine, measured quickly."""
    return msgspec.structs.replace(target.load("intel-cpu"), protocol=QUICK)


@pytest.fixture
def artifact(nets: dict[str, Path]) -> Artifact:
    """The float network for ONNX Runtime."""
    return Artifact("tiny", "onnxruntime", "fp32", {"tiny.onnx": nets["fp32"]})


@pytest.fixture
def int8_artifact(artifact: Artifact, nets: dict[str, Path]) -> Artifact:
    """The S8S8 network for ONNX Runtime."""
    return dataclasses.replace(artifact, name="tiny-int8", precision="int8", files={"int8.onnx": nets["int8"]})
