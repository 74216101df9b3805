"""A run, put together: what it is about, where it measures, how it speaks, and its directory. Stages take these parts,
each what it needs, and never the whole.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeprune import quantize
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.events import Listener, Voice
from edgeprune.pipeline.facts import StageKeys
from edgeprune.pipeline.rundir import RunDirectory
from edgeprune.pipeline.subject import Subject
from edgeprune.recipe import SECTIONS, Recipe
from edgeprune.target import Target

if TYPE_CHECKING:
    from edgeprune.pipeline.companions import Companions
    from edgeprune.pipeline.workloads import Objects

TRAIN = ("recover_stage", "quantize_stage")  # stages that train, in float and in INT8


class Context:
    """One run.

    Attributes:
        weights: trained elsewhere, in place of training here.
        shared: other runs' folders, whose stages and curves are taken over where they are the same.
        neighbour: a run at another budget whose search this one's starts from.
        group: the other processes that train with this one.
    """

    def __init__(
        self,
        recipe: Recipe,
        target: Target,
        run: RunDirectory,
        device: str,
        listener: Listener,
        objects: Objects | None = None,
        weights: Path | None = None,
        shared: Sequence[Path] = (),
        neighbour: Path | None = None,
    ) -> None:
        from edgeprune.validate import deadline

        self.recipe, self.run, self.weights = recipe, run, weights
        self.shared, self.neighbour = tuple(shared), neighbour
        self.group: Companions | None = None
        self.stack = contextlib.ExitStack()
        self.voice = Voice(listener, run, recipe, target.name, self.stack)
        self.bench = Bench(target, device, self.voice.say, self.stack)
        self.target = self.bench.target
        deadline(1.0, recipe.budget, self.target.protocol.unit)  # milliseconds mean nothing to an instruction clock
        self.subject = Subject(recipe, self.target.execution.batch, self.voice.say, objects)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.stack.__exit__(*exc)

    @cached_property
    def keys(self) -> StageKeys:
        """Stage -> its key."""
        return StageKeys(self)

    def work(self, function: Callable[..., None], folder: Path) -> None:
        """Let a stage fill its folder; it gets the parts of the run that its parameters name.

        Training keeps torch's threads, whatever else the machine does: their number decides how sums are rounded, and a
        training that goes on must be the one that it was.
        """
        wanted = [name for name in inspect.signature(function).parameters if name != "folder"]
        with contextlib.nullcontext() if function.__name__ in TRAIN else quantize.uncrowded():
            function(folder=folder, **{name: getattr(self, name) for name in wanted})


def lock_recipe(recipe: Recipe, target: Target) -> str:
    """recipe.lock.toml: the recipe with every default, as TOML."""
    lines = [f"# The recipe with every default, as it ran on {target.name}.", f'target = "{target.name}"', ""]
    for name in SECTIONS:
        lines += [f"[{name}]", *_toml(msgspec.to_builtins(getattr(recipe, name))), ""]
    return "\n".join(lines)


def _toml(section: dict[str, object]) -> list[str]:
    return [f"{key} = {toml_value(value)}" for key, value in section.items() if value is not None]


def toml_value(value: Any) -> str:
    """A value as TOML spells it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's escapes are JSON's
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        pairs = (f"{toml_value(str(key))} = {toml_value(one)}" for key, one in value.items() if one is not None)
        return "{" + ", ".join(pairs) + "}"
    return repr(value)
