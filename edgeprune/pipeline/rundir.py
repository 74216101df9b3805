"""The run directory: one folder a stage, whole or not there, with the hash of all that it depends on.

A stage works in `NAME.part`, is brought to the disk, and is renamed when it is whole. A killed run finds its part again
when the key is the same, so that a stage with checkpoints goes on from them; a stage whose key changed starts afresh.

`stage.json` seals the stage: its key, the sha256 of every file in it, and of what the stages before it held. All of it
is checked, once a command, before the stage is used again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune import files
from edgeprune.errors import EdgepruneError, RunError
from edgeprune.stage import NAMES, PIPELINE, named

SEAL, KEY = "stage.json", ".key"
SCRATCH = frozenset({"checkpoint.pt"})  # kept until the stage is whole
CLAIMS = ("result.json", "report.html", "release")  # what a run says of itself when it ends
EARLIER = "earlier"  # where they go when it no longer holds


def key_of(*parts: Any) -> str:
    """sha256 over plain data, independent of the order of keys."""
    return files.sha256(json.dumps(parts, sort_keys=True, default=str).encode())


def write_json(path: Path, data: Any) -> None:
    """Write `data` to `path`, whole or not at all."""
    files.write_json(path, data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    files.write_text(path, text)


def read_json(path: Path) -> Any:
    """Read what write_json wrote; raises RunError when it is missing or damaged."""
    missing = "The run is incomplete; run the same command again."
    return files.read_json(path, RunError, "Delete its folder and run the same command again.", missing=missing)


@dataclass(frozen=True)
class StageState:
    """A stage as it lies there: whole, or not, and where its inputs are the same all the same, what is wrong."""

    whole: bool
    fault: str = ""


class RunDirectory:
    """A run's folder, held by one process at a time; a context manager.

    Args:
        option: what names another folder, for errors.

    Raises:
        RunError: another process holds it, or it cannot be written.
    """

    def __init__(self, path: Path, option: str = "--run-dir") -> None:
        self.path, self.option = path, option
        self._lock = -1
        self._states: dict[tuple[str, str], StageState] = {}
        self.timings: list[dict[str, object]] = []

    def __enter__(self) -> RunDirectory:
        with full_disk(self.path):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock = _take(self.path / ".lock")
            except (PermissionError, NotADirectoryError, FileExistsError) as cause:
                raise RunError(
                    f"{self.path} cannot be written: {cause.strerror}.", f"Choose another {self.option}."
                ) from None
        if self._lock < 0:
            raise RunError(
                f"{self.path} is in use by another edgeprune.", f"Wait for it, or choose another {self.option}."
            )
        files.sweep(self.path)
        for name in NAMES:
            files.remove(self.path / f"{name}.old")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EdgepruneError) and self._lock >= 0:
            with contextlib.suppress(RunError, OSError):
                self.event("stopped", error=type(error).__name__, message=error.message)
        # The file stays: who waits for it has it open, and would hold the lock of a file that no one else sees.
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def folder(self, stage: str) -> Path:
        """The folder of a whole stage."""
        return self.path / stage

    def event(self, kind: str, /, **data: Any) -> None:
        """Append a line to events.jsonl."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **data}, default=str) + "\n"
        with full_disk(self.path), os.fdopen(_open(self.path / "events.jsonl", os.O_WRONLY | os.O_APPEND), "a") as log:
            log.write(line)

    def state(self, name: str, key: str) -> StageState:
        """Is the stage there, made from exactly these inputs, and with every byte as it was written?"""
        if (name, key) not in self._states:
            self._states[name, key] = self._look(self.path / name, key)
        found = self._states[name, key]
        if not found.whole:
            return found
        held = _sealed(self.path / name)
        changed = [need for need, digest in held["inputs"].items() if self._digest(need) != digest]
        return StageState(False, f"it was made from another {changed[0]}/") if changed else found

    def is_whole(self, name: str, key: str) -> bool:
        """Is the stage there, made from exactly these inputs, and undamaged?"""
        return self.state(name, key).whole

    def check(self, keys: Mapping[str, str], wanted: Iterable[str]) -> None:
        """Before anything is redone: refuse where healing a fault would throw away a training; nothing is touched.

        Raises:
            RunError: the message names the file, and what to do.
        """
        if not (self.path / "recover").is_dir() or self._look_key("recover") not in (keys["recover"], ""):
            return
        for stage in PIPELINE:
            name = stage.name
            fault = self.state(name, keys[name]).fault if stage.trained and name in wanted else ""
            if fault:
                raise RunError(
                    f"{self.path / name} is not as the run left it: {fault}. What was trained there is not used, and "
                    "not trained again unasked.",
                    f"Put the file back as it was; or start over from there with --from {stage.step}."
                    + (" To go on with weights of your own, give them as --weights FILE." if name == "recover" else ""),
                )

    def stage(self, name: str, key: str, work: Callable[[Path], None]) -> Path:
        """Run `work(folder)` unless the stage is there already; return its folder."""
        folder, part = self.path / name, self.path / f"{name}.part"
        with full_disk(self.path):
            if not self.is_whole(name, key) and self._look(part, key).whole and self._fits(part):
                self._give_name(part, folder)  # killed when all was done but the name
        if self.is_whole(name, key):
            seconds = _sealed(folder)["seconds"]
            self.timings.append({"name": name, "seconds": seconds, "reused": True})
            return folder
        began = time.monotonic()
        self.event("begin", stage=name, key=key)
        with full_disk(self.path):
            _prepare(part, key)
            work(part)
            seconds = round(time.monotonic() - began, 2)
            reads = named(name).reads if name in NAMES else ()
            inputs = {need: self._digest(need) for need in reads}
            _seal(part, key, seconds, inputs)
            self._give_name(part, folder)
        self._states[name, key] = StageState(True)
        self.timings.append({"name": name, "seconds": seconds, "reused": False})
        self.event("end", stage=name, seconds=seconds)
        return folder

    def adopt(self, name: str, key: str, others: Iterable[Path]) -> Path | None:
        """Take a stage over from another run's folder, where it is whole there and made from exactly these inputs.

        Returns:
            whose it was; None where the stage is here already, or nobody has it.
        """
        part = self.path / f"{name}.part"
        if self.is_whole(name, key):
            return None
        for other in others:
            there = other / name
            if other == self.path or not self._look(there, key).whole or not self._fits(there):
                continue
            with full_disk(self.path):
                files.remove(part)
                try:
                    shutil.copytree(there, part, symlinks=True)
                except (OSError, shutil.Error):  # it is being made anew there
                    files.remove(part)
                    continue
                if self._look(part, key).whole:
                    for path in part.rglob("*"):
                        files.sync(path)
                    self._give_name(part, self.path / name)
                    self.event("adopted", stage=name, run=str(other))
                    return other
                files.remove(part)
        return None

    def forget(self, first: str) -> None:
        """Throw away stage `first` and all after it."""
        for name in NAMES[NAMES.index(first) :]:
            for folder in (self.path / name, self.path / f"{name}.part"):
                files.remove(folder)
        self._states.clear()
        self.withdraw()

    def withdraw(self) -> list[str]:
        """Move away what an earlier run claimed: result.json, report.html, release/. Return what there was."""
        there = [name for name in CLAIMS if os.path.lexists(self.path / name)]
        if there:
            with full_disk(self.path):
                files.remove(self.path / EARLIER)
                (self.path / EARLIER).mkdir()
                files.move([self.path / name for name in there], self.path / EARLIER)
        return there

    def hashes(self, name: str) -> dict[str, str]:
        """NAME/FILE -> sha256 of every file of a whole stage, as it was sealed."""
        return {f"{name}/{file}": entry["sha256"] for file, entry in _sealed(self.path / name)["files"].items()}

    def _look(self, folder: Path, key: str) -> StageState:
        """The state of a stage's own files."""
        if folder.is_symlink() or not folder.is_dir():
            return StageState(False, "it is not a folder" if os.path.lexists(folder) else "")
        try:
            held = _sealed(folder)
        except RunError as cause:
            return StageState(False, "" if folder.suffix == ".part" else cause.message.removesuffix("."))
        if held["key"] != key:
            return StageState(False)
        try:
            return StageState(True) if not (fault := _fault(folder, held["files"])) else StageState(False, fault)
        except OSError as cause:
            return StageState(False, f"{cause.filename or folder} cannot be read ({cause.strerror})")

    def _look_key(self, name: str) -> str:
        try:
            return str(_sealed(self.path / name)["key"])
        except RunError:
            return ""

    def _digest(self, name: str) -> str:
        """One hash for all files of a stage, or for what it decides; empty where it is not there."""
        decides = named(name).decides if name in NAMES else ""
        try:
            sealed = _sealed(self.path / name)["files"]
            return key_of(sealed.get(decides) if decides else sealed)
        except RunError:
            return ""

    def _fits(self, part: Path) -> bool:
        return all(self._digest(need) == digest for need, digest in _sealed(part)["inputs"].items())

    def _give_name(self, part: Path, folder: Path) -> None:
        for name in (KEY, *SCRATCH):
            (part / name).unlink(missing_ok=True)
        files.settle_folder(part, folder)
        self._states = {known: state for known, state in self._states.items() if known[0] != folder.name}


def _seal(part: Path, key: str, seconds: float, inputs: dict[str, str]) -> None:
    """Bring all to the disk, then write stage.json: whoever finds it finds what it lists."""
    listed: dict[str, dict[str, object]] = {}
    for path in sorted(part.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if files.is_partial(path.name):
            path.unlink()
            continue
        files.sync(path)
        if path.parent != part or path.name not in {SEAL, KEY, *SCRATCH}:
            name = path.relative_to(part).as_posix()
            listed[name] = {"sha256": files.sha256(path), "bytes": path.stat().st_size}
    for folder in sorted((path for path in part.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True):
        files.sync(folder)
    files.sync(part)
    held = {"key": key, "seconds": seconds, "inputs": inputs, "files": listed}
    write_json(part / SEAL, {**held, "seal": key_of(held)})


def holds(folder: Path) -> bool:
    """Is this the folder of a whole stage, with every byte as it was written?"""
    try:
        return not _fault(folder, _sealed(folder)["files"])
    except (RunError, OSError):
        return False


def _sealed(folder: Path) -> dict[str, Any]:
    """stage.json, checked against its own seal; raises RunError when it is missing or damaged."""
    path = folder / SEAL
    remedy = "Delete its folder and run the same command again."
    raw = files.read(path, RunError, remedy)
    data = files.parse_json(raw, RunError, str(path), remedy)
    if isinstance(data, dict) and isinstance(data.get("key"), str) and "seal" not in data:
        return {"key": "", "seconds": 0.0, "inputs": {}, "files": {}}  # of a version before the seal
    if isinstance(data, dict) and not path.is_symlink() and raw == f"{json.dumps(data, indent=1)}\n".encode():
        seal = data.pop("seal", None)
        if seal == key_of(data) and {"key", "seconds", "inputs", "files"} <= data.keys():
            return data
    raise RunError(f"{path} is damaged.", remedy)


def _fault(folder: Path, listed: Mapping[str, Mapping[str, object]]) -> str:
    """What differs from the list: a file that is missing, changed or added; empty: nothing."""
    present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not files.is_folder(path)}
    for name in (SEAL, KEY, *SCRATCH):
        present.pop(name, None)
    for name, entry in listed.items():
        path = present.pop(name, None)
        if path is None:
            return f"{name} is missing"
        if path.is_symlink() or path.lstat().st_size != entry["bytes"] or files.sha256(path) != entry["sha256"]:
            return f"{name} has been changed"
    strange = [name for name in sorted(present) if not files.is_partial(Path(name).name)]
    return f"{strange[0]} has been added" if strange else ""


def _prepare(part: Path, key: str) -> None:
    """Keep an interrupted stage's folder if its inputs are the same, else start an empty one."""
    mark = part / KEY
    same = False
    if files.is_folder(part):
        with contextlib.suppress(RunError):
            same = not mark.is_symlink() and files.read(mark, RunError, limit=4096) == key.encode()
    if not same:
        files.remove(part)
    part.mkdir(exist_ok=True)
    (part / SEAL).unlink(missing_ok=True)
    files.sweep(part)
    write_text(mark, key)


def _open(path: Path, flags: int) -> int:
    """Open a plain file, made where it is missing; raises RunError where something else lies there."""
    try:
        handle = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as cause:
        if cause.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise RunError(f"{path} is not a plain file.", "Remove it, or choose another --run-dir.") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise RunError(f"{path} is not a plain file.", "Remove it, or choose another --run-dir.")
    return handle


def _take(path: Path) -> int:
    """The handle that holds the lock, or -1 where another process does."""
    while True:
        handle = _open(path, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return -1
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.lstat(), os.fstat(handle)):
                return handle
        os.close(handle)  # somebody deleted the file in between


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
