"""Learned masks and training before the cut: what is refused before any work, and both through `prune`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from small_run import run_of

import edgeprune
from edgeprune import pipeline, recipe, target
from edgeprune.errors import DataError, MeasurementError, RecipeError
from edgeprune.pipeline import choose, override, recovery
from edgeprune.pipeline.facts import StageKeys


@pytest.mark.parametrize(
    ("section", "text", "words"),
    [
        ("recover", 'sparsity = "lasso"', r"sparsity is 'lasso'; it may be bn-scale, group-lasso, l1, l2, none"),
        ("recover", "sparsity_epochs = -1", "sparsity_epochs"),
        ("search", 'method = "learnt"', r"method is 'learnt'; it may be joint, learned, uniform"),
        ("search", "mask_steps = 0", "mask_steps"),
    ],
)
def test_values_that_there_are_not(section: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        '[model]\nfactory = "net.py:make"\ninput = [3, 8, 8]\n[data]\nsource = "x.npz"\n[budget]\nspeedup = 2.0\n'
        f"[{section}]\n{text}\n"
    )
    with pytest.raises(RecipeError, match=words):
        recipe.load(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": "l2", "sparsity_epochs": 0.0}, "does nothing"),
        ({"sparsity": "l2", "sparsity_strength": 0.0}, "does nothing"),
    ],
)
def test_training_before_the_cut_that_cannot_be(options: dict[str, object], words: str, tmp_path: Path) -> None:
    with run_of(tmp_path, recover=options) as context, pytest.raises(RecipeError, match=words):
        recovery.check(context.subject, None)


def test_what_it_cannot_learn_from_is_said_before_any_work_also_without_epochs_afterwards(tmp_path: Path) -> None:
    options = {"sparsity": "l2", "epochs": 0}
    with run_of(tmp_path, recover={**options, "distill": "none"}) as context:
        with pytest.raises(DataError, match="nothing to learn from"):
            recovery.check(context.subject, None)
        recovery.check(context.subject, tmp_path / "trained.safetensors")
    with (
        run_of(
            tmp_path, recover=options, data={"kind": "function", "source": "handed:over", "augment": ["crop"]}
        ) as context,
        pytest.raises(RecipeError, match="crop is for images of classes; this run's examples are others"),
    ):
        recovery.check(context.subject, None)


def test_it_is_not_for_trainers_of_ones_own_nor_for_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").write_text("def fit(job):\n    return None\n")
    trainer = str(tmp_path / "train.py") + ":fit"
    with (
        run_of(tmp_path, recover={"sparsity": "l2", "trainer": trainer}) as context,
        pytest.raises(
            RecipeError, match=r"sparsity = \"l2\" is of edgeprune's own training; here a trainer of your own"
        ),
    ):
        recovery.check(context.subject, None)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with run_of(tmp_path, recover={"sparsity": "l2"}) as context:
        with pytest.raises(RecipeError, match="trains in one process; torchrun started 2"):
            recovery.check(context.subject, None)
        recovery.check(context.subject, tmp_path / "trained.safetensors")  # these weights replace it


def test_nothing_to_mask_is_said_before_any_work() -> None:
    subject: Any = SimpleNamespace(
        recipe=SimpleNamespace(search=recipe.SearchSection(method="learned")),
        structure=SimpleNamespace(groups=(), blocks=()),
    )
    with pytest.raises(RecipeError, match='method = "learned" has nothing to mask'):
        choose.check_masks(subject)


def test_the_table_serves_both_and_sparsity_trains_alone_anew(tmp_path: Path) -> None:
    keys = []
    for number, sections in enumerate(({}, {"search": {"method": "learned"}}, {"recover": {"sparsity": "l1"}})):
        with run_of(tmp_path / str(number), **sections) as context:
            found = StageKeys(context)
            keys.append((found.without("latency", "device"), found._fact("search"), found._fact("recover")))
    joint, learned, sparse = keys
    assert joint[0] == learned[0] == sparse[0]
    assert joint[1] != learned[1] and joint[1] == sparse[1] and joint[2] != sparse[2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_both_through_prune_and_the_hand_off(
    tiny: recipe.Recipe, hurried: Callable[[str], target.Target], tmp_path: Path
) -> None:
    device, run = hurried("x86-onnxruntime"), tmp_path / "run"
    tiny = override(tiny, "search", method="learned", mask_steps=10, images=64, rounds=1, trials=0)
    tiny = override(tiny, "recover", sparsity="group-lasso", sparsity_epochs=0.05, epochs=0.1)
    try:
        pipeline.run(tiny, device, run, until="prune")
    except MeasurementError as noisy:
        pytest.skip(f"this machine is too busy to measure on: {noisy.message}")
    search = json.loads((run / "search" / "search.json").read_text())
    assert search["method"] == "learned" and search["measured_ratio"] <= search["budget_ratio"]
    assert json.loads((run / "search" / "curves.json").read_text())["saliency"] == "learned"
    recovered = json.loads((run / "recover" / "recover.json").read_text())
    assert recovered["sparsity"]["kind"] == "group-lasso" and recovered["sparsity"]["left"] < 1
    assert recovered["training"]["epochs"] > 0
    assert not [path.name for path in (run / "recover").iterdir() if path.name in ("sparse", "checkpoint.pt")]
    pipeline.run(tiny, device, run, until="recover")  # handed off: trained before the cut, and not after it
    recovered = json.loads((run / "recover" / "recover.json").read_text())
    assert recovered["sparsity"]["left"] < 1 and recovered["training"]["epochs"] == 0
    plan = edgeprune.graph.Plan.load(run / "recover" / "plan.json")
    assert plan.kept and load_file(run / "recover" / "weights.safetensors")


def test_augmentation_beside_a_trainer_of_ones_own_is_refused(tmp_path: Path) -> None:
    """Red before: it did nothing, and nothing said so."""
    (tmp_path / "train.py").write_text("def fit(job):\n    return None\n")
    trainer = str(tmp_path / "train.py") + ":fit"
    data = {"kind": "function", "source": "handed:over", "augment": ["flip"]}
    with (
        run_of(tmp_path, recover={"trainer": trainer}, data=data) as context,
        pytest.raises(RecipeError, match="your trainer reads the examples as they are"),
    ):
        recovery.check(context.subject, None)
