"""In place of a device that nobody has connected: latency by a stated model, outputs by ONNX Runtime on this machine.

Everything above works on it as on a device, in a unit of its own ("modelled ms"), so that no figure of it can pass for
a measurement: tables of another unit are refused, and the gate stays open until a device has measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgeprune.devices.artifact import HOST_RUNTIME
from edgeprune.devices.roofline import LABEL, ModelledKernel, kernels
from edgeprune.devices.types import Artifact, Examples, KernelTime, Loaded, Probe, Timing, Unit
from edgeprune.errors import DeviceError, MeasurementError
from edgeprune.target import Protocol, Target

if TYPE_CHECKING:
    import onnx

    from edgeprune.devices.device import AgentDevice

PEAKS = ("int8_tops", "fp16_tflops", "fp32_tflops", "bandwidth_gb_s", "efficiency", "launch_us")


@dataclasses.dataclass(frozen=True)
class Modelled:
    """An artifact and its graph; `opened` is set once its outputs were asked for."""

    artifact: Artifact
    graph: onnx.ModelProto
    found: list[tuple[ModelledKernel, ...]] = dataclasses.field(
        default_factory=list
    )  # its kernels, once they were asked for
    opened: list[Loaded] = dataclasses.field(default_factory=list)


class ModelDevice:
    """A `Device` that measures nothing. Use as a context manager.

    Args:
        target: its [extra] holds the model's figures.
        host: this machine with ONNX Runtime, which computes outputs; entered when the first are asked for.
        machine: this machine's architecture, where it stands in for a device of another one.
    """

    unit: Unit = "modelled ms"
    runtime_version = ""  # there is no device whose runtime could have one

    def __init__(self, target: Target, host: AgentDevice | ModelDevice, machine: str = "") -> None:
        self._target, self._host, self._machine, self._entered = target, host, machine, False

    def __enter__(self) -> ModelDevice:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._entered:
            self._host.__exit__(*exc)

    def probe(self) -> Probe:
        """The figures of the model; nothing was looked at."""
        fingerprint = {
            "model": f"{self._target.title}: {LABEL}",
            "peaks": {name: self._target.extra[name] for name in PEAKS if name in self._target.extra},
            "runtime": self._target.runtime,
            "runtime_version": self.runtime_version,
            "threads": self._target.execution.threads,
            "emulation": "model",
            **({"host": self._machine} if self._machine else {}),
        }
        return Probe(fingerprint, {"where": f"no device: {LABEL}"})

    def load(self, artifact: Artifact) -> Loaded:
        """Read the graph; raises DeviceError for what is not an ONNX file."""
        import onnx

        path = next(iter(artifact.files.values()))
        try:
            model = onnx.load(path)
        except Exception as cause:  # onnx raises protobuf's own errors
            raise DeviceError(f"{path}: not an ONNX graph ({cause}).") from None
        return Modelled(artifact, model)

    def unload(self, loaded: Loaded) -> None:
        """Forget an artifact."""
        for opened in _modelled(loaded).opened:
            self._host.unload(opened)

    def measure(self, loaded: Sequence[Loaded], protocol: Protocol) -> list[Timing]:
        """The model's sum of each artifact; raises MeasurementError when true milliseconds are asked for."""
        if protocol.unit != self.unit:
            raise MeasurementError(
                f"{self._target.name}: no device is connected, so nothing can be measured.",
                "Give yours: --device ssh://NAME. See: edgeprune devices",
            )
        sums = [sum(kernel.ms for kernel in self._kernels(one)) for one in loaded]
        rounds = max(1, protocol.rounds)
        return [
            Timing(ms, ms, ms, ms, ms, 0.0, rounds, (ms,) * rounds, self.unit, notes=(f"latency: {LABEL}",))
            for ms in sums
        ]

    def profile(self, loaded: Loaded, runs: int = 1) -> list[KernelTime]:
        """The model's kernels."""
        return [
            KernelTime(kernel.name, kernel.kind, tuple(kernel.layers), kernel.ms, 0.0, runs, self.unit, "modelled")
            for kernel in self._kernels(loaded)
        ]

    def infer(self, loaded: Loaded, images: Examples) -> list[NDArray[Any]]:
        """Outputs of ONNX Runtime on this machine, every Q/DQ node as it is written: close to the device's own."""
        one = _modelled(loaded)
        if not self._entered:
            self._host.__enter__()
            self._entered = True
        if not one.opened:
            own = self._target.runtime == HOST_RUNTIME
            named = one.artifact if own else dataclasses.replace(one.artifact, runtime=HOST_RUNTIME, options={})
            one.opened.append(self._host.load(named))
        return self._host.infer(one.opened[0], images)

    def _kernels(self, loaded: Loaded) -> tuple[ModelledKernel, ...]:
        """Raises TargetError when the profile has no figures to model latency with."""
        one = _modelled(loaded)
        if not one.found:
            one.found.append(tuple(kernels(one.graph, self._target, one.artifact.precision)))
        return one.found[0]


def _modelled(loaded: Loaded) -> Modelled:
    if not isinstance(loaded, Modelled):
        raise TypeError("not an artifact that this model loaded")
    return loaded
