"""The stages in order: from a recipe and a target to a report and a bundle, or to the reason why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgeprune import recipe as recipes
from edgeprune import target as targets
from edgeprune.errors import GateError, UsageError, did_you_mean
from edgeprune.pipeline import stages
from edgeprune.pipeline.context import Context, Event, Listener, lock_recipe, silent
from edgeprune.pipeline.feasible import plan_report
from edgeprune.pipeline.memory import keep_memory
from edgeprune.pipeline.result import assemble
from edgeprune.pipeline.rundir import RunDirectory, write_json, write_text
from edgeprune.recipe import Recipe
from edgeprune.target import Target

__all__ = ["Event", "Outcome", "compress", "plan", "run"]

# step of the command line -> the stages that it makes sure of
STEPS: dict[str, tuple[str, ...]] = {
    "plan": ("graph", "plan"),
    "profile": ("latency",),
    "prune": ("search", "recover"),
    "calibrate": ("quantize",),
    "export": ("artifacts",),
    "validate": ("validate",),
    "package": ("release",),
}


@dataclass(frozen=True)
class Outcome:
    """What a run left behind. `result` is result.json's content; `bundle` and `report` are None before `package`."""

    run_dir: Path
    result: dict[str, Any]
    bundle: Path | None
    report: Path | None


def compress(
    recipe: str | Path | Recipe,
    target: str | Target,
    run_dir: Path | None = None,
    *,
    device: str = "",
    events: Listener = silent,
) -> Outcome:
    """The whole pipeline, from a recipe to a bundle.

    Args:
        recipe: a recipe, or the file that holds it.
        target: a target, or its name.

    Raises:
        GateError: measured, and not good enough; the report and result.json are there all the same.
        EdgepruneError: every other error on purpose.
    """
    recipe = recipe if isinstance(recipe, Recipe) else recipes.load(recipe)
    target = target if isinstance(target, Target) else targets.load(target)
    return run(recipe, target, run_dir, device=device, events=events)


def run(
    recipe: Recipe,
    target: Target,
    run_dir: Path | None = None,
    *,
    until: str = "package",
    start: str = "",
    device: str = "",
    events: Listener = silent,
) -> Outcome:
    """Run every stage up to the step `until`; whole stages whose inputs are the same are kept.

    Args:
        run_dir: default `runs/RECIPE-TARGET`.
        start: throw away the stages of this step and all after it first.
    """
    for step in filter(None, (until, start)):
        if step not in STEPS:
            raise UsageError(f"no step is called '{step}'.", did_you_mean(step, STEPS))
    keep_memory()
    path = run_dir or default_run_dir(recipe, target)
    with RunDirectory(path) as directory, Context(recipe, target, directory, device, events) as context:
        if start:
            directory.forget(STEPS[start][0])
        write_text(path / "recipe.lock.toml", lock_recipe(recipe, target))
        _run_stages(context, until)
        result = assemble(context)
        return _package(context, result) if until == "package" else Outcome(path, result, None, None)


def plan(
    recipe: Recipe, target: Target, run_dir: Path | None = None, *, device: str = "", events: Listener = silent
) -> dict[str, Any]:
    """Can the budget be met? Measures the dense network and the floor; trains nothing."""
    keep_memory()
    path = run_dir or default_run_dir(recipe, target)
    with RunDirectory(path) as directory, Context(recipe, target, directory, device, events) as context:
        _run_stages(context, "plan")
        return plan_report(context)


def default_run_dir(recipe: Recipe, target: Target) -> Path:
    """runs/RECIPE-TARGET in the current folder."""
    return Path("runs") / f"{recipe.name}-{target.name}"


def _run_stages(context: Context, until: str) -> None:
    wanted = [stage for step in list(STEPS)[: list(STEPS).index(until) + 1] for stage in STEPS[step]]
    order: Sequence[str] = [name for name in stages.WORK if name in wanted]
    for name in order:
        context.listener(Event("stage", name))
        work = stages.WORK[name]
        context.run.stage(name, context.keys[name], lambda folder, work=work: work(context, folder))  # type: ignore[misc]
        context.listener(Event("done", name, "" if not context.run.timings[-1]["reused"] else "kept"))


def _package(context: Context, result: dict[str, Any]) -> Outcome:
    """Write result.json and the report; then the bundle, or refuse. An unverified one says so, and ends in an error."""
    from edgeprune import release, report

    path = context.run.path
    failed = [gate for gate in result["gates"] if not gate["passed"]]
    unverified = result["verdict"] == "unverified"
    write_json(path / "result.json", result)
    report.write(result, path / "report.html")
    bundle = None
    if unverified or not failed:
        (path / "release").mkdir(exist_ok=True)
        bundle = release.bundle(path, result, path / "release", licences=licences(context.recipe))
    if failed:
        state = "open, as no device has measured" if unverified else "failed"
        told = next((gate for gate in failed if gate["value"] is not None), failed[0])
        error = GateError(
            f"{len(failed)} of {len(result['gates'])} gates {state}: {told['name']}: {told['message']}",
            f"{told['remedy']} The report: {path / 'report.html'}",
        )
        error.outcome = Outcome(path, result, bundle, path / "report.html")  # type: ignore[attr-defined]
        raise error
    return Outcome(path, result, bundle, path / "report.html")


def licences(recipe: Recipe) -> list[Path]:
    """The licence texts that lie beside the weights and the images: LICENSE* and LICENSES/*."""
    weights, source = recipe.resolve(recipe.model.weights or "."), recipe.resolve(recipe.data.source)
    folders = [weights.parent] if recipe.model.weights else []
    folders += [source if source.is_dir() else source.parent] if source.exists() else []
    found = [
        path for folder in folders for pattern in ("LICENSE*", "LICENSES/*") for path in sorted(folder.glob(pattern))
    ]
    return list(dict.fromkeys(path for path in found if path.is_file()))


def override(recipe: Recipe, section: str, **values: Any) -> Recipe:
    """The recipe with some values of one section replaced; checked again."""
    changed = msgspec.structs.replace(getattr(recipe, section), **values)
    recipe = msgspec.structs.replace(recipe, **{section: changed})
    recipes.check(recipe)
    return recipe
