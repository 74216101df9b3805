"""What stages depend on, each worked out when a key first asks for it: no data is read and nothing is connected before.

A stage's key is a hash of the code that makes it, of the keys of the stages before it, and of its own facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeprune._version import __version__
from edgeprune.pipeline.code import code
from edgeprune.pipeline.rundir import key_of
from edgeprune.stage import NAMES, named

if TYPE_CHECKING:
    from edgeprune.pipeline.bench import Bench
    from edgeprune.pipeline.subject import Subject
    from edgeprune.recipe import Recipe
    from edgeprune.target import Target

EVERY_STAGE = ("pipeline", "files", "recipe", "stage", "target")  # rooms whose code every stage runs through


class Keyed(Protocol):
    """A run, as far as its stages' keys depend on it."""

    recipe: Recipe
    target: Target
    subject: Subject
    bench: Bench
    weights: Path | None


def _target(run: Keyed) -> Any:
    plain = run.target.to_dict()
    return {key: value for key, value in plain.items() if key not in ("title", "evidence", "notes")}


def _weights(run: Keyed) -> Any:
    from edgeprune.model import digest

    return digest(run.subject.model)


def _speed(run: Keyed) -> Any:
    budget = run.recipe.section("budget")
    fixed = [budget[key] for key in ("speedup", "latency_ms", "max_bytes")]
    return [*fixed, budget["max_drop"], budget["confidence"], _recover(run)] if budget["fastest"] else fixed


def _recover(run: Keyed) -> Any:
    from edgeprune.pipeline import recovery

    return [run.recipe.section("recover"), run.recipe.data.augment, recovery.facts(run.subject, run.weights)]


def _export(run: Keyed) -> Any:
    """[export], and what is done with the bytes that it asks for."""
    data = run.recipe.section("data") if run.recipe.export.input else {}
    return [run.recipe.section("export"), [data.get(key) for key in ("scale", "mean", "std")]]


def _floats(run: Keyed) -> Any:
    """What the recipe says of layers in float."""
    options = run.recipe.quantize
    asked = sorted(name for name, layer in options.layers.items() if layer.precision == "float")
    return [options.fallback == "auto", asked]


FACTS: Mapping[str, Callable[[Keyed], Any]] = {
    "version": lambda run: __version__,
    "name": lambda run: run.recipe.name,
    "model": lambda run: [run.recipe.section("model"), run.recipe.search.repeats],
    "weights": _weights,
    "target": _target,
    "device": lambda run: [run.bench.name, run.bench.probe.fingerprint],
    "speed": _speed,
    "cuts": lambda run: ["joint" if run.recipe.search.by_program else "uniform", run.recipe.search.blocks],
    "options": lambda run: list(run.recipe.search.options),
    "max_error": lambda run: run.recipe.measure.max_error,
    "search": lambda run: run.recipe.section("search"),
    "data": lambda run: [run.recipe.data.as_read(), run.subject.workload.digest],
    "recover": _recover,
    "floats": _floats,
    "quantize": lambda run: run.recipe.section("quantize"),
    "export": _export,
    "budget": lambda run: run.recipe.section("budget"),
}


class StageKeys(Mapping[str, str]):
    """Stage -> its key, each made when it is first asked for."""

    def __init__(self, run: Keyed) -> None:
        self._run = run
        self._facts: dict[str, object] = {}
        self._known: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self._known:
            self._known[name] = self.without(name)
        return self._known[name]

    def without(self, name: str, *facts: str) -> str:
        """The key of a stage as if it did not depend on some facts."""
        stage = named(name)
        made = code(*EVERY_STAGE, *stage.rooms)
        before = [self[other] for other in stage.after]
        return key_of(made, before, {fact: self._fact(fact) for fact in stage.facts if fact not in facts})

    def _fact(self, name: str) -> Any:
        if name not in self._facts:
            self._facts[name] = FACTS[name](self._run)
        return self._facts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)
