"""Trials side by side: workers of one study, each in a process of its own that the sweep's engine starts.

Ray schedules: a worker gets the cores and the share of a GPU that were asked for, sees no other GPU, and is started
again when its process dies; the trial that it left goes on from its checkpoint. What they share is the study, a file
of SQLite, so that they are all on one machine. The trials of all are told by who started them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeprune.errors import MissingDependency, RecipeError, RunError
from edgeprune.pipeline import Event, Listener, silent
from edgeprune.recipe import Recipe
from edgeprune.result import Tuned
from edgeprune.scale import engines
from edgeprune.scale.spec import SweepResources, SweepRun
from edgeprune.scale.tasks import SweepTask
from edgeprune.scale.tune import tune
from edgeprune.target import Target

LOOK_S = 2.0  # between two looks at what has ended


def tune_side_by_side(
    recipe: Recipe,
    target: Target,
    run_dir: Path | None = None,
    *,
    workers: int,
    cpus: float = 1.0,
    gpus: float = 0.0,
    out: Path | None = None,
    device: str = "",
    events: Listener = silent,
) -> Tuned:
    """`tune` with its trials in several processes; together they may do a trial each more than was asked for.

    Args:
        workers: processes.
        cpus, gpus: of one worker; with 0.5 GPUs two share one.

    Raises:
        MissingDependency: Ray is not installed. RecipeError: the recipe is none that another process can read.
        UsageError: Ray does not start. RunError: no worker came to its end; what was done is kept. Others: as `tune`.
    """
    if not engines.installed():
        raise MissingDependency(
            "several workers need Ray, which is not installed.",
            "Install: pip install 'edgeprune[ray]'; or start the same command several times: they share the study.",
        )
    if not recipe.path:
        raise RecipeError(
            "workers read the recipe from its file, and this one was made in Python.", "Save it, or use one worker."
        )
    resources = SweepResources(cpus=cpus, gpus=gpus)

    def through(folder: Path, ended: Callable[[], list[str]]) -> None:
        side_by_side(recipe, target, folder, workers, resources, events, ended)

    return tune(recipe, target, run_dir, out=out, device=device, through=through, events=events)


def side_by_side(
    recipe: Recipe,
    target: Target,
    folder: Path,
    count: int,
    resources: SweepResources,
    events: Listener,
    ended: Callable[[], list[str]],
) -> None:
    """Let `count` workers take part in the study of a run, until it has its trials.

    Args:
        folder: the run directory, searched already.
        resources: of one worker.
        ended: a line for each trial that has ended since it was last asked.

    Raises:
        UsageError: Ray does not start. RunError: every worker failed.
    """
    run = SweepRun(recipe.name, recipe.path, recipe.name, target.name, "", None, None, recipe.recover.seed)
    tasks = [
        SweepTask(f"worker {k + 1}", run, "tune", str(folder.absolute()), (), "", (), recipe.tune) for k in range(count)
    ]
    engine = engines.on_ray(resources, "", ())
    why = []
    with _telling(ended, events):
        for done in engine(tasks):
            if done.ending != "done":
                why.append(done.why)
                events(Event("line", "tune", f"{done.name} {done.ending}: {done.why}"))
    if len(why) == count:
        raise RunError(f"no worker came to its end: {why[0]}", "The same command goes on with what is done.")


@contextlib.contextmanager
def _telling(ended: Callable[[], list[str]], events: Listener) -> Iterator[None]:
    """Say what ends meanwhile, from a thread of its own."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(LOOK_S):
            for line in ended():
                events(Event("line", "tune", line))

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    for line in ended():
        events(Event("line", "tune", line))
