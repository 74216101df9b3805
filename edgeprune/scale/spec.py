"""SWEEP.toml: targets x budgets x recipes x seeds, checked before anything is measured.

name = "release-26"
recipes = ["resnet56.toml", "resnet20.toml"]     # relative to this file
targets = ["intel-cpu", "x86-onnxruntime"]
speedups = [1.5, 2.0, 3.0]                       # or latencies_ms = [1.0, 0.5]; without either the recipe's own
seeds = [0]                                      # of training
until = "package"                                # or "search": nothing is trained

[devices]                                        # target -> board; as --device
raspberry-pi-5 = "pi-1"

[resources]
cpus = 2                                         # of a task that trains
gpus = 0.0
retries = 2                                      # of a task whose process or device went away
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgeprune import recipe as recipes
from edgeprune import target as targets
from edgeprune.config import read_toml
from edgeprune.errors import RecipeError, UsageError, did_you_mean
from edgeprune.recipe import Recipe

MOST = 10_000  # runs
Seed = Annotated[int, Meta(ge=0, le=2**62)]


class _SweepSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class SweepResources(_SweepSection, frozen=True):
    """What a task that trains takes of a machine, and how often a task is tried again."""

    cpus: Annotated[float, Meta(gt=0, le=4096)] = 1.0
    gpus: Annotated[float, Meta(ge=0, le=64)] = 0.0
    retries: Annotated[int, Meta(ge=0, le=100)] = 2


class SweepFile(_SweepSection, frozen=True):
    """A sweep as its file says it."""

    recipes: Annotated[tuple[str, ...], Meta(min_length=1)]
    targets: Annotated[tuple[str, ...], Meta(min_length=1)]
    name: str = ""
    speedups: tuple[float, ...] = ()
    latencies_ms: tuple[float, ...] = ()
    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1)] = (0,)
    until: Literal["search", "package"] = "package"
    devices: dict[str, str] = {}
    resources: SweepResources = SweepResources()
    path: str = ""  # the file it was read from; set by load_sweep()


@dataclass(frozen=True)
class SweepRun:
    """One run: a recipe with its budget and seed, on a target.

    Attributes:
        recipe_path: the recipe's file, which a worker reads again.
        speedup, latency_ms: the budget; None: as the recipe has it.
    """

    name: str
    recipe_path: str
    recipe_name: str
    target: str
    device: str
    speedup: float | None
    latency_ms: float | None
    seed: int

    @property
    def budget(self) -> str:
        """As it is shown."""
        if self.speedup is not None:
            return f"{self.speedup:.4g}x"
        return f"{self.latency_ms:.4g} ms" if self.latency_ms is not None else "recipe"

    def recipe(self) -> Recipe:
        """The recipe with this budget and seed; raises RecipeError."""
        made = recipes.load(self.recipe_path)
        budget = made.budget
        if self.speedup is not None or self.latency_ms is not None:
            budget = budget.of_latency(self.speedup, self.latency_ms)
        recover = msgspec.structs.replace(made.recover, seed=self.seed)
        made = msgspec.structs.replace(made, budget=budget, recover=recover)
        recipes.check(made)
        return made


def load_sweep(path: Path) -> tuple[SweepFile, tuple[SweepRun, ...]]:
    """Read a sweep and all of its recipes and targets.

    Raises:
        UsageError: the file is wrong, or holds no run, one twice, or too many.
        RecipeError, TargetError: of the first recipe or target that is wrong.
    """
    sweep = read_toml(path, SweepFile, UsageError)
    sweep = msgspec.structs.replace(sweep, path=str(path), name=sweep.name or path.stem)
    if not sweep.name.isprintable() or any(mark in sweep.name for mark in "/\\") or len(sweep.name) > 100:
        raise UsageError(f"{path}: name is {sweep.name[:80]!r}; it becomes a folder.", "Use letters, digits and . _ -")
    if sweep.speedups and sweep.latencies_ms:
        raise UsageError(f"{path}: it has speedups and latencies_ms.", "Give one of them.")
    for name in sweep.devices:
        if name not in sweep.targets:
            raise UsageError(
                f"{path}: [devices] '{name[:80]}' is no target of this sweep.", did_you_mean(name, sweep.targets)
            )
    for name in sweep.targets:
        targets.load(name)
    runs = tuple(_runs(sweep, path))
    names = [one.name for one in runs]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise UsageError(
            f"{path}: '{twice}' is in it twice.",
            "Two recipes of one name, or a budget, target or seed that is repeated.",
        )
    if len(runs) > MOST:
        raise UsageError(f"{path}: {len(runs):,} runs; at most {MOST:,}.", "Split it.")
    return sweep, runs


def _runs(sweep: SweepFile, path: Path) -> list[SweepRun]:
    budgets: list[tuple[float | None, float | None]] = [(value, None) for value in sweep.speedups]
    budgets += [(None, value) for value in sweep.latencies_ms]
    found = []
    for given in sweep.recipes:
        file = path.parent / given
        recipe = recipes.load(file)
        for target in sweep.targets:
            for speedup, latency in budgets or [(None, None)]:
                for seed in sweep.seeds:
                    value = speedup if speedup is not None else latency
                    if value is not None and not math.isfinite(value):
                        raise UsageError(f"{path}: a budget of {value}.", "Give a number.")
                    parts = [recipe.name, target]
                    parts += [f"{speedup:.4g}x"] if speedup is not None else []
                    parts += [f"{latency:.4g}ms"] if latency is not None else []
                    parts += [f"s{seed}"] if len(sweep.seeds) > 1 else []
                    device = sweep.devices.get(target, "")
                    made = SweepRun("-".join(parts), str(file), recipe.name, target, device, speedup, latency, seed)
                    _fits(made, path)
                    found.append(made)
    return found


def _fits(run: SweepRun, path: Path) -> None:
    """The budget makes sense for the recipe; said with the sweep's own file."""
    try:
        run.recipe()
    except RecipeError as cause:
        raise UsageError(f"{path}: {run.name}: {cause.message}", cause.remedy) from None
