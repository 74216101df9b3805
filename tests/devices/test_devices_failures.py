"""Faults, each injected for real, each ending in one clear result; afterwards the same agent goes on."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import signal
import stat
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tinynets

from edgeprune import devices
from edgeprune.devices import Artifact
from edgeprune.devices.link import AgentError
from edgeprune.devices.transport import Local
from edgeprune.errors import DeviceBusy, DeviceError, DeviceUnreachable
from edgeprune.target import Target

FAKE_RUNTIME = """
import os, signal
__version__ = "1.99.0"
class SessionOptions:
    def add_session_config_entry(self, key, value): pass
def InferenceSession(path, options, providers):
    {fault}
"""


@pytest.fixture
def home() -> Path:
    """The agent's folder on this machine."""
    return Path(os.environ["EDGEPRUNE_CACHE"]) / "agent"


def broken_runtime(monkeypatch: pytest.MonkeyPatch, folder: Path, fault: str) -> None:
    (folder / "onnxruntime.py").write_text(FAKE_RUNTIME.format(fault=fault))
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGILL)", "illegal-instruction", "does not have"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crash", "SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "out-of-memory", "want of memory"),
        ("raise MemoryError('4 GiB')", "out-of-memory", "not enough memory"),
        ("os._exit(3)", "crash", "exit code 3"),
        ("raise ValueError('bad graph')", "runtime", "bad graph"),
    ],
)
def test_a_runtime_that_dies(
    ort: Target, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, kind: str, words: str
) -> None:
    broken_runtime(monkeypatch, tmp_path, fault)
    with devices.connect(ort) as device:
        with pytest.raises(AgentError, match=words) as caught:
            device.load(artifact)
        assert caught.value.kind == kind and caught.value.exit_code == 6
        assert device.probe().state["memory_bytes"]  # the agent is still there


@pytest.mark.long
def test_a_job_over_its_time_is_stopped_and_the_next_one_runs(
    ort: Target, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = msgspec.structs.replace(ort.protocol, warmup_runs=1_000_000_000)
    with devices.connect(ort) as device:
        loaded = device.load(artifact)
        monkeypatch.setenv("EDGEPRUNE_JOB_TIMEOUT", "1.5")
        with pytest.raises(AgentError, match="longer than 2 s and was stopped") as caught:
            device.measure([loaded], endless)
        assert caught.value.kind == "timeout"
        monkeypatch.delenv("EDGEPRUNE_JOB_TIMEOUT")
        assert device.measure([loaded], ort.protocol)[0].count == 10


@pytest.mark.long
def test_a_worker_killed_in_a_job_costs_that_job_only(ort: Target, artifact: Artifact) -> None:
    endless = msgspec.structs.replace(ort.protocol, warmup_runs=1_000_000_000)
    with devices.connect(ort) as device:
        loaded = device.load(artifact)
        threading.Timer(0.7, _kill_worker, [device.agent_pid]).start()
        with pytest.raises(AgentError, match="killed") as caught:
            device.measure([loaded], endless)
        assert caught.value.kind == "out-of-memory"
        assert len(device.infer(loaded, tinynets.images(3))[0]) == 3


@pytest.mark.long
def test_a_lost_agent_is_said_so_and_a_new_one_takes_over(ort: Target, artifact: Artifact) -> None:
    with devices.connect(ort) as device:
        loaded = device.load(artifact)
        os.kill(device.agent_pid, signal.SIGKILL)
        with pytest.raises(DeviceUnreachable, match="link to the agent ended"):
            device.infer(loaded, tinynets.images(1))
        assert len(device.infer(loaded, tinynets.images(2))[0]) == 2


def test_an_interpreter_that_is_not_there(ort: Target) -> None:
    there = msgspec.structs.replace(ort, connection=msgspec.structs.replace(ort.connection, python="/no/python3"))
    with pytest.raises(DeviceUnreachable, match=r"/no/python3: cannot be started"), devices.connect(there):
        pass


@pytest.mark.long
def test_something_else_answers(ort: Target, tmp_path: Path) -> None:
    chatty = tmp_path / "python"
    chatty.write_text("#!/bin/sh\necho Welcome to the board\nsleep 1\n")
    chatty.chmod(chatty.stat().st_mode | stat.S_IXUSR)
    there = msgspec.structs.replace(ort, connection=msgspec.structs.replace(ort.connection, python=str(chatty)))
    with pytest.raises(DeviceError, match="not an agent of this version: b'Welcome"), devices.connect(there):
        pass


def test_a_damaged_transfer_is_repeated_once(
    ort: Target, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    damages = _damage_transfers(monkeypatch, times=1)
    with devices.connect(ort) as device:
        device.load(artifact)
    assert damages == [] and not list((home / "incoming").iterdir())


def test_a_transfer_damaged_again_is_refused(
    ort: Target, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    _damage_transfers(monkeypatch, times=9)
    with devices.connect(ort) as device, pytest.raises(AgentError, match="sha256 of the file that arrived") as caught:
        device.load(artifact)
    assert caught.value.kind == "digest"
    assert not list((home / "blobs").iterdir()) and not list((home / "incoming").iterdir())


@pytest.mark.long
def test_a_file_altered_on_the_device_is_sent_again(ort: Target, artifact: Artifact, home: Path) -> None:
    with devices.connect(ort) as device:
        device.load(artifact)
    (blob,) = (home / "blobs").iterdir()
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(bytes(data))
    with devices.connect(ort) as device:
        device.load(artifact)
    assert blob.read_bytes() == artifact.files["tiny.onnx"].read_bytes()


def test_a_runtime_of_the_wrong_version(ort: Target) -> None:
    with (
        pytest.raises(AgentError, match=r"onnxruntime 1\..* is installed, x86-onnxruntime needs >=99"),
        devices.connect(msgspec.structs.replace(ort, requires=">=99")),
    ):
        pass


def test_a_full_disk_while_sending(
    ort: Target, artifact: Artifact, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Local.put

    def full(self: Local, source: Path, name: str, there: str) -> None:
        (home / "incoming" / name).symlink_to("/dev/full")
        put(self, source, name, there)

    monkeypatch.setattr(Local, "put", full)
    with devices.connect(ort) as device, pytest.raises(DeviceError, match=r"No space left") as caught:
        device.load(artifact)
    assert "Free space" in caught.value.remedy


def test_a_full_disk_while_writing_results(ort: Target, artifact: Artifact, home: Path) -> None:
    with devices.connect(ort) as device:
        loaded = device.load(artifact)
        images = io.BytesIO()
        np.save(images, tinynets.images(2))
        key = json.dumps([loaded.handle, hashlib.sha256(images.getvalue()).hexdigest(), device.runtime_version])
        result = hashlib.sha256(key.encode()).hexdigest() + f"-{device.agent_pid}.npz.part"
        (home / "outgoing" / result).symlink_to("/dev/full")
        with pytest.raises(AgentError, match="no space left on the device") as caught:
            device.infer(loaded, tinynets.images(2))
        assert caught.value.kind == "disk-full"
        (home / "outgoing" / result).unlink()
        assert len(device.infer(loaded, tinynets.images(2))[0]) == 2


@pytest.mark.long
def test_two_hosts_at_once(ort: Target, artifact: Artifact, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_LOCK_WAIT", "0.3")
    with devices.connect(ort) as device:
        loaded = device.load(artifact)
        with (home / "lock").open("a+") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            other.truncate(0)
            other.write("someone@elsewhere since 12:00:00")
            other.flush()
            with pytest.raises(DeviceBusy, match="held by someone@elsewhere since 12:00:00"):
                device.measure([loaded], ort.protocol)
        assert device.measure([loaded], ort.protocol)[0].count == 10


@pytest.mark.long
def test_a_second_host_waits_its_turn(ort: Target, artifact: Artifact, home: Path) -> None:
    with devices.connect(ort) as device:
        loaded = device.load(artifact)
        other = (home / "lock").open("a+")
        fcntl.flock(other, fcntl.LOCK_EX)
        threading.Timer(0.5, other.close).start()
        start = time.monotonic()
        device.measure([loaded], ort.protocol)
        assert time.monotonic() - start > 0.45


@pytest.mark.long
def test_a_throttled_board_makes_the_measurement_invalid(
    ort: Target, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    firmware = tmp_path / "vcgencmd"
    firmware.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x50005\n')
    firmware.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with devices.connect(ort) as device:
        (timing,) = device.measure([device.load(artifact)], ort.protocol)
    assert not timing.valid
    assert timing.reasons == ("the board reports 'under-voltage'", "the board reports 'throttled'")


@pytest.mark.long
def test_rounds_that_scatter_make_the_measurement_invalid(ort: Target, artifact: Artifact) -> None:
    strict = msgspec.structs.replace(ort.protocol, rounds=3, max_spread=-1.0)  # medians may be equal: a spread of 0
    with devices.connect(ort) as device:
        (timing,) = device.measure([device.load(artifact)], strict)
    assert not timing.valid and "rounds scatter by" in timing.reasons[0]
    assert len(timing.rounds) == 9  # it tried three times as many before giving up


def _kill_worker(supervisor: int) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent == supervisor:
            os.kill(int(process.name), signal.SIGKILL)


def _damage_transfers(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Flip one byte in the next `times` files that are sent; returns those still to come."""
    left, put = list(range(times)), Local.put

    def damaged(self: Local, source: Path, name: str, home: str) -> None:
        put(self, source, name, home)
        if left:
            left.pop()
            path = Path(home) / "incoming" / name
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(bytes(data))

    monkeypatch.setattr(Local, "put", damaged)
    return left
