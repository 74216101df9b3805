"""The conversation with an agent: questions, answers, heartbeats, and what each failure means to the user."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Any

from edgeprune.devices.agent.wire import PROTOCOL
from edgeprune.errors import (
    DeviceBusy,
    DeviceError,
    DeviceUnreachable,
    EdgepruneError,
    InputError,
    JobFailed,
)


class LinkLost(DeviceUnreachable):
    """The way to the device broke, or the agent ended."""


class AgentError(JobFailed):
    """What the agent answered; `kind` as in the protocol."""

    def __init__(self, kind: str, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.kind = kind


class Link:
    """One agent process and its two pipes."""

    def __init__(self, start: Callable[[IO[bytes]], subprocess.Popen[bytes]], where: str, silence_s: float) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._where, self._silence_s = where, silence_s
        try:
            self._process = start(self._errors)
        except BaseException:
            self._errors.close()
            raise
        self._answers: queue.Queue[bytes] = queue.Queue()
        self._next = 0
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises LinkLost when the agent is gone, AgentError (or DeviceBusy) when the job failed.
        """
        number = self.tell({**message, "timeout_s": timeout_s})
        while True:
            try:
                answer = self._answers.get(timeout=self._silence_s)
            except queue.Empty:
                raise LinkLost(
                    f"{self._where}: silent for {self._silence_s:.0f} s.",
                    "Is it switched on and connected? If it is only slow: EDGEPRUNE_SILENCE=300 (seconds).",
                ) from None
            if not answer:
                raise self._lost()
            reply = self._parse(answer)
            if reply.get("id") == number and "ok" in reply:
                if reply["ok"]:
                    return dict(reply["result"])
                raise explain(reply["error"], self._where)

    def tell(self, message: dict[str, Any]) -> int:
        """Send one request without waiting for its answer; returns its number."""
        self._next += 1
        line = json.dumps({**message, "protocol": PROTOCOL, "id": self._next}).encode() + b"\n"
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError:
            raise self._lost() from None
        return self._next

    def close(self) -> None:
        """End the conversation; the agent ends with it, unless it is a detached one."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self._answers.put(line)
        self._answers.put(b"")

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict) or reply.get("protocol") != PROTOCOL:
            raise DeviceError(
                f"{self._where}: what answers there is not an agent of this version: {line[:120]!r}.",
                "Does a login script there print something? It must not, in a non-interactive shell.",
            )
        return reply

    def _lost(self) -> LinkLost:
        """The agent's or ssh's own last words."""
        try:
            code: int | None = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()[-3:]
        said = f": {' / '.join(words)}" if words else ""
        return LinkLost(f"{self._where}: the link to the agent ended (exit code {code}){said}.")


REMEDIES = {
    "timeout": "Make the job smaller, or raise EDGEPRUNE_JOB_TIMEOUT (seconds).",
    "illegal-instruction": "Install another version of the runtime on the device; its wheel was built for a newer CPU.",
    "out-of-memory": "Close other programs on the device, or choose a smaller network or input.",
    "crash": "Run it again; if it repeats, try another version of the runtime on the device.",
    "digest": "Run it again; if it repeats, check the device's disk and cable.",
    "disk-full": "Free space on the device; the agent's folder is ~/.cache/edgeprune there.",
    "missing-runtime": "edgeprune doctor prints the command that installs it.",
    "busy": "Wait until it is free, or stop the other job.",
}


def explain(error: dict[str, Any], where: str) -> EdgepruneError:
    """The agent's failure as one of our errors, with what to do."""
    kind, message = str(error["kind"]), f"{where}: {error['message']}."
    remedy = REMEDIES.get(kind, "")
    if kind == "busy":
        return DeviceBusy(message, remedy)
    if kind == "input":
        return InputError(message, remedy)
    return AgentError(kind, message, remedy)
