"""Noise is normal: how long a device that is not quiet is measured again, and what its noise costs at the budget.

What is measured again always counts together with what was measured before, so waiting only ever makes intervals
narrower. `Patience` holds how much longer it may take than on a quiet device; it is shared by all that one stage does.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from edgeprune.devices import Device, Timing
from edgeprune.errors import DeviceError
from edgeprune.result import Latency, Validation
from edgeprune.validate import timing

Z = 1.645  # one-sided 95 %
REPEATS = 4  # validations of one artifact that a release may take where one is too near to tell
LARGEST = 0.05  # share of the budget that is left free for noise at most


@dataclass
class Patience:
    """Seconds that may be spent on measuring again.

    Attributes:
        seconds: in all; 0: what the first measurements tell is taken.
        say: shows one line: what is waited for, and how long at most.
    """

    seconds: float = 0.0
    say: Callable[[str], None] | None = None
    spent: float = field(default=0.0, init=False)
    _inside: int = field(default=0, init=False, repr=False)

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.seconds - self.spent)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """What is done inside is waiting; nested uses count once."""
        began = time.monotonic()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self.spent += time.monotonic() - began

    def tell(self, device: Device, what: str) -> None:
        """Say why there is waiting, how busy the device is, and for how long at most."""
        if self.say is None:
            return
        minutes = "less than a minute" if self.left < 60 else f"up to {self.left / 60:.0f} min"
        self.say(f"{what}{busy(device)}; measuring again for {minutes} more. Ctrl-C keeps what is good.")


def busy(device: Device) -> str:
    """How loaded the device is, as a clause: ", as the device is busy (load 2.1 on 2 CPUs)"; "" where it is not."""
    with contextlib.suppress(DeviceError, ValueError, TypeError, KeyError):
        state = device.probe().state
        load, cpus = float(state["load"]), int(state.get("cpus") or 1)
        quiet = timing.BUSY * cpus
        if load > quiet:
            return f", as the device is busy (load {load:.1f} on {cpus} CPUs; quiet is at most {quiet:.1f})"
    return ""


def entry(timings: Mapping[str, Timing]) -> Validation:
    """One measurement of artifacts together, as validations are kept."""
    found = {name: Latency(median=one.median, spread=one.spread, rounds=one.rounds) for name, one in timings.items()}
    others = max((one.others for one in timings.values()), default=0.0)
    return timing.entry(found, datetime.now(UTC).isoformat(timespec="seconds"), others)


def deviation(timings: Sequence[Timing], unit: str) -> float:
    """One standard deviation of a ratio of these medians between measurements, relative, as the latency gate sees it.

    Args:
        timings: of the two artifacts (or of the one, for a deadline in milliseconds).
    """
    found = entry(dict(zip(timing.PAIR, timings, strict=False)))
    within = max(found.wander**2, sum(one.error**2 for one in found.networks.values()))
    return math.sqrt(timing.RUN_TO_RUN.get(unit, timing.RUN_TO_RUN["ms"]) ** 2 + within)


def room(deviation: float, unit: str = "ms") -> float:
    """The share of the budget up to which an artifact passes the latency gate in 19 of 20 runs.

    With n validations together the gate asks for a median below 1 - Z * d / sqrt(n) (`validate.timing`), and that
    median lies above the truth by less than Z * d / sqrt(n) in 19 of 20. A clock that repeats itself needs no room.
    """
    if unit != "ms":
        return 1.0 - 2 * Z * deviation
    spare = Z * deviation * timing.MEDIAN / math.sqrt(REPEATS)
    return 1.0 - min(LARGEST, 2 * spare)
