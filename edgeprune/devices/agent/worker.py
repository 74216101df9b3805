"""The worker: the process that holds the runtime. It may die; the supervisor then says how, and starts another."""

from __future__ import annotations

import os
import time
from typing import Any

from . import selftest, state, timing
from .options import runtime_half
from .wire import Failure, decode, encode, failure_from, private_streams


def serve() -> int:
    """Answer the supervisor until it closes the pipe."""
    incoming, outgoing = private_streams()
    worker = Worker()
    for line in incoming:
        request = decode(line)
        try:
            result = getattr(worker, "do_" + request["op"])(request)
            reply = {"id": request["id"], "ok": True, "result": result}
        except BaseException as error:
            reply = {"id": request["id"], "ok": False, "error": failure_from(error).to_dict()}
            if not isinstance(error, Exception):
                raise
        outgoing.write(encode(reply))
        outgoing.flush()
    return 0


class Worker:
    """The artifacts that are open, and the jobs on them."""

    def __init__(self) -> None:
        self._open = {}  # type: dict[str, Any]
        self._threads = 1

    def do_hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Import the runtime and say which version it is."""
        name = request["runtime"]
        try:
            return {"runtime": name, "version": self._runtime(name).version()}
        except ImportError as error:
            raise Failure("missing-runtime", "%s is not installed on the device (%s)" % (name, error)) from None

    def do_probe(self, request: dict[str, Any]) -> dict[str, Any]:
        """Look at the device now."""
        return {"fingerprint": state.fingerprint(), "state": state.snapshot()}

    def do_load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open an artifact whose files the supervisor has checked."""
        start = time.perf_counter()
        model = self._runtime(request["runtime"]).Model(
            request["paths"], request["options"], request["threads"], request["home"]
        )
        self._open[request["handle"]] = model
        self._threads = request["threads"]
        seconds = time.perf_counter() - start
        return {
            "shape": list(model.shape),
            "inputs": model.inputs,
            "outputs": model.outputs,
            "info": dict(model.info, load_s=round(seconds, 3)),
        }

    def do_unload(self, request: dict[str, Any]) -> dict[str, Any]:
        """Forget an artifact."""
        model = self._open.pop(request["handle"], None)
        if model is not None:
            model.close()
        return {}

    def do_infer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the examples of an .npy file, or of an .npz with i0, i1, ... for each input; outputs go to an .npz."""
        import numpy as np

        model = self._model(request["handle"])
        columns = _columns(np.load(request["images"], allow_pickle=False, mmap_mode="r"))
        batch, images = model.shape[0], columns[0]
        if len(columns) != len(model.shapes):
            raise Failure("runtime", "%d inputs were given, the artifact takes %d" % (len(columns), len(model.shapes)))
        for column, shape in zip(columns, model.shapes):  # noqa: B905 - Python 3.8
            if tuple(column.shape[1:]) != shape[1:] or len(column) != len(images):
                raise Failure("runtime", "images have shape %s, the artifact takes %s" % (column.shape[1:], shape[1:]))
        found = []  # type: list[list[Any]]
        for start in range(0, len(images), batch):
            count = min(batch, len(images) - start)
            parts = []
            for column, dtype in zip(columns, model.dtypes):  # noqa: B905 - Python 3.8
                part = np.ascontiguousarray(column[start : start + batch]).astype(dtype, copy=False)
                if count < batch:
                    part = np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)])
                parts.append(part)
            made = zip(model.outputs, model.run(parts))  # noqa: B905 - Python 3.8
            found.append([_rows(name, output, batch, count) for name, output in made])
        outputs = [np.concatenate(column) for column in zip(*found)]  # noqa: B905 - Python 3.8
        with open(request["result"] + ".part", "wb") as stream:
            named = {"o%d" % index: output for index, output in enumerate(outputs)}  # type: dict[str, Any]
            np.savez(stream, **named)
        os.replace(request["result"] + ".part", request["result"])
        return {"path": request["result"], "images": len(images)}

    def do_measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """Latency of several artifacts, interleaved; raw samples in nanoseconds and what disturbed them."""
        models = [self._model(handle) for handle in request["handles"]]
        steps = [model.step() for model in models]
        own = (
            request.get("own", False) and self._threads == 1 and all(getattr(model, "here", False) for model in models)
        )
        settings = [
            request[name] for name in ("warmup_runs", "runs", "rounds", "min_seconds", "max_seconds", "max_spread")
        ]
        settings.append(own)
        before, began = state.snapshot(), state.began()
        with timing.pinned(self._threads) as cpus:
            samples = timing.interleaved(steps, *settings)
        others = state.others(began)
        reasons, notes = state.disturbances(before, state.snapshot())
        return {"samples": samples, "reasons": reasons, "notes": notes, "pinned": cpus, "others": others}

    def do_samples(self, request: dict[str, Any]) -> dict[str, Any]:
        """The samples of a bundle, run again and compared."""
        return {"said": selftest.of_samples(self._model(request["handle"]), request["path"], request["classifies"])}

    def do_profile(self, request: dict[str, Any]) -> dict[str, Any]:
        """Every kernel's time, by the runtime's own profiler."""
        model = self._model(request["handle"])
        with timing.pinned(self._threads), timing.collection_off():
            rows, fused = model.profile(request["runs"], warmup=max(3, request["runs"] // 4))
        return {"kernels": rows, "fused": fused}

    def do_optimise(self, request: dict[str, Any]) -> dict[str, Any]:
        """The graph as the runtime rewrites it for this CPU, as a file."""
        model = self._model(request["handle"])
        if not hasattr(model, "optimise"):
            raise Failure("runtime", "this runtime writes no optimised graph")
        model.optimise(request["path"])
        return {"path": request["path"]}

    def _runtime(self, name: str) -> Any:
        half = runtime_half(name)
        if half is None:
            raise Failure("missing-runtime", "this agent knows no runtime called %r" % name)
        return half

    def _model(self, handle: str) -> Any:
        if handle not in self._open:
            raise Failure("unknown-artifact", "the artifact is not loaded")
        return self._open[handle]


def _columns(stored: Any) -> list[Any]:
    """The arrays of the inputs, in order."""
    if not hasattr(stored, "files"):
        return [stored]
    return [stored["i%d" % index] for index in range(len(stored.files))]


def _rows(name: str, output: Any, batch: int, count: int) -> Any:
    """The rows of the images that were asked for: every output's first axis is the batch, as every input's."""
    if output.ndim == 0 or output.shape[0] != batch:
        said = "the output '%s' has shape %s for a batch of %d: its first axis must be the examples'"
        raise Failure("runtime", said % (name, tuple(output.shape), batch))
    return output[:count]
