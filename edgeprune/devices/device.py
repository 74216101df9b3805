"""A device behind a transport: implements the door's `Device` with the agent's protocol."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeprune.claims import fits
from edgeprune.devices import answers, results, settings
from edgeprune.devices.agent.rollout import folder_of
from edgeprune.devices.agent.store import sha256
from edgeprune.devices.answers import Releases
from edgeprune.devices.fused import layers_of
from edgeprune.devices.link import AgentError, Link, LinkLost, Overdue
from edgeprune.devices.transport import Transport
from edgeprune.devices.types import Artifact, Examples, KernelTime, Loaded, Probe, Timing, Unit, columns
from edgeprune.errors import DeviceError, JobFailed, MeasurementError, MissingDependency
from edgeprune.target import Protocol, Target

T = TypeVar("T")
log = logging.getLogger(__name__)
CHUNK = 256  # images sent at once, at most; after a lost link only the chunk under way is repeated
CHUNK_BYTES = 32 << 20
COUNTED_RUNS = 3  # at most, on an instruction clock: it repeats, and an emulated core takes long over each
_USE_A_BOARD = (
    "Use a board (--device ssh://NAME), or the emulated board that counts instructions (--device qemu-board://)."
)


def releases_folder(asked: str = "") -> Path:
    """Where releases lie on this machine: the folder that was asked for, or one in the user's own."""
    return Path(folder_of(asked))


@dataclass(frozen=True)
class Opened:
    """An artifact that the agent holds ready.

    Attributes:
        handle: the agent's name for it.
        shape: of its first input, batch first.
        inputs: names, in the order in which arrays are given.
        info: what the runtime says about it (seconds to load; for TensorRT the engine's key and its INT8 layers).
    """

    artifact: Artifact
    handle: str
    shape: tuple[int, ...]
    outputs: tuple[str, ...]
    info: dict[str, object] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("input",)


class AgentDevice:
    """A device that answers through its agent. Use as a context manager."""

    def __init__(self, target: Target, transport: Transport) -> None:
        self._target, self._transport = target, transport
        self._link: Link | None = None
        self._home = ""
        self._greeting: answers.Greeting | None = None
        self._requests: dict[str, dict[str, Any]] = {}  # handle -> how it was loaded, to load it again
        self._holders: dict[str, int] = {}
        self._files: dict[str, Path] = {}  # sha256 -> a file here
        self._received: list[str] = []  # keys of answers that the agent need not keep any longer

    def __enter__(self) -> AgentDevice:
        try:
            self._connect()
        except BaseException:
            self._transport.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._link is not None and self._transport.survives:
            with contextlib.suppress(DeviceError):
                self._link.tell({"op": "bye", "received": self._received})
        self._disconnect()
        self._transport.close()

    @property
    def unit(self) -> Unit:
        """What latencies are given in."""
        return "instructions" if self._transport.emulation == "qemu-board-icount" else "ms"

    @property
    def runtime_version(self) -> str:
        """Version of the runtime on the device."""
        assert self._greeting is not None, "not connected"
        return self._greeting.version

    @property
    def agent_pid(self) -> int:
        """Process id of the agent's supervisor, on the device."""
        assert self._greeting is not None, "not connected"
        return self._greeting.pid

    def probe(self) -> Probe:
        """Look at the device now."""
        found = self._ask({"op": "probe"}, answers.Probed)
        fingerprint = {
            **msgspec.to_builtins(found.fingerprint),
            "runtime": self._target.runtime,
            "runtime_version": self.runtime_version,
            "threads": self._target.execution.threads,
            "emulation": self._transport.emulation,
        }
        return Probe(fingerprint, {**msgspec.to_builtins(found.state), "where": self._transport.where})

    def load(self, artifact: Artifact) -> Loaded:
        """Send the files (content-addressed, checked by sha256) and open them with the runtime."""
        if artifact.runtime != self._target.runtime:
            raise DeviceError(
                f"{artifact.name}: made for {artifact.runtime}, but {self._target.name} runs {self._target.runtime}."
            )
        digests = {name: self._remember(path) for name, path in artifact.files.items()}
        request = {
            "op": "load",
            "runtime": artifact.runtime,
            "files": digests,
            "options": {**self._target.execution.options, **artifact.options},
            "threads": self._target.execution.threads,
        }
        self._send(digests.values())
        try:
            found = self._ask(request, answers.Opening)
        except AgentError as error:
            if error.kind != "digest":  # a file was altered on the device, and is gone now
                raise
            self._send(digests.values())
            found = self._ask(request, answers.Opening)
        answers.check_info(found, self._transport.where)
        handle = found.handle
        self._requests[handle] = request
        self._holders[handle] = self._holders.get(handle, 0) + 1
        return Opened(artifact, handle, found.shape, found.outputs, found.info, found.inputs)

    def unload(self, loaded: Loaded) -> None:
        """Forget an artifact, so that hundreds can pass through one agent."""
        handle = _opened(loaded).handle
        self._holders[handle] = self._holders.get(handle, 1) - 1
        if self._holders[handle] <= 0:
            del self._holders[handle]
            self._requests.pop(handle, None)
            self._ask({"op": "unload", "handle": handle}, answers.Nothing)

    def measure(self, loaded: Sequence[Loaded], protocol: Protocol) -> list[Timing]:
        """Measure latency, all candidates interleaved (A B C A B C ...), in the order given."""
        if not loaded:
            return []
        self._must_have_a_clock(protocol)
        counted = self.unit == "instructions"
        request = {
            "op": "measure",
            "handles": [_opened(one).handle for one in loaded],
            "warmup_runs": 1 if counted else protocol.warmup_runs,
            "runs": min(protocol.runs, COUNTED_RUNS) if counted else protocol.runs,
            "rounds": min(protocol.rounds, COUNTED_RUNS) if counted else protocol.rounds,
            "min_seconds": 0.0 if counted else protocol.min_seconds,
            "max_seconds": protocol.max_seconds,
            "max_spread": protocol.max_spread,
            "processes": 1 if counted else protocol.processes,
            "own": not counted,
        }
        found = self._ask(request, answers.MeasureAnswer)
        answers.check_summaries(found, len(loaded), self._transport.where)
        return [results.timing(one, found, protocol, self.unit) for one in found.summaries]

    def profile(self, loaded: Loaded, runs: int = 20) -> list[KernelTime]:
        """Time each fused kernel with the runtime's profiler, in execution order."""
        self._must_have_a_clock(self._target.protocol)
        opened = _opened(loaded)
        runs = min(runs, COUNTED_RUNS) if self.unit == "instructions" else runs
        found = self._ask({"op": "profile", "handle": opened.handle, "runs": runs}, answers.Profiled)
        layers = [tuple(row.layers) for row in found.kernels]
        if found.fused:
            file = answers.read(
                {"path": found.fused, "sha256": found.sha256}, answers.FetchAnswer, self._transport.where
            )
            names = [row.name for row in found.kernels]
            with self._fetched(file) as fused:
                try:
                    layers = layers_of(names, next(iter(opened.artifact.files.values())), fused)
                except Exception as cause:  # onnx raises protobuf's own errors
                    where = f"{self._transport.where}: the graph that it fused is none"
                    raise DeviceError(f"{where} ({answers.plain(str(cause), 200)}).", answers.UNTRUE) from None
        return [results.kernel(row, own, self.unit) for row, own in zip(found.kernels, layers, strict=True)]

    def infer(self, loaded: Loaded, images: Examples) -> list[NDArray[Any]]:
        """Run every example (shape [N, ...]) through the artifact; the outputs, each of shape [N, ...]."""
        opened = _opened(loaded)
        given = columns(images, opened.inputs, opened.artifact.name)
        count = len(given[0])
        if count == 0:
            raise JobFailed(f"{opened.artifact.name}: there are no images to run.")
        size = max(opened.shape[0], min(CHUNK, CHUNK_BYTES // max(1, sum(one[0].nbytes for one in given))))
        parts = [
            self._infer(opened, tuple(one[start : start + size] for one in given)) for start in range(0, count, size)
        ]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def timing_cache(self, loaded: Loaded) -> bytes:
        """TensorRT's timing cache after this artifact's engine was built; ship it as a file called timing.cache."""
        found = self._ask({"op": "timing_cache", "handle": _opened(loaded).handle}, answers.FetchAnswer)
        with self._fetched(found) as path:
            return path.read_bytes()

    def optimised(self, loaded: Loaded) -> bytes:
        """The artifact's graph as the device's ONNX Runtime rewrites it for its own CPU: an ONNX file.

        Opened with graph_optimization_level "disable" it runs the same kernels. It belongs to that version of the
        runtime and to that kind of CPU. Raises AgentError where the runtime writes none.
        """
        found = self._ask({"op": "optimise", "handle": _opened(loaded).handle}, answers.FetchAnswer)
        with self._fetched(found) as path:
            return path.read_bytes()

    def rollout(self, action: str, name: str, folder: str = "", bundle: Path | None = None, **more: object) -> Releases:
        """Install a bundle as a release of `name`, check the one in use, or go back; more in devices/agent/rollout.py.

        Raises BundleError, NotAuthenticated and GateError as the device says, and UsageError where there is none.
        """
        digest = "" if bundle is None else self._remember(bundle)
        if digest:
            self._send([digest])
        clock = "" if self._transport.emulation in ("qemu-user", "qemu-board") else self.unit
        request = {"op": "rollout", "action": action, "name": name, "folder": folder, "bundle": digest, "unit": clock}
        once = os.urandom(8).hex()  # an answer of another time, which nobody fetched, is not for this call
        return self._ask({**request, **more, "once": once}, answers.Releases)

    def releases(self, name: str = "", folder: str = "") -> list[Releases]:
        """What is installed there: of one network, or of all."""
        return self._ask({"op": "releases", "name": name, "folder": folder}, answers.ReleasesAnswer).releases

    # How it is done.

    def _connect(self) -> None:
        link = Link(self._transport.start, self._transport.where, self._transport.silence_s)
        try:
            said = link.ask({"op": "hello", "runtime": self._target.runtime}, settings.job_timeout())
            self._greeting = answers.read(said, answers.Greeting, self._transport.where)
            self._home = self._greeting.home
            self._check_runtime()
        except BaseException as error:
            if isinstance(error, AgentError):  # no agent of the wrong runtime stays behind
                with contextlib.suppress(DeviceError):
                    link.tell({"op": "bye"})
            link.close()
            if isinstance(error, AgentError) and error.kind == "missing-runtime":
                raise self._missing_runtime(error) from None
            raise
        self._link = link

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _check_runtime(self) -> None:
        if not fits(self.runtime_version, self._target.requires):
            raise AgentError(
                "wrong-runtime",
                f"{self._transport.where}: {self._target.runtime} {self.runtime_version} is installed, "
                f"{self._target.name} needs {self._target.requires}.",
                f"Install it there: python3 -m pip install '{self._target.runtime}{self._target.requires}'",
            )

    def _missing_runtime(self, error: AgentError) -> Exception:
        name = self._target.runtime
        if self._transport.name == "local":
            return MissingDependency(f"{name} is not installed.", f'pip install "edgeprune[{name}]"')
        there = f" --device ssh://{self._transport.where}" if self._transport.name == "ssh" else ""
        remedy = f"This prints the command that installs it: edgeprune doctor {self._target.name}{there}"
        return AgentError("missing-runtime", error.message, remedy)

    def _ask(self, message: dict[str, Any], kind: type[T]) -> T:
        """One request, and its answer as the struct that it must be.

        A broken link is taken up again where the agent outlives it, and artifacts are loaded again.
        """
        common = {
            "lock_wait_s": settings.lock_wait(self._transport.exclusive),
            "shared_lock": self._transport.exclusive,
        }
        message = {**common, "who": settings.who(), "key": _key(message), **message}

        def work() -> dict[str, object]:
            if self._link is None:
                self._connect()
                self._restore(message)
            assert self._link is not None
            try:
                return self._link.ask({**message, "received": self._received}, settings.job_timeout())
            except AgentError as error:
                if error.kind != "unknown-artifact" or not self._restore(message):
                    raise
                return self._link.ask(message, settings.job_timeout())

        try:
            found = self._patiently(work)
        except Overdue:
            self._disconnect()
            raise
        self._received = [message["key"]]
        return answers.read(found, kind, self._transport.where)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do `work`; when the link breaks and the agent outlives it, wait, reconnect and do it again."""
        for pause in self._transport.patience:
            try:
                return work()
            except LinkLost as lost:
                log.warning("%s Trying again in %.0f s.", lost.message, pause)
                self._disconnect()
                time.sleep(pause)
        try:
            return work()
        except LinkLost:
            self._disconnect()
            raise

    def _restore(self, message: dict[str, Any]) -> bool:
        """After a restart of the agent: load again what `message` speaks of; False when there is nothing to load."""
        assert self._link is not None
        known = [one for one in [*message.get("handles", []), message.get("handle")] if one in self._requests]
        for handle in known:
            request = self._requests[handle]
            self._send(request["files"].values())
            self._link.ask({**request, "key": _key(request)}, settings.job_timeout())
        if message["op"] == "infer":
            self._send([message["images"]])
        return bool(known)

    def _remember(self, path: Path) -> str:
        try:
            digest = sha256(str(path))
        except OSError as cause:
            raise DeviceError(f"{path}: cannot be read ({cause}).") from None
        self._files[digest] = path
        return digest

    def _send(self, digests: Any) -> None:
        """Send the files that the device does not have yet; a damaged transfer is repeated once."""
        asked = list(digests)
        for digest in self._ask({"op": "missing", "digests": asked}, answers.Missing).missing:
            if digest not in asked:
                raise DeviceError(f"{self._transport.where}: asks for a file that it was not told of.", answers.UNTRUE)
            name = f"{digest}-{os.getpid()}.part"
            for attempt in (1, 2):
                try:
                    self._patiently(lambda: self._transport.put(self._files[digest], name, self._home))  # noqa: B023
                    self._ask({"op": "adopt", "name": name, "digest": digest}, answers.Nothing)
                    break
                except AgentError as error:
                    if error.kind != "digest" or attempt == 2:
                        raise

    def _infer(self, opened: Opened, images: tuple[NDArray[Any], ...]) -> list[NDArray[Any]]:
        with settings.Scratch() as folder:
            path = folder / ("images.npy" if len(images) == 1 else "images.npz")
            if len(images) == 1:
                np.save(path, np.ascontiguousarray(images[0]), allow_pickle=False)
            else:
                named: dict[str, Any] = {f"i{index}": np.ascontiguousarray(one) for index, one in enumerate(images)}
                np.savez(path, **named)
            digest = self._remember(path)
            self._send([digest])
            request = {
                "op": "infer",
                "handle": opened.handle,
                "images": digest,
                "runtime_version": self.runtime_version,
                "resume": self._transport.survives,
            }
            with self._fetched(self._ask(request, answers.FetchAnswer)) as result:
                found = results.arrays(result, self._transport.where)
            answers.check_rows(found, len(opened.outputs), len(images[0]), self._transport.where)
            return found

    @contextlib.contextmanager
    def _fetched(self, file: answers.FetchAnswer) -> Iterator[Path]:
        """A result of the agent, checked, as a file here; the agent then forgets it."""
        with settings.Scratch() as folder:
            target = folder / "result"
            if not file.path.startswith(f"{self._home}/outgoing/") or "/../" in file.path:
                raise DeviceError(f"{self._transport.where}: names a file outside its own folder.", answers.UNTRUE)
            self._patiently(lambda: self._transport.get(file.path, target))
            if sha256(str(target)) != file.sha256:
                raise AgentError(
                    "digest", f"{self._transport.where}: a result was damaged on its way.", "Run it again."
                )
            yield target
        self._ask({"op": "forget", "path": file.path}, answers.Nothing)

    def _must_have_a_clock(self, protocol: Protocol) -> None:
        if self._transport.emulation in ("qemu-user", "qemu-board"):
            raise MeasurementError(f"{self._transport.where}: emulation has no meaningful latency.", _USE_A_BOARD)
        if protocol.unit == "ms" and self.unit == "instructions":
            raise MeasurementError(
                f"{self._transport.where}: an emulated board counts instructions, which are never a time.",
                "Use a speed-up budget, or a board: --device ssh://NAME",
            )


def _opened(loaded: Loaded) -> Opened:
    if not isinstance(loaded, Opened):
        raise TypeError("not an artifact that this device loaded")
    return loaded


def _key(message: dict[str, object]) -> str:
    """What identifies a job, so that its result can be picked up after a lost link."""
    return hashlib.sha256(json.dumps(message, sort_keys=True).encode()).hexdigest()
