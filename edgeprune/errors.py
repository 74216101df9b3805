"""Every error that edgeprune raises on purpose, and its exit code.

    EdgepruneError                 1
    ├── UsageError                 2   the request itself is wrong: a flag, a recipe, a profile, an argument
    │   ├── RecipeError            2
    │   └── TargetError            2
    ├── InputError                 3   what the user handed in cannot be used
    │   ├── ModelError             3   factory, weights, forward pass
    │   ├── DataError              3   images, labels, preprocessing
    │   └── TaskError              3   task, metric, decode
    ├── GraphError                 4   the network cannot be analysed, or the plan does not fit it
    │   ├── CaptureError           4
    │   ├── PlanError              4
    │   └── ProofError             4
    ├── MissingDependency          5   an extra is not installed
    ├── DeviceError                6   the device, or the way to it
    │   ├── DeviceUnreachable      6
    │   ├── DeviceBusy             6
    │   └── JobFailed              6
    ├── BudgetError                7   the deadline cannot be met
    ├── GateError                  8   measured, and not good enough to release; or there was no device to measure on
    ├── MeasurementError           9   the measurement is too noisy to be recorded
    ├── BundleError               10   a bundle is damaged, altered or incomplete
    ├── RunError                  11   the run directory: locked, full, unwritable, damaged
    ├── NotAuthenticated          12   a bundle is intact, but not proven to be from whom it should be
    ├── RegressionError           13   a release is worse than the one before it, told apart from noise
    └── PolicyError               14   a bundle is good, but not what a policy asks for

Every message says what happened, where, and what to do. A user never sees a traceback for one of these.
An interrupted run (Ctrl-C) exits with 130 and can be resumed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgepruneError(Exception):
    """The root of every error raised on purpose.

    Args:
        message: what happened and where (file, key, layer or device), in one sentence.
        remedy: what to do next, in one sentence; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class UsageError(EdgepruneError):
    """The request itself is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has an unknown key, a wrong type or an impossible value."""


class TargetError(UsageError):
    """A target is unknown or its profile is wrong."""


class InputError(EdgepruneError):
    """What the user handed in cannot be used."""

    exit_code = 3


class ModelError(InputError):
    """The factory, the weights or the forward pass."""


class DataError(InputError):
    """Images, labels or preprocessing."""


class TaskError(InputError):
    """The task: its metric, its loss, its distance or its decode."""


class GraphError(EdgepruneError):
    """The network cannot be analysed, or the plan does not fit it."""

    exit_code = 4


class CaptureError(GraphError):
    """torch.export could not capture the network."""


class PlanError(GraphError):
    """A plan is illegal, damaged or was made for another network."""


class ProofError(GraphError):
    """The pruned network does not compute what it must."""


class MissingDependency(EdgepruneError):
    """An optional dependency is not installed."""

    exit_code = 5


class DeviceError(EdgepruneError):
    """The device, or the way to it."""

    exit_code = 6


class DeviceUnreachable(DeviceError):
    """The device does not answer."""


class DeviceBusy(DeviceError):
    """Another host or job holds the device."""


class JobFailed(DeviceError):
    """A job on the device ended badly: time-out, signal, out of memory, wrong runtime."""


class BudgetError(EdgepruneError):
    """The deadline cannot be met; the message says what would reach it."""

    exit_code = 7


class GateError(EdgepruneError):
    """Measured, and not good enough to release; or there was no device to measure on."""

    exit_code = 8


class MeasurementError(EdgepruneError):
    """A measurement is too noisy, or the device was not in a state to measure."""

    exit_code = 9


class BundleError(EdgepruneError):
    """A bundle is damaged, altered or incomplete."""

    exit_code = 10


class RunError(EdgepruneError):
    """The run directory is locked, full, unwritable or damaged."""

    exit_code = 11


class NotAuthenticated(EdgepruneError):
    """Nothing is wrong with a bundle, but no given key has signed it, or less was proved than --strict asks."""

    exit_code = 12


class RegressionError(EdgepruneError):
    """A release is worse than the one before it, by more than is allowed, and that is told apart from noise."""

    exit_code = 13


class PolicyError(EdgepruneError):
    """A bundle is good, but not what a policy asks for."""

    exit_code = 14


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `Did you mean 'x'?`, or the list of what is known when nothing is near; empty if nothing is known."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"Known: {', '.join(names)}." if names else ""
