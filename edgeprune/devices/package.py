"""The agent as one file: a deterministic zip archive of `devices/agent`, named by its digest."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

from edgeprune import files
from edgeprune.devices.settings import cache as cache
from edgeprune.devices.settings import private
from edgeprune.errors import DeviceError

_START = "import sys\nfrom edgeprune_agent.__main__ import main\nsys.exit(main())\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def agent() -> tuple[Path, str]:
    """The agent's archive on this machine, and its sha256."""
    sources = sorted((Path(__file__).parent / "agent").glob("*.py"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), _START)
        for source in sources:
            archive.writestr(zipfile.ZipInfo(f"edgeprune_agent/{source.name}", _EPOCH), source.read_bytes())
    digest = files.sha256(buffer.getvalue())
    path = private(private(cache()) / "agents") / f"{digest[:16]}.pyz"
    if not _is(path, digest):  # none yet, or not whole, or another: it is run, so its name alone is not believed
        write_whole(path, buffer.getvalue(), 0o600)
    return path, digest


def _is(path: Path, digest: str) -> bool:
    try:
        status = path.lstat()
        plain = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        return plain and files.sha256(path) == digest
    except OSError:
        return False


def write_whole(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file so that it appears whole or not at all; raises DeviceError when the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, data, mode)
    except OSError as cause:
        raise DeviceError(
            f"{path.parent}: cannot be written ({cause}).", "Free space, or set EDGEPRUNE_CACHE."
        ) from None
