"""OpenVINO on the device: open, run, profile. CPU plugin only."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from .kernels import Samples
from .run_onnxruntime import fixed_input

NAME = "openvino"


def version() -> str:
    """The runtime's version, such as 2026.4.1; raises ImportError when it is not installed."""
    import openvino

    return str(openvino.__version__).split("-")[0]


class Model:
    """One artifact, open. `files` maps names to paths: the .xml file, then its .bin file."""

    def __init__(self, files: dict[str, str], options: dict[str, Any], threads: int, home: str) -> None:
        import openvino

        self._core = openvino.Core()
        self._model = self._core.read_model(*files.values())
        self._settings = {
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": "NO",  # the agent pins, so that the plugin does not choose another CPU
        }
        self._settings.update({key: str(value) for key, value in options.items()})
        self._compiled = self._core.compile_model(self._model, "CPU", self._settings)
        self._request = self._compiled.create_infer_request()
        port = self._compiled.inputs[0]
        self.shape = tuple(int(size) for size in port.shape)
        self.dtype = np.dtype(port.element_type.to_dtype())
        self.outputs = [_name(output, index) for index, output in enumerate(self._compiled.outputs)]
        self.info = {}  # type: dict[str, Any]

    def run(self, batch: Any) -> list[Any]:
        """One batch through the artifact."""
        found = self._request.infer([batch])
        return [np.array(found[output]) for output in self._compiled.outputs]

    def step(self) -> Callable[[], Any]:
        """A call that runs the artifact once on a fixed input, set beforehand."""
        return _step(self._request, self.shape, self.dtype)

    def profile(self, runs: int, warmup: int) -> tuple[list[dict[str, Any]], str]:
        """Each kernel's times in nanoseconds, in execution order; the runtime itself says which layers it fused."""
        compiled = self._counting()
        request = compiled.create_infer_request()
        step = _step(request, self.shape, self.dtype)
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
            return self._core.import_model(self._compiled.export_model(), "CPU", settings)
        except RuntimeError:  # a plugin or a graph that has no export
            return self._core.compile_model(self._model, "CPU", settings)

    def close(self) -> None:
        """Let go of the model."""
        self._request = self._compiled = self._model = None


def _step(request: Any, shape: tuple[int, ...], dtype: Any) -> Callable[[], Any]:
    import openvino

    request.set_input_tensor(openvino.Tensor(fixed_input(shape, dtype)))
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
    return str(names[0]) if names else "output_%d" % index
