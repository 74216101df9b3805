"""How files and a conversation reach a device. One code path lies above; the local transport is here."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal, Protocol

from edgeprune.devices.answers import FILE_BYTES, UNTRUE
from edgeprune.devices.package import agent, cache
from edgeprune.errors import DeviceError, DeviceUnreachable

Emulation = Literal["", "qemu-user", "qemu-board", "qemu-board-icount"]


class Transport(Protocol):
    """The way to a device.

    Attributes:
        name: "local", "ssh", "qemu-user" or "qemu-board".
        where: the device in words, for messages.
        emulation: empty on real hardware.
        survives: the agent lives on when the link drops, and can be taken up again.
        exclusive: nothing but edgeprune's jobs runs there, so that even inference waits for a measurement to end.
        silence_s: an agent that has said nothing for so many seconds is gone; it says something every five of its own.
        patience: seconds to wait before each attempt to take up a broken link.
    """

    name: str
    where: str
    emulation: Emulation
    survives: bool
    exclusive: bool
    patience: tuple[float, ...]
    silence_s: float

    def start(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start the agent, or take up its conversation; its standard input and output are the link.

        What it says on standard error goes to the file `errors`.
        """
        ...

    def put(self, source: Path, name: str, home: str) -> None:
        """Bring a file into the agent's incoming folder as `name`."""
        ...

    def get(self, remote: str, target: Path) -> None:
        """Fetch a file of the agent."""
        ...

    def close(self) -> None:
        """Let go of what the way itself holds."""
        ...


class Local:
    """This machine: the agent is a process beside ours."""

    name = "local"
    where = "this machine"
    emulation: Emulation = ""
    survives = False
    exclusive = False
    patience: tuple[float, ...] = ()
    silence_s = 7200.0  # the pipe itself tells when the agent ends; both may be suspended for long

    def __init__(self, python: str = "") -> None:
        self._python = python or sys.executable
        self._home = cache() / "agent"

    def start(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start the agent with this interpreter, or the profile's."""
        archive, _ = agent()
        return spawn([self._python, str(archive), "serve", "--home", str(self._home)], errors)

    def put(self, source: Path, name: str, home: str) -> None:
        """Copy a file into the agent's folder."""
        put_here(source, Path(home) / "incoming" / name)

    def get(self, remote: str, target: Path) -> None:
        """Copy a file of the agent."""
        try:
            with os.fdopen(os.open(remote, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    raise DeviceError(f"{self.where}: {remote} is no plain file.", UNTRUE)
                copy(stream, target, self.where)
        except OSError as cause:
            raise DeviceError(f"{self.where}: a result cannot be fetched ({cause}).", "Run it again.") from None

    def close(self) -> None:
        """Nothing is held."""


def spawn(
    command: Sequence[str], errors: IO[bytes], environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the agent's process, or the program that leads to it."""
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C is for the host, which then lets the agent go
        )
    except OSError as cause:
        raise DeviceUnreachable(f"{command[0]}: cannot be started ({cause}).") from None


def copy(stream: IO[bytes], target: Path, where: str) -> None:
    """Write what a device sends into a file here; raises DeviceError when it is more than any result."""
    left = FILE_BYTES
    with target.open("wb") as out:
        while block := stream.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise DeviceError(f"{where}: a result is larger than {FILE_BYTES >> 20} MiB.", UNTRUE)
            out.write(block)


def put_here(source: Path, target: Path) -> None:
    """Copy a file to an agent on this machine."""
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError as cause:
        raise DeviceError(f"{source}: no such file ({cause}).") from None
    except OSError as cause:
        raise DeviceError(
            f"{target.parent}: cannot be written ({cause}).", "Free space, or set EDGEPRUNE_CACHE."
        ) from None
