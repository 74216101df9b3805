"""A device behind ssh: the `ssh` program with the user's own configuration, keys and jump hosts; streams only.

Nothing but a POSIX shell, `cat`, `mkdir` and Python is expected there: minimal boards have neither scp nor sftp. The
agent runs detached, so that a dropped link costs nothing: the next one takes up the conversation, in this run or a
later one. EDGEPRUNE_SSH_COMMAND replaces `ssh` (such as "ssh -F my_config"); EDGEPRUNE_SILENCE is for a board that may
be slow to answer, such as an emulated one on a busy machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from edgeprune.devices import settings
from edgeprune.devices.answers import plain
from edgeprune.devices.link import LinkLost
from edgeprune.devices.package import agent, cache
from edgeprune.devices.transport import Emulation, copy, spawn
from edgeprune.errors import DeviceError, DeviceUnreachable, EdgepruneError, MissingDependency, TargetError

OPTIONS = ("-o", "BatchMode=yes", "-o", "ServerAliveCountMax=4")
SILENCE_S = 60.0  # an agent says something every five seconds; a third of it unanswered, and ssh itself gives up
FOLDER = ".cache/edgeprune"  # on the device, below the home folder
PATIENCE_S = (1.0, 3.0, 10.0, 30.0)  # between attempts to reach a device again: a board needs half a minute to boot
CALL_S = 600.0  # a shell command there, a file on its way included
SAID_BYTES = 1 << 16
REMEDIES = {  # the first that ssh says; a changed host key is also one that failed
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "If the board was set up anew: ssh-keygen -R '{known}' && ssh {host}",
    "Permission denied": "Put your public key there: ssh-copy-id {host}",
    "Host key verification failed": "Log in once by hand and confirm its key: ssh {host}",
    "Could not resolve hostname": "Check the name, or add it to ~/.ssh/config.",
    "Connection refused": "Is the ssh server running there?",
    "timed out": "Is it switched on and connected?",
    "No route to host": "Is it switched on, and in the same network?",
}


class Ssh:
    """The way to a device over ssh.

    Args:
        address: user@host[:port], or a name in ~/.ssh/config.
        python: the interpreter there that has numpy and the runtime.
        options: more options for ssh.
    """

    name = "ssh"
    emulation: Emulation
    survives = True
    exclusive = True
    patience: tuple[float, ...] = PATIENCE_S

    def __init__(self, address: str, python: str = "", options: Sequence[str] = ()) -> None:
        host, port = parse(address)
        self.where, self._host, self._python = address, host, python or "python3"
        self._port = ["-p", port] if port else []
        self.emulation = ""
        self.silence_s = silence()
        self._more = list(options)
        self._scratch = settings.Scratch("ssh-")
        self._control = self._scratch.path
        self._session: IO[str] | None = None
        self._remote_agent = ""

    def start(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        """Send the agent if it is not there yet, and start it or take up its conversation."""
        archive, digest = agent()
        self._remote_agent = f"{FOLDER}/agents/{digest[:16]}.pyz"
        self._send_agent(archive, digest)
        # Another interpreter must not meet the agent of this one.
        python = hashlib.sha256(self._python.encode()).hexdigest()
        session = f"{self._claim()}-{digest[:8]}-{python[:4]}"
        arguments = [self._python, self._remote_agent, "attach", "--home", f"{FOLDER}/agent", "--session", session]
        return spawn([*self._ssh(), "exec " + shlex.join(arguments)], errors)

    def put(self, source: Path, name: str, home: str) -> None:
        """Stream a file into the agent's folder."""
        with source.open("rb") as stream:
            self._call(f"cat > {shlex.quote(f'{home}/incoming/{name}')}", stream)

    def get(self, remote: str, target: Path) -> None:
        """Stream a file of the agent here."""
        self._call(f"cat {shlex.quote(remote)}", target=target)

    def close(self) -> None:
        """End the shared connection."""
        with contextlib.suppress(OSError, subprocess.SubprocessError, EdgepruneError):
            subprocess.run([*self._ssh("-O", "exit")], capture_output=True, timeout=10)
        self._scratch.close()
        if self._session is not None:
            self._session.close()
            self._session = None

    def _ssh(self, *first: str) -> list[str]:
        program = settings.ssh_command()
        if shutil.which(program[0]) is None:
            raise MissingDependency(f"{program[0]} is not on this machine.", "apt-get install openssh-client")
        interval, first_word = max(1, round(self.silence_s / 12)), max(15, round(self.silence_s / 4))
        alive = ["-o", f"ServerAliveInterval={interval}", "-o", f"ConnectTimeout={first_word}"]
        share = ["-o", "ControlMaster=auto", "-o", f"ControlPath={self._control}/%C", "-o", "ControlPersist=30"]
        return [
            *program,
            *self._more,
            *OPTIONS,
            *alive,
            *share,
            *self._port,
            *first,
            self._host,
        ]  # ssh takes the first of a kind

    def _send_agent(self, archive: Path, digest: str) -> None:
        check = f"{shlex.quote(self._python)} -c {shlex.quote(_CHECK)} {self._remote_agent} {digest}"
        if self._call(f"mkdir -p {FOLDER}/agents && {check}").strip() == b"here":
            return
        with archive.open("rb") as stream:
            part = f"{self._remote_agent}.{os.getpid()}.part"
            self._call(f"cat > {part} && mv {part} {self._remote_agent}", stream)
        if self._call(check).strip() != b"here":
            raise DeviceError(f"{self.where}: the agent did not arrive whole.", "Run it again.")

    def _call(self, command: str, stream: IO[bytes] | None = None, target: Path | None = None) -> bytes:
        """Run a shell command there; the first of its output, or all of it in the file `target`."""
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [*self._ssh(), command],
                stdin=stream or subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            assert process.stdout is not None
            late = threading.Timer(CALL_S, process.kill)
            late.start()
            try:
                with process.stdout as output:
                    if target is not None:
                        copy(output, target, self.where)
                    said = output.read(SAID_BYTES)
                    while output.read(SAID_BYTES):  # a login that prints for ever ends with its time
                        pass
                code = process.wait()
            finally:
                in_time = late.is_alive()
                late.cancel()
                process.kill()
                process.wait()
            errors.seek(max(0, errors.seek(0, 2) - SAID_BYTES))
            words = plain_lines(errors.read(SAID_BYTES))
        if not in_time:
            raise LinkLost(f"{self.where}: no answer in ten minutes.")
        if code == 0:
            return said
        if code == 255:
            raise self._unreachable(words)
        last = words.splitlines()[-1] if words else f"exit code {code}"
        remedy = "Free space on the device." if "No space left" in words else ""
        if code == 127:
            remedy = (
                f"Install Python there, or say where it is: edgeprune devices add NAME ssh://{self.where} --python PATH"
            )
        raise DeviceError(f"{self.where}: {last}.", remedy)

    def _unreachable(self, words: str) -> DeviceUnreachable:
        last = words.splitlines()[-1] if words else "no reason given"
        remedy = next((text for part, text in REMEDIES.items() if part in words), "Try: ssh {host}")
        kind = DeviceUnreachable if "Permission denied" in words or "verification failed" in words else LinkLost
        name, port = self._host.rpartition("@")[2], self._port[-1] if self._port else ""
        host = " ".join([*self._port, self._host])
        remedy = remedy.format(host=host, known=f"[{name}]:{port}" if port else name)
        return kind(f"{self.where}: ssh cannot reach it ({last.rstrip('.')}).", remedy)

    def _claim(self) -> str:
        """A conversation that no other live process of this user on this machine has; the same one in the next run."""
        if self._session is not None:
            return Path(self._session.name).stem
        folder = settings.private(settings.private(cache()) / "sessions")
        base = re.sub(r"[^\w-]", "-", f"{settings.user()}-{os.uname().nodename}-{self.where}")[-60:]
        for number in range(100):
            stream = (folder / f"{base}-{number}.lock").open("w")
            with contextlib.suppress(OSError):
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._session = stream
                return Path(stream.name).stem
            stream.close()
        raise DeviceError(f"{self.where}: a hundred conversations are open.", "End some of them.")


_CHECK = (
    "import hashlib,os,sys;p,d=sys.argv[1:];"
    "print('here' if os.path.isfile(p) and hashlib.sha256(open(p,'rb').read()).hexdigest()==d else 'missing')"
)


def plain_lines(said: bytes) -> str:
    """What ssh, or a shell there, said: lines without control characters."""
    return "\n".join(plain(line) for line in said.decode(errors="replace").strip().splitlines())


def silence() -> float:
    """Seconds without a word after which a board is taken for gone: EDGEPRUNE_SILENCE, or a minute."""
    return settings.seconds("EDGEPRUNE_SILENCE", SILENCE_S, least=0.001)


def parse(address: str) -> tuple[str, str]:
    """user@host[:port] -> (user@host, port); a host that begins with a dash is refused, for it would be an option."""
    found = re.fullmatch(r"((?:[\w.-]+@)?(?:[\w.-]+|\[[0-9a-fA-F:]+\]))(?::(\d+))?/?", address)
    if not found or found[1].startswith("-"):
        raise TargetError(f"'{address}' is not an address.", "Use ssh://user@host:port, or a name in ~/.ssh/config.")
    return found[1].replace("[", "").replace("]", ""), found[2] or ""
