"""The container of a bundle: an uncompressed tar archive with exactly one spelling.

Names are sorted; times, owners and permissions are fixed; nothing but plain files is in it. So the same files give the
same bytes on every machine, any `tar` unpacks it, and no compressor's version matters (INT8 weights hardly shrink).

Reading is strict: each header is made again from its name and size and must be equal byte for byte. Links, devices,
sparse files, path traversal, hidden data between members and anything behind the end are therefore refused without
being parsed, and a flipped byte is found wherever it is.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from edgeprune import files
from edgeprune.errors import BundleError

BLOCK = 512
CHUNK = 1 << 20
END = bytes(2 * BLOCK)
MAX_MEMBERS = 1_000
MAX_BYTES = 8 << 30  # of one bundle
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
T = TypeVar("T")
DAMAGED = "Fetch it again from where it was made; what is damaged cannot be trusted."


@dataclass(frozen=True)
class ArchiveMember:
    """One file in an archive: where its content starts, and its size, in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Archive:
    """A bundle that has been read strictly; its contents are not checked yet."""

    path: Path
    members: Mapping[str, ArchiveMember]

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a member, a megabyte at a time; raises BundleError."""
        member = self.member(name)
        with self.path.open("rb") as stream:
            stream.seek(member.offset)
            left = member.size
            while left:
                data = stream.read(min(CHUNK, left))
                if not data:
                    raise BundleError(f"{self.path}: '{name}' is cut off.", DAMAGED)
                left -= len(data)
                yield data

    def member(self, name: str) -> ArchiveMember:
        """Raises BundleError when there is none of that name."""
        if name not in self.members:
            raise BundleError(f"{self.path}: '{name}' is missing.", DAMAGED)
        return self.members[name]

    def read(self, name: str, limit: int = 64 << 20) -> bytes:
        """The whole content of a member of at most `limit` bytes."""
        if self.member(name).size > limit:
            raise BundleError(f"{self.path}: '{name}' is larger than {limit:,} bytes.", DAMAGED)
        return b"".join(self.chunks(name))

    def struct(self, name: str, kind: type[T], limit: int, what: str) -> T:
        """A member of JSON as `kind` has it; raises BundleError, which calls it no `what`."""
        raw = files.parse_json(self.read(name, limit), BundleError, f"{self.path}: '{name}'", DAMAGED)
        try:
            return msgspec.convert(raw, kind)
        except (msgspec.ValidationError, ValueError, TypeError, OverflowError) as cause:
            raise BundleError(f"{self.path}: '{name}' is no {what} ({str(cause)[:300]}).", DAMAGED) from None

    def sha256(self, name: str) -> str:
        """The sha256 of a member's content."""
        return files.sha256(self.chunks(name))

    def extract(self, names: Iterator[str] | list[str], folder: Path) -> dict[str, Path]:
        """Write members under `folder`; their names were checked when the archive was read."""
        written = {}
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                for data in self.chunks(name):
                    stream.write(data)
            written[name] = path
        return written


def write(path: Path, members: Mapping[str, bytes | Path]) -> Path:
    """Write an archive at `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as partial, partial.open("wb") as stream:
        partial.chmod(0o644)
        for name in sorted(members):
            _write_member(stream, name, members[name])
        stream.write(END)
    return path


def _write_member(stream: BinaryIO, name: str, content: bytes | Path) -> None:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if not NAME.fullmatch(name):
        raise BundleError(f"'{name}' cannot be a file's name in a bundle.", "Use letters, digits and ._+- only.")
    stream.write(_header(name, size))
    if isinstance(content, bytes):
        stream.write(content)
    else:
        with content.open("rb") as source:
            copied = 0
            while data := source.read(CHUNK):
                stream.write(data)
                copied += len(data)
        if copied != size:
            raise BundleError(f"{content} changed while it was bundled.", "Repeat the step; let nothing write there.")
    stream.write(bytes(-size % BLOCK))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except (ValueError, UnicodeEncodeError):
        raise BundleError(f"'{name}' cannot be a file in a bundle: name too long, or file too large.") from None


def read(path: Path) -> Archive:
    """Read an archive's structure; raises BundleError that names the member where it is not as `write` makes it."""
    try:
        total = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path}: no such bundle.", "A run that passes leaves one in its release folder.") from None
    if not path.is_file():
        raise BundleError(f"{path} is not a file.", "Give the .tar file, not the folder it is in.")
    if total > MAX_BYTES:
        raise BundleError(f"{path}: {total:,} bytes is more than a bundle may have ({MAX_BYTES:,}).")
    members: dict[str, ArchiveMember] = {}
    with path.open("rb") as stream:
        last = ""
        while True:
            after = f" after '{last}'" if last else ""
            block = stream.read(BLOCK)
            if block == bytes(BLOCK):
                break
            member = _member(block, stream.tell(), f"{path}: damaged{after}", last)
            if member.offset + member.size > total or len(members) >= MAX_MEMBERS:
                raise BundleError(f"{path}: '{member.name}' is cut off.", DAMAGED)
            stream.seek(member.size, os.SEEK_CUR)
            padding = stream.read(-member.size % BLOCK)
            if padding != bytes(-member.size % BLOCK):
                raise BundleError(f"{path}: damaged after '{member.name}': bytes that belong to no file.", DAMAGED)
            members[member.name] = member
            last = member.name
        if stream.read(BLOCK + 1) != bytes(BLOCK) or not members:
            raise BundleError(f"{path}: damaged at the end{after}, or not a bundle.", DAMAGED)
    return Archive(path, members)


def _member(block: bytes, offset: int, where: str, last: str) -> ArchiveMember:
    """Parse a header's name and size, and insist that the rest is what they imply."""
    name = block[:100].rstrip(b"\0").decode("ascii", "replace")
    digits = block[124:135]
    if len(block) < BLOCK or not NAME.fullmatch(name) or not re.fullmatch(rb"[0-7]{11}", digits) or name <= last:
        raise BundleError(f"{where}: no file's header as a bundle has it.", DAMAGED)
    size = int(digits, 8)
    if block != _header(name, size):
        raise BundleError(f"{where}: the header of '{name}' was altered.", DAMAGED)
    return ArchiveMember(name, offset, size)
