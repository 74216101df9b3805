"""Files on the device: content-addressed, checked by sha256, bounded; and the lock that lets one job time at once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from typing import Any, Iterator

from .wire import Failure

LIMIT_BYTES = 1 << 30  # what the store keeps between conversations


def sha256(path: str) -> str:
    """Digest of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class Store:
    """The agent's folder: incoming/ (being sent), blobs/ (whole), outgoing/ (results), engines/, jobs/."""

    def __init__(self, home: str) -> None:
        self.home = os.path.abspath(os.path.expanduser(home))
        for part in ("incoming", "blobs", "outgoing", "engines", "jobs"):
            os.makedirs(os.path.join(self.home, part), exist_ok=True)
        self.prune()

    def path(self, *parts: str) -> str:
        """A path inside the agent's folder."""
        return os.path.join(self.home, *parts)

    def missing(self, digests: list[str]) -> list[str]:
        """Which of these files are not here yet."""
        return [digest for digest in digests if not os.path.isfile(self.path("blobs", digest))]

    def adopt(self, name: str, digest: str) -> None:
        """Take a file that was sent as incoming/`name`, if it is what the host says; otherwise delete it."""
        incoming = self.path("incoming", os.path.basename(name))
        if not os.path.isfile(incoming):
            raise Failure("digest", "the file %s did not arrive" % digest[:12])
        found = sha256(incoming)
        if found != digest:
            os.remove(incoming)
            raise Failure(
                "digest", "sha256 of the file that arrived is %s..., sent was %s..." % (found[:12], digest[:12])
            )
        os.replace(incoming, self.path("blobs", digest))
        self.prune()

    def blob(self, digest: str) -> str:
        """Path of a whole file, checked again; raises Failure when it is missing or was changed."""
        path = self.path("blobs", os.path.basename(digest))
        if not os.path.isfile(path):
            raise Failure("digest", "no file with sha256 %s... on the device" % digest[:12])
        if sha256(path) != digest:
            os.remove(path)
            raise Failure("digest", "the file with sha256 %s... was altered on the device" % digest[:12])
        os.utime(path)
        return path

    def prune(self, limit: int = LIMIT_BYTES) -> None:
        """Delete the files used longest ago until the rest fits into `limit` bytes; leftovers of a day ago go too."""
        day_ago = time.time() - 86400
        for part in ("incoming", "outgoing", "jobs"):
            for path, status in _entries(self.path(part)):
                if status.st_mtime < day_ago:
                    _remove(path)
        kept = 0
        for path, status in sorted(_entries(self.path("blobs")), key=lambda item: -item[1].st_mtime):
            kept += status.st_size
            if kept > limit:
                _remove(path)

    @contextlib.contextmanager
    def lock(self, wait_s: float, exclusive: bool, who: str) -> Iterator[None]:
        """Hold the device for one job; raises Failure("busy") naming the holder after `wait_s` seconds."""
        with open(self.path("lock"), "a+") as stream:
            deadline = time.monotonic() + wait_s
            while True:
                try:
                    fcntl.flock(stream, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        stream.seek(0)
                        holder = stream.read().strip() or "another job"
                        raise Failure("busy", "the device is held by %s" % holder) from None
                    time.sleep(0.05)
            if exclusive:
                stream.truncate(0)
                stream.write("%s since %s" % (who, time.strftime("%H:%M:%S")))
                stream.flush()
            try:
                yield
            finally:
                if exclusive:
                    stream.truncate(0)
                fcntl.flock(stream, fcntl.LOCK_UN)


def write_whole(path: str, data: Any) -> None:
    """Write JSON so that it appears whole or not at all."""
    part = "%s.%d.part" % (path, os.getpid())
    try:
        with open(part, "w") as stream:
            json.dump(data, stream)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise


def _entries(folder: str) -> list[tuple[str, os.stat_result]]:
    """Paths in a folder; what another agent deletes meanwhile is left out."""
    found = []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            found.append((os.path.join(folder, name), os.lstat(os.path.join(folder, name))))
    return found


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.remove(path)
