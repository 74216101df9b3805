"""What the user brings, and what it must meet."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeprune.errors import ModelError, UsageError
from edgeprune.workload.arrays import to_array
from edgeprune.workload.data import Data
from edgeprune.workload.inputs import Inputs
from edgeprune.workload.task import Task

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class Workload:
    """A network, its inputs, its data, and the task that it is for.

    Attributes:
        build: makes the trained network anew, in evaluation mode.
        inputs: of one example.
        data: its splits.
        task: what it is for.
        digest: of everything that a result depends on.
    """

    build: Callable[[], nn.Module]
    inputs: Inputs
    data: Data
    task: Task
    digest: str

    @staticmethod
    def of(
        build: Callable[[], nn.Module],
        data: Data,
        task: Task,
        inputs: Inputs | None = None,
        network: nn.Module | None = None,
    ) -> Workload:
        """From objects: the inputs from the first test example where they are not given; checked on a few examples.

        Args:
            network: what `build` makes, where it was made already.

        Raises:
            ModelError, DataError, TaskError: what does not fit.
        """
        import torch

        network = build() if network is None else network
        if not hasattr(network, "forward"):
            raise ModelError(f"build() gave {type(network).__name__}; it must give a torch.nn.Module.")
        known = inputs if inputs is not None else data.inputs(argument_names(network))
        sha = hashlib.sha256(repr((known, settings(task))).encode())
        sha.update(data.digest().encode())
        for name, tensor in sorted(network.state_dict().items()):
            sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        workload = Workload(build, known, data, task, f"sha256:{sha.hexdigest()}")
        workload.check(network)
        return workload

    def check(self, network: nn.Module, examples: int = 8) -> None:
        """Run the network on a few test examples and let the task look at what comes out."""
        import torch

        batch, targets = next(self.data.batches("test", self.inputs, examples, examples))
        was = network.training
        network.eval()
        try:
            with torch.inference_mode():
                outputs = self.inputs.call(network, batch)
        except (RuntimeError, TypeError, ValueError, IndexError) as cause:
            first = str(cause).strip().splitlines() or [type(cause).__name__]
            given = ", ".join(f"{part.name} {part.dtype} {list(part.shape)}" for part in self.inputs.parts)
            raise ModelError(
                f"the network does not take its inputs ({given}): {first[0].rstrip('.')[:200]}.",
                "Give a dict by forward's argument names, or inputs in forward's order, of the types that it takes.",
            ) from cause
        finally:
            network.train(was)
        self.task.check(outputs, targets)


def argument_names(network: nn.Module) -> list[str]:
    """The names of forward's arguments, in order."""
    return [
        name
        for name, parameter in inspect.signature(network.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


def settings(task: Task) -> str:
    """A task's class and settings; functions and classes of the user's by their source, never by where they lie."""
    said = {"metric": task.metric, "unit": task.unit, "higher_is_better": task.higher_is_better}
    return repr((sorted(said.items()), described(task)))


def described(value: Any, deep: int = 4) -> str:
    """Anything as text that changes when what it does changes, and is the same in every process."""
    if isinstance(value, functools.partial):
        return repr([described(part, deep - 1) for part in (value.func, value.args, value.keywords)])
    if inspect.ismethod(value):
        return f"{value.__name__} of {described(value.__self__, deep - 1)}" if deep else value.__name__
    if inspect.isroutine(value) or isinstance(value, type):
        own = inspect.unwrap(value) if not isinstance(value, type) else value
        held = [cell.cell_contents for cell in getattr(own, "__closure__", None) or () if deep]
        return f"{own.__module__}.{own.__qualname__} {_source(own)} {[described(one, deep - 1) for one in held]}"
    if isinstance(value, Mapping):
        return repr(sorted((str(key), described(one, deep - 1)) for key, one in value.items())) if deep else "..."
    if isinstance(value, tuple | list):
        return repr([described(one, deep - 1) for one in value]) if deep else "..."
    if isinstance(value, str | bytes | int | float | bool | type(None)):
        return repr(value)
    if hasattr(value, "__array__") or hasattr(value, "detach"):
        array = to_array(value)
        return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    fields = described(vars(value), deep - 1) if deep and hasattr(value, "__dict__") else ""
    return f"{described(type(value), deep)} {fields}"


def _source(value: Any) -> str:
    if str(value.__module__).split(".")[0] in ("edgeprune", "torch", "torchmetrics", "numpy", "builtins"):
        return ""
    try:
        return hashlib.sha256(inspect.getsource(value).encode()).hexdigest()
    except (OSError, TypeError):
        return ""


@dataclass(frozen=True)
class Budget:
    """What must be met, on the device's runtime: speedup or latency_ms; or max_drop alone, for the fastest within it.

    Attributes:
        speedup: over the dense INT8 artifact.
        latency_ms: milliseconds an example.
        max_drop: in the metric's own unit, below the dense FP32 network; None: 0.5.
        confidence: that the drop is at most `max_drop`.
        max_bytes: of the artifact.
    """

    speedup: float | None = None
    latency_ms: float | None = None
    max_drop: float | None = None
    confidence: float = 0.95
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        given = (self.speedup is not None) + (self.latency_ms is not None)
        if given > 1 or (not given and self.max_drop is None):
            raise UsageError(
                "Budget needs exactly one of speedup and latency_ms; or max_drop alone.",
                "Budget(speedup=2.0), for example.",
            )
        for name, low, open_end in (("speedup", 1.0, True), ("latency_ms", 0.0, True), ("max_drop", 0.0, False)):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and (value > low or (value == low and not open_end))):
                word = "more than" if open_end else "at least"
                raise UsageError(f"Budget: {name} is {value:g}; it must be a number of {word} {low:g}.")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"Budget: confidence is {self.confidence:g}; it must be from 0.5 to below 1.")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise UsageError(f"Budget: max_bytes is {self.max_bytes}; it must be at least 1.")
