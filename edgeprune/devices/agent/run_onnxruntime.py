"""ONNX Runtime on the device: open, run, profile."""

from __future__ import annotations

import json
import os
from typing import Any, Callable

import numpy as np

from .kernels import Samples
from .options import COUNT, SWITCH, wrong
from .wire import Failure

NAME = "onnxruntime"
TITLE = "ONNX Runtime"
OPTIONS = {
    "graph_optimization_level": ("disable", "basic", "extended", "all"),
    "enable_cpu_mem_arena": (True, False),
    "enable_mem_pattern": (True, False),
    "inter_op_num_threads": COUNT,
    "session.qdqisint8allowed": SWITCH,
    "session.disable_prepacking": SWITCH,
    "session.disable_quant_qdq": SWITCH,
    "session.disable_double_qdq_remover": SWITCH,
    "session.enable_quant_qdq_cleanup": SWITCH,
    "session.enable_gelu_approximation": SWITCH,
    "session.set_denormal_as_zero": SWITCH,
    "session.intra_op.allow_spinning": SWITCH,
    "session.inter_op.allow_spinning": SWITCH,
    "session.force_spinning_stop": SWITCH,
    "session.dynamic_block_base": COUNT,
    "mlas.enable_gemm_fastmath_arm64_bfloat16": SWITCH,
}  # type: dict[str, Any]
LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


TYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def version() -> str:
    """The runtime's version; raises ImportError when it is not installed."""
    import onnxruntime

    return str(onnxruntime.__version__)


class Model:
    """One artifact, open. `files` maps names to paths; the first is the .onnx file."""

    here = True  # the work is done by this process, not by another processor

    def __init__(self, files: dict[str, str], options: dict[str, Any], threads: int, home: str) -> None:
        if wrong(NAME, options):
            raise Failure("runtime", wrong(NAME, options))
        self._path = next(iter(files.values()))
        self._options, self._threads, self._home = options, threads, home
        self._session = self._open({})
        nodes = self._session.get_inputs()
        for node in nodes:
            if node.type not in TYPES:
                raise Failure("runtime", "the input '%s' is a %s, which is not fed here" % (node.name, node.type))
        self.inputs = [node.name for node in nodes]
        self.shapes = [tuple(int(size) for size in node.shape) for node in nodes]
        self.dtypes = [np.dtype(TYPES[node.type]) for node in nodes]
        self.shape, self.dtype = self.shapes[0], self.dtypes[0]
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
        """One batch through the artifact: one array, or a list with one an input."""
        return list(self._session.run(None, dict(zip(self.inputs, listed(batch)))))  # noqa: B905 - Python 3.8

    def step(self) -> Callable[[], Any]:
        """A call that runs the artifact once on a fixed input, with inputs and outputs bound beforehand."""
        binding = self._session.io_binding()
        for name, value in self._fixed().items():
            binding.bind_cpu_input(name, value)
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
        feed = self._fixed()
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

    def _fixed(self) -> dict[str, Any]:
        return {
            name: fixed_input(shape, dtype)
            for name, shape, dtype in zip(self.inputs, self.shapes, self.dtypes)  # noqa: B905 - Python 3.8
        }

    def optimise(self, path: str) -> None:
        """Write the graph as the runtime rewrites it for this CPU; to be opened with optimisation disabled."""
        self._open({"optimized_model_filepath": path})

    def close(self) -> None:
        """Let go of the session."""
        self._session = None


def provider(arguments: dict[str, Any]) -> str:
    """Which execution provider ran a kernel, without the suffix that all share."""
    return str(arguments.get("provider", "")).replace("ExecutionProvider", "")


def listed(batch: Any) -> list[Any]:
    """The arrays of a batch: one, or one an input."""
    return list(batch) if isinstance(batch, (list, tuple)) else [batch]


def fixed_input(shape: tuple[int, ...], dtype: Any) -> Any:
    """The input that latency is measured with, the same each time: standard normal; every byte; true.

    Wider integers are indices (tokens), of which only 0 is known to be in the vocabulary.
    """
    kind, random = np.dtype(dtype), np.random.RandomState(0)
    if kind.kind == "f":
        return random.standard_normal(shape).astype(kind)
    if kind.kind == "b":
        return np.ones(shape, kind)
    if kind.itemsize == 1:
        limits = np.iinfo(kind)
        return random.randint(limits.min, limits.max + 1, shape).astype(kind)
    return np.zeros(shape, kind)


def _set(ort: Any, session: Any, key: str, value: Any) -> None:
    """One option of the list in options.py."""
    if "." in key:  # such as session.qdqisint8allowed
        session.add_session_config_entry(key, str(int(value)))
    elif key == "graph_optimization_level":
        session.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[value])
    else:
        setattr(session, key, int(value) if key == "inter_op_num_threads" else value)
