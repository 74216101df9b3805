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
    """The agent's folder: incoming/ (being sent), blobs/ (whole), outgoing/ (results), engines/, jobs/, live/ (whose).

    A living agent holds a lock on live/TAG, and what has its tag in its name is not pruned, whatever the clock says: a
    board without a clock of its own jumps by years when it finds the network's.
    """

    def __init__(self, home: str, tag: str = "") -> None:
        self.home = os.path.abspath(os.path.expanduser(home))
        for part in ("incoming", "blobs", "outgoing", "engines", "jobs", "live"):
            os.makedirs(os.path.join(self.home, part), mode=0o700, exist_ok=True)
        self._pinned = set()  # type: set[str]  # what the host spoke of last: it is about to be loaded
        self._tag, self._live = tag, -1
        if tag:
            self._live = os.open(self.path("live", tag), os.O_RDWR | os.O_CREAT, 0o600)
            with contextlib.suppress(OSError):  # an agent of the same tag is ending: it lives, and this says no more
                fcntl.flock(self._live, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.prune()

    def close(self) -> None:
        """Let go of what this agent held."""
        if self._live >= 0:
            os.close(self._live)
            self._live = -1

    def alive(self) -> list[str]:
        """Tags of the agents that live, this one's too; the marks of dead ones are removed."""
        found = [self._tag] if self._tag else []
        for path, _ in _entries(self.path("live")):
            tag = os.path.basename(path)
            if tag == self._tag:
                continue
            with contextlib.suppress(OSError), open(path) as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    found.append(tag)
                    continue
                if os.fstat(stream.fileno()).st_mtime < time.time() - 60:  # not one that is about to take its lock
                    _remove(path)
        return found

    def path(self, *parts: str) -> str:
        """A path inside the agent's folder."""
        return os.path.join(self.home, *parts)

    def missing(self, digests: list[str]) -> list[str]:
        """Which of these files are not here yet. They are kept until others are asked for."""
        self._pinned = set(digests)
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
        self._pinned.add(digest)
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
        """Delete the files used longest ago until the rest fits into `limit` bytes; leftovers of a day ago go too.

        Never what a living agent holds, what the host is about to load, or the file that was used last.
        """
        now, alive = time.time(), self.alive()
        others = [tag for tag in alive if tag != self._tag]
        for part in ("incoming", "outgoing", "jobs"):
            for path, status in _entries(self.path(part)):
                held = any(tag in os.path.basename(path) for tag in alive) or (part == "incoming" and others)
                if status.st_mtime < now - 86400 and not held:
                    _remove(path)
        kept = 0
        newest_first = sorted(_entries(self.path("blobs")), key=lambda item: -item[1].st_mtime)
        for index, (path, status) in enumerate(newest_first):
            kept += status.st_size
            fresh = others and abs(now - status.st_mtime) < 3600  # another agent may be about to load it
            if kept > limit and index and os.path.basename(path) not in self._pinned and not fresh:
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
