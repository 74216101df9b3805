"""What a sweep is made of: tasks, each of which brings one run on to a stage, and what each waits for.

What runs share is made by the first of them and taken over by the rest (`RunDirectory.adopt`), so each of the rest
waits for the first: the graph of a recipe; the dense measurements and the latency table of a recipe on a target; the
loss curves, which the first search on a target measures; the search of a budget, whose runs differ by the training's
seed. A task that measures holds its device alone. One that is done again goes on from where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeprune import pipeline
from edgeprune import target as targets
from edgeprune.errors import BudgetError, DeviceBusy, DeviceUnreachable, EdgepruneError, GateError
from edgeprune.pipeline import Listener, silent
from edgeprune.recipe import TuneSection
from edgeprune.scale.spec import SweepRun
from edgeprune.scale.tune import take_part

Phase = Literal["graph", "latency", "search", "recover", "package", "tune"]
Ending = Literal["done", "refused", "impossible", "failed", "skipped"]
PHASES: tuple[Phase, ...] = ("graph", "latency", "search", "recover", "package")
MEASURES: tuple[Phase, ...] = ("latency", "search", "package")  # what holds the device
TRAINS: tuple[Phase, ...] = ("recover", "tune")  # what takes the cores and the GPUs that were asked for


@dataclass(frozen=True)
class SweepTask:
    """Bring one run on to a stage.

    Attributes:
        after: names of the tasks that must have ended well.
        device: what it holds while it measures; "" where it measures nothing.
        shared: run directories whose stages may be taken over: those of the runs that make what this one shares.
        tune: of phase "tune", a worker of the run's study: what [tune] is, as the command line has it.
    """

    name: str
    run: SweepRun
    phase: Phase
    folder: str
    after: tuple[str, ...]
    device: str
    shared: tuple[str, ...]
    tune: TuneSection | None = None

    @property
    def holds(self) -> tuple[str, ...]:
        """Each board by itself: a fleet holds all of its boards."""
        return tuple(name for name in self.device.split(",") if name)


@dataclass(frozen=True)
class TaskDone:
    """How a task ended; `why` in a sentence, where not "done"."""

    name: str
    ending: Ending
    why: str = ""
    seconds: float = 0.0


@dataclass
class _Leaders:
    """Who makes what is shared."""

    graph: dict[str, SweepTask] = field(default_factory=dict)
    latency: dict[tuple[str, str], SweepTask] = field(default_factory=dict)
    curves: dict[tuple[str, str], SweepTask] = field(default_factory=dict)
    search: dict[tuple[str, str, str], SweepTask] = field(default_factory=dict)


def plan_tasks(runs: Sequence[SweepRun], folder: Path, until: str) -> list[SweepTask]:
    """All tasks of a sweep, each after those that it waits for; those that measure on this machine share one device."""
    found: list[SweepTask] = []
    lead = _Leaders()
    for run in runs:
        recipe, on = run.recipe_path, (run.recipe_path, run.target)
        makers = (lead.graph.get(recipe), lead.latency.get(on), lead.search.get((*on, run.budget)))
        shared = tuple(dict.fromkeys(one.folder for one in makers if one is not None))

        def task(phase: Phase, *after: SweepTask, run: SweepRun = run, shared: tuple[str, ...] = shared) -> SweepTask:
            device = device_of(run) if phase in MEASURES else ""
            names = tuple(dict.fromkeys(one.name for one in after))
            made = SweepTask(f"{run.name}:{phase}", run, phase, str(folder / run.name), names, device, shared)
            found.append(made)
            return made

        if recipe not in lead.graph:
            lead.graph[recipe] = task("graph")
        if on not in lead.latency:
            lead.latency[on] = task("latency", lead.graph[recipe])
        first, same = lead.curves.get(on), lead.search.get((*on, run.budget))
        search = task("search", *(one for one in (lead.latency[on], first, same) if one is not None))
        lead.curves.setdefault(on, search)
        lead.search.setdefault((*on, run.budget), search)
        if until == "package":
            task("package", task("recover", search))
    return found


def device_of(run: SweepRun) -> str:
    """What a measurement holds: a board by its name, this machine for everything that runs here."""
    from edgeprune.devices import members

    profile = targets.load(run.target)
    address = run.device or (profile.connection.address if profile.connection.transport == "ssh" else "")
    return ",".join(one.removeprefix("ssh://") for one in members(address)) or "local"


def perform(task: SweepTask, events: Listener = silent) -> TaskDone:
    """Do a task in this process; every error on purpose is an ending, so that the other runs go on.

    Raises:
        DeviceUnreachable, DeviceBusy: for who tries again.
    """
    import time

    began = time.monotonic()

    def ended(ending: Ending, why: str = "") -> TaskDone:
        return TaskDone(task.name, ending, why, round(time.monotonic() - began, 2))

    run, folder, shared = task.run, Path(task.folder), [Path(other) for other in task.shared]
    try:
        recipe, target = run.recipe(), targets.load(run.target)
        if task.phase == "tune":
            take_part(recipe, target, folder, task.tune or recipe.tune)
        elif task.phase == "package":
            pipeline.run(recipe, target, folder, device=run.device, events=events, shared=shared)
        else:
            pipeline.advance(recipe, target, folder, task.phase, device=run.device, events=events, shared=shared)
    except (DeviceUnreachable, DeviceBusy):
        raise
    except GateError as cause:
        return ended("refused", cause.message)
    except BudgetError as cause:
        return ended("impossible", cause.message)
    except EdgepruneError as cause:
        return ended("failed", f"{type(cause).__name__}: {cause.message} {cause.remedy}".strip())
    return ended("done")


def in_worker(task: SweepTask, place: str, environment: dict[str, str], before: Sequence[TaskDone]) -> TaskDone:
    """`perform` in a process of its own, anywhere: in the folder and with the variables of who asked.

    Raises:
        DeviceUnreachable, DeviceBusy: for Ray, which tries again.
    """
    bad = next((one for one in before if one.ending != "done"), None)
    if bad is not None:
        return TaskDone(task.name, "skipped", f"{bad.name} ended: {bad.why or bad.ending}")
    os.chdir(place)
    os.environ.update(environment)
    return perform(task)
