"""The file that the device's own ONNX Runtime optimised: shipped when it is as good as the plain graph."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "devices"))
import msgspec
import tinynets

from edgeprune import devices, target
from edgeprune.devices import Artifact
from edgeprune.errors import JobFailed
from edgeprune.model import Ends
from edgeprune.pipeline import optimised
from edgeprune.target import Protocol, Target
from edgeprune.tasks import Classification
from edgeprune.workload import Data, Inputs, Workload


def workload() -> Workload:
    """Five images for the tiny networks."""
    images = tinynets.images(5)
    listed = [(image, 0) for image in images]
    data = Data(train=listed, test=listed, selection=listed)
    return Workload(lambda: pytest.fail("no network is built here"), Inputs.of(images[0]), data, Classification(), "")


def subject() -> Any:
    return SimpleNamespace(workload=workload(), ends=Ends())


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bench on this machine, which is taken for an ARM board, and a voice; `said` holds its lines."""
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(optimised, "MACHINES", (platform.machine(),))
    protocol = Protocol(warmup_runs=1, runs=3, rounds=1, max_spread=1e9)
    profile: Target = msgspec.structs.replace(target.load("raspberry-pi-5"), protocol=protocol)
    said: list[str] = []
    here = msgspec.structs.replace(target.load("x86-onnxruntime"), protocol=protocol)
    with devices.connect(here, "local") as device:
        yield SimpleNamespace(target=profile, device=device, said=said, say=lambda stage, text: said.append(text))


@pytest.fixture
def plain(context: Any, tmp_path: Path) -> Any:
    path = tinynets.int8_net(tmp_path / "int8.onnx")
    return context.device.load(Artifact("pruned-int8", "onnxruntime", "int8", {path.name: path}, EXACT))


EXACT = {"session.qdqisint8allowed": "1"}


@pytest.mark.long
def test_made_compared_and_said(context: Any, plain: Any, tmp_path: Path) -> None:
    facts = optimised.write(subject(), context, context, tmp_path, plain)
    assert (tmp_path / facts["file"]).is_file() and len(facts["sha256"]) == 64
    assert facts["same_bits"] == 1.0 and facts["images"] == 5 and facts["unit"] == "ms"
    assert facts["options"] == {**EXACT, "graph_optimization_level": "disable"}
    assert facts["made_on"]["machine"] == platform.machine() and facts["made_on"]["runtime"] == "onnxruntime"
    assert "bit for bit, on 5 images" in context.said[0]


def test_x86_never_makes_it(context: Any, plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimised, "MACHINES", ("aarch64",))
    monkeypatch.setattr(context.device, "probe", lambda: SimpleNamespace(fingerprint={"machine": "x86_64"}))
    assert optimised.write(subject(), context, context, tmp_path, plain) == {
        "missing": "no 64-bit ARM device made it: the artifact was run on x86_64."
    }
    assert not (tmp_path / optimised.FILE).exists()


@pytest.mark.long
def test_other_bits_are_not_shipped(context: Any, plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tinynets.float_net(tmp_path / "other.onnx").read_bytes()
    monkeypatch.setattr(context.device, "optimised", lambda loaded: other)
    facts = optimised.write(subject(), context, context, tmp_path, plain)
    assert facts == {"missing": "its outputs are the plain graph's on only 0.00 % of the images."}
    assert not (tmp_path / optimised.FILE).exists()


def test_a_device_that_cannot_is_a_reason_not_an_error(
    context: Any, plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(loaded: Any) -> bytes:
        raise JobFailed("the disk is full.")

    monkeypatch.setattr(context.device, "optimised", refuse)
    assert "the disk is full" in optimised.write(subject(), context, context, tmp_path, plain)["missing"]


@pytest.mark.parametrize(
    ("name", "wanted"), [("raspberry-pi-4", True), ("x86-onnxruntime", False), ("intel-cpu", False)]
)
def test_for_arm_alone(name: str, wanted: bool) -> None:
    assert optimised.wanted(target.load(name)) is wanted
