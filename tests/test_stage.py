"""The one list of stages, and what derives from it."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from edgeprune import recipe, stage, target
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.facts import FACTS, StageKeys
from edgeprune.pipeline.rundir import RunDirectory


class Run:
    """Stands for a run; a fact that is asked for is noted."""

    def __init__(self) -> None:
        self.asked: list[str] = []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in FACTS:
        monkeypatch.setitem(cast(dict[str, Any], FACTS), name, lambda run, name=name: run.asked.append(name) or name)
    return Run()


def test_every_step_has_its_stages_in_order() -> None:
    steps = [step.name for step in stage.STEPS]
    order = [steps.index(one.step) for one in stage.PIPELINE]
    assert order == sorted(order) and set(order) == set(range(len(steps)))
    assert [one.name for one in stage.until("profile")] == ["graph", "precision", "plan", "dense", "latency"]
    assert [stage.first(name).name for name in ("plan", "prune", "package")] == ["graph", "search", "release"]
    assert stage.until("package") == stage.PIPELINE
    assert [one.name for one in stage.until("search")] == ["graph", "precision", "plan", "dense", "latency", "search"]
    assert stage.kept_before("prune") == (
        "--from prune: kept: graph, precision, plan, dense, latency; "
        "made again: search, recover, quantize, artifacts, validate, release"
    )
    assert stage.kept_before("plan").startswith("--from plan: nothing is kept; made again: graph, precision, plan")


@pytest.mark.parametrize(
    ("changed", "again"), [({"augment": ("flip", "mixup")}, True), ({"workers": 2}, False)], ids=["augment", "workers"]
)
def test_how_training_reads_its_images_leaves_table_and_search_as_they_are(
    changed: dict[str, Any], again: bool, tmp_path: Path
) -> None:
    """Red before: other augmentation began the search anew, and another network was trained."""
    found = list[dict[str, str]]()
    one = recipe.load(Path(__file__).parents[1] / "examples" / "cifar10")
    for number, made in enumerate([one, replace(one, data=replace(one.data, **changed))]):
        with (
            RunDirectory(tmp_path / str(number)) as directory,
            Context(made, target.load("x86-onnxruntime"), directory, "", lambda event: None) as context,
        ):
            found.append({name: context.keys[name] for name in ("plan", "dense", "latency", "search", "recover")})
    before, after = found
    assert {name for name in before if before[name] != after[name]} == ({"recover"} if again else set())


def test_a_stage_asks_for_parts_that_a_run_has(tmp_path: Path) -> None:
    """By the names of its parameters; they are filled when it is called, so that nothing else would tell."""
    wanted: set[str] = set()
    for one in stage.PIPELINE:
        if one.work:
            module, _, function = one.work.partition(":")
            wanted |= set(inspect.signature(getattr(importlib.import_module(module), function)).parameters)
    assert "folder" in wanted and "context" not in wanted
    with RunDirectory(tmp_path / "run") as directory:
        made = recipe.of_python(
            {"model": {"factory": "a:b"}, "data": {"source": "x:y"}, "budget": {"speedup": 2.0}}, "r"
        )
        with Context(made, target.load("x86-onnxruntime"), directory, "", lambda event: None) as context:
            assert all(hasattr(context, name) for name in wanted - {"folder"})


def test_a_stage_depends_on_earlier_ones_only_and_on_facts_that_exist() -> None:
    for place, one in enumerate(stage.PIPELINE):
        assert set(one.after) | set(one.reads) <= set(stage.NAMES[:place])
        assert set(one.facts) <= set(FACTS)
        assert all((Path(stage.__file__).parent / room).exists() for room in one.rooms)


def test_the_work_of_every_stage_is_there() -> None:
    for one in stage.PIPELINE:
        module, _, function = one.work.partition(":")
        assert not one.work or callable(getattr(importlib.import_module(module), function))


def test_keys_ask_for_nothing_before_it_is_needed(run: Run) -> None:
    """The graph's key connects to no device and reads no data."""
    keys = StageKeys(cast(Any, run))
    assert run.asked == [] and len(keys) == len(stage.PIPELINE)
    first = keys["graph"]
    assert set(run.asked) == {"version", "model", "weights"}
    _ = keys["latency"]
    assert "data" not in run.asked and "device" in run.asked
    before = list(run.asked)
    assert keys["graph"] == first and run.asked == before, "each fact is worked out once"


@pytest.mark.parametrize("fact", ["weights", "device", "data", "recover", "budget", "name"])
def test_a_changed_fact_changes_its_stages_and_those_after_them(run: Run, fact: str) -> None:
    before = dict(StageKeys(cast(Any, run)))
    cast(dict[str, Any], FACTS)[fact] = lambda _: "another"
    after = dict(StageKeys(cast(Any, run)))
    reached: set[str] = set()
    for one in stage.PIPELINE:
        if fact in one.facts or reached & set(one.after):
            reached.add(one.name)
    assert {name for name in before if before[name] != after[name]} == reached


def test_changed_code_changes_the_key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune.pipeline import facts

    before = dict(StageKeys(cast(Any, run)))
    monkeypatch.setattr(facts, "code", lambda *rooms: "other" if "quantize" in rooms and "devices" not in rooms else "")
    middle = dict(StageKeys(cast(Any, run)))
    monkeypatch.setattr(facts, "code", lambda *rooms: "")
    after = dict(StageKeys(cast(Any, run)))
    assert before["graph"] != after["graph"]
    changed = {name for name in after if middle[name] != after[name]}
    assert changed == {"quantize", "artifacts", "validate", "release"}
