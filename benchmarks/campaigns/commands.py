"""Whole `edgeprune` commands that start in milliseconds, and the processes of one that can be killed.

A command is what a shell would start: `main` of the command line in a session of its own, with its own folder, output
and environment, and the agent that it starts is a fresh process. Only the import of torch and the runtimes, seconds on
a busy machine, is done once, in the process that commands are forked from; every tenth is started cold all the same.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 600.0  # seconds for one command
SSH = "quick-ssh"  # the same target as project.PROFILE, reached through a server on this machine
ROOMS = ("edgeprune", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "scipy", "PIL", "rich", "msgspec")
IDLE = 1  # thread that importing ONNX Runtime starts; a forked child makes sessions and runs them without it
PARTS = {"agent": b"\0serve\0", "worker": b"\0worker\0", "daemon": b"\0daemon\0"}  # words of their command lines


class Command:
    """`edgeprune TARGET run recipe.toml ...` in a folder.

    Attributes:
        pid: of the process, which leads a session.
        code: how it ended; None before.
    """

    def __init__(
        self, folder: Path, *more: str, target: str = "quick", cold: bool = False, listed: Path | None = None
    ) -> None:
        self._folder, self._log = folder, tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the command
        self.code: int | None = None
        words = [target, "run", "recipe.toml", "--run-dir", "runs/x", *more]
        self.pid = self._cold(words) if cold else self._forked(words, listed)
        self._handle = os.pidfd_open(self.pid)

    def _cold(self, words: list[str]) -> int:
        return subprocess.Popen(
            [sys.executable, "-m", "edgeprune", *words],
            cwd=self._folder, env={**os.environ, **_environment(self._folder)}, stdin=subprocess.DEVNULL,
            stdout=self._log, stderr=self._log, start_new_session=True,
        ).pid  # fmt: skip

    def _forked(self, words: list[str], listed: Path | None) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.setsid()
            os.chdir(self._folder)
            os.environ.update(_environment(self._folder))
            with Path(os.devnull).open() as nothing:
                os.dup2(nothing.fileno(), 0)
            for stream in (1, 2):
                os.dup2(self._log.fileno(), stream)
            code = _main(words)
            if listed is not None:
                listed.write_text("\n".join(sys.modules))
        finally:
            os._exit(code)

    def wait(self, seconds: float = LONGEST) -> bool:
        """Whether it ends by itself within that time."""
        if self.code is None and select.select([self._handle], [], [], max(0.0, seconds))[0]:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._handle)
        return self.code is not None

    @property
    def said(self) -> str:
        """All its output."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def kill(self, whom: str = "all") -> bool:
        """SIGKILL to "all" (as a power button does), "command", "agent", "worker" or "link"; False: it has none now."""
        started = below(self.pid)
        pids = {"all": [self.pid, *started], "command": [self.pid]}.get(whom)
        if pids is None:
            pids = [pid for pid in started if _is(pid, whom)] or self._elsewhere(whom)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if whom in ("all", "command"):
            self.wait()
        return bool(pids)

    def _elsewhere(self, whom: str) -> list[int]:
        """Behind ssh the agent is a daemon, which is nobody's child."""
        part = "daemon" if whom == "agent" else whom
        home = os.fsencode(self._folder / "server")
        return [pid for pid in _everybody() if home in (line := _line(pid)) and PARTS.get(part, b"\0none\0") in line]

    def left(self, seconds: float = 20.0) -> list[int]:
        """Processes of the session that are still there so long after its end; none should be."""
        end = time.monotonic() + seconds
        while (found := [pid for pid in _everybody() if self._ours(pid)]) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _ours(self, pid: int) -> bool:
        """Local agents and their workers, by the cache that only this campaign has."""
        line = _line(pid)
        return os.fsencode(self._folder / "cache") in line and any(PARTS[part] in line for part in ("agent", "worker"))


def _environment(folder: Path) -> dict[str, str]:
    found = {"EDGEPRUNE_TARGETS": str(folder), "EDGEPRUNE_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    if (folder / "server/ssh_config").is_file():
        found["EDGEPRUNE_SSH_COMMAND"] = f"ssh -F {folder}/server/ssh_config"
    return found


def _main(words: list[str]) -> int:
    """The command line's main, as the interpreter would end it."""
    from edgeprune.cli import main

    code = 0
    try:
        main(words)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def warm_up(folder: Path) -> None:
    """Import what a whole command imports, as a first one in `folder` tells; nothing is computed in this process."""
    import torch

    torch.set_num_threads(1)
    listed = folder / "modules"
    first = Command(folder, listed=listed)
    first.wait()
    for name in listed.read_text().splitlines():
        if name.partition(".")[0] in ROOMS:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    for name in ("runs", "cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if (threads := _threads()) > 1 + IDLE:  # they would not survive a fork, and a child would wait for them
        raise SystemExit(f"importing started {threads} threads")


def _threads() -> int:
    return int(Path("/proc/self/status").read_text().partition("Threads:")[2].split()[0])


def below(parent: int) -> list[int]:
    """Processes that a process started, and theirs."""
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            found.setdefault(int(fields[1]), []).append(int(path.parent.name))
    every, level = [], [parent]
    while level := [child for one in level for child in found.get(one, [])]:
        every += level
    return every


def _everybody() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _is(pid: int, whom: str) -> bool:
    line = _line(pid)
    if whom == "link":
        return line.partition(b"\0")[0].rpartition(b"/")[2].startswith(b"ssh")
    return PARTS[whom] in line


@contextlib.contextmanager
def server(folder: Path) -> Iterator[bool]:
    """An ssh server of this machine alone, whose user has FOLDER/server/home; False where there is no sshd."""
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if sshd is None or shutil.which("ssh") is None:
        yield False
        return
    place = folder / "server"
    (place / "home").mkdir(parents=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (place / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {place}/host\nAuthorizedKeysFile {place}/user.pub\n"
        f"PidFile {place}/pid\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n"
        f'ForceCommand cd {place}/home && HOME={place}/home exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    (place / "known").write_text(f"[127.0.0.1]:{port} {(place / 'host.pub').read_text()}")
    (place / "ssh_config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {place}/user\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {place}/known\n"
    )
    profile = (folder / "quick/profile.toml").read_text()
    profile = profile.replace('name = "quick"', f'name = "{SSH}"')
    way = f'transport = "ssh"\naddress = "board"\npython = "{sys.executable}"'
    (folder / SSH).mkdir()
    (folder / SSH / "profile.toml").write_text(profile.replace('transport = "local"', way))
    process = subprocess.Popen([sshd, "-D", "-f", place / "sshd_config", "-E", place / "log"])
    try:
        yield True
    finally:
        process.terminate()
        process.wait()
        for pid in _everybody():
            if os.fsencode(place) in _line(pid) and PARTS["daemon"] in _line(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
