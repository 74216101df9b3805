"""A bundle on the device, with Python alone: read strictly, held against its SHA256SUMS and its signature, unpacked.

The archive has one spelling (edgeprune/release/archive.py writes it): each header is made again from its name and size
and must be equal, so links, devices, ways out of the folder and hidden bytes are refused without being parsed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import time
from typing import Any, Callable, Iterator

from .ed25519 import verify
from .wire import Failure

BLOCK, CHUNK = 512, 1 << 20
MAX_MEMBERS, MAX_BYTES, MAX_TEXT = 1000, 8 << 30, 16 << 20
ALIVE_S, SYNCED = 5.0, 16  # seconds between two words to the host; megabytes between two visits to the disk
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
LINE = re.compile(r"([0-9a-f]{64})  (\S+)\n")
SUMS, SIGNATURE = "SHA256SUMS", "SIGNATURE"
UNLISTED = (SUMS, SIGNATURE, "model.sig")  # what SHA256SUMS cannot list


class Bundle:
    """A bundle whose structure was read; `check` holds its files against their hashes."""

    def __init__(self, path: str, alive: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.path, self._alive, self._said = path, alive, time.monotonic()
        self.members = _members(path)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a member, a megabyte at a time."""
        start, size = self._member(name)
        with open(self.path, "rb") as stream:
            stream.seek(start)
            while size:
                data = stream.read(min(CHUNK, size))
                if not data:
                    raise Failure("bundle", "'%s' is cut off" % name)
                if self._alive and time.monotonic() > self._said + ALIVE_S:  # a slow card takes minutes
                    self._said = time.monotonic()
                    self._alive({"event": "alive"})
                size -= len(data)
                yield data

    def read(self, name: str) -> bytes:
        """All of a member that is a text."""
        if self._member(name)[1] > MAX_TEXT:
            raise Failure("bundle", "'%s' is larger than %d bytes" % (name, MAX_TEXT))
        return b"".join(self.chunks(name))

    def json(self, name: str) -> dict[str, Any]:
        """A member that is a JSON object."""
        try:
            found = json.loads(self.read(name).decode())
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Failure("bundle", "'%s' is damaged: not a JSON object" % name)
        return found

    def check(self) -> None:
        """Raise Failure unless every file is the one that SHA256SUMS lists, and none is there that it does not."""
        listed = sums(self.read(SUMS))
        for name in sorted(set(listed) ^ (set(self.members) - set(UNLISTED))):
            raise Failure("bundle", "'%s' is missing, or not listed in %s" % (name, SUMS))
        for name, wanted in listed.items():
            digest = hashlib.sha256()
            for data in self.chunks(name):
                digest.update(data)
            if digest.hexdigest() != wanted:
                raise Failure("bundle", "'%s' is damaged or altered: its sha256 is not the listed one" % name)

    def signer(self) -> bytes:
        """The public key (32 bytes) that signed its SHA256SUMS; empty where it is not signed; Failure where wrongly."""
        if SIGNATURE not in self.members:
            return b""
        fields = self.json(SIGNATURE)
        try:
            key, made = (base64.b64decode(fields[name], validate=True) for name in ("public_key", "signature"))
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise Failure("bundle", "'%s' is damaged or altered" % SIGNATURE) from None
        if fields.get("algorithm") != "ed25519" or not verify(key, made, self.read(SUMS)):
            raise Failure("bundle", "'%s' is not a signature of these files" % SIGNATURE)
        return key

    def unpack(self, folder: str) -> None:
        """Write all members below `folder`, which is new; each file and folder is brought to the disk."""
        os.mkdir(folder)
        folders = {folder}
        for name in self.members:
            path = os.path.join(folder, *name.split("/"))
            below = os.path.dirname(path)
            while not os.path.isdir(below):
                folders.add(below)
                below = os.path.dirname(below)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as stream:
                for number, data in enumerate(self.chunks(name), 1):
                    stream.write(data)
                    if number % SYNCED == 0:  # a little at a time: a slow card must not keep the host waiting
                        stream.flush()
                        os.fsync(stream.fileno())
                stream.flush()
                os.fsync(stream.fileno())
        for one in folders:
            sync(one)

    def _member(self, name: str) -> tuple[int, int]:
        if name not in self.members:
            raise Failure("bundle", "'%s' is missing" % name)
        return self.members[name]


def sums(data: bytes) -> dict[str, str]:
    """SHA256SUMS as name -> digest; Failure in any spelling but the one that is written."""
    text = data.decode("ascii", "replace")
    listed = {name: digest for digest, name in LINE.findall(text)}
    if not listed or text != "".join("%s  %s\n" % (listed[name], name) for name in sorted(listed)):
        raise Failure("bundle", "'%s' is damaged or altered" % SUMS)
    return listed


def sync(path: str) -> None:
    """Bring a folder's names, or a file, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _members(path: str) -> dict[str, tuple[int, int]]:
    """name -> (where its content starts, its size), in the order of the archive."""
    total, last = os.path.getsize(path), ""
    found = {}  # type: dict[str, tuple[int, int]]
    if total > MAX_BYTES:
        raise Failure("bundle", "%d bytes are more than a bundle may have" % total)
    with open(path, "rb") as stream:
        while True:
            block = stream.read(BLOCK)
            if block == bytes(BLOCK):
                break
            name, digits = block[:100].rstrip(b"\0").decode("ascii", "replace"), block[124:135]
            size = int(digits, 8) if re.fullmatch(rb"[0-7]{11}", digits) else -1
            if size < 0 or name <= last or not NAME.fullmatch(name) or block != _header(name, size):
                raise Failure("bundle", "damaged after '%s': no file's header as a bundle has it" % last)
            start = stream.tell()
            stream.seek(size, os.SEEK_CUR)
            padding = bytes(-size % BLOCK)
            if start + size > total or len(found) >= MAX_MEMBERS or stream.read(len(padding)) != padding:
                raise Failure("bundle", "'%s' is cut off, or bytes follow that belong to no file" % name)
            if any(name.startswith(other + "/") for other in found):
                raise Failure("bundle", "'%s' is a file's name and a folder's" % name)
            found[name], last = (start, size), name
        if stream.read(BLOCK + 1) != bytes(BLOCK) or not found:
            raise Failure("bundle", "damaged at the end, or not a bundle")
    return found


def _header(name: str, size: int) -> bytes:
    """A file's header in the form "ustar", with no owner and no time."""
    fields = (name.encode().ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % size,
              b"00000000000\0", b" " * 8, b"0", bytes(100), b"ustar\x0000", bytes(64 + 16 + 155 + 12))  # fmt: skip
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
