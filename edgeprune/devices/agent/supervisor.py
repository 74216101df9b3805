"""The supervisor: files, locks, time limits and the conversation with the host. It never loads a runtime itself."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import IO, Any, Callable

from . import rollout, state, timing
from .store import Store, sha256, write_whole
from .wire import PROTOCOL, Failure, decode, encode, failure_from, private_streams

HEARTBEAT_S = 5.0
HELLO_TIMEOUT_S = 300.0  # importing a runtime takes ten seconds on a loaded, emulated machine
ROOM_BYTES = 2 << 30  # of memory, before two workers open the same artifacts at once
LOCKED = {  # job -> exclusive?
    "measure": True, "profile": True, "rollout": True, "infer": False, "optimise": False,
}  # fmt: skip


def _merge(merged: dict[str, Any], found: dict[str, Any], share: float) -> None:
    """Add a process's measurement; `share`: of the rounds."""
    for number, rounds in enumerate(found["samples"]):
        merged["samples"][number].extend(rounds)
    for name in ("reasons", "notes"):
        merged[name].extend(text for text in found[name] if text not in merged[name])
    merged["pinned"] = found["pinned"]
    merged["others"] += found["others"] * share


class Child:
    """A worker process and the lines that it writes."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.lines = queue.Queue()  # type: queue.Queue[bytes]
        threading.Thread(target=self._read, daemon=True).start()
        self.loaded = set()  # type: set[str]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(b"")

    def send(self, message: dict[str, Any]) -> None:
        """Ask the worker; a dead worker shows when its answer is awaited."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(encode(message))
            self.process.stdin.flush()

    def kill(self) -> None:
        """End the worker, and what it started."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Supervisor:
    """Does what the host asks, one job at a time."""

    def __init__(self, home: str, worker: list[str], alive: Callable[[dict[str, Any]], None], tag: str = "") -> None:
        self._tag = tag or str(os.getpid())  # keeps the files of agents that share a folder apart
        self.store = Store(home, self._tag)
        self._workers = []  # type: list[int]
        self._worker_command = worker
        self._alive = alive
        self._child = None  # type: Child | None
        self._known = {}  # type: dict[str, dict[str, Any]]
        self.cancelled = threading.Event()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do one job; every failure becomes an answer."""
        try:
            operation = getattr(self, "do_" + str(request.get("op")), None)
            if operation is None:
                raise Failure("protocol", "unknown operation %r" % request.get("op"))
            with self._locked(request):
                result = operation(request)
            return {"id": request.get("id"), "ok": True, "result": result}
        except Exception as error:
            return {"id": request.get("id"), "ok": False, "error": failure_from(error).to_dict()}

    def close(self) -> None:
        """End the worker and forget what it held."""
        if self._child is not None:
            self._child.kill()
            self._child = None
        for handle in self._known:
            shutil.rmtree(self._folder(handle), ignore_errors=True)
        names = ["%s-%s." % (kind, self._tag) for kind in ("samples", "optimised", "timing")]
        names += ["%s-%d" % (kind, pid) for kind in ("fused", "profile") for pid in self._workers]
        for name in os.listdir(self.store.path("outgoing")):
            if name.startswith(tuple(names)):
                with contextlib.suppress(OSError):
                    os.remove(self.store.path("outgoing", name))
        self.store.close()

    # What the host may ask.

    def do_hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Greet: versions of the protocol, of Python and of the runtime; the worker is started."""
        answer = self._ask({"op": "hello", "runtime": request["runtime"]}, HELLO_TIMEOUT_S)
        return dict(answer, protocol=PROTOCOL, home=self.store.home, pid=os.getpid())

    def do_missing(self, request: dict[str, Any]) -> dict[str, Any]:
        """Which files are not here."""
        return {"missing": self.store.missing(request["digests"])}

    def do_adopt(self, request: dict[str, Any]) -> dict[str, Any]:
        """Check a file that was sent and keep it."""
        self.store.adopt(request["name"], request["digest"])
        return {}

    def do_probe(self, request: dict[str, Any]) -> dict[str, Any]:
        """State of the device."""
        return self._ask({"op": "probe"}, request["timeout_s"])

    def do_load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Check the files by sha256 and open the artifact. Its handle is the digest of all that it consists of."""
        handle = handle_of(request)
        folder = self._folder(handle)
        os.makedirs(folder, exist_ok=True)
        paths = {}
        for name, digest in request["files"].items():
            paths[name] = os.path.join(folder, os.path.basename(name))
            _link(self.store.blob(digest), paths[name])
        description = self._known.get(handle, {}).get("description")
        keep = ("runtime", "options", "threads")
        self._known[handle] = dict(
            {key: request[key] for key in keep}, handle=handle, paths=paths, home=self.store.home
        )
        if description:
            self._known[handle]["description"] = description
        try:
            return dict(self._ensure(handle, request["timeout_s"]), handle=handle)
        except Failure:
            self._known.pop(handle, None)
            raise

    def do_unload(self, request: dict[str, Any]) -> dict[str, Any]:
        """Forget an artifact; its files stay in the store until they are pruned."""
        handle = request["handle"]
        self._known.pop(handle, None)
        shutil.rmtree(self._folder(handle), ignore_errors=True)
        if self._child is not None and handle in self._child.loaded:
            self._child.loaded.discard(handle)
            self._ask({"op": "unload", "handle": handle}, request["timeout_s"])
        return {}

    def do_infer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run images; a result that is already here for the same artifact, images and runtime is not computed again."""
        handle = self._artifact(request["handle"])
        images = self.store.blob(request["images"])
        key = hashlib.sha256(json.dumps([handle, request["images"], request["runtime_version"]]).encode()).hexdigest()
        result = self.store.path("outgoing", "%s-%s.npz" % (key, self._tag))
        if request.get("resume") and os.path.isfile(result):
            return {"path": result, "sha256": sha256(result), "reused": True}
        self._ensure(handle, request["timeout_s"])
        self._ask({"op": "infer", "handle": handle, "images": images, "result": result}, request["timeout_s"])
        return {"path": result, "sha256": sha256(result), "reused": False}

    def do_measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """Latency of several artifacts, interleaved; with several `processes`, each takes a share of the rounds."""
        handles = [self._artifact(handle) for handle in request["handles"]]
        processes = min(request["processes"], request["rounds"])
        if processes == 1:
            for handle in handles:
                self._ensure(handle, request["timeout_s"])
            found = self._ask(dict(request, op="measure", handles=handles), request["timeout_s"])
        else:
            found = self._in_fresh_processes(request, handles, processes)
        found["summaries"] = [timing.summary(rounds) for rounds in found["samples"]]
        write_whole(self.store.path("outgoing", "samples-%s.json" % self._tag), found["samples"])
        del found["samples"]
        return found

    def do_profile(self, request: dict[str, Any]) -> dict[str, Any]:
        """Times of every kernel."""
        handle = self._artifact(request["handle"])
        self._ensure(handle, request["timeout_s"])
        found = self._ask({"op": "profile", "handle": handle, "runs": request["runs"]}, request["timeout_s"])
        if found["fused"]:
            found["sha256"] = sha256(found["fused"])
        return found

    def do_timing_cache(self, request: dict[str, Any]) -> dict[str, Any]:
        """A copy of TensorRT's timing cache, for the host to fetch."""
        handle = self._artifact(request["handle"])
        source = self._ensure(handle, request["timeout_s"])["info"].get("timing_cache", "")
        if not source or not os.path.isfile(source):
            raise Failure("runtime", "this runtime keeps no timing cache")
        path = self.store.path("outgoing", "timing-%s.cache" % self._tag)
        shutil.copyfile(source, path)
        return {"path": path, "sha256": sha256(path)}

    def do_optimise(self, request: dict[str, Any]) -> dict[str, Any]:
        """The artifact's graph as the device's runtime optimises it for its own CPU, for the host to fetch."""
        handle = self._artifact(request["handle"])
        path = self.store.path("outgoing", "optimised-%s.onnx" % self._tag)
        self._ensure(handle, request["timeout_s"])
        self._ask({"op": "optimise", "handle": handle, "path": path}, request["timeout_s"])
        return {"path": path, "sha256": sha256(path)}

    def do_forget(self, request: dict[str, Any]) -> dict[str, Any]:
        """Delete a result that the host has received."""
        path = self.store.path("outgoing", os.path.basename(request["path"]))
        with contextlib.suppress(OSError):
            os.remove(path)
        return {}

    def do_rollout(self, request: dict[str, Any]) -> dict[str, Any]:
        """Install a bundle as a release, test the one in use again, or go back to the one before."""
        bundle = self.store.blob(request["bundle"]) if request.get("bundle") else ""
        return rollout.do(request, bundle, self.store.home, self._ask, self._spawn, self._alive)

    def do_releases(self, request: dict[str, Any]) -> dict[str, Any]:
        """What is installed here."""
        named = [request["name"]] if request.get("name") else rollout.names(request["folder"])
        return {"releases": [rollout.Releases(request["folder"], name).report() for name in named]}

    # How it is done.

    def _in_fresh_processes(self, request: dict[str, Any], handles: list[str], processes: int) -> dict[str, Any]:
        """The rounds, spread over processes that each open every artifact anew: no one luck of placement decides.

        Two open them side by side, which takes longer than the rounds; nothing is timed before both have.
        """
        merged = {"samples": [[] for _ in handles], "reasons": [], "notes": [], "pinned": [], "others": 0.0}  # type: dict[str, Any]
        abreast, index = (2 if (os.cpu_count() or 1) > 1 and state.available() > ROOM_BYTES else 1), 0
        while index < processes:
            children = [self._spawn() for _ in range(min(abreast, processes - index))]
            try:
                self._open(children, handles, request["timeout_s"])
                for child in children:
                    share = request["rounds"] * (index + 1) // processes - request["rounds"] * index // processes
                    part = dict(request, op="measure", rounds=share, max_seconds=request["max_seconds"] / processes)
                    _merge(merged, self._ask(part, request["timeout_s"], child), share / request["rounds"])
                    index += 1
            finally:
                for child in children:
                    child.kill()
        return merged

    def _open(self, children: list[Child], handles: list[str], timeout_s: float) -> None:
        """The artifacts in each of these workers, side by side."""
        kills = state.oom_kills()
        for child in children:
            for handle in handles:
                child.send(dict(self._known[handle], op="load", id=0))
        for child in children:
            for _ in handles:
                self._answer(child, timeout_s, kills)

    def _folder(self, handle: str) -> str:
        return self.store.path("jobs", "%s-%s" % (os.path.basename(handle), self._tag))

    def _artifact(self, handle: str) -> str:
        if handle not in self._known:
            raise Failure("unknown-artifact", "the artifact is not loaded on the device (was it restarted?)")
        return handle

    def _ensure(self, handle: str, timeout_s: float) -> dict[str, Any]:
        """The artifact is open in the worker, also when an earlier worker died with it."""
        known = self._known[handle]
        if self._child is None or handle not in self._child.loaded:
            known["description"] = self._ask(
                dict({k: v for k, v in known.items() if k != "description"}, op="load"), timeout_s
            )
            assert self._child is not None
            self._child.loaded.add(handle)
        return dict(known["description"])

    def _spawn(self) -> Child:
        child = Child(self._worker_command)
        self._workers.append(child.process.pid)
        return child

    def _ask(self, message: dict[str, Any], timeout_s: float, child: Child | None = None) -> dict[str, Any]:
        """One question to the worker; time-outs and deaths become Failures."""
        if child is None:
            if self._child is None or self._child.process.poll() is not None:
                self._child = self._spawn()
            child = self._child
        kills = state.oom_kills()
        child.send(dict(message, id=0))
        return self._answer(child, timeout_s, kills)

    def _answer(self, child: Child, timeout_s: float, kills: int) -> dict[str, Any]:
        """What a worker says to a question; `kills`: processes that wanted memory had been killed before."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = child.lines.get(timeout=max(0.0, min(HEARTBEAT_S, deadline - time.monotonic())))
            except queue.Empty:
                if self.cancelled.is_set():
                    self._lose(child)
                    raise Failure("cancelled", "the host went away") from None
                if time.monotonic() >= deadline:
                    self._lose(child)
                    raise Failure(
                        "timeout", "the job took longer than %.0f s and was stopped" % timeout_s, 124
                    ) from None
                self._alive({"event": "alive"})
                continue
            if not line:
                self._lose(child)
                raise death(child.process.returncode, state.oom_kills() > kills)
            reply = decode(line)
            if reply["ok"]:
                return dict(reply["result"])
            error = reply["error"]
            raise Failure(error["kind"], error["message"], error["rc"])

    def _lose(self, child: Child) -> None:
        child.kill()
        if child is self._child:
            self._child = None

    def _locked(self, request: dict[str, Any]) -> Any:
        exclusive = LOCKED.get(str(request.get("op")))
        if exclusive is None or (not exclusive and not request.get("shared_lock")):
            return contextlib.nullcontext()
        return self.store.lock(
            float(request.get("lock_wait_s", 60)), exclusive, str(request.get("who", "another host"))
        )


def death(returncode: int, oom: bool) -> Failure:
    """How a worker ended, in words: 132 SIGILL, 137 killed, 139 SIGSEGV."""
    number = -returncode if returncode < 0 else max(0, returncode - 128)
    if number == signal.SIGILL:
        return Failure("illegal-instruction", "the runtime used an instruction that this CPU does not have (SIGILL): "
                       "the installed wheel does not fit the CPU", 132)  # fmt: skip
    if number == signal.SIGKILL:
        why = "the kernel killed it for want of memory" if oom else "it was killed, most likely for want of memory"
        return Failure("out-of-memory", "the job ended: %s" % why, 137)
    if number:
        name = signal.Signals(number).name if number in list(signal.Signals) else "signal %d" % number
        return Failure("crash", "the runtime crashed (%s)" % name, 128 + number)
    return Failure("crash", "the job ended without an answer (exit code %d)" % returncode, returncode or 1)


def handle_of(request: dict[str, Any]) -> str:
    """What identifies an open artifact: its files' digests, runtime, options and threads."""
    parts = [request["runtime"], request["files"], request["options"], request["threads"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _link(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(target)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def serve_stdio(home: str, worker: list[str]) -> int:
    """Talk over standard input and output; when the host goes away, everything ends."""
    incoming, outgoing = private_streams()
    current = {}  # type: dict[str, Any]

    def send(message: dict[str, Any]) -> None:
        outgoing.write(encode(dict(current, **message)))
        outgoing.flush()

    supervisor = Supervisor(home, worker, send)
    requests = collections.deque()  # type: collections.deque[bytes]
    ready = threading.Semaphore(0)

    def listen() -> None:
        _collect(incoming, requests, ready)
        supervisor.cancelled.set()
        requests.append(b"")
        ready.release()

    threading.Thread(target=listen, daemon=True).start()
    try:
        while True:
            ready.acquire()
            line = requests.popleft()
            if not line:
                return 0
            try:
                request = decode(line)
            except Failure as failure:
                send({"id": None, "ok": False, "error": failure.to_dict()})
                continue
            current = {"id": request.get("id")}
            send(supervisor.answer(request))
    except BrokenPipeError:
        return 0
    finally:
        supervisor.close()
        sys.stderr.flush()


def _collect(stream: IO[bytes], requests: collections.deque[bytes], ready: threading.Semaphore) -> None:
    for line in stream:
        requests.append(line)
        ready.release()
