"""ssh on the loopback with a throwaway server: the same jobs, and links that break at every point."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tinynets

from edgeprune import devices, target
from edgeprune.devices import Artifact, Timing
from edgeprune.devices.answers import FetchAnswer
from edgeprune.devices.device import AgentDevice
from edgeprune.devices.link import AgentError, LinkLost
from edgeprune.devices.ssh import Ssh, parse
from edgeprune.errors import DeviceBusy, DeviceError, DeviceUnreachable, JobFailed, TargetError, UsageError
from edgeprune.target import Target

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
board = [
    pytest.mark.device,
    pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="no sshd: apt-get install openssh-server"),
]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server whose home folder is private; EDGEPRUNE_SSH_COMMAND leads to it. Yields that folder."""
    assert SSHD
    folder = tmp_path_factory.mktemp("server")
    home = folder / "home"
    home.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it when it runs as root
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"PidFile {folder}/pid\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n"
        f'ForceCommand cd {home} && HOME={home} exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "ssh_config").write_text(
        f"Host pi5\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder}/known\n"
    )
    process = subprocess.Popen([SSHD, "-D", "-f", folder / "sshd_config", "-E", folder / "log"])
    monkeypatch.setenv("EDGEPRUNE_SSH_COMMAND", f"ssh -F {folder}/ssh_config")
    monkeypatch.setattr(Ssh, "patience", (0.1, 0.5, 1.0))
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield home
    process.terminate()
    process.wait()
    for process_folder in Path("/proc").glob("[0-9]*"):  # daemons that a test left behind
        command = _command(process_folder)
        if str(home) in command and "daemon" in command:
            os.kill(int(process_folder.name), signal.SIGKILL)


@pytest.fixture
def pi5(ort: Target) -> Target:
    """This machine's runtime, reached over ssh."""
    return msgspec.structs.replace(ort, connection=msgspec.structs.replace(ort.connection, python=sys.executable))


pytestmark: list[pytest.MarkDecorator] = []


class TestOverSsh:
    """One code path: what works here works there."""

    pytestmark = board

    def test_the_same_jobs_and_nothing_left_open(self, server: Path, pi5: Target, artifact: Artifact) -> None:
        images = tinynets.images(300)
        with devices.connect(pi5) as device:
            (here,) = device.infer(device.load(artifact), images)
        with devices.connect(pi5, "ssh://pi5") as device:
            loaded = device.load(artifact)
            (there,) = device.infer(loaded, images)
            (timing,) = device.measure([loaded], pi5.protocol)
            kernels = device.profile(loaded, runs=3)
            assert device.probe().state["where"] == "pi5"
            device.unload(loaded)
            pid = device.agent_pid
            device.measure([device.load(artifact)], pi5.protocol)
        np.testing.assert_array_equal(here, there)
        assert timing.count == 10 and timing.unit == "ms" and "layer2.conv" in {n for k in kernels for n in k.layers}
        assert (server / ".cache/edgeprune/agent/blobs").is_dir()
        _wait_until(lambda: not _command(Path(f"/proc/{pid}")), "the agent ends with the host's goodbye")
        assert not list((server / ".cache/edgeprune/agent/jobs").glob("*.json"))  # confirmed, so nothing is kept

    def test_a_link_cut_in_a_job_loses_nothing(self, server: Path, pi5: Target, artifact: Artifact) -> None:
        slow = msgspec.structs.replace(pi5.protocol, min_seconds=1.0, rounds=2)
        with devices.connect(pi5, "ssh://pi5") as device:
            loaded = device.load(artifact)
            pid = device.agent_pid
            threading.Timer(0.8, _cut_links, [device]).start()
            (timing,) = device.measure([loaded], slow)
            assert device.agent_pid == pid and len(timing.rounds) == 2

    def test_a_second_run_picks_up_the_job_of_a_killed_one(
        self, server: Path, pi5: Target, artifact: Artifact, tmp_path: Path
    ) -> None:
        slow = msgspec.structs.replace(pi5.protocol, min_seconds=1.0, rounds=2)
        script = """
            import sys, msgspec
            from pathlib import Path
            from edgeprune import devices, target
            from edgeprune.devices import Artifact
            there = msgspec.json.decode(sys.argv[1], type=target.Target)
            artifact = Artifact("tiny", "onnxruntime", "fp32", {"tiny.onnx": Path(sys.argv[2])})
            with devices.connect(there, "ssh://pi5") as device:
                loaded = device.load(artifact)
                print(device.agent_pid, flush=True)
                device.measure([loaded], there.protocol)
        """
        path = artifact.files["tiny.onnx"]
        asked = msgspec.json.encode(msgspec.structs.replace(pi5, protocol=slow))
        first = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), asked, path], stdout=subprocess.PIPE)
        assert first.stdout is not None
        pid = int(first.stdout.readline())
        time.sleep(0.5)
        first.kill()
        first.communicate()
        outgoing = server / ".cache/edgeprune/agent/outgoing"
        _wait_until(lambda: list(outgoing.glob("samples-*.json")), "the job of the killed host ends")
        with devices.connect(pi5, "ssh://pi5") as device:
            loaded = device.load(artifact)
            assert device.agent_pid == pid
            start = time.monotonic()
            (timing,) = device.measure([loaded], slow)
            picked_up = time.monotonic() - start
            start = time.monotonic()
            device.measure([loaded], slow)  # received once, it is not handed over again
            measured = time.monotonic() - start
            assert picked_up < measured and len(timing.rounds) == 2  # two rounds of a second: not measured again

    def test_a_link_cut_while_a_file_is_sent(
        self, server: Path, pi5: Target, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrapper = tmp_path / "ssh-that-breaks-once"
        wrapper.write_text(
            f'#!/bin/sh\ncase "$*" in *incoming*) if [ ! -e {tmp_path}/broken ]; then touch {tmp_path}/broken;'
            f' head -c 1000 | {os.environ["EDGEPRUNE_SSH_COMMAND"]} "$@"; exit 255; fi;; esac\n'
            f'exec {os.environ["EDGEPRUNE_SSH_COMMAND"]} "$@"\n'
        )
        wrapper.chmod(0o755)
        monkeypatch.setenv("EDGEPRUNE_SSH_COMMAND", str(wrapper))
        with devices.connect(pi5, "ssh://pi5") as device:
            assert len(device.infer(device.load(artifact), tinynets.images(2))[0]) == 2
        assert (tmp_path / "broken").exists()

    def test_a_full_disk_there(self, server: Path, pi5: Target, artifact: Artifact) -> None:
        digest = hashlib.sha256(artifact.files["tiny.onnx"].read_bytes()).hexdigest()
        with devices.connect(pi5, "ssh://pi5") as device:
            part = server / f".cache/edgeprune/agent/incoming/{digest}-{os.getpid()}.part"
            part.symlink_to("/dev/full")
            with pytest.raises(DeviceError, match="No space left on device") as caught:
                device.load(artifact)
            assert caught.value.remedy == "Free space on the device."
            part.unlink()
            assert len(device.infer(device.load(artifact), tinynets.images(2))[0]) == 2

    def test_a_rebooted_board_loads_its_artifacts_again(self, server: Path, pi5: Target, artifact: Artifact) -> None:
        with devices.connect(pi5, "ssh://pi5") as device:
            loaded = device.load(artifact)
            first = device.agent_pid
            os.kill(first, signal.SIGKILL)
            _cut_links(device)
            assert len(device.infer(loaded, tinynets.images(2))[0]) == 2
            assert device.agent_pid != first

    def test_completed_chunks_are_not_computed_again(
        self, server: Path, pi5: Target, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with devices.connect(pi5, "ssh://pi5") as device:
            loaded = device.load(artifact)
            written = []

            def interrupted(answer: FetchAnswer) -> None:
                written.append(Path(answer.path).stat().st_mtime_ns)
                raise KeyboardInterrupt

            def observed(answer: FetchAnswer) -> AbstractContextManager[Path]:
                written.append(Path(answer.path).stat().st_mtime_ns)
                return fetch(answer)

            monkeypatch.setattr(device, "_fetched", interrupted)
            with pytest.raises(KeyboardInterrupt):
                device.infer(loaded, tinynets.images(4))
        with devices.connect(pi5, "ssh://pi5") as device:
            fetch = device._fetched
            monkeypatch.setattr(device, "_fetched", observed)
            assert len(device.infer(device.load(artifact), tinynets.images(4))[0]) == 4
        assert len(written) == 2 and written[0] == written[1]
        assert not list((server / ".cache/edgeprune/agent/outgoing").glob("*.npz"))

    def test_two_hosts_at_once(
        self, server: Path, pi5: Target, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slow = msgspec.structs.replace(pi5.protocol, min_seconds=2.0, rounds=2)
        with devices.connect(pi5, "ssh://pi5") as one, devices.connect(pi5, "ssh://pi5") as other:
            assert one.agent_pid != other.agent_pid
            mine, theirs = one.load(artifact), other.load(artifact)
            found: list[Timing] = []
            job = threading.Thread(target=lambda: found.extend(one.measure([mine], slow)))
            job.start()
            lock = server / ".cache/edgeprune/agent/lock"
            _wait_until(lambda: lock.is_file() and lock.read_text(), "the first host holds the device")
            monkeypatch.setenv("EDGEPRUNE_LOCK_WAIT", "0.3")
            with pytest.raises(DeviceBusy, match=f"held by .*process {os.getpid()}.* since"):
                other.measure([theirs], pi5.protocol)
            job.join()
            assert len(found) == 1 and found[0].count > 0  # the first lost nothing
            assert other.measure([theirs], pi5.protocol)[0].count == 10

    def test_a_job_over_its_time_and_a_worker_that_dies(
        self, server: Path, pi5: Target, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endless = msgspec.structs.replace(pi5.protocol, warmup_runs=1_000_000_000)
        with devices.connect(pi5, "ssh://pi5") as device:
            loaded = device.load(artifact)
            monkeypatch.setenv("EDGEPRUNE_JOB_TIMEOUT", "1.5")
            with pytest.raises(AgentError, match="longer than 2 s and was stopped"):
                device.measure([loaded], endless)
            monkeypatch.delenv("EDGEPRUNE_JOB_TIMEOUT")
            device.measure([loaded], pi5.protocol)
            threading.Timer(0.7, _signal_worker, [device.agent_pid, signal.SIGILL]).start()
            with pytest.raises(AgentError, match="SIGILL") as caught:
                device.measure([loaded], endless)
            assert caught.value.kind == "illegal-instruction" and "another version" in caught.value.remedy
            assert device.measure([loaded], pi5.protocol)[0].count == 10

    @pytest.mark.slow
    def test_a_release_is_installed_by_a_link_that_breaks(
        self, server: Path, pi5: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The agent goes on without its host; the next link hears how it ended, and nothing is installed twice."""
        monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "release"))
        from finished_run import make

        from edgeprune import release

        (tmp_path / "run").mkdir()
        bundle = release.bundle(*make(tmp_path / "run", target.load("x86-onnxruntime")), tmp_path)
        more = {"keys": [], "new_keys": False, "unsigned": True, "slack": 1e6}
        with devices.connect(pi5, "ssh://pi5") as device:
            threading.Timer(1.0, _cut_links, [device]).start()
            found = device.rollout("install", "tiny", "", bundle, **more)
            assert found.current is not None and found.current.release.startswith("0001-")
            assert found.previous is None and found.current.damage == ""
            again = device.rollout("install", "tiny", "", bundle, **more)  # another call is another installation
            assert again.current is not None and again.current.release.startswith("0002-")
            assert [one.name for one in device.releases()] == ["tiny"]
        place = server / ".local/share/edgeprune/releases/tiny"
        assert (place / "current" / "run.py").is_file() and len(list((place / "store").iterdir())) == 1

    def test_a_file_altered_there_is_sent_again(self, server: Path, pi5: Target, artifact: Artifact) -> None:
        original = artifact.files["tiny.onnx"].read_bytes()
        blob = server / ".cache/edgeprune/agent/blobs" / hashlib.sha256(original).hexdigest()
        with devices.connect(pi5, "ssh://pi5") as device:
            device.load(artifact)
        blob.write_bytes(original[:-1] + b"!")
        with devices.connect(pi5, "ssh://pi5") as device:
            device.load(artifact)
        assert blob.read_bytes() == original

    def test_a_runtime_of_the_wrong_version(self, server: Path, pi5: Target) -> None:
        newer = msgspec.structs.replace(pi5, requires=">=99")
        with pytest.raises(AgentError, match=r"is installed, .* needs >=99"), devices.connect(newer, "ssh://pi5"):
            pass

    def test_a_refused_key_says_what_to_do(self, server: Path, pi5: Target, tmp_path: Path) -> None:
        (server.parent / "user.pub").write_text("")
        with pytest.raises(DeviceUnreachable, match="ssh-copy-id pi5"), devices.connect(pi5, "ssh://pi5"):
            pass

    def test_an_unknown_host_key_says_what_to_do(self, server: Path, pi5: Target) -> None:
        (server.parent / "known").write_text("")
        with pytest.raises(DeviceUnreachable, match="confirm its key: ssh pi5"), devices.connect(pi5, "ssh://pi5"):
            pass

    def test_a_changed_host_key_says_what_to_do(self, server: Path, pi5: Target) -> None:
        address = (server.parent / "known").read_text().split()[0]
        (server.parent / "known").write_text(f"{address} {(server.parent / 'user.pub').read_text()}")
        with pytest.raises(DeviceUnreachable, match="ssh-keygen -R 'pi5' && ssh pi5"):
            devices.connect(pi5, "ssh://pi5").__enter__()

    def test_a_runtime_that_was_missing_is_found_once_it_is_there(
        self, server: Path, pi5: Target, tmp_path: Path
    ) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
        bare = msgspec.structs.replace(pi5.connection, python=str(tmp_path / "bare/bin/python"))
        without = msgspec.structs.replace(pi5, connection=bare)
        with pytest.raises(JobFailed, match="not installed") as caught, devices.connect(without, "ssh://pi5"):
            pass
        assert caught.value.remedy.endswith(f"edgeprune doctor {pi5.name} --device ssh://pi5")
        with devices.connect(pi5, "ssh://pi5") as device:  # the same board, the interpreter that has it
            assert device.runtime_version
        home = str(server / ".cache/edgeprune/agent")
        _wait_until(
            lambda: not any(home in _command(one) for one in Path("/proc").glob("[0-9]*")), "no agent stays behind"
        )

    def test_no_such_interpreter_there(self, server: Path, ort: Target) -> None:
        there = msgspec.structs.replace(ort, connection=msgspec.structs.replace(ort.connection, python="python9"))
        with pytest.raises(DeviceError, match="Install Python there"), devices.connect(there, "ssh://pi5"):
            pass


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh: apt-get install openssh-client")
def test_nobody_listens(ort: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(LinkLost, match="Connection refused"), devices.connect(ort, f"ssh://127.0.0.1:{port}"):
        pass


def test_a_board_that_is_slow_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ssh("pi5").silence_s == 60 and "ServerAliveInterval=5" in Ssh("pi5")._ssh()
    monkeypatch.setenv("EDGEPRUNE_SILENCE", "600")
    assert Ssh("pi5").silence_s == 600 and "ServerAliveInterval=50" in Ssh("pi5")._ssh()
    for wrong in ("0", "-1", "long", "nan"):
        monkeypatch.setenv("EDGEPRUNE_SILENCE", wrong)
        with pytest.raises(UsageError, match="no number of seconds"):
            Ssh("pi5")


def test_remedies_can_be_copied() -> None:
    changed = "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed."
    there = Ssh("pi@10.0.0.7:2222")
    assert "ssh-keygen -R '[10.0.0.7]:2222'" in there._unreachable(changed).remedy
    assert there._unreachable("Permission denied (publickey).").remedy.endswith("ssh-copy-id -p 2222 pi@10.0.0.7")
    assert Ssh("pi@10.0.0.7")._unreachable("x: No route to host").remedy.startswith("Is it switched on")


def test_addresses() -> None:
    assert parse("pi5") == ("pi5", "")
    assert parse("pi@10.0.0.7:2222") == ("pi@10.0.0.7", "2222")
    assert parse("pi@[fe80::1]:22") == ("pi@fe80::1", "22")
    for wrong in ("", "-oProxyCommand=x", "a b", "host;reboot", "host:port"):
        with pytest.raises(TargetError):
            parse(wrong)


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _cut_links(device: AgentDevice) -> None:
    """Kill the ssh clients of this device, the shared connection too, as a network that goes away does."""
    control = str(device._transport._control)  # type: ignore[attr-defined]
    for process in Path("/proc").glob("[0-9]*"):
        command = _command(process)
        if command.startswith("ssh") and control in command:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)


def _signal_worker(supervisor: int, number: int) -> None:
    """Send a signal to the process that holds the runtime."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((process / "stat").read_text().rsplit(")", 1)[1].split()[1]) == supervisor:
                os.kill(int(process.name), number)


def _wait_until(condition: object, what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
