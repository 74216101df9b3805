"""The conversation with an agent: questions, answers, heartbeats, and what each failure means to the user."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from edgeprune.devices import answers
from edgeprune.devices.agent.wire import PROTOCOL
from edgeprune.errors import (
    BundleError,
    DeviceBusy,
    DeviceError,
    DeviceUnreachable,
    EdgepruneError,
    GateError,
    InputError,
    JobFailed,
    NotAuthenticated,
    UsageError,
)


class LinkLost(DeviceUnreachable):
    """The way to the device broke, or the agent ended."""


class AgentError(JobFailed):
    """What the agent answered; `kind` as in the protocol."""

    def __init__(self, kind: str, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.kind = kind


class Overdue(AgentError):
    """The agent says that it is alive, and does not answer."""


SLACK_S = 60.0  # beyond a job's own time limit, which the agent keeps by itself
GREETING_S = 300.0  # importing a runtime takes ten seconds on a loaded, emulated machine
LAST_WORDS = 1 << 16  # bytes of what the agent, or ssh, said on standard error
WAITING = 1024  # lines that nobody has read yet


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
        self._answers: queue.Queue[bytes] = queue.Queue(WAITING)
        self._next, self._closed = 0, False
        self._open = set[int]()  # questions without an answer
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises LinkLost when the agent is gone, AgentError (or DeviceBusy) when the job failed, Overdue when it takes
        longer than it may although the agent says that it is alive, DeviceError when the answer is none.
        """
        number = self.tell({**message, "timeout_s": timeout_s})
        may_s = max(timeout_s, GREETING_S if message.get("op") == "hello" else 0.0) + message.get("lock_wait_s", 0.0)
        overdue = time.monotonic() + may_s + (self._silence_s if self._silence_s <= 3600 else SLACK_S)
        while True:
            left = overdue - time.monotonic()
            if left <= 0:
                raise Overdue(
                    "timeout", f"{self._where}: no answer in {may_s:.0f} s, though it is alive.", REMEDIES["timeout"]
                )
            try:
                answer = self._answers.get(timeout=min(self._silence_s, left))
            except queue.Empty:
                if left < self._silence_s:
                    continue
                raise LinkLost(
                    f"{self._where}: silent for {self._silence_s:.0f} s.",
                    "Is it switched on and connected? If it is only slow: EDGEPRUNE_SILENCE=300 (seconds).",
                ) from None
            if not answer:
                raise self._lost()
            reply = self._parse(answer)
            if reply.ok is not None and reply.id not in self._open:  # an earlier one may be late, and come once
                if reply.id is None and not reply.ok:  # the agent could not read the question
                    raise explain(answers.read(reply.error, answers.Complaint, self._where), self._where)
                raise DeviceError(f"{self._where}: an answer to no question (id {reply.id}).", answers.UNTRUE)
            if reply.ok is not None:
                self._open.discard(reply.id or 0)
            if reply.id == number and reply.ok is not None:
                if not reply.ok:
                    raise explain(answers.read(reply.error, answers.Complaint, self._where), self._where)
                if not isinstance(reply.result, dict):
                    raise DeviceError(f"{self._where}: an answer without a result.", answers.UNTRUE)
                return reply.result

    def tell(self, message: dict[str, object]) -> int:
        """Send one request without waiting for its answer; returns its number."""
        self._next += 1
        self._open.add(self._next)
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
        self._closed = True
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
            while line := stream.readline(answers.LINE_BYTES + 1):
                if not self._put(line) or len(line) > answers.LINE_BYTES:
                    break
        self._put(b"")

    def _put(self, line: bytes) -> bool:
        """Hand a line on, as soon as there is room; False when nobody will read it any longer."""
        while not self._closed:
            with contextlib.suppress(queue.Full):
                self._answers.put(line, timeout=0.5)
                return True
        return False

    def _parse(self, line: bytes) -> answers.Reply:
        reply = answers.reply(line, self._where)
        if reply is None or reply.protocol != PROTOCOL or (reply.ok is None and not reply.event):
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
        self._errors.seek(max(0, self._errors.seek(0, 2) - LAST_WORDS))
        words = self._errors.read(LAST_WORDS).decode(errors="replace").strip().splitlines()[-3:]
        said = f": {answers.plain(' / '.join(words))}" if words else ""
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
    "bundle": "Nothing was installed. Check it here: edgeprune verify BUNDLE --key KEY",
    "unsigned": "Nothing was installed. Sign it, or say who may: --key KEY, with --new-key to replace the key there.",
    "selftest": "The device runs what it ran before, unless it says otherwise.",
    "release": "See what is installed there: edgeprune device status",
}
KINDS: dict[str, type[EdgepruneError]] = {
    "busy": DeviceBusy,
    "input": InputError,
    "bundle": BundleError,
    "unsigned": NotAuthenticated,
    "selftest": GateError,
    "release": UsageError,
}


def explain(error: answers.Complaint, where: str) -> EdgepruneError:
    """The agent's failure as one of our errors, with what to do."""
    kind, message = error.kind, f"{where}: {answers.plain(error.message)}."
    remedy = REMEDIES.get(kind, "")
    return KINDS[kind](message, remedy) if kind in KINDS else AgentError(kind, message, remedy)
