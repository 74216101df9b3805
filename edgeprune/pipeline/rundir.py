"""The run directory: one folder a stage, whole or not there, with the hash of all that it depends on.

A stage works in `NAME.part` and is renamed when it is whole. A killed run finds its part again when the key is the
same, so that a stage with checkpoints goes on from them; a stage whose key changed starts afresh.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from edgeprune.errors import RunError

STAGES = ("graph", "plan", "latency", "search", "recover", "quantize", "artifacts", "validate", "release")


def key_of(*parts: Any) -> str:
    """sha256 over plain data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write `data` to `path`, whole or not at all."""
    write_text(path, json.dumps(data, indent=1, default=_plain) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read what write_json wrote; raises RunError when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path}: no such file.", "The run is incomplete; run the same command again.") from None
    except (OSError, json.JSONDecodeError) as cause:
        raise RunError(f"{path} is damaged: {cause}.", "Delete its folder and run the same command again.") from None


class RunDirectory:
    """A run's folder, held by one process at a time; a context manager.

    Raises:
        RunError: another process holds it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self.timings: list[dict[str, Any]] = []

    def __enter__(self) -> RunDirectory:
        with full_disk(self.path):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock = (self.path / ".lock").open("w")
            except (PermissionError, NotADirectoryError, FileExistsError) as cause:
                raise RunError(
                    f"{self.path} cannot be written: {cause.strerror}.", "Choose another --run-dir."
                ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunError(
                f"{self.path} is in use by another edgeprune.", "Wait for it, or choose another --run-dir."
            ) from None
        return self

    def __exit__(self, *exc: object) -> None:
        if self._lock:
            self._lock.close()
            (self.path / ".lock").unlink(missing_ok=True)

    def event(self, kind: str, **data: Any) -> None:
        """Append a line to events.jsonl."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **data}, default=str)
        with full_disk(self.path), (self.path / "events.jsonl").open("a") as log:
            log.write(line + "\n")

    def is_whole(self, name: str, key: str) -> bool:
        """Is the stage there, made from exactly these inputs?"""
        with contextlib.suppress(OSError, json.JSONDecodeError):
            return bool(json.loads((self.path / name / "stage.json").read_text())["key"] == key)
        return False

    def stage(self, name: str, key: str, work: Callable[[Path], None]) -> Path:
        """Run `work(folder)` unless the stage is there already; return its folder."""
        folder, part = self.path / name, self.path / f"{name}.part"
        if self.is_whole(name, key):
            seconds = json.loads((folder / "stage.json").read_text()).get("seconds", 0.0)
            self.timings.append({"name": name, "seconds": seconds, "reused": True})
            return folder
        began = time.monotonic()
        self.event("begin", stage=name, key=key)
        with full_disk(self.path):
            _prepare(part, key)
            work(part)
            seconds = round(time.monotonic() - began, 2)
            write_json(part / "stage.json", {"key": key, "seconds": seconds})
            (part / ".key").unlink()
            _replace(part, folder)
        self.timings.append({"name": name, "seconds": seconds, "reused": False})
        self.event("end", stage=name, seconds=seconds)
        return folder

    def forget(self, first: str) -> None:
        """Throw away stage `first` and all after it."""
        for name in STAGES[STAGES.index(first) :]:
            for folder in (self.path / name, self.path / f"{name}.part"):
                shutil.rmtree(folder, ignore_errors=True)


def _prepare(part: Path, key: str) -> None:
    """Keep an interrupted stage's folder if its inputs are the same, else start an empty one."""
    mark = part / ".key"
    if part.exists() and not (mark.exists() and mark.read_text() == key):
        shutil.rmtree(part)
    part.mkdir(parents=True, exist_ok=True)
    mark.write_text(key)


def _replace(part: Path, folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def full_disk(where: Path) -> Iterator[None]:
    """Turn 'no space left' and quota errors into RunError."""
    try:
        yield
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"the disk is full: {where}.", "Free some space and run the same command again; whole stages are kept."
            ) from cause
        raise


def _plain(value: Any) -> Any:
    """numpy numbers and arrays, tuples of dataclasses: as JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
