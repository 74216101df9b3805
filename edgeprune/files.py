"""The one file layer: writing whole or not at all, reading with limits, hashing.

A file is written beside its place under a name that no one else has, brought to the disk, and renamed; its folder is
brought to the disk too. So a reader finds the old file or the new one, after a kill and after a power cut. What a
killed process left is cleaned up by whoever writes that file next: a living writer holds a lock on its partial file.

Reading is bounded: size, nesting, digits. Whatever is wrong with a file is raised as the caller's own kind of error.
`devices/agent` has its own: it runs alone, on devices where edgeprune is not installed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgeprune.errors import EdgepruneError

LIMIT = 256 << 20  # bytes of a JSON file
TOML_LIMIT = 1 << 20  # bytes of a TOML file
DEPTH = 100  # of lists and objects inside each other
_TRIES = 100
_PARTIAL = re.compile(r"\..*\.[0-9a-f]{12}\.part(\..*)?", re.DOTALL)
_STEM = 100  # bytes of a partial file's name that tell whose it is; file systems allow 255


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A partial file to write; at the end of the block it takes the place of `path`, whole and on the disk.

    The partial file has the suffix of `path`, for writers that go by it. Where the block raises, nothing is left and
    `path` is as it was. A symbolic link at `path` is replaced, never followed.

    Args:
        mode: permissions, less the umask.

    Raises:
        OSError: the folder is missing, the disk is full, no permission, ...
    """
    _sweep(path.parent, f"{_prefix(path)}.")
    partial, lock = _partial(path, mode)
    try:
        yield partial
        settle(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        os.close(lock)


def settle(written: Path, path: Path) -> None:
    """Bring a written file to the disk and rename it to `path`, in the same folder."""
    sync(written)
    written.replace(path)
    sync(path.parent)


def settle_folder(written: Path, path: Path) -> None:
    """Bring a written folder's list to the disk and rename it to `path`; what lay there is out of the way first.

    A process that is killed in between leaves the old one as `NAME.old`. Raises OSError.
    """
    sync(written)
    old = path.with_name(f"{path.name}.old")
    remove(old)
    if os.path.lexists(path):
        path.rename(old)
    written.rename(path)
    sync(path.parent)
    remove(old)


def move(paths: Iterable[Path], folder: Path) -> None:
    """Move files and folders, all of one folder, into another of the same file system; raises OSError."""
    for path in paths:
        path.rename(folder / path.name)
        sync(path.parent)


def remove(path: Path) -> None:
    """Delete a file, a folder or a link, never what a link leads to; nothing happens where nothing is."""
    if is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_folder(path: Path) -> bool:
    """Is this a folder, and no link to one?"""
    return path.is_dir() and not path.is_symlink()


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file whole or not at all; raises OSError."""
    with replacing(path, mode) as partial, partial.open("wb") as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; raises OSError."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any, indent: int | None = 1) -> None:
    """Write JSON, whole or not at all; numbers and arrays of numpy, paths and sets are made plain. Raises OSError."""
    write_text(path, json.dumps(data, indent=indent, default=plain) + "\n")


def plain(value: Any) -> Any:
    """What json.dumps cannot write by itself: numbers and arrays of numpy, paths, sets."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def read(path: Path, error: type[EdgepruneError], remedy: str = "", limit: int = LIMIT, missing: str = "") -> bytes:
    """The content of a plain file of at most `limit` bytes.

    Args:
        error: raised where it is missing, is no plain file (a pipe would block), is too large, or cannot be read.
        remedy: what the error says to do.
        missing: the same, where there is no such file; empty: `remedy`.
    """
    try:
        with _plain_file(path) as stream:
            data = stream.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path}: no such file.", missing or remedy) from None
    except (OSError, ValueError) as cause:  # ValueError: a NUL in the path
        raise error(f"{path}: cannot be read ({reason(cause)}).", remedy) from None
    if len(data) > limit:
        raise error(f"{path}: larger than {limit:,} bytes.", remedy)
    return data


def read_json(path: Path, error: type[EdgepruneError], remedy: str = "", limit: int = LIMIT, missing: str = "") -> Any:
    """A JSON file as plain data; raises `error` (see `read`) where it is not JSON or is nested too deeply."""
    return parse_json(read(path, error, remedy, limit, missing), error, str(path), remedy)


def parse_json(data: bytes | str, error: type[EdgepruneError], where: str, remedy: str = "") -> Any:
    """JSON text as plain data; `where` names its origin in the error."""
    try:
        found = json.loads(data if isinstance(data, str) else data.decode("utf-8"))
    except (ValueError, RecursionError) as cause:  # ValueError: also not UTF-8, or a number of thousands of digits
        raise error(f"{where}: not valid JSON ({reason(cause)}).", remedy) from None
    return _shallow(found, error, where, remedy)


def read_toml(path: Path, error: type[EdgepruneError], remedy: str = "", missing: str = "") -> dict[str, object]:
    """A TOML file as plain data; raises `error` (see `read`) where it is not TOML or is nested too deeply."""
    return parse_toml(read(path, error, remedy, TOML_LIMIT, missing), error, str(path), remedy)


def parse_toml(data: bytes, error: type[EdgepruneError], where: str, remedy: str = "") -> dict[str, object]:
    """TOML text as plain data; `where` names its origin in the error."""
    import tomllib

    try:
        found = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as cause:
        raise error(f"{where}: not valid TOML: {reason(cause)}.", remedy) from None
    _shallow(found, error, where, remedy)
    return found


def sha256(content: Path | bytes | Iterable[bytes]) -> str:
    """The sha256 of a file, of bytes, or of pieces that follow each other, in hexadecimal; raises OSError."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    if isinstance(content, Path):
        with _plain_file(content) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Bring a file or a folder to the disk; raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as cause:
        if cause.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without: nothing more can be done
            raise
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Delete the partial files that killed writers left in `folder`."""
    _sweep(folder, ".")


def is_partial(name: str) -> bool:
    """Is this the name of a partial file of `replacing`?"""
    return bool(_PARTIAL.fullmatch(name))


def reason(cause: BaseException) -> str:
    """Why a file cannot be read or written, in a few words."""
    if isinstance(cause, RecursionError):
        return "nested too deeply"
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    text = str(cause)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _plain_file(path: Path) -> io.BufferedReader:
    """Open for reading; OSError where it is a folder, a pipe or a device, which is never waited for."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        os.close(handle)
        code = errno.EISDIR if is_folder else errno.EINVAL
        raise OSError(code, os.strerror(code) if is_folder else "not a plain file", str(path))
    return os.fdopen(handle, "rb")


def _prefix(path: Path) -> str:
    return "." + os.fsdecode(os.fsencode(path.stem)[:_STEM])


def _partial(path: Path, mode: int) -> tuple[Path, int]:
    """A new file beside `path`, and a handle that holds its lock."""
    for _ in range(_TRIES):
        partial = path.with_name(f"{_prefix(path)}.{os.urandom(6).hex()}.part{path.suffix[:_STEM]}")
        with contextlib.suppress(FileExistsError):
            handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            if _lock(handle) and _same(handle, partial):  # not swept away in between
                return partial, handle
            os.close(handle)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _lock(handle: int) -> bool:
    """Take a file's lock without waiting; a file system without locks counts as taken."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as cause:
        return cause.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
    return True


def _same(handle: int, path: Path) -> bool:
    """Does `path` still name the open file?"""
    try:
        there, mine = path.lstat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _sweep(folder: Path, prefix: str) -> None:
    """Delete partial files whose writers are gone; what cannot be opened or deleted is left."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name.startswith(prefix) and is_partial(path.name):
                with contextlib.suppress(OSError):
                    _sweep_one(path)


def _sweep_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: its writer lives
            path.unlink()
    finally:
        os.close(handle)


def _shallow(data: Any, error: type[EdgepruneError], where: str, remedy: str) -> Any:
    """`data` itself; raises `error` where it is nested more than DEPTH deep."""
    level = [data]
    for _ in range(DEPTH + 1):
        level = [item for one in level for item in _items(one) if isinstance(item, dict | list)]
        if not level:
            return data
    raise error(f"{where}: nested too deeply (more than {DEPTH} levels).", remedy)


def _items(data: Any) -> Iterable[Any]:
    return data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
