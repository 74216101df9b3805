"""ONNX Runtime on the device: open, run, profile."""

from __future__ import annotations

import json
import os
from typing import Any, Callable

import numpy as np

from .kernels import Samples
from .wire import Failure

NAME = "onnxruntime"
LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
SWITCHES = ("enable_cpu_mem_arena", "enable_mem_pattern", "inter_op_num_threads")


def version() -> str:
    """The runtime's version; raises ImportError when it is not installed."""
    import onnxruntime

    return str(onnxruntime.__version__)


class Model:
    """One artifact, open. `files` maps names to paths; the first is the .onnx file."""

    def __init__(self, files: dict[str, str], options: dict[str, Any], threads: int, home: str) -> None:
        self._path = next(iter(files.values()))
        self._options, self._threads, self._home = options, threads, home
        self._session = self._open({})
        node = self._session.get_inputs()[0]
        self.shape = tuple(int(size) for size in node.shape)
        self.dtype = np.dtype({"tensor(float16)": np.float16, "tensor(float)": np.float32}[node.type])
        self._input = node.name
        self.outputs = [output.name for output in self._session.get_outputs()]
        self.info = {}  # type: dict[str, Any]

    def _open(self, attributes: dict[str, Any]) -> Any:
        import onnxruntime as ort

        session = ort.SessionOptions()
        session.intra_op_num_threads = self._threads
        session.log_severity_level = 3
        for key, value in self._options.items():
            _set(ort, session, key, value)
        for key, value in attributes.items():
            setattr(session, key, value)
        return ort.InferenceSession(self._path, session, providers=["CPUExecutionProvider"])

    def run(self, batch: Any) -> list[Any]:
        """One batch through the artifact."""
        return list(self._session.run(None, {self._input: batch}))

    def step(self) -> Callable[[], Any]:
        """A call that runs the artifact once on a fixed input, with inputs and outputs bound beforehand."""
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, fixed_input(self.shape, self.dtype))
        for name in self.outputs:
            binding.bind_output(name)
        session = self._session
        session.run_with_iobinding(binding)
        return lambda: session.run_with_iobinding(binding)

    def profile(self, runs: int, warmup: int) -> tuple[list[dict[str, Any]], str]:
        """Each kernel's times in nanoseconds, in execution order, and the path of the graph as the runtime fused it."""
        fused = os.path.join(self._home, "outgoing", "fused-%d.onnx" % os.getpid())
        prefix = os.path.join(self._home, "outgoing", "profile-%d" % os.getpid())
        session = self._open(
            {"enable_profiling": True, "profile_file_prefix": prefix, "optimized_model_filepath": fused}
        )
        feed = {self._input: fixed_input(self.shape, self.dtype)}
        for _ in range(warmup + runs):
            session.run(None, feed)
        trace = session.end_profiling()
        with open(trace) as stream:
            events = json.load(stream)
        os.remove(trace)
        samples = Samples(runs)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                arguments = event["args"]
                name = event["name"][: -len("_kernel_time")]
                samples.add(name, arguments["op_name"], float(event["dur"]) * 1000, provider(arguments))
        return samples.rows(), fused

    def optimise(self, path: str) -> None:
        """Write the graph as the runtime rewrites it for this CPU; to be opened with optimisation disabled."""
        self._open({"optimized_model_filepath": path})

    def close(self) -> None:
        """Let go of the session."""
        self._session = None


def provider(arguments: dict[str, Any]) -> str:
    """Which execution provider ran a kernel, without the suffix that all share."""
    return str(arguments.get("provider", "")).replace("ExecutionProvider", "")


def fixed_input(shape: tuple[int, ...], dtype: Any) -> Any:
    """The input that latency is measured with: standard normal, the same each time."""
    return np.random.RandomState(0).standard_normal(shape).astype(dtype)


def _set(ort: Any, session: Any, key: str, value: Any) -> None:
    if "." in key:  # such as session.qdqisint8allowed
        session.add_session_config_entry(key, str(int(value)) if isinstance(value, bool) else str(value))
    elif key == "graph_optimization_level" and value in LEVELS:
        session.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[value])
    elif key in SWITCHES:
        setattr(session, key, value)
    else:
        known = "graph_optimization_level (%s), %s, session config entries" % (", ".join(LEVELS), ", ".join(SWITCHES))
        raise Failure("runtime", "ONNX Runtime has no option %s = %r here; known: %s" % (key, value, known))
