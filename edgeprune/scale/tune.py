"""Recovery settings by trial: Optuna chooses them, edgeprune trains, the selection split judges.

Every trial starts from the same pruned and repaired network, which stays as it is: the search is made once, in the
ordinary run directory. The study lies in RUN/tune/study.db, so that the same command goes on where it was interrupted,
and more of the same command, in other processes or on other machines that see the folder, take part in it. A trial
that is killed is tried again from its checkpoint. The test split is never looked at.

Sources: Optuna, KDD 2019, arXiv:1907.10902; tree-structured Parzen estimator, Bergstra et al., NeurIPS 2011; stopping a
trial below the median of the others at as many steps, Vizier, KDD 2017.
"""

from __future__ import annotations

import copy
import csv
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeprune import files, graph, pipeline
from edgeprune.errors import MissingDependency, ModelError, RecipeError, RunError
from edgeprune.pipeline import Context, Listener, RunDirectory, keep_memory, key_of, recovery, silent, workloads
from edgeprune.recipe import Recipe, RecoverSection
from edgeprune.result import Trial, Tuned
from edgeprune.scale.space import Space, own_values, plain, space_of, suggested
from edgeprune.scale.tuned import beside, write_recipe
from edgeprune.target import Target

if TYPE_CHECKING:
    import optuna
    from torch import nn

FOLDER, STUDY, FILE, TABLE = "tune", "study.db", "tune.json", "tune.csv"
BEAT, GONE = 15, 60  # seconds between a trial's signs of life, and without one until it is tried again
FIRST, WARM = 4, 1  # trials that are never stopped, and evaluations before which none is
WAY, WHY, PLACE = "way", "why", "folder"  # what a trial carries


@dataclass(frozen=True)
class _Start:
    """What every trial shares."""

    context: Context
    plan: graph.Plan
    student: nn.Module
    space: Space
    folder: Path

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
    events: Listener = silent,
) -> Tuned:
    """Try settings of [recover] until [tune] trials are done; the best become a recipe.

    Args:
        run_dir: default `runs/RECIPE-TARGET`: its search is made where it is not there yet.
        out: the recipe that is written; default RECIPE.tuned.toml beside the recipe.

    Raises:
        MissingDependency: Optuna is not installed. RecipeError: there is nothing to tune, or [tune] is wrong; the
        recipe cannot be written there. BudgetError and others: as `run`, before the first trial.
    """
    _installed()
    out = beside(recipe, out)
    _trainable(recipe)
    space_of(recipe, True)  # what is wrong in it is said before anything is measured
    keep_memory()
    path = run_dir or pipeline.default_run_dir(recipe, target)
    pipeline.advance(recipe, target, path, "search", device=device, events=events)
    with (
        tempfile.TemporaryDirectory(prefix="edgeprune-") as place,
        RunDirectory(Path(place)) as scratch,
        Context(recipe, target, scratch, "", events) as context,
    ):
        subject, work = context.subject, context.subject.workload
        plan = graph.Plan.load(path / "search" / "plan.json")
        start = _Start(
            context,
            plan,
            recovery.repaired(subject, plan, plan.apply(subject.model)),
            space_of(recipe, workloads.is_top_class(work.task)),
            path / FOLDER,
        )
        repaired = recovery.score(work, start.student)
        context.voice.say("tune", f"every trial starts from the repaired network: {recovery.shown(work, repaired)}")
        study = _study(start, work.task.higher_is_better)
        _go_on(start, study)
        made = _outcome(start, study, repaired)
    return _written(made, study, start, recipe, out)


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
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recipe = start.context.recipe
    own = {key: value for key, value in recipe.section("recover").items() if key not in start.space}
    name = key_of(
        start.plan.to_dict(),
        {**own, "epochs": start.options.epochs},
        {key: msgspec.to_builtins(one) for key, one in start.space.items()},
        recipe.section("data"),
        start.context.subject.workload.digest,
    )
    start.folder.mkdir(exist_ok=True)
    file = start.folder / STUDY
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # signs of life, of trials side by side
    try:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{file}",
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=BEAT,
            grace_period=GONE,
            heartbeat_stale_trial_callback=_again,
        )
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            direction="maximize" if higher_is_better else "minimize",
            sampler=optuna.samplers.TPESampler(n_startup_trials=FIRST, constant_liar=True, seed=recipe.recover.seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=WARM),
        )
    except Exception as cause:  # SQLAlchemy's and Optuna's own, of a file that is none of theirs
        reason = str(cause).splitlines()[0][:200]
        raise RunError(f"{file} is no study that can be read: {reason}.", "Move it away to begin a new one.") from None
    if not study.trials:
        study.enqueue_trial(own_values(start.space, start.options), user_attrs={WAY: "own"})
    return study


def _again(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """What was interrupted is tried again, from its checkpoint."""
    kept = {PLACE: trial.user_attrs.get(PLACE, ""), WAY: trial.user_attrs.get(WAY, "")}
    study.enqueue_trial(trial.params, user_attrs=kept)


def _go_on(start: _Start, study: optuna.Study) -> None:
    """Trials until there are as many as the recipe says, or its hours are over."""
    import optuna

    states = optuna.trial.TrialState
    done, options = (states.COMPLETE, states.PRUNED), start.context.recipe.tune
    waiting = {one.user_attrs.get(PLACE) for one in study.get_trials(states=(states.WAITING, states.RUNNING))}
    for trial in study.get_trials(states=(states.FAIL,)):
        place = trial.user_attrs.get(PLACE, "")
        if place and place not in waiting and (start.folder / place).is_dir():
            _again(study, trial)
    left = options.trials - len(study.get_trials(states=done))
    if left <= 0:
        return
    stop = optuna.study.MaxTrialsCallback(options.trials, states=done)
    logging.getLogger("optuna").setLevel(logging.WARNING)
    study.optimize(
        lambda trial: _trial(start, study, trial),
        n_trials=left,
        timeout=3600 * options.hours or None,
        callbacks=[stop],
        gc_after_trial=True,
    )


def _trial(start: _Start, study: optuna.Study, trial: optuna.Trial) -> float:
    """One training; raises TrialPruned where others were better after as many steps, or where it diverges."""
    import optuna

    from edgeprune.recover import checkpoint

    voice, total = start.context.voice, start.context.recipe.tune.trials
    options = suggested(start.space, trial, start.options)
    name = trial.user_attrs.get(PLACE) or f"trial-{trial.number}"
    trial.set_user_attr(PLACE, name)
    folder = start.folder / name
    folder.mkdir(exist_ok=True)
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
        found = recovery.trained(start.context.subject, options, progress, log, student, folder)
    except ModelError as cause:
        trial.set_user_attr(WHY, cause.message)
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
    states = {"COMPLETE": "done", "PRUNED": "diverged" if WHY in one.user_attrs else "stopped"}
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
