"""A hash of the code that makes a stage, so that an upgraded edgeprune does not pass old stages off as new."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from edgeprune import files

PACKAGE = Path(__file__).resolve().parent.parent


@cache
def code(*rooms: str) -> str:
    """The sha256 over the source files of some rooms of edgeprune, each with its name; nothing is imported for it."""
    paths = [path for room in rooms for path in (PACKAGE / room).rglob("*.py")]
    paths += [path for room in rooms if (path := PACKAGE / f"{room}.py").is_file()]
    named = {path.relative_to(PACKAGE).as_posix(): path for path in paths}
    return files.sha256(piece for name in sorted(named) for piece in (name.encode(), b"\0", named[name].read_bytes()))
