"""[budget] max_drop alone: the fastest network within it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from edgeprune import Budget, pipeline, recipe, validate
from edgeprune.errors import RecipeError, UsageError
from edgeprune.pipeline import bounded
from edgeprune.recipe import BudgetSection
from edgeprune.scale.front import _of_budget
from edgeprune.scale.spec import SweepRun

MODEL = '[model]\nfactory = "net.py:net"\ninput = [3, 8, 8]\n[data]\nsource = "data"\n'


def test_the_fastest_speedup_is_found_by_halves() -> None:
    """What is lost grows with the square of the speed-up less one: 1.0 of it is lost at exactly 2x."""
    found, tried = bounded.fastest(lambda speedup: (speedup - 1) ** 2, 4.0, 1.0)
    assert 1.9 < found <= 2.0 and len(tried) == 1 + 4
    assert found == max(one.speedup for one in tried if one.drop is not None and one.drop <= 1.0)


def test_where_the_fastest_of_all_does_nothing_else_is_tried() -> None:
    found, tried = bounded.fastest(lambda speedup: 0.0, 3.0, 0.5)
    assert found == pytest.approx(3.0) and len(tried) == 1


def test_where_no_network_does_there_is_no_speedup() -> None:
    assert bounded.fastest(lambda speedup: None, 4.0, 1.0)[0] == 1.0
    assert bounded.fastest(lambda speedup: 1.1, 4.0, 1.0)[0] == 1.0


@pytest.mark.parametrize("text", ["max_drop = 2.0", "max_drop = 2.0\nconfidence = 0.9"])
def test_max_drop_alone_asks_for_the_fastest(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.toml").write_text(f"{MODEL}[budget]\n{text}\n")
    assert recipe.load(tmp_path / "recipe.toml").budget.fastest
    (tmp_path / "recipe.toml").write_text(f"{MODEL}[budget]\n{text}\nspeedup = 2.0\n")
    assert not recipe.load(tmp_path / "recipe.toml").budget.fastest


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[budget]\nconfidence = 0.9\n", "exactly one of speedup and latency_ms; or max_drop alone"),
        ("[budget]\nmax_drop = 1.0\nfastest = true\nlatency_ms = 3.0\n", "exactly one of speedup and latency_ms"),
        ('[budget]\nmax_drop = 1.0\n[search]\nmethod = "uniform"\n', 'needs [search] method = "joint"'),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "recipe.toml").write_text(MODEL + text)
    with pytest.raises(RecipeError) as caught:
        recipe.load(tmp_path / "recipe.toml")
    assert says in str(caught.value)


def test_fronts_and_sweeps_put_their_own_latency_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(f"{MODEL}[budget]\nmax_drop = 2.0\n")
    run = SweepRun("one", str(tmp_path / "recipe.toml"), "one", "intel-cpu", "", 1.5, None, 0)
    assert run.recipe().budget == BudgetSection(speedup=1.5, max_drop=2.0)
    loaded = recipe.load(tmp_path / "recipe.toml")
    assert _of_budget(loaded, 1.5).budget == BudgetSection(speedup=1.5, max_drop=2.0)


def test_a_budget_in_python_needs_one_of_them_said() -> None:
    assert Budget(max_drop=1.0).speedup is None
    with pytest.raises(UsageError):
        Budget()
    with pytest.raises(UsageError):
        Budget(speedup=2.0, latency_ms=3.0)


def test_its_latency_gate_asks_for_no_more_than_to_be_no_slower() -> None:
    assert validate.deadline(3.0, BudgetSection(fastest=True)) == 3.0
    assert validate.deadline(3.0, BudgetSection(speedup=2.0)) == 1.5


@pytest.mark.parametrize(("examples", "least"), [(2000, 1.0), (50, 5.0)])
def test_what_the_test_split_hides_is_kept_free(examples: int, least: float) -> None:
    """Fewer examples tell less: a network has to lose that much less than max_drop."""
    dense = validate.Sanity(
        metric="top-1", scale="points", examples=examples, broken=0, value=90.0, chance=10.0, blind="one class",
        p_value=0.0, errors=0.1,
    )  # fmt: skip
    few = validate.hidden(dense, examples, BudgetSection(speedup=2.0))
    many = validate.hidden(dense, 50_000, BudgetSection(speedup=2.0))
    assert few >= least and many < 0.5 * few


@pytest.mark.parametrize(("drop", "errors"), [(1.0, 1), (5.0, 0)])
def test_plan_refuses_where_chance_alone_takes_the_whole_of_max_drop(drop: float, errors: int) -> None:
    """Of 2,000 examples it takes 2 points: of 1 nothing is left, of 5 there is; a stated speed-up may try."""
    dense = validate.Sanity(
        metric="top-1", scale="points", examples=2000, broken=0, value=90.0, chance=10.0, blind="one class",
        p_value=0.0, errors=0.1,
    )  # fmt: skip
    alone = validate.ask(dense, 2000, BudgetSection(fastest=True, max_drop=drop))
    assert [one.name for one in alone if one.severity == "error"] == ["accuracy"] * errors
    assert not errors or "nothing is left for pruning" in alone[0].message
    assert all(one.severity == "warning" for one in validate.ask(dense, 2000, BudgetSection(speedup=2.0, max_drop=1.0)))


@pytest.mark.slow
def test_a_run_ends_at_the_fastest_network_within_max_drop(
    tiny: recipe.Recipe, tmp_path: Path, hurried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "SPARE", 2.0)  # well away from the floor, where closure has nothing to choose
    asked = msgspec.structs.replace(tiny, budget=BudgetSection(max_drop=20.0, fastest=True))
    target = hurried("x86-onnxruntime")
    pipeline.run(asked, target, tmp_path / "run", until="prune")
    found = json.loads((tmp_path / "run" / "search" / "search.json").read_text())
    tried = {one["speedup"]: one["drop"] for one in found["bounded"]["tried"]}
    chosen, allowed = found["bounded"]["speedup"], found["bounded"]["allowed"]
    assert 0 < allowed < 20.0 and tried[chosen] <= allowed
    assert all(lost is None or lost > allowed for speedup, lost in tried.items() if speedup > chosen)
    assert 1 / found["measured_ratio"] >= 0.99 * chosen > 1
