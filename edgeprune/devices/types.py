"""What passes through the door between the host and a device: artifacts in, timings, kernels and outputs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeprune.devices.artifact import Artifact as Artifact
from edgeprune.errors import JobFailed
from edgeprune.target import Protocol as MeasureProtocol

# [N, ...] for each input of an artifact: one array, several in its order, or several by its names
Examples = NDArray[Any] | Sequence[NDArray[Any]] | Mapping[str, NDArray[Any]]
Unit = Literal["ms", "instructions", "modelled ms"]


def columns(given: Examples, inputs: Sequence[str], name: str) -> tuple[NDArray[Any], ...]:
    """One array an input, in the order of the artifact `name`; raises JobFailed where they do not fit."""
    if isinstance(given, Mapping):
        if set(given) != set(inputs):
            raise JobFailed(f"{name}: it takes {', '.join(inputs)}; given were {', '.join(map(str, given))}.")
        found = tuple(np.asarray(given[one]) for one in inputs)
    else:
        found = tuple(given) if isinstance(given, tuple | list) else (np.asarray(given),)
    if len(found) != len(inputs) or len({len(one) for one in found}) != 1:
        raise JobFailed(f"{name}: it takes {', '.join(inputs)}; given were {len(found)} arrays, or of several lengths.")
    return found


@dataclass(frozen=True)
class Timing:
    """End-to-end latency of one artifact, batch and threads as in the target's profile.

    Values are in `unit`: milliseconds, executed instructions on an emulated board, which are never a time, or a model's
    milliseconds, which nobody measured.

    Attributes:
        median: median of the rounds' medians.
        p90, p99, minimum, mean: over all runs.
        spread: median absolute deviation of the rounds' medians, divided by `median`.
        rounds: each round's median.
        valid: False when the device was not in a state to measure (throttled, busy, too much spread).
        reasons: why it is not valid.
        drift: median of the later rounds over that of the earlier ones, less one: an anchor's drift over the job.
        notes: what is worth saying but does not make it invalid (a busy machine, a powersaving governor).
        others: share of the CPUs' time that other work took meanwhile.
    """

    median: float
    p90: float
    p99: float
    minimum: float
    mean: float
    spread: float
    count: int
    rounds: tuple[float, ...]
    unit: Unit = "ms"
    valid: bool = True
    reasons: tuple[str, ...] = ()
    drift: float = 0.0
    notes: tuple[str, ...] = ()
    others: float = 0.0


@dataclass(frozen=True)
class KernelTime:
    """One fused kernel of the runtime, as its own profiler names and times it.

    Attributes:
        name: the runtime's name of the kernel.
        kind: the runtime's operator, such as "Convolution" or "QLinearConv".
        layers: nodes of the ONNX graph that the runtime fused into it, where it tells.
        median, mad: of one execution, in `unit`.
        implementation: the runtime's kernel implementation, such as "brgconv_avx512_I8".
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    median: float
    mad: float
    count: int
    unit: Unit = "ms"
    implementation: str = ""


@dataclass(frozen=True)
class Probe:
    """A device's state. `fingerprint` holds what latency depends on; tables are refused when it differs.

    Attributes:
        fingerprint: CPU model and flags (or GPU and power mode), governor, runtime and version, threads, emulation.
        state: temperatures, frequencies, load, throttle bits, memory, at this moment.
    """

    fingerprint: dict[str, object]
    state: dict[str, Any]


class Loaded(Protocol):
    """An artifact that an agent holds ready."""

    @property
    def artifact(self) -> Artifact:
        """What was loaded."""
        ...


class Device(Protocol):
    """A device that answers. Made by `devices.connect`; a context manager; one job at a time.

    Every method raises DeviceError (DeviceUnreachable, DeviceBusy, JobFailed) with the device's own words.
    """

    def __enter__(self) -> Device: ...

    def __exit__(self, *exc: object) -> None: ...

    def probe(self) -> Probe:
        """Look at the device now."""
        ...

    def load(self, artifact: Artifact) -> Loaded:
        """Send the files (content-addressed, checked by sha256) and open them with the runtime."""
        ...

    def unload(self, loaded: Loaded) -> None:
        """Forget an artifact, so that hundreds can pass through one agent."""
        ...

    def measure(self, loaded: Sequence[Loaded], protocol: MeasureProtocol) -> list[Timing]:
        """Measure latency, all candidates interleaved (A B C A B C ...), in the order given."""
        ...

    def profile(self, loaded: Loaded, runs: int = 20) -> list[KernelTime]:
        """Time each fused kernel with the runtime's profiler, in execution order."""
        ...

    def infer(self, loaded: Loaded, images: Examples) -> list[NDArray[Any]]:
        """Run every example (shape [N, ...]) through the artifact; the outputs, each of shape [N, ...].

        Args:
            images: of any type: one array, several in the order of the artifact's inputs, or several by their names.
        """
        ...
