"""OpenVINO on the device: open, run, profile. CPU plugin only."""

from __future__ import annotations

import functools
from typing import Any, Callable

import numpy as np

from .kernels import Samples
from .options import COUNT, YES_NO, wrong
from .run_onnxruntime import fixed_input, listed
from .wire import Failure

NAME = "openvino"
TITLE = "OpenVINO"
# Not ENABLE_CPU_RESERVATION: artifacts are measured side by side, and one would keep the others from their CPUs.
OPTIONS = {
    "INFERENCE_PRECISION_HINT": ("f32", "f16", "bf16"),
    "PERFORMANCE_HINT": ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT"),
    "PERFORMANCE_HINT_NUM_REQUESTS": COUNT,
    "EXECUTION_MODE_HINT": ("PERFORMANCE", "ACCURACY"),
    "NUM_STREAMS": COUNT,
    "INFERENCE_NUM_THREADS": COUNT,
    "SCHEDULING_CORE_TYPE": ("ANY_CORE", "PCORE_ONLY", "ECORE_ONLY"),
    "ENABLE_CPU_PINNING": YES_NO,
    "ENABLE_HYPER_THREADING": YES_NO,
    "CPU_DENORMALS_OPTIMIZATION": YES_NO,
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": range(65537),
}  # type: dict[str, Any]


def version() -> str:
    """The runtime's version, such as 2026.4.1; raises ImportError when it is not installed."""
    import openvino

    return str(openvino.__version__).split("-")[0]


@functools.lru_cache(maxsize=None)
def _core() -> Any:
    """One for the life of the process.

    The CPU plugin gives the thread that loads it a signal stack of its own, and puts the one before it back when it is
    unloaded. Of two that are not closed in the reverse order the second puts back what the first has freed, and the
    next signal ends the process (OpenVINO 2026.4.1).
    """
    import openvino

    return openvino.Core()


class Model:
    """One artifact, open. `files` maps names to paths: the .xml file, then its .bin file."""

    here = True  # the work is done by this process, not by another processor

    def __init__(self, files: dict[str, str], options: dict[str, Any], threads: int, home: str) -> None:

        if wrong(NAME, options):
            raise Failure("runtime", wrong(NAME, options))
        core = _core()
        self._model = core.read_model(*files.values())
        self._settings = {
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": "NO",  # the agent pins, so that the plugin does not choose another CPU
        }
        self._settings.update({key: _spelled(value) for key, value in options.items()})
        self._compiled = core.compile_model(self._model, "CPU", self._settings)
        self._request = self._compiled.create_infer_request()
        ports = self._compiled.inputs
        self.inputs = [_name(port, index) for index, port in enumerate(ports)]
        self.shapes = [tuple(int(size) for size in port.shape) for port in ports]
        self.dtypes = [np.dtype(port.element_type.to_dtype()) for port in ports]
        self.shape, self.dtype = self.shapes[0], self.dtypes[0]
        self.outputs = [_name(output, index) for index, output in enumerate(self._compiled.outputs)]
        self.info = {}  # type: dict[str, Any]

    def run(self, batch: Any) -> list[Any]:
        """One batch through the artifact: one array, or a list with one an input."""
        found = self._request.infer(listed(batch))
        return [np.array(found[output]) for output in self._compiled.outputs]

    def step(self) -> Callable[[], Any]:
        """A call that runs the artifact once on a fixed input, set beforehand."""
        return _step(self._request, self.shapes, self.dtypes)

    def profile(self, runs: int, warmup: int) -> tuple[list[dict[str, Any]], str]:
        """Each kernel's times in nanoseconds, in execution order; the runtime itself says which layers it fused."""
        compiled = self._counting()
        request = compiled.create_infer_request()
        step = _step(request, self.shapes, self.dtypes)
        fused = _fused(compiled)
        samples = Samples(runs)
        for _ in range(warmup):
            step()
        for _ in range(runs):
            step()
            for entry in request.get_profiling_info():
                if str(entry.status).endswith(".EXECUTED"):
                    nanoseconds = entry.real_time.total_seconds() * 1e9
                    name = entry.node_name
                    samples.add(name, entry.node_type, nanoseconds, entry.exec_type, fused.get(name, ()))
        return samples.rows(), ""

    def _counting(self) -> Any:
        """The model with its profiler on: the same kernels. Exported and imported, it is not optimised a second time,
        which takes five times as long.
        """
        settings = dict(self._settings, PERF_COUNT="YES")
        try:
            return _core().import_model(self._compiled.export_model(), "CPU", settings)
        except RuntimeError:  # a plugin or a graph that has no export
            return _core().compile_model(self._model, "CPU", settings)

    def close(self) -> None:
        """Let go of the model."""
        self._request = self._compiled = self._model = None


def _step(request: Any, shapes: list[tuple[int, ...]], dtypes: list[Any]) -> Callable[[], Any]:
    import openvino

    for index, (shape, dtype) in enumerate(zip(shapes, dtypes)):  # noqa: B905 - Python 3.8
        request.set_input_tensor(index, openvino.Tensor(fixed_input(shape, dtype)))
    request.infer(share_outputs=True)
    return lambda: request.infer(share_outputs=True)


def _fused(compiled: Any) -> dict[str, tuple[str, ...]]:
    """Kernel name -> names of the layers in it, from the plugin's executable graph."""
    result = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        names = str(
            info["originalLayersNames"].astype(str)
            if hasattr(info["originalLayersNames"], "astype")
            else info["originalLayersNames"]
        )
        plain = [
            name[: -len("/WithoutBiases")] if name.endswith("/WithoutBiases") else name
            for name in names.split(",")
            if name
        ]
        result[node.get_friendly_name()] = tuple(dict.fromkeys(plain))
    return result


def _name(output: Any, index: int) -> str:
    names = sorted(output.names)
    return str(names[0]) if names else "output_%d" % index  # an input always has a name


def _spelled(value: Any) -> str:
    return {True: "YES", False: "NO"}[value] if isinstance(value, bool) else str(value)
