"""An agent that outlives the link: `daemon` does the jobs, `attach` carries a conversation to it and back.

The daemon listens on a Unix socket in the agent's folder. Each request carries a key that says what the job is; an
answer that the host has not confirmed stays on disk, and is given to whoever asks for the same job next. A host that
comes back while its job runs is put through to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from typing import IO, Any

from .store import write_whole
from .supervisor import Supervisor
from .wire import Failure, decode, encode, private_streams

IDLE_S = 1800.0  # without a host and a job, the daemon ends
KEEP_S = 3600.0  # an unconfirmed answer is handed over within this time
START_S = 60.0
JOBS = ("measure", "profile", "infer", "load", "rollout")


def attach(home: str, session: str, worker: list[str], archive: str) -> int:
    """Carry standard input to the daemon of this session, which is started if need be, and its answers back."""
    folder = _folder(home)
    incoming, outgoing = private_streams()
    connection = _connect(
        folder, session, [archive, "daemon", "--home", home, "--session", session, "--worker", json.dumps(worker)]
    )

    def upload() -> None:
        with contextlib.suppress(OSError):
            for line in incoming:
                connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=upload, daemon=True).start()
    with contextlib.suppress(OSError), connection.makefile("rb") as answers:
        for line in answers:
            outgoing.write(line)
            outgoing.flush()
    return 0


def daemon(home: str, session: str, worker: list[str]) -> int:
    """Serve one session until it is idle for long, or told goodbye."""
    folder = _folder(home)
    os.chdir(folder)  # the path of a Unix socket may have 107 bytes at most
    name = session + ".sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        os.remove(name)
    listener.bind(name)
    os.chmod(name, 0o600)
    listener.listen(4)
    try:
        return Daemon(home, worker, listener, session).serve()
    finally:
        with contextlib.suppress(OSError):
            os.remove(name)


class Daemon:
    """The jobs of one session and the connection that currently asks for them."""

    def __init__(self, home: str, worker: list[str], listener: socket.socket, session: str) -> None:
        self._supervisor = Supervisor(home, worker, self._alive, session)
        self._listener = listener
        self._requests = queue.Queue()  # type: queue.Queue[tuple[socket.socket | None, dict[str, Any]]]
        self._lock = threading.Lock()
        self._running = ""  # key of the job under way
        self._asker = (None, None)  # type: tuple[socket.socket | None, Any]
        self._connections = 0

    def serve(self) -> int:
        """Answer requests in turn."""
        threading.Thread(target=self._accept, daemon=True).start()
        idle_since = time.monotonic()
        while True:
            try:
                connection, request = self._requests.get(timeout=min(30.0, IDLE_S))
            except queue.Empty:
                if self._connections:
                    idle_since = time.monotonic()
                if time.monotonic() - idle_since > IDLE_S:
                    break
                continue
            idle_since = time.monotonic()
            for key in request.get("received", []):
                self._forget(key)
            if request.get("op") == "bye":
                break
            self._do(connection, request)
        self._supervisor.close()
        return 0

    def _do(self, connection: socket.socket | None, request: dict[str, Any]) -> None:
        key = str(request.get("key", "")) if request.get("op") in JOBS else ""
        with self._lock:
            self._running, self._asker = key, (connection, request.get("id"))
        reply = self._finished(key) or self._supervisor.answer(request)
        if key and reply["ok"]:
            with contextlib.suppress(OSError):
                write_whole(self._path(key), reply)
        with self._lock:
            connection, number = self._asker
            self._running, self._asker = "", (None, None)
        _send(connection, dict(reply, id=number))

    def _path(self, key: str) -> str:
        return self._supervisor.store.path("jobs", os.path.basename(key) + ".json")

    def _finished(self, key: str) -> dict[str, Any] | None:
        """The answer to this very job, when an earlier host asked for it and never confirmed it."""
        if not key:
            return None
        with contextlib.suppress(OSError, ValueError):
            if time.time() - os.stat(self._path(key)).st_mtime < KEEP_S:
                with open(self._path(key)) as stream:
                    reply = json.load(stream)
                loads = reply["result"].get("handle")
                if loads is None:  # a loaded artifact is gone with the process that held it
                    return dict(reply)
        return None

    def _forget(self, key: str) -> None:
        with contextlib.suppress(OSError):
            os.remove(self._path(key))

    def _alive(self, message: dict[str, Any]) -> None:
        with self._lock:
            connection, number = self._asker
        _send(connection, dict(message, id=number))

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._listen, args=(connection,), daemon=True).start()

    def _listen(self, connection: socket.socket) -> None:
        self._connections += 1
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            for line in lines:
                self._take(connection, line)
        self._connections -= 1

    def _take(self, connection: socket.socket, line: bytes) -> None:
        try:
            request = decode(line)
        except Failure as failure:
            _send(connection, {"id": None, "ok": False, "error": failure.to_dict()})
            return
        with self._lock:
            if self._running and request.get("key") == self._running:
                self._asker = (connection, request.get("id"))  # put through to the job that is under way
                return
        self._requests.put((connection, request))


def _send(connection: socket.socket | None, message: dict[str, Any]) -> None:
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.sendall(encode(message))


def _folder(home: str) -> str:
    folder = os.path.join(home, "sessions")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder


def _connect(folder: str, session: str, command: list[str]) -> socket.socket:
    """A connection to the session's daemon; `command` starts it when nobody answers."""
    log = os.path.join(folder, session + ".log")
    os.chdir(folder)
    started = None  # type: subprocess.Popen[bytes] | None
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(session + ".sock")
            return connection
        except OSError:
            connection.close()
        if started is None:
            with open(log, "ab") as errors:
                started = _start(command, errors)
        elif started.poll() is not None:
            break
        time.sleep(0.1)
    with open(log, errors="replace") as stream:
        sys.stderr.write(stream.read()[-2000:] or "the agent's daemon did not start")
    raise SystemExit(1)


def _start(command: list[str], errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """The daemon, in a session of its own (setsid), so that the end of the link does not end it."""
    full = [sys.executable, *command]
    return subprocess.Popen(full, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True)
