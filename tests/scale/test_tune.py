"""`tune`: settings of the training by trial; the best become a recipe, and nothing that was done is done again."""

from __future__ import annotations

import importlib
import json
import sqlite3
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from edgeprune import recipe as recipes
from edgeprune import scale
from edgeprune import target as targets
from edgeprune.cli import main
from edgeprune.errors import DataError, MissingDependency, ModelError, RecipeError, RunError, UsageError
from edgeprune.result import Trial, Tuned
from edgeprune.scale import engines, tasks, workers
from edgeprune.scale import study as studies
from edgeprune.scale.space import Choice, Range, own_values, possible, space_of, suggested, told
from edgeprune.scale.spec import SweepResources, SweepRun
from edgeprune.scale.tasks import SweepTask, TaskDone, perform
from edgeprune.scale.tuned import beside, write_recipe

optuna = pytest.importorskip("optuna")
tuning: Any = sys.modules["edgeprune.scale.tune"]
PLAIN: dict[str, Any] = {
    "model": {"factory": "net.py:tiny", "input": [3, 16, 16]},
    "data": {"source": "data.npz"},
    "budget": {"speedup": 1.5},
}


def recipe(**sections: Any) -> recipes.Recipe:
    return recipes.of_python({**PLAIN, **sections}, "recipe")


def test_without_a_space_rates_lie_around_the_recipes_own() -> None:
    own = recipe(recover={"lr": 0.01})
    space = space_of(own, classes=True)
    assert space["lr"] == Range(0.002, 0.05, False, True)
    assert space["distill"] == Choice(("kl", "dist")) and "temperature" in space
    assert set(space_of(own, classes=False)) == {"lr", "weight_decay", "ema"}
    assert own_values(space, own.recover, classes=True) == {
        "lr": 0.01, "weight_decay": 5e-4, "ema": "0.999", "distill": '"kl"', "temperature": 4.0,
    }  # fmt: skip


def test_a_stated_space_is_taken_as_it_stands() -> None:
    stated = {"lr": [0.001, 0.1], "batch": [16, 64], "label_weight": [0, 1]}
    given = recipe(tune={"space": {**stated, "distill": ["kl", {"kl": 1.0, "features": 0.5}], "clip": [0, 1, 5]}})
    space = space_of(given, classes=True)
    assert space["lr"] == Range(0.001, 0.1, False, True) and space["batch"] == Range(16, 64, True, False)
    assert space["label_weight"] == Range(0, 1, False, False)  # no logarithm from 0
    assert space["clip"] == Choice((0, 1, 5))
    params = {
        "lr": 0.01,
        "batch": 32,
        "label_weight": 0.5,
        "clip": told(5),
        "distill": told({"kl": 1.0, "features": 0.5}),
    }
    found = suggested(space, optuna.trial.FixedTrial(params), given.recover)
    assert (found.lr, found.batch, found.clip, found.distill) == (0.01, 32, 5, {"kl": 1.0, "features": 0.5})


@pytest.mark.parametrize(
    ("space", "why", "remedy"),
    [
        ({"learning_rate": [0.1, 1]}, "no such key", ""),
        ({"moment": [0.1, 0.9]}, "no such key", "momentum"),
        ({"epochs": [1, 2]}, "same for every trial", "One of"),
        ({"sparsity": ["none", "l2"]}, "same for every trial", "One of"),
        ({"lr": [0.1]}, "needs two", "choices"),
        ({"lr": [0.1, 0.01]}, "must be the lower", ""),
        ({"lr": [-1, 0.01]}, "space.lr", ""),
        ({"optimizer": ["sgd", "adam"]}, "space.optimizer", ""),
    ],
)
def test_a_wrong_space_is_one_clear_error_before_anything_is_measured(
    space: dict[str, Any], why: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning.pipeline, "advance", lambda *given, **named: pytest.fail("measured"))
    with pytest.raises(RecipeError) as caught:
        scale.tune(recipe(tune={"space": space}), SimpleNamespace(name="x"), out=tmp_path / "o.toml")  # type: ignore[arg-type]
    assert why in caught.value.message and remedy in caught.value.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recover", "why"),
    [
        ({"trainer": "mine.py:fit"}, "not of yours"),
        ({"epochs": 0}, "no training to tune"),
        ({"sparsity": "l2"}, "trains before the cut"),
    ],
)
def test_nothing_to_tune_is_said(recover: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=why):
        scale.tune(recipe(recover=recover), SimpleNamespace(name="x"), out=tmp_path / "o.toml")  # type: ignore[arg-type]


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency) as caught:
        scale.tune(recipe(), SimpleNamespace(name="x"))  # type: ignore[arg-type]
    assert "edgeprune[tune]" in caught.value.remedy and caught.value.exit_code == 5


def test_a_recipe_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    there = tmp_path / "mine.toml"
    there.write_text("name = 'mine'\n")
    with pytest.raises(RecipeError, match="no recipe that tune wrote"):
        beside(recipe(), there)
    with pytest.raises(RecipeError, match="no such folder"):
        beside(recipe(), tmp_path / "none" / "a.toml")
    there.write_text("# Tuned by edgeprune: trial 1\n")
    assert beside(recipe(), there) == there


class Told:
    """A context whose trainings score what `score` says of their options; `said`: what the user was told."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, score: Any, check: Any = lambda options: None, **sections: Any
    ) -> None:
        self.said, self.tried = list[str](), list[Any]()
        task = SimpleNamespace(metric="top-1", unit="points", higher_is_better=True)
        voice = SimpleNamespace(
            say=lambda stage, line: self.said.append(line), progress=lambda stage: lambda *given: None
        )
        work = SimpleNamespace(task=task, digest="data")
        monkeypatch.setattr(tuning.workloads, "is_top_class", lambda task: True)
        monkeypatch.setattr(tuning.recovery, "check_training", lambda subject, options: check(options))
        self.recipe, self.target = recipe(**sections), SimpleNamespace(name="x86-onnxruntime")
        self.voice, self.subject = voice, SimpleNamespace(workload=work)

        def attempt(subject: Any, options: Any, progress: Any, log: Any, student: Any, folder: Path) -> Any:
            self.tried.append(options)
            scores = score(options)
            for step, value in enumerate(scores):
                log({"step": step + 1, "loss": 1.0})
                log({"step": step + 1, "score": value})
            return {"best_score": max(scores)}

        monkeypatch.setattr(tuning.recovery, "trained", attempt)
        monkeypatch.setattr(
            tuning.graph, "save_pruned", lambda folder, *given: (folder / "weights.safetensors").write_text("w")
        )

    def start(self, folder: Path) -> Any:
        plan: Any = SimpleNamespace(to_dict=lambda: {"of": "the search"})
        context: Any = self
        space = space_of(self.recipe, classes=True)
        folder.mkdir(exist_ok=True)
        return tuning._Start(context, plan, nn.Linear(1, 1), space, folder / "tune")

    def tune(self, folder: Path) -> Any:
        start = self.start(folder)
        study = tuning._study(start, True)
        tuning._go_on(start, study)
        made = tuning._outcome(start, study, 50.0)
        return tuning._written(made, study, start, self.recipe, folder / "best.toml"), study


def peak(options: Any) -> list[float]:
    """Best at a learning rate of 0.03."""
    top = 90 - 20 * abs(float(torch.log10(torch.tensor(options.lr / 0.03))))
    return [top - 3, top - 2, top - 1, top]


@pytest.mark.slow
def test_the_best_trial_becomes_a_recipe_and_only_its_network_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_ = Told(monkeypatch, peak, recover={"lr": 0.01}, tune={"trials": 12, "epochs": 2})
    made, _ = told_.tune(tmp_path)
    assert len(made.trials) == 12 and made.own is not None and made.own.number == 1
    assert told_.tried[0].lr == 0.01 and told_.tried[0].epochs == 2  # the recipe's own settings come first
    assert made.best is not None and made.best.score == max(row.score for row in made.trials if row.state == "done")
    assert made.best.score >= made.own.score == pytest.approx(peak(told_.tried[0])[-1])
    assert {row.state for row in made.trials} == {"done", "stopped"}  # a median is there to fall below
    weights = list((tmp_path / "tune").glob("*/weights.safetensors"))
    assert [path.parent for path in weights] == [Path(made.weights)]
    text = (tmp_path / "best.toml").read_text()
    assert "# Tuned by edgeprune: trial" in text and f"lr = {made.best.settings['lr']!r}" in text
    rows = (tmp_path / "tune" / "tune.csv").read_text().splitlines()
    assert rows[0].startswith("trial,state,score,steps,seconds,lr") and len(rows) == 13


@pytest.mark.slow
def test_the_same_command_goes_on_and_does_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Told(monkeypatch, peak, tune={"trials": 3}).tune(tmp_path)
    again = Told(monkeypatch, peak, tune={"trials": 3})
    made, _ = again.tune(tmp_path)
    assert not again.tried and len(made.trials) == 3
    more = Told(monkeypatch, peak, tune={"trials": 5})
    assert len(more.tune(tmp_path)[0].trials) == 5 and len(more.tried) == 2
    other = Told(monkeypatch, peak, recover={"batch": 32}, tune={"trials": 2})  # other settings beside: another study
    assert len(other.tune(tmp_path)[0].trials) == 2 and len(other.tried) == 2


@pytest.mark.slow
def test_an_interrupted_trial_is_tried_again_with_its_settings_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(options: Any) -> list[float]:
        raise KeyboardInterrupt

    first = Told(monkeypatch, interrupted, tune={"trials": 2})
    with pytest.raises(KeyboardInterrupt):
        first.tune(tmp_path)
    (place,) = (tmp_path / "tune").glob("trial-0*")
    second = Told(monkeypatch, peak, tune={"trials": 2})
    made, study = second.tune(tmp_path)
    assert second.tried[0] == first.tried[0] and len(second.tried) == 2
    assert made.own is not None and made.own.settings == {
        "lr": 0.002, "weight_decay": 5e-4, "ema": 0.999, "distill": "kl", "temperature": 4.0,
    }  # fmt: skip
    assert study.trials[made.own.number - 1].user_attrs["folder"] == place.name
    third = Told(monkeypatch, peak, tune={"trials": 3})  # what was taken up once is not taken up again
    assert len(third.tune(tmp_path)[0].trials) == 3 and third.tried[0].lr != first.tried[0].lr


@pytest.mark.slow
def test_a_training_that_diverges_is_a_trial_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(options: Any) -> list[float]:
        if options.lr != 0.002:
            raise ModelError("[recover] training diverged at step 3.")
        return [80.0]

    made, _ = Told(monkeypatch, score, tune={"trials": 3}).tune(tmp_path)
    assert [row.state for row in made.trials] == ["done", "diverged", "diverged"] and made.best.score == 80


@pytest.mark.slow
def test_a_study_that_goes_on_draws_what_one_in_one_piece_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = Told(monkeypatch, peak, tune={"trials": 5}).tune(tmp_path / "whole")
    for count in (2, 3, 4, 5):
        pieces, _ = Told(monkeypatch, peak, tune={"trials": count}).tune(tmp_path / "pieces")
    rates = {row.number: row.settings["lr"] for row in pieces.trials}
    assert len(set(rates.values())) == 5 and rates == {row.number: row.settings["lr"] for row in whole.trials}


@pytest.mark.slow
def test_two_studies_of_one_folder_keep_a_network_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = Told(monkeypatch, peak, tune={"trials": 1}).tune(tmp_path)
    other, _ = Told(monkeypatch, peak, recover={"batch": 32}, tune={"trials": 1}).tune(tmp_path)
    assert first.weights != other.weights and all(Path(one.weights).is_dir() for one in (first, other))
    again, _ = Told(monkeypatch, peak, tune={"trials": 1}).tune(tmp_path)
    assert again.weights == first.weights


def test_a_trial_whose_process_was_killed_is_taken_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told_ = Told(monkeypatch, peak, recover={"lr": 0.01}, tune={"trials": 1})
    start = told_.start(tmp_path)
    study = tuning._study(start, True)
    with warnings.catch_warnings():  # Optuna's, that this is no `optimize`
        warnings.simplefilter("ignore", UserWarning)
        trial = study.ask()
    suggested(start.space, trial, start.options)
    trial.set_user_attr("folder", "trial-0-x")
    (tmp_path / "tune" / "trial-0-x").mkdir()
    with studies.held(tmp_path / "tune" / "trial-0-x"):
        trial.set_user_attr("held", True)
        studies.take_up(study, start.folder)
        assert [one.state.name for one in study.trials] == ["RUNNING"]  # its process lives
    made, study = told_.tune(tmp_path)
    assert [one.state.name for one in study.trials] == ["FAIL", "COMPLETE"]
    assert study.trials[1].user_attrs["folder"] == "trial-0-x" and told_.tried[0].lr == 0.01
    assert made.own is not None and made.own.number == 2


@pytest.mark.slow
def test_settings_that_do_not_go_together_are_a_trial_without_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(options: Any) -> None:
        if options.distill == "none" and not options.label_weight:
            raise DataError("there is nothing to learn from.")

    space = {"distill": ["none", "kl"], "label_weight": [0, 1, 2]}
    told_ = Told(monkeypatch, peak, check, tune={"trials": 8, "space": space})
    made, _ = told_.tune(tmp_path)
    states = {(row.settings["distill"], row.settings["label_weight"] == 0): row.state for row in made.trials}
    assert states[("none", True)] == "unfit" and states[("kl", True)] == "done" and len(made.trials) == 8
    assert all(one.distill == "kl" or one.label_weight for one in told_.tried)
    assert any("nothing to learn from" in line for line in told_.said)


def test_a_value_that_goes_with_nothing_is_said_before_any_work() -> None:
    def check(options: Any) -> None:
        if options.distill == "none" and not options.label_weight:
            raise DataError("there is nothing to learn from.")
        if options.feature_layers == ("nope",):
            raise RecipeError("no layer 'nope'.")

    good = recipe(tune={"space": {"distill": ["none", "kl"], "label_weight": [0, 1]}})
    possible(good, space_of(good, True), check)  # with a label_weight of 1
    alone = recipe(tune={"space": {"distill": ["none", "kl"]}})
    with pytest.raises(RecipeError, match=r'space\.distill = "none": there is nothing to learn from'):
        possible(alone, space_of(alone, True), check)
    layers = recipe(tune={"space": {"feature_layers": [["a"], ["nope"]]}})
    with pytest.raises(RecipeError, match=r"space\.feature_layers = .*nope"):
        possible(layers, space_of(layers, True), check)


def test_the_recipes_own_settings_are_only_called_so_where_the_space_has_them_all() -> None:
    space = {
        "distill": Choice(("kl", "distance")),
        "feature_layers": Choice(([], ["a"])),
        "lr": Range(1, 2, False, True),
    }
    own = recipe().recover
    assert own_values(space, own, classes=False) == {"distill": '"distance"', "feature_layers": "[]"}
    assert own_values(space, own, classes=True)["distill"] == '"kl"'
    assert own_values({"clip": Choice((5, 1, 0))}, own, classes=True) == {
        "clip": "0"
    }  # as the space writes it, not 0.0


def test_own_is_nothing_where_the_space_leaves_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"trials": 1, "space": {"lr": [1, 2]}}
    assert Told(monkeypatch, peak, tune=given).tune(tmp_path)[0].own is None


def test_the_tuned_recipe_has_the_name_and_finds_the_files_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("")
    (tmp_path / "mine.toml").write_text(
        '[model]\nfactory = "net.py:tiny"\ninput = [3, 16, 16]\narguments = { text = "a\\n\\"b\\"" }\n'
        '[data]\nsource = "data.npz"\n[budget]\nspeedup = 1.5\n'
    )
    given = recipes.load(tmp_path / "mine.toml")
    trial = Trial(number=3, settings={"lr": 0.25}, state="done", score=1.0)
    made = Tuned(
        name=given.name, target="x", metric="m", unit="", higher_is_better=True, epochs=1, repaired=0, trials=(trial,)
    )
    write_recipe(given, made, beside(given, None))
    tuned = recipes.load(tmp_path / "mine.tuned.toml")
    assert (tuned.name, tuned.recover.lr, tuned.model) == ("mine", 0.25, given.model)
    (tmp_path / "there").mkdir()
    with pytest.raises(RecipeError, match=r"'net\.py' lies beside the recipe"):
        beside(given, tmp_path / "there" / "a.toml")
    (tmp_path / "there" / "net.py").write_text("")
    assert beside(given, tmp_path / "there" / "a.toml").name == "a.toml"
    write_recipe(recipe(recover={"batch": 7}), made, tmp_path / "python.toml")  # one without a file
    plain = recipes.load(tmp_path / "python.toml")
    assert (plain.recover.batch, plain.recover.lr, plain.budget.speedup) == (7, 0.25, 1.5)


def test_several_processes_of_one_training_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "process_count", lambda: 2)
    with pytest.raises(UsageError, match="torchrun started 2"):
        scale.tune(recipe(), SimpleNamespace(name="x"))  # type: ignore[arg-type]


def test_a_study_that_cannot_be_written_any_more_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(options: Any) -> list[float]:
        with sqlite3.connect(tmp_path / "tune" / "study.db") as database:
            database.execute("DROP TABLE trial_intermediate_values")
        return [50.0]

    with pytest.raises(RunError, match=r"cannot be written: .*trial_intermediate_values"):
        Told(monkeypatch, spoilt, tune={"trials": 1}).tune(tmp_path)


def test_a_file_that_is_no_study_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / "study.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RunError, match="no study that can be read"):
        Told(monkeypatch, peak).tune(tmp_path)


@pytest.mark.slow
def test_from_the_command_line_to_a_recipe_that_runs(project: Path) -> None:
    text = (project / "one.toml").read_text()
    (project / "one.toml").write_text(text + "\n[tune]\ntrials = 2\nepochs = 1\n")
    arguments = ["quick", "tune", "one.toml", "--json"]
    done = CliRunner().invoke(main, arguments, prog_name="edgeprune")
    assert done.exit_code == 0, done.stderr
    made = json.loads(done.stdout)
    assert [row["state"] for row in made["trials"]] == ["done", "done"] and made["own"]["number"] == 1
    tuned = recipes.load(project / made["recipe"])
    best = made["trials"][0]["settings"]
    assert {key: getattr(tuned.recover, key) for key in best} == best
    assert (project / made["weights"] / "weights.safetensors").is_file()
    again = CliRunner().invoke(main, ["quick", "tune", "one.toml"], prog_name="edgeprune")
    assert again.exit_code == 0 and "2 trials of 1 epochs" in again.stdout, again.stdout


@pytest.mark.slow
def test_workers_share_a_study_through_the_sweeps_engine(project: Path) -> None:
    """Each in a process of its own; what the command line says of [tune] reaches them, and all trials are told."""
    pytest.importorskip("ray")
    arguments = ["quick", "tune", "one.toml", "--trials", "4", "--epochs", "1", "--workers", "2", "--json"]
    done = CliRunner().invoke(main, arguments, prog_name="edgeprune")
    assert done.exit_code == 0, done.stderr
    made = json.loads(done.stdout)
    assert len({row["number"] for row in made["trials"]}) == len(made["trials"]) in (4, 5)
    assert made["epochs"] == 1 and made["own"] is not None
    assert len({row["settings"]["lr"] for row in made["trials"]}) == len(made["trials"])  # nothing is drawn twice
    assert (project / made["weights"] / "weights.safetensors").is_file()


def test_a_worker_takes_part_with_the_commands_own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = list[Any]()
    monkeypatch.setattr(tasks, "take_part", lambda *given: seen.append(given))
    monkeypatch.setattr(SweepRun, "recipe", lambda self: recipe())
    run = SweepRun("one", "one.toml", "one", "x86-onnxruntime", "", None, None, 0)
    section = recipe(tune={"trials": 7}).tune
    done = perform(SweepTask("worker 1", run, "tune", str(tmp_path), (), "", (), section))
    assert done.ending == "done" and seen[0][2:] == (tmp_path, section)


@pytest.mark.parametrize(("ray", "error"), [(False, MissingDependency), (True, RecipeError)])
def test_workers_that_cannot_be_are_said_before_anything_else(
    ray: bool, error: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without Ray; and of a recipe that only this process has."""
    monkeypatch.setattr(engines, "installed", lambda: ray)
    with pytest.raises(error, match="workers"):
        scale.tune_side_by_side(recipe(), targets.load("x86-onnxruntime"), tmp_path, workers=2)
    assert not list(tmp_path.iterdir())


def test_workers_that_all_fail_are_an_error_and_one_that_fails_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = recipes.of_python({**PLAIN, "tune": {"trials": 3}}, "one.toml")
    device = targets.load("x86-onnxruntime")
    said = list[str]()

    def side(*endings: str) -> None:
        done = [TaskDone(f"worker {k}", ending, "its node went away") for k, ending in enumerate(endings)]  # type: ignore[arg-type]
        monkeypatch.setattr(engines, "on_ray", lambda *given: lambda tasks: done)
        lines = iter([["trial 1: 50 %"], []])
        workers.side_by_side(
            own,
            device,
            tmp_path,
            2,
            SweepResources(),
            lambda event: said.append(event.message),
            lambda: next(lines, []),
        )

    side("done", "failed")
    assert said == ["worker 1 failed: its node went away", "trial 1: 50 %"]
    with pytest.raises(RunError, match="no worker came to its end: its node went away"):
        side("failed", "failed")


@pytest.mark.parametrize(("fastest", "words"), [(False, "(run --weights)"), (True, "searches and trains anew")])
def test_weights_are_offered_where_the_tuned_recipe_has_their_network(
    fastest: bool, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = Trial(number=1, settings={"lr": 0.1}, state="done", score=1.0)
    made = Tuned(
        name="n", target="x", metric="m", unit="", higher_is_better=True, epochs=1, repaired=0, trials=(trial,),
        recipe="r.toml", weights="w",
    )  # fmt: skip
    importlib.import_module("edgeprune.cli.tune")._show(made, fastest)
    said = " ".join(capsys.readouterr().out.split())
    assert words in said and "w/weights.safetensors" in said


def test_what_a_worker_takes_is_refused_without_workers(project: Path) -> None:
    """Red before: it was accepted and did nothing."""
    done = CliRunner().invoke(main, ["quick", "tune", "one.toml", "--gpus", "1"], prog_name="edgeprune")
    assert done.exit_code == 2 and "--cpus and --gpus are of several workers" in done.stderr, done.stderr
