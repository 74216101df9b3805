"""Recovery settings by trial: Optuna chooses them, edgeprune trains, the selection split judges.

Every trial starts from the same pruned and repaired network, which stays as it is: the search is made once, in the
ordinary run directory. The study lies in RUN/tune/study.db, so that the same command goes on where it was interrupted,
and more of the same command, in other processes or on other machines that see the folder, take part in it. A trial
that is killed is tried again from its checkpoint. The test split is never looked at.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import importlib.util
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeprune import files, graph, pipeline
from edgeprune.errors import DataError, MissingDependency, ModelError, RecipeError, UsageError
from edgeprune.pipeline import Context, Listener, RunDirectory, keep_memory, key_of, recovery, silent, workloads
from edgeprune.recipe import Recipe, RecoverSection, TuneSection
from edgeprune.recover import process_count
from edgeprune.result import Trial, Tuned
from edgeprune.scale import study as studies
from edgeprune.scale.space import Choice, Space, own_values, plain, possible, space_of, suggested
from edgeprune.scale.study import PLACE, WAY
from edgeprune.scale.tuned import beside, write_recipe
from edgeprune.target import Target

if TYPE_CHECKING:
    import optuna
    from torch import nn

FOLDER, STUDY, FILE, TABLE = "tune", "study.db", "tune.json", "tune.csv"
WHY, UNFIT = "why", "unfit"  # what a trial carries: why it has no score; that its settings do not go together
Through = Callable[[Path, Callable[[], list[str]]], None]


@dataclass(frozen=True)
class _Start:
    """What every trial shares."""

    context: Context
    plan: graph.Plan
    student: nn.Module
    space: Space
    folder: Path

    @property
    def teachers(self) -> tuple[str, ...]:
        """All that teach beside the dense network in some trial."""
        tried = self.space.get("teachers")
        values = tried.values if isinstance(tried, Choice) else (self.options.teachers,)
        return tuple(sorted({name for value in values for name in value}))

    @property
    def options(self) -> RecoverSection:
        """[recover], with the epochs of a trial."""
        own, epochs = self.context.recipe.recover, self.context.recipe.tune.epochs
        return msgspec.structs.replace(own, epochs=epochs or own.epochs)


def tune(
    recipe: Recipe,
    target: Target,
    run_dir: Path | None = None,
    *,
    out: Path | None = None,
    device: str = "",
    through: Through | None = None,
    events: Listener = silent,
) -> Tuned:
    """Try settings of [recover] until [tune] trials are done; the best become a recipe.

    Args:
        run_dir: default `runs/RECIPE-TARGET`: its search is made where it is not there yet.
        out: the recipe that is written; default RECIPE.tuned.toml beside the recipe.
        through: who does the trials, in processes that `take_part`, instead of this one: it is given the run directory,
            and what tells a line on each trial that has ended since it was last asked.

    Raises:
        MissingDependency: Optuna is not installed. UsageError: torchrun started several processes. RecipeError: there
        is nothing to tune, or [tune] is wrong; the recipe cannot be written there. BudgetError and others: as `run`,
        before the first trial. RunError: the study cannot be written.
    """
    out = beside(recipe, out)
    path = run_dir or pipeline.default_run_dir(recipe, target)
    with _started(recipe, target, path, events, lambda: _searched(recipe, target, path, device, events)) as start:
        work = start.context.subject.workload
        repaired = recovery.score(work, start.student)
        start.context.voice.say(
            "tune", f"every trial starts from the repaired network: {recovery.shown(work, repaired)}"
        )
        study = _study(start, work.task.higher_is_better)
        if through is not None and _left(start, study) > 0:
            through(path, _endings(start, study))
        else:
            _go_on(start, study)
        made = _outcome(start, study, repaired)
    return _written(made, study, start, recipe, out)


def take_part(recipe: Recipe, target: Target, run_dir: Path, section: TuneSection) -> None:
    """Train trials of the study that `tune` has begun in a run directory, until it has as many as `section` says."""
    recipe = msgspec.structs.replace(recipe, tune=section)
    with _started(recipe, target, run_dir, silent, lambda: None) as start:
        _go_on(start, _study(start, start.context.subject.workload.task.higher_is_better))


@contextlib.contextmanager
def _started(
    recipe: Recipe, target: Target, path: Path, events: Listener, searched: Callable[[], None]
) -> Iterator[_Start]:
    """What every trial shares, as `tune` says; `searched` makes sure of the plan in `path` once all else is right."""
    _installed()
    if process_count() > 1:
        raise UsageError(
            f"tune trains in one process, and torchrun started {process_count()}.",
            "Start the same command several times instead: they share the study.",
        )
    _trainable(recipe)
    space_of(recipe, True)  # what is wrong in it is said before anything is measured
    keep_memory()
    with (
        tempfile.TemporaryDirectory(prefix="edgeprune-") as place,
        RunDirectory(Path(place)) as scratch,
        Context(recipe, target, scratch, "", events) as context,
    ):
        subject = context.subject
        space = space_of(recipe, workloads.is_top_class(subject.workload.task))
        possible(recipe, space, lambda options: recovery.check_training(subject, options))
        searched()
        plan = graph.Plan.load(path / "search" / "plan.json")
        student = recovery.repaired(subject, plan, plan.apply(subject.model))
        yield _Start(context, plan, student, space, path / FOLDER)


def _searched(recipe: Recipe, target: Target, path: Path, device: str, events: Listener) -> None:
    pipeline.advance(recipe, target, path, "search", device=device, events=events)


def _installed() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise MissingDependency("tune needs Optuna, which is not installed.", "Install: pip install 'edgeprune[tune]'.")


def _trainable(recipe: Recipe) -> None:
    where = recipe.path or "recipe"
    if recipe.recover.trainer:
        raise RecipeError(
            f"{where}: [recover] trainer: tune tries settings of edgeprune's own training, not of yours.",
            "Tune your trainer with your own tools; prune --until recover leaves it the network.",
        )
    if recipe.recover.sparsity != "none":
        raise RecipeError(
            f"{where}: [recover] sparsity trains before the cut; every trial begins after it, at the repaired network.",
            'Tune with sparsity = "none".',
        )
    if not (recipe.tune.epochs or recipe.recover.epochs):
        raise RecipeError(f"{where}: [recover] epochs = 0: there is no training to tune.", "Set [tune] epochs.")


def _study(start: _Start, higher_is_better: bool) -> optuna.Study:
    """The study of these settings from this network: another space, other data or another search are another study."""
    recipe = start.context.recipe
    fixed = {key: value for key, value in recipe.section("recover").items() if key not in start.space}
    name = key_of(
        start.plan.to_dict(),
        {**fixed, "epochs": start.options.epochs},
        {key: msgspec.to_builtins(one) for key, one in start.space.items()},
        recipe.section("data"),
        start.context.subject.workload.digest,
        recovery.taught_by(recipe, msgspec.structs.replace(start.options, teachers=start.teachers)),
    )
    start.folder.mkdir(exist_ok=True)
    with studies.writable(start.folder / STUDY):
        study = studies.opened(start.folder / STUDY, name, higher_is_better, recipe.recover.seed)
        if not study.trials:
            classes = workloads.is_top_class(start.context.subject.workload.task)
            own = own_values(start.space, start.options, classes)
            study.enqueue_trial(own, user_attrs={WAY: "own" if own.keys() == start.space.keys() else ""})
    return study


def _left(start: _Start, study: optuna.Study) -> int:
    """How many trials are still to be done."""
    import optuna

    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return start.context.recipe.tune.trials - len(study.get_trials(deepcopy=False, states=done))


def _go_on(start: _Start, study: optuna.Study) -> None:
    """Trials until there are as many as the recipe says, or its hours are over."""
    import optuna

    states, options = optuna.trial.TrialState, start.context.recipe.tune
    studies.take_up(study, start.folder)
    left = _left(start, study)
    if left <= 0:
        return
    stop = optuna.study.MaxTrialsCallback(options.trials, states=(states.COMPLETE, states.PRUNED))
    with studies.writable(start.folder / STUDY):
        study.optimize(
            lambda trial: _trial(start, study, trial),
            n_trials=left,
            timeout=3600 * options.hours or None,
            callbacks=[stop],
            gc_after_trial=True,
        )


def _endings(start: _Start, study: optuna.Study) -> Callable[[], list[str]]:
    """Lines on the trials that have ended since it was last asked."""
    told = {one.number for one in study.trials if one.state.is_finished()}

    def line(one: optuna.trial.FrozenTrial) -> str:
        row = _told(start, one)
        score = "no score" if row.score is None else recovery.shown(start.context.subject.workload, row.score)
        state = "" if row.state == "done" else f", {row.state}"
        return f"trial {row.number}: {score}{state}; {_in_words(start, one.params)}"

    def lines() -> list[str]:
        new = [one for one in study.trials if one.state.is_finished() and one.number not in told]
        told.update(one.number for one in new)
        return [line(one) for one in new]

    return lines


def _trial(start: _Start, study: optuna.Study, trial: optuna.Trial) -> float:
    """One training; raises TrialPruned where others were better after as many steps, where it diverges, and where its
    settings do not go together.
    """
    study.sampler = studies.sampler(start.options.seed, trial.number)
    options = suggested(start.space, trial, start.options)
    name = trial.user_attrs.get(PLACE) or f"trial-{trial.number}-{study.study_name[7:15]}"  # of this study alone
    trial.set_user_attr(PLACE, name)
    folder = start.folder / name
    folder.mkdir(exist_ok=True)
    with studies.held(folder):
        trial.set_user_attr(studies.HELD, True)
        return _trained(start, study, trial, options, folder)


def _trained(start: _Start, study: optuna.Study, trial: optuna.Trial, options: RecoverSection, folder: Path) -> float:
    """The training of a trial, in its folder."""
    import optuna

    from edgeprune.recover import checkpoint

    voice, total = start.context.voice, start.context.recipe.tune.trials
    student = copy.deepcopy(start.student)
    marks = [0]
    report = voice.progress("tune")

    def log(numbers: Mapping[str, object]) -> None:
        if "score" not in numbers:
            return
        trial.set_user_attr("steps", numbers["step"])
        trial.report(float(str(numbers["score"])), marks[0])
        marks[0] += 1
        if trial.should_prune():
            raise optuna.TrialPruned

    def progress(done: float, of: float, message: str) -> None:
        report(done, of, f"trial {trial.number + 1} of {total}: {message}")

    try:
        _fit(start, trial, options)
        found = recovery.trained(start.context.subject, options, progress, log, student, folder)
    except ModelError as cause:
        trial.set_user_attr(WHY, cause.message)
        voice.say("tune", f"trial {trial.number + 1} has no score: {cause.message}")
        files.remove(folder)
        raise optuna.TrialPruned from None
    except optuna.TrialPruned:
        files.remove(folder)
        raise
    graph.save_pruned(folder, student, start.plan)
    checkpoint.forget(folder)
    score = float(str(found["best_score"]))
    work = start.context.subject.workload
    voice.say("tune", f"trial {trial.number + 1}: {recovery.shown(work, score)}; {_in_words(start, trial.params)}")
    _tidy(start, study, trial.number, score)
    return score


def _fit(start: _Start, trial: optuna.Trial, options: RecoverSection) -> None:
    """Raises ModelError where a trial's settings do not go together."""
    try:
        recovery.check_training(start.context.subject, options)
    except (RecipeError, DataError) as cause:
        trial.set_user_attr(UNFIT, True)
        raise ModelError(cause.message, cause.remedy) from None


def _in_words(start: _Start, params: Mapping[str, object]) -> str:
    found = plain(start.space, params)
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()
    )


def _tidy(start: _Start, study: optuna.Study, number: int, score: float) -> None:
    """Only the best network is kept."""
    sign = 1 if study.direction.name == "MAXIMIZE" else -1
    done = [one for one in study.trials if one.state.name == "COMPLETE" and one.value is not None]
    scored = {one.number: sign * float(one.value or 0.0) for one in done} | {number: sign * score}
    best = max(scored, key=lambda one: (scored[one], -one))
    for one in study.trials:
        place = one.user_attrs.get(PLACE, "")
        if one.number in scored and one.number != best and place:
            files.remove(start.folder / place)


def _outcome(start: _Start, study: optuna.Study, repaired: float) -> Tuned:
    """What is known of all trials that ended."""
    work, recipe = start.context.subject.workload, start.context.recipe
    found = [(one.user_attrs.get(WAY), _told(start, one)) for one in study.trials if one.state.is_finished()]
    rows = [(way, row) for way, row in found if row.state != "failed"]
    sign = -1 if work.task.higher_is_better else 1

    def rank(row: Trial) -> tuple[bool, float]:
        return row.state != "done", sign * row.score if row.score is not None else float("inf")

    return Tuned(
        name=recipe.name,
        target=start.context.target.name,
        metric=work.task.metric,
        unit=work.task.unit,
        higher_is_better=work.task.higher_is_better,
        epochs=start.options.epochs,
        repaired=repaired,
        trials=tuple(sorted((row for _, row in rows), key=rank)),
        own=next((row for way, row in rows if way == "own"), None),
    )


def _told(start: _Start, one: optuna.trial.FrozenTrial) -> Trial:
    why = "unfit" if UNFIT in one.user_attrs else "diverged" if WHY in one.user_attrs else "stopped"
    states = {"COMPLETE": "done", "PRUNED": why}
    seconds = one.duration.total_seconds() if one.duration is not None else 0.0
    last = one.value if one.value is not None else next(reversed(list(one.intermediate_values.values())), None)
    settings = plain(start.space, one.params) if start.space.keys() <= one.params.keys() else {}
    return Trial(
        number=one.number + 1,
        settings=settings,
        state=states.get(one.state.name, "failed"),
        score=last,
        steps=int(one.user_attrs.get("steps", 0)),
        seconds=round(seconds, 1),
    )


def _written(made: Tuned, study: optuna.Study, start: _Start, recipe: Recipe, out: Path) -> Tuned:
    """tune.json, tune.csv, and the recipe of the best trial."""
    if made.best is not None:
        write_recipe(recipe, made, out)
        best = study.trials[made.best.number - 1].user_attrs.get(PLACE, "")
        made = msgspec.structs.replace(made, recipe=str(out), weights=str(start.folder / best))
    files.write_text(start.folder / FILE, msgspec.json.encode(made).decode() + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["trial", "state", "score", "steps", "seconds", *start.space])
    for row in made.trials:
        writer.writerow(
            [
                row.number,
                row.state,
                row.score,
                row.steps,
                row.seconds,
                *(row.settings.get(key, "") for key in start.space),
            ]
        )
    files.write_text(start.folder / TABLE, table.getvalue())
    return made
