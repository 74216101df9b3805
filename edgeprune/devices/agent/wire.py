"""The conversation: one JSON object a line, each with the protocol's version.

    host to agent   {"protocol": 1, "id": 7, "op": "measure", "key": "...", "timeout_s": 600, ...}
    agent to host   {"protocol": 1, "id": 7, "ok": true, "result": {...}}
                    {"protocol": 1, "id": 7, "ok": false, "error": {"kind": "timeout", "message": "...", "rc": 124}}
                    {"protocol": 1, "id": 7, "event": "alive"}            while a job runs, every few seconds

Kinds of error: timeout, illegal-instruction, out-of-memory, crash, digest, disk-full, busy, missing-runtime,
wrong-runtime, unknown-artifact, protocol, runtime (the runtime's own complaint), bug; of a release: bundle, unsigned,
selftest, release.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import IO, Any

PROTOCOL = 1


class Failure(Exception):
    """A job that ended badly, as the host will hear of it."""

    def __init__(self, kind: str, message: str, rc: int = 1) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.rc = rc

    def to_dict(self) -> dict[str, Any]:
        """The error as it goes over the wire."""
        return {"kind": self.kind, "message": self.message, "rc": self.rc}


def encode(message: dict[str, Any]) -> bytes:
    """One line, version included."""
    return json.dumps(dict(message, protocol=PROTOCOL), separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Read one line; raises Failure when it is not ours or of another version."""
    try:
        message = json.loads(line.decode())
    except ValueError:
        raise Failure("protocol", "not a JSON line: %r" % line[:80]) from None
    if not isinstance(message, dict) or message.get("protocol") != PROTOCOL:
        spoken = message.get("protocol") if isinstance(message, dict) else None
        raise Failure("protocol", "the host speaks protocol %r, this agent %d" % (spoken, PROTOCOL))
    return message


def private_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output for the conversation alone.

    What a native library prints to file descriptor 1 goes to standard error instead.
    """
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return incoming, outgoing


def failure_from(error: BaseException) -> Failure:
    """Put an exception of the job into the protocol's words."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure("disk-full", "no space left on the device (%s)" % (error.filename or "agent's folder"), 28)
    text = "%s: %s" % (type(error).__name__, error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return Failure("out-of-memory", "the device has not enough memory: %s" % text[:300], 137)
    return Failure("runtime", text[:2000])
