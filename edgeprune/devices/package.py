"""The agent as one file: a deterministic zip archive of `devices/agent`, named by its digest."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path

from edgeprune.errors import DeviceError

_START = "import sys\nfrom edgeprune_agent.__main__ import main\nsys.exit(main())\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def cache() -> Path:
    """Where edgeprune keeps what can be made again: EDGEPRUNE_CACHE, or ~/.cache/edgeprune."""
    named = os.environ.get("EDGEPRUNE_CACHE")
    general = os.environ.get("XDG_CACHE_HOME")
    return Path(named).absolute() if named else Path(general or Path.home() / ".cache") / "edgeprune"


def agent() -> tuple[Path, str]:
    """The agent's archive on this machine, and its sha256."""
    sources = sorted((Path(__file__).parent / "agent").glob("*.py"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), _START)
        for source in sources:
            archive.writestr(zipfile.ZipInfo(f"edgeprune_agent/{source.name}", _EPOCH), source.read_bytes())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    path = cache() / "agents" / f"{digest[:16]}.pyz"
    if not path.is_file():
        write_whole(path, buffer.getvalue())
    return path, digest


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it appears whole or not at all; raises DeviceError when the disk refuses."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as cause:
        part.unlink(missing_ok=True)
        raise DeviceError(
            f"{path.parent}: cannot be written ({cause}).", "Free space, or set EDGEPRUNE_CACHE."
        ) from None
