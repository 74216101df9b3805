"""What a run says: events for whoever listens, the event log, and the numbers of training for trackers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgeprune.pipeline.rundir import RunDirectory
from edgeprune.recipe import Recipe

if TYPE_CHECKING:
    from edgeprune.pipeline.tracking import Trackers


@dataclass(frozen=True)
class Event:
    """Something to show, or to keep.

    Attributes:
        kind: "stage" (begins), "progress" (done of total), "line" (said once), "done" (whole), "numbers" (of training);
            a listener passes over kinds that it does not know.
        numbers: name -> value, such as loss, score and learning rate: what a tracker keeps.
    """

    kind: str
    stage: str
    message: str = ""
    done: float = 0.0
    total: float = 0.0
    numbers: Mapping[str, object] = field(default_factory=dict)


Listener = Callable[[Event], None]
Progress = Callable[[float, float, str], None]  # done, total, a few words


def silent(event: Event) -> None:
    """Show nothing."""


def untold(done: float, total: float, message: str) -> None:
    """Progress that nobody asked for."""


class Voice:
    """How a stage speaks.

    Args:
        stack: closes the trackers at the end of the run.
    """

    def __init__(
        self, listener: Listener, run: RunDirectory, recipe: Recipe, target: str, stack: contextlib.ExitStack
    ) -> None:
        self.listener, self._run, self._recipe, self._target, self._stack = listener, run, recipe, target, stack

    def progress(self, stage: str) -> Progress:
        """A callback (done, total, message) that shows progress at most ten times a second."""
        last = [0.0]

        def show(done: float, total: float, message: str = "") -> None:
            now = time.monotonic()
            if now - last[0] > 0.1 or done >= total:
                last[0] = now
                self.listener(Event("progress", stage, message, done, total))

        return show

    def say(self, stage: str, message: str) -> None:
        """One line for the user and the event log."""
        self.listener(Event("line", stage, message))
        self._run.event("line", stage=stage, message=message)

    def track(self, stage: str, numbers: Mapping[str, Any]) -> None:
        """Numbers of training, for a listener that keeps them, the event log and the trackers."""
        numbers = {
            str(key): value.item() if getattr(value, "ndim", None) == 0 else value for key, value in numbers.items()
        }
        self.listener(Event("numbers", stage, numbers=numbers))
        self._run.event("train", **{**numbers, "stage": stage})
        self.trackers.log(stage, numbers)

    @cached_property
    def trackers(self) -> Trackers:
        """What [run] track names; closed at the end of the run."""
        from edgeprune.pipeline.tracking import Trackers

        made = Trackers(self._recipe, self._target, self._run.path, lambda line: self.say("run", line))
        self._stack.callback(made.close)
        return made
