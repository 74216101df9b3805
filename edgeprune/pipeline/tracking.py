"""[run] track: the numbers of training in TensorBoard, MLflow and Weights & Biases too, through Accelerate's trackers.

events.jsonl has all of them in any case. A tracker that fails while the run goes on is left out, and said once.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeprune.errors import MissingDependency
from edgeprune.model import short
from edgeprune.recipe import SECTIONS, Recipe
from edgeprune.recover import process_number

FOLDER = "tracking"  # of the run directory
# tracker -> the modules of which one must be there
MODULES = {"tensorboard": ("tensorboardX", "tensorboard"), "mlflow": ("mlflow",), "wandb": ("wandb",)}
CLASSES = {"tensorboard": "TensorBoardTracker", "mlflow": "MLflowTracker", "wandb": "WandBTracker"}


def check(recipe: Recipe) -> None:
    """Every tracker that the recipe names must be installed; raises MissingDependency."""
    for name in recipe.run.track:
        if not any(importlib.util.find_spec(module) for module in MODULES[name]):
            raise MissingDependency(
                f"[run] track names {name}, which is not installed.", f"pip install 'edgeprune[{name}]'"
            )


class PlainLog(logging.LoggerAdapter[logging.Logger]):
    """What Accelerate's trackers write their log lines to, before, between and after trainings."""

    def warning_once(self, *args: Any, **kwargs: Any) -> None:
        """As Accelerate calls it."""
        self.warning(*args, **kwargs)


class Trackers:
    """The trackers of one run, started with its first numbers.

    Args:
        place: of the run.
        say: is told, in one line, of a tracker that cannot go on.
    """

    def __init__(self, recipe: Recipe, target: str, place: Path, say: Callable[[str], None]) -> None:
        self.recipe, self.target, self.place, self.say = recipe, target, place, say
        self.active: dict[str, Any] | None = None

    def log(self, stage: str, numbers: Mapping[str, object]) -> None:
        """Numbers by name, at the step that they say."""
        if not self.recipe.run.track or process_number():
            return
        if self.active is None:
            self.active = {}
            for name in self.recipe.run.track:
                self._try(name, lambda name=name: self._start(name))  # type: ignore[misc]
        values = {f"{stage}/{key}": value for key, value in numbers.items() if _number(value) and key != "step"}
        step = numbers.get("step")
        for known, tracker in list(self.active.items()):
            self._try(known, lambda tracker=tracker: tracker.log(values, step=step))  # type: ignore[misc]

    def close(self) -> None:
        """Write what is left."""
        for known, tracker in list((self.active or {}).items()):
            self._try(known, tracker.finish)
        self.active = None

    def _try(self, name: str, work: Callable[[], Any]) -> None:
        """A tracker is no part of the result: whatever it raises, the run goes on without it."""
        try:
            work()
        except Exception as cause:
            if self.active is not None:
                self.active.pop(name, None)
            self.say(f"[run] track: {name} is left out from here on: {short(cause)}.")

    def _start(self, name: str) -> None:
        module = importlib.import_module("accelerate.tracking")
        module.logger = PlainLog(  # type: ignore[attr-defined]
            logging.getLogger("accelerate.tracking")
        )  # its own asks for a training that is running
        kind = getattr(module, CLASSES[name])
        title = self.recipe.name or "run"
        if name == "tensorboard":
            tracker = kind(self.target, logging_dir=str(self.place / FOLDER))
        elif name == "mlflow":
            tracker = kind(experiment_name=title, run_name=self.target)
        else:
            tracker = kind(title, name=self.target, dir=str(self._folder()))
        tracker.main_process_only = False  # there is no other: only process 0 comes here
        tracker.start()
        settings = {
            f"{section}.{key}": value
            for section in SECTIONS
            for key, value in self.recipe.section(section).items()
            if isinstance(value, str | int | float)
        }
        if name == "tensorboard":
            text = "\n".join(f"    {key} = {value!r}" for key, value in settings.items())
            tracker.log({"recipe": text}, step=0)
        else:
            tracker.store_init_configuration(settings)
        assert self.active is not None
        self.active[name] = tracker

    def _folder(self) -> Path:
        folder = self.place / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
