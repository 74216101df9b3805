"""The stages in order: from a recipe and a target to a report and a bundle, or to the reason why not."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeprune import recipe as recipes
from edgeprune import result as results
from edgeprune import stage
from edgeprune import target as targets
from edgeprune.errors import EdgepruneError, GateError, InputError, UsageError, did_you_mean
from edgeprune.pipeline import choose, ends, expected, objects, processes, reading, recovery, stages, validations
from edgeprune.pipeline.candidates import patched
from edgeprune.pipeline.context import Context, lock_recipe, toml_value
from edgeprune.pipeline.draft import Drafted, Wanted, draft, run_name
from edgeprune.pipeline.events import Event, Listener, Voice, silent
from edgeprune.pipeline.facts import StageKeys
from edgeprune.pipeline.feasible import left_open, plan_report, refuse
from edgeprune.pipeline.memory import keep_memory
from edgeprune.pipeline.processes import Followed
from edgeprune.pipeline.result import assemble
from edgeprune.pipeline.rundir import EARLIER, RunDirectory, key_of, write_json, write_text
from edgeprune.pipeline.workloads import Objects
from edgeprune.recipe import Recipe, Recover
from edgeprune.recover import Job, process_number
from edgeprune.target import Target
from edgeprune.workload import Budget, Data, Task

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Context",
    "Drafted",
    "Event",
    "Followed",
    "Job",
    "Listener",
    "Outcome",
    "RunDirectory",
    "Wanted",
    "advance",
    "compress",
    "draft",
    "keep_memory",
    "key_of",
    "patched",
    "plan",
    "refuse",
    "run",
    "run_name",
    "silent",
    "toml_value",
    "until_search",
]


@dataclass(frozen=True)
class Outcome:
    """What a run left behind. `result` is result.json's content; `bundle` and `report` are None before `package`."""

    run_dir: Path
    result: dict[str, Any]
    bundle: Path | None
    report: Path | None

    @property
    def verdict(self) -> str:
        """ "release", "refused" or "unverified"; empty before it was validated."""
        return str(self.result.get("verdict", ""))


def compress(
    model: str | Path | Recipe | nn.Module | Callable[[], nn.Module],
    target: str | Target,
    run_dir: str | Path | None = None,
    *,
    data: Data | None = None,
    task: str | Task = "classification",
    budget: Budget | None = None,
    recover: Recover | Callable[[Job], Any] | None = None,
    search: Mapping[str, object] | None = None,
    quantize: Mapping[str, object] | None = None,
    name: str = "",
    until: str = "package",
    device: str = "",
    events: Listener = silent,
) -> Outcome:
    """The whole pipeline, from a recipe, or from a network, data, a task and a budget, to a bundle.

    Args:
        model: a recipe or the file that holds it; or a trained network, or a function that makes one.
        target: a target, or its name.
        run_dir: default `runs/NAME-TARGET`.
        data, budget: needed where `model` is a network; with a recipe neither they nor the rest may be given.
        task: a task of `edgeprune.tasks` or of your own, or the name of a built-in one.
        recover: how accuracy is won back, or your own trainer: `trainer(job)` gets a `Job` and gives the network.
        search, quantize: keys of those sections of a recipe.
        name: of the run; empty: of the network's class.
        until: the last step.

    Raises:
        GateError: measured, and not good enough; the report and result.json are there all the same.
        EdgepruneError: every other error on purpose.
    """
    target = target if isinstance(target, Target) else targets.load(target)
    path = None if run_dir is None else Path(run_dir)
    if isinstance(model, str | Path | Recipe):
        given = {"data": data, "budget": budget, "recover": recover, "search": search, "quantize": quantize}
        extra = next((key for key, value in given.items() if value is not None), "")
        if extra:
            raise UsageError(f"compress: {extra} is given beside a recipe, which says it already.", "Give one of them.")
        recipe = model if isinstance(model, Recipe) else recipes.load(model)
        return run(recipe, target, path, until=until, device=device, events=events)
    made, handed = objects.recipe_of(model, data, task, budget, recover, search, quantize, name)
    return run(made, target, path, until=until, device=device, events=events, given=handed)


def run(
    recipe: Recipe,
    target: Target,
    run_dir: Path | None = None,
    *,
    until: str = "package",
    start: str = "",
    device: str = "",
    events: Listener = silent,
    given: Objects | None = None,
    weights: Path | None = None,
    shared: Sequence[Path] = (),
) -> Outcome:
    """Run every stage up to the step or stage `until`; whole stages whose inputs are the same are kept.

    Args:
        run_dir: default `runs/RECIPE-TARGET`.
        until: one of `stage.ENDS`; "recover" repairs the network and does not train it, for others to do.
        start: throw away the stages of this step and all after it first.
        given: the network, data and task, where Python handed them over.
        weights: of the pruned network, trained elsewhere: used in place of training.
        shared: run directories whose stages are taken over where they are the same.

    Where torchrun started several processes, process 0 does all of it, and the others train with it and end as it does.
    """
    steps = tuple(one.name for one in stage.STEPS)
    for step, known in ((until, stage.ENDS), (start, ("", *steps))):
        if step not in known:
            raise UsageError(f"no step is called '{step}'.", did_you_mean(step, steps))
    if weights is not None and (until == "recover" or "recover" not in [one.name for one in stage.until(until)]):
        raise UsageError(f"--weights are of a trained network; --until {until} ends before that.", "Give one of them.")
    if weights is not None and not weights.is_file():
        raise UsageError(f"--weights: {weights}: no such file.", "Give what your training saved.")
    recipe = recipes.of_python(recipe, recipe.path or "recipe")
    if until == "recover":
        recipe, given = _untrained(recipe, given)
    keep_memory()
    path = run_dir or default_run_dir(recipe, target)
    if process_number():
        return _followed(processes.follow(recipe, target, given, weights))
    with (
        processes.leading() as group,
        RunDirectory(path) as directory,
        Context(recipe, target, directory, device, events, given, weights, shared) as context,
    ):
        if group is not None:
            context.group = group
            group.gather(processes.digest(context.recipe, context.subject.workload))
        validations.restore(context.run, context.voice)
        if start:
            directory.forget(stage.first(start).name)
            context.voice.say(stage.first(start).name, stage.kept_before(start))
        _lock(context.recipe, context.target, context.run, context.voice)
        _run_stages(context, until)
        result = assemble(context.subject, context.bench, context.run)
        outcome = _package(context, result) if until == "package" else Outcome(path, result, None, None)
        if group is not None:
            group.end({key: getattr(outcome, key) for key in ("run_dir", "result", "bundle", "report")})
        return outcome


def _untrained(recipe: Recipe, given: Objects | None) -> tuple[Recipe, Objects | None]:
    """The same without training: the network is repaired, and left for others to train."""
    recipe = override(recipe, "recover", epochs=0.0, trainer="")
    return recipe, given if given is None else dataclasses.replace(given, trainer=None)


def _followed(last: processes.Message) -> Outcome:
    """How process 0 ended, in every other process."""
    error = processes.error_of(last)
    if error is not None:
        raise error
    paths = {key: Path(last[key]) if last[key] is not None else None for key in ("bundle", "report")}
    return Outcome(Path(last["run_dir"]), last["result"], paths["bundle"], paths["report"])


def plan(
    recipe: Recipe,
    target: Target,
    run_dir: Path | None = None,
    *,
    device: str = "",
    events: Listener = silent,
    accuracy: bool = False,
) -> dict[str, Any]:
    """Can the budget be met? Measures the dense network and the floor; trains nothing.

    Args:
        accuracy: where it can, the table is measured and the network searched as well, and `accuracy` of what is
            returned says what the repaired network loses before any training. `run` keeps those stages.

    Raises:
        BudgetError: the search found no network within the budget, though the plan had hoped for one.
    """
    recipe = recipes.of_python(recipe, recipe.path or "recipe")
    keep_memory()
    path = run_dir or default_run_dir(recipe, target)
    with RunDirectory(path) as directory, Context(recipe, target, directory, device, events) as context:
        _run_stages(context, "plan")
        report = plan_report(context.subject, context.bench, context.run, context.weights)
        hopeless = any(finding["severity"] == "error" for finding in report["findings"])
        if accuracy and report["feasible"] and not hopeless:
            until_search(context)
            report["accuracy"] = expected.accuracy(context.subject, context.run, context.voice)
        return report


def until_search(context: Context) -> None:
    """The stages up to the network that meets the budget as measured; nothing is trained. Raises BudgetError."""
    _lock(context.recipe, context.target, context.run, context.voice)
    _run_stages(context, "search")


def advance(
    recipe: Recipe,
    target: Target,
    run_dir: Path,
    last: str,
    *,
    device: str = "",
    events: Listener = silent,
    shared: Sequence[Path] = (),
) -> None:
    """The stages up to and with `last`; nothing is assembled or packaged. Raises as `run`."""
    keep_memory()
    recipe = recipes.of_python(recipe, recipe.path or "recipe")
    with (
        RunDirectory(run_dir) as directory,
        Context(recipe, target, directory, device, events, shared=shared) as context,
    ):
        _lock(context.recipe, context.target, context.run, context.voice)
        _run_stages(context, last)


def default_run_dir(recipe: Recipe, target: Target) -> Path:
    """runs/RECIPE-TARGET in the current folder."""
    return Path("runs") / f"{recipe.name or 'run'}-{target.name}"


def _run_stages(context: Context, until: str) -> None:
    reading.check_kind(context.recipe)
    choose.check_options(context.recipe.search)
    order = [one for one in stage.until(until) if one.work]
    if left_open(context.run):
        context.run.forget("plan")
        context.voice.say("plan", "what was measured before left the answer open: measured again")
    keys = context.keys
    _review(context.run, context.voice, keys, [one.name for one in order])
    subject = context.subject
    stages.check_layers(
        context.recipe.quantize, lambda path: subject.export(subject.model, path), lambda: context.bench.dialect
    )
    ends.check(subject, context.target)
    choose.check_masks(subject)
    recovery.check(subject, context.weights)
    if any("data" in one.facts for one in order):
        _ = subject.workload.digest  # data that cannot be read are found before anything is measured or written
    told = {one["name"] for one in context.run.timings}
    for name, work in [(one.name, _work(one)) for one in order]:
        if name in told and context.run.is_whole(name, keys[name]):
            continue  # the plan's stages, where the search follows at once
        context.voice.listener(Event("stage", name))
        whose = context.run.adopt(name, keys[name], context.shared)
        if whose is not None:
            context.voice.say(name, f"taken over from {whose}")
        fault = context.run.state(name, keys[name]).fault
        if fault:
            context.voice.say(name, f"{context.run.path / name}: {fault}. The stage is done again.")
        context.run.stage(name, keys[name], lambda folder, work=work: context.work(work, folder))  # type: ignore[misc]
        context.voice.listener(Event("done", name, "" if not context.run.timings[-1]["reused"] else "kept"))


def _work(one: stage.Stage) -> Callable[..., None]:
    module, _, function = one.work.partition(":")
    work: Callable[..., None] = getattr(importlib.import_module(module), function)
    return work


def _review(run: RunDirectory, voice: Voice, keys: StageKeys, order: Sequence[str]) -> None:
    """Before the first stage: refuse what cannot be healed, and let nothing stand that no longer holds."""
    try:
        whole = all(run.is_whole(one.name, keys[one.name]) for one in stage.PIPELINE if one.work)
    except InputError:
        run.withdraw()
        raise
    if not whole:
        _withdraw(run, voice, "something that they come from has changed")
    run.check(keys, order)


def _withdraw(run: RunDirectory, voice: Voice, why: str) -> None:
    there = run.withdraw()
    if there:
        voice.say("release", f"{', '.join(there)} of before now in {run.path / EARLIER}: {why}.")


def _lock(recipe: Recipe, target: Target, run: RunDirectory, voice: Voice) -> None:
    """recipe.lock.toml; what was claimed of another recipe stands no longer."""
    path, text = run.path / "recipe.lock.toml", lock_recipe(recipe, target)
    if not path.is_file() or path.read_bytes() != text.encode():
        _withdraw(run, voice, "the recipe has changed")
    write_text(path, text)


def _package(context: Context, result: dict[str, object]) -> Outcome:
    """Write result.json and the report; then the bundle, or refuse. An unverified one says so, and ends in an error."""
    from edgeprune import report

    path = context.run.path
    read = results.read(result)
    failed = [gate for gate in read.gates if not gate.passed]
    unverified = read.verdict == "unverified"
    bundle = None
    if unverified or not failed:
        bundle = _release(context, result)
    else:
        _withdraw(context.run, context.voice, "this run is refused")
    write_json(path / "result.json", result)
    report.write(result, path / "report.html")
    if failed:
        by = "no device" if read.unit == "modelled ms" else "another device"
        state = f"open, as {by} has measured" if unverified else "failed"
        told = next((gate for gate in failed if gate.value is not None), failed[0])
        error = GateError(
            f"{len(failed)} of {len(read.gates)} gates {state}: {told.name}: {told.message}",
            f"{told.remedy} The report: {path / 'report.html'}",
        )
        error.outcome = Outcome(path, result, bundle, path / "report.html")  # type: ignore[attr-defined]
        raise error
    return Outcome(path, result, bundle, path / "report.html")


def _release(context: Context, result: dict[str, object]) -> Path:
    """The bundle, alone in release/; where it does not pass its own verify nothing is left that says otherwise."""
    from edgeprune import release

    folder, texts = context.run.path / "release", licences(context.recipe)
    context.stack.close()  # verify connects by itself, as anyone would
    try:
        if folder.is_symlink() or not folder.is_dir():
            _withdraw(context.run, context.voice, "release is no folder")
            folder.mkdir()
        bundle, checks = release.publish(context.run.path, result, folder, licences=texts, device=context.bench.name)
    except EdgepruneError:
        context.run.withdraw()
        raise
    for other in folder.glob("*.tar"):
        if other != bundle:
            other.unlink()
    for check in checks:
        if not check.passed and check.name != "signature":
            context.voice.say("release", f"{check.name}: {check.message}")
    return bundle


def licences(recipe: Recipe) -> list[Path]:
    """The licence texts that lie beside the weights and the data: LICENSE* and LICENSES/*."""
    folders = [recipe.resolve(recipe.model.weights).parent] if recipe.model.weights else []
    named = [recipe.data.source, *(value for split in recipe.data.splits.values() for value in split.values())]
    sources = [recipe.resolve(name) for name in named if isinstance(name, str) and name]
    folders += [source if source.is_dir() else source.parent for source in sources if source.exists()]
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
