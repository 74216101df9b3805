"""What the environment says about devices: times, folders and who asks; each value is looked at before it is used."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import math
import os
import shlex
import shutil
import stat
import tempfile
import weakref
from pathlib import Path

from edgeprune.errors import DeviceError, UsageError

JOB_S = 1800.0
LOCK = ".alive"
LONGEST_S = 30 * 86400.0  # a month; more is a mistake, or for ever


def seconds(name: str, otherwise: float, least: float = 0.0) -> float:
    """A number of seconds above `least`, from the environment; raises UsageError for any other value."""
    given = os.environ.get(name) or ""
    try:
        found = float(given) if given.strip() else otherwise
    except ValueError:
        found = math.nan
    if not least <= found <= LONGEST_S:
        raise UsageError(
            f"{name} = {given[:40]!r} is no number of seconds from {least:g} to {LONGEST_S:.0f}.",
            f"Such as {name}=300.",
        )
    return found


def job_timeout() -> float:
    """Seconds that a job may take: EDGEPRUNE_JOB_TIMEOUT, or half an hour."""
    return seconds("EDGEPRUNE_JOB_TIMEOUT", JOB_S, least=0.001)


def lock_wait(exclusive: bool) -> float:
    """Seconds to wait for another job: EDGEPRUNE_LOCK_WAIT, or a minute on a device, ten here."""
    return seconds("EDGEPRUNE_LOCK_WAIT", 60.0 if exclusive else 600.0)


def ssh_command() -> list[str]:
    """The program that reaches devices: EDGEPRUNE_SSH_COMMAND, or ssh. Raises UsageError where it is no command."""
    given = os.environ.get("EDGEPRUNE_SSH_COMMAND") or "ssh"
    try:
        words = shlex.split(given)
    except ValueError as cause:
        words, why = [], f" ({str(cause).lower()})"
    else:
        why = ""
    if not words or "\0" in given:
        raise UsageError(f"EDGEPRUNE_SSH_COMMAND = {given[:80]!r} is no command{why}.", "Such as 'ssh -F my_config'.")
    return words


def cache() -> Path:
    """Where edgeprune keeps what can be made again: EDGEPRUNE_CACHE, or ~/.cache/edgeprune.

    Where there is no home folder (a container without a passwd entry), a folder of this user's own in the system's for
    temporary files.
    """
    named = os.environ.get("EDGEPRUNE_CACHE")
    if named:
        return Path(named).absolute()
    general = os.environ.get("XDG_CACHE_HOME")
    home = home_folder()
    if general or home is not None:
        return Path(general or Path(home or ".") / ".cache") / "edgeprune"
    return Path(tempfile.gettempdir()) / f"edgeprune-{os.getuid()}"


def home_folder() -> Path | None:
    """The user's home folder; None where there is none."""
    try:
        return Path.home()
    except RuntimeError:  # neither HOME nor a passwd entry
        return None


def private(folder: Path) -> Path:
    """The folder, made if need be, for this user alone: weights and test images lie in it.

    Raises DeviceError where it cannot be made, where it belongs to someone else, and where others may write to it.
    """
    remedy = "Free space, or set EDGEPRUNE_CACHE to a folder of your own."
    try:
        for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        status = folder.stat()
    except (OSError, ValueError) as cause:  # ValueError: a zero byte in the path
        raise DeviceError(f"{folder}: cannot be made ({cause}).", remedy) from None
    if not stat.S_ISDIR(status.st_mode):
        raise DeviceError(f"{folder}: is no folder.", remedy)
    if status.st_uid != os.geteuid():
        raise DeviceError(f"{folder}: belongs to someone else (user {status.st_uid}); what lies there is run.", remedy)
    if status.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


class Scratch:
    """A temporary folder of this process; one that a killed process left is removed by the next.

    Use as a context manager, or end it with `close`. A lock on a file in it says that its process lives.
    """

    def __init__(self, kind: str = "") -> None:
        _sweep()
        self.path = Path(tempfile.mkdtemp(prefix=f"edgeprune-{kind}"))
        handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._end = weakref.finalize(self, _end, self.path, handle)  # also where nobody closes it

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder."""
        self._end()


def _end(path: Path, handle: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(handle)


def _sweep() -> None:
    """Remove the temporary folders of this user's dead processes; once a process."""
    if _SWEPT:
        return
    _SWEPT.append(True)
    for folder in Path(tempfile.gettempdir()).glob("edgeprune-*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            with (folder / LOCK).open("r+") as lock:  # without one it is no folder of ours, or not locked yet
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


_SWEPT: list[bool] = []


def user() -> str:
    """This user's name, or number where there is no passwd entry."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"user {os.getuid()}"


def who() -> str:
    """Who asks a device to do something: told to others who wait."""
    return f"{user()}@{os.uname().nodename} (process {os.getpid()})"
