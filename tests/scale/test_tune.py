"""`tune`: settings of the training by trial; the best become a recipe, and nothing that was done is done again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from edgeprune import recipe as recipes
from edgeprune import scale
from edgeprune.cli import main
from edgeprune.errors import MissingDependency, ModelError, RecipeError, RunError
from edgeprune.scale.space import Choice, Range, own_values, space_of, suggested, told
from edgeprune.scale.tuned import beside

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
    assert own_values(space, own.recover) == {
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

    def __init__(self, monkeypatch: pytest.MonkeyPatch, score: Any, **sections: Any) -> None:
        self.said, self.tried = list[str](), list[Any]()
        task = SimpleNamespace(metric="top-1", unit="points", higher_is_better=True)
        voice = SimpleNamespace(
            say=lambda stage, line: self.said.append(line), progress=lambda stage: lambda *given: None
        )
        work = SimpleNamespace(task=task, digest="data")
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


def test_the_same_command_goes_on_and_does_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Told(monkeypatch, peak, tune={"trials": 3}).tune(tmp_path)
    again = Told(monkeypatch, peak, tune={"trials": 3})
    made, _ = again.tune(tmp_path)
    assert not again.tried and len(made.trials) == 3
    more = Told(monkeypatch, peak, tune={"trials": 5})
    assert len(more.tune(tmp_path)[0].trials) == 5 and len(more.tried) == 2
    other = Told(monkeypatch, peak, recover={"batch": 32}, tune={"trials": 2})  # other settings beside: another study
    assert len(other.tune(tmp_path)[0].trials) == 2 and len(other.tried) == 2


def test_an_interrupted_trial_is_tried_again_with_its_settings_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(options: Any) -> list[float]:
        raise KeyboardInterrupt

    first = Told(monkeypatch, interrupted, tune={"trials": 2})
    with pytest.raises(KeyboardInterrupt):
        first.tune(tmp_path)
    assert (tmp_path / "tune" / "trial-0").is_dir()
    second = Told(monkeypatch, peak, tune={"trials": 2})
    made, study = second.tune(tmp_path)
    assert second.tried[0] == first.tried[0] and len(second.tried) == 2
    assert made.own is not None and made.own.settings == {
        "lr": 0.002, "weight_decay": 5e-4, "ema": 0.999, "distill": "kl", "temperature": 4.0,
    }  # fmt: skip
    assert study.trials[made.own.number - 1].user_attrs["folder"] == "trial-0"


def test_a_training_that_diverges_is_a_trial_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(options: Any) -> list[float]:
        if options.lr != 0.002:
            raise ModelError("[recover] training diverged at step 3.")
        return [80.0]

    made, _ = Told(monkeypatch, score, tune={"trials": 3}).tune(tmp_path)
    assert [row.state for row in made.trials] == ["done", "diverged", "diverged"] and made.best.score == 80


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
