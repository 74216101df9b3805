"""TensorRT on the device: build the engine there, once for each key; run, time with CUDA graphs, profile apart."""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import Any, Callable

import numpy as np

from . import state
from .cuda import Cuda
from .engine import build, layers, logger
from .kernels import Samples
from .options import wrong
from .run_onnxruntime import fixed_input, listed
from .wire import Failure

NAME = "tensorrt"
TITLE = "TensorRT"
INSTALL = "sudo apt-get install -y nvidia-jetpack python3-numpy"  # what puts it on a device, where it is no package
OPTIONS = {
    "precision": ("fp32", "int8"),
    "strongly_typed": (True, False),
    "workspace_mib": range(1, 1048577),
    "optimization_level": range(6),
}  # type: dict[str, Any]
TYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
KEEP_ENGINES = 40


def version() -> str:
    """The runtime's version; raises ImportError when it is not installed."""
    import tensorrt

    return str(tensorrt.__version__)


class Model:
    """One engine, open. `files`: the ONNX graph, and perhaps a file called timing.cache from an earlier build."""

    here = False  # the work is done by this process, not by another processor

    def __init__(self, files: dict[str, str], options: dict[str, Any], threads: int, home: str) -> None:
        import tensorrt

        if wrong(NAME, options):
            raise Failure("runtime", wrong(NAME, options))
        self._trt, self._home = tensorrt, home
        self._cuda = Cuda()
        self._pointers = {}  # type: dict[str, int]
        self.info = {}  # type: dict[str, Any]
        serialised = self._engine(files, options)
        self._runtime = tensorrt.Runtime(logger(tensorrt))
        self._loaded = self._runtime.deserialize_cuda_engine(serialised)
        if self._loaded is None:
            raise Failure("runtime", "TensorRT cannot open the engine that it built")
        self._layers = layers(tensorrt, self._loaded)
        self.info["layers"] = len(self._layers)
        self.info["int8_layers"] = [name for layer in self._layers if layer["int8"] for name in layer["layers"]]
        self._bind()

    def run(self, batch: Any) -> list[Any]:
        """One batch through the engine: one array, or a list with one an input."""
        for name, value in zip(self.inputs, listed(batch)):  # noqa: B905 - Python 3.8
            self._cuda.upload(self._pointers[name], np.ascontiguousarray(value))
        self._execute(self._context)
        results = [np.empty(self._shapes[name], self._dtypes[name]) for name in self.outputs]
        for name, array in zip(self.outputs, results):  # noqa: B905 - Python 3.8
            self._cuda.download(array, self._pointers[name])
        self._cuda.wait()
        return results

    def step(self) -> Callable[[], Any]:
        """A call that runs the engine once on a fixed input in the GPU's memory: a CUDA graph where possible."""
        pairs = zip(self.shapes, self.dtypes)  # noqa: B905 - Python 3.8
        self.run([fixed_input(shape, dtype) for shape, dtype in pairs])
        recorded = self._cuda.graph(lambda: self._execute(self._context))
        self.info["cuda_graph"] = recorded is not None
        return recorded or self._execute_and_wait

    def profile(self, runs: int, warmup: int) -> tuple[list[dict[str, Any]], str]:
        """Each kernel's times in nanoseconds; in a context of its own, for the profiler slows the engine."""
        trt, samples = self._trt, Samples(runs)
        known = {layer["name"]: layer for layer in self._layers}

        class Profiler(trt.IProfiler):  # type: ignore[misc,name-defined]
            """Receives milliseconds from TensorRT."""

            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                """Called by TensorRT for each layer of each run."""
                layer = known.get(layer_name, {"kind": "", "implementation": "", "layers": []})
                samples.add(layer_name, layer["kind"], ms * 1e6, layer["implementation"], tuple(layer["layers"]))

        context = self._loaded.create_execution_context()
        self._address(context)
        context.profiler = Profiler()
        for _ in range(warmup + runs):
            self._execute(context)
            self._cuda.wait()
        return samples.rows(), ""

    def close(self) -> None:
        """Give the GPU's memory back."""
        self._context = self._loaded = None
        for pointer in self._pointers.values():
            self._cuda.free(pointer)
        self._pointers = {}

    def _engine(self, files: dict[str, str], options: dict[str, Any]) -> bytes:
        """The engine for this very graph, TensorRT, GPU, options and power mode, from the device's store or built."""
        with open(next(iter(files.values())), "rb") as stream:
            onnx = stream.read()
        device = [version(), self._cuda.capability(), state.fingerprint()["l4t"], state.fingerprint()["power_mode"]]
        parts = [hashlib.sha256(onnx).hexdigest(), *device, options]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        self.info.update(engine_key=key, compute_capability=device[1], tensorrt=device[0])
        path = os.path.join(self._home, "engines", key + ".engine")
        caches = os.path.join(self._home, "engines", "timing-%s-%s.cache" % (device[0], device[1]))
        if os.path.isfile(path):
            with open(path, "rb") as stream:
                self.info.update(built=False, timing_cache=caches)
                return stream.read()
        start = time.perf_counter()
        engine, timing = build(self._trt, onnx, options, _read(files.get("timing.cache", "")) or _read(caches))
        self.info.update(built=True, build_s=round(time.perf_counter() - start, 3), timing_cache=caches)
        _write(path, engine)
        _write(caches, timing)
        _prune(os.path.dirname(path))
        return engine

    def _bind(self) -> None:
        engine, trt = self._loaded, self._trt
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs = inputs
        self.outputs = [name for name in names if name not in inputs]
        self._shapes = {name: tuple(int(size) for size in engine.get_tensor_shape(name)) for name in names}
        dynamic = [name for name, shape in self._shapes.items() if min(shape, default=1) < 0]
        if dynamic:
            raise Failure("runtime", "%s has no fixed shape; export the network with a fixed batch" % dynamic[0])
        self._dtypes = {name: np.dtype(TYPES[engine.get_tensor_dtype(name).name]) for name in names}
        self.shapes, self.dtypes = [self._shapes[name] for name in inputs], [self._dtypes[name] for name in inputs]
        self.shape, self.dtype = self.shapes[0], self.dtypes[0]
        sizes = {name: int(np.prod(self._shapes[name])) * self._dtypes[name].itemsize for name in names}
        self._pointers = {name: self._cuda.allocate(max(1, size)) for name, size in sizes.items()}
        self._context = engine.create_execution_context()
        if self._context is None:
            raise Failure("out-of-memory", "the GPU has not enough memory for the engine", 137)
        self._address(self._context)

    def _address(self, context: Any) -> None:
        for name, pointer in self._pointers.items():
            context.set_tensor_address(name, pointer)

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(int(self._cuda.stream.value or 0)):
            raise Failure("runtime", "TensorRT could not run the engine")

    def _execute_and_wait(self) -> None:
        self._execute(self._context)
        self._cuda.wait()


def _read(path: str) -> bytes:
    if not path or not os.path.isfile(path):
        return b""
    with open(path, "rb") as stream:
        return stream.read()


def _write(path: str, data: bytes) -> None:
    part = "%s.%d.part" % (path, os.getpid())
    with open(part, "wb") as stream:
        stream.write(data)
    os.replace(part, path)


def _prune(folder: str) -> None:
    """Keep the newest engines only: hundreds pass through while latency is sampled."""
    engines = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".engine")]
    for path in sorted(engines, key=os.path.getmtime)[:-KEEP_ENGINES]:
        os.remove(path)
