"""Networks that must not be released, of every task; and honest ones, which chance may refuse.

    python benchmarks/campaigns/refused.py --tries 20 --seed 0

A dense network with a fault must be refused by the plan's look at real examples, before anything is trained. A released
artifact with a fault, of an honest dense network, must be refused by a gate that the fault names. Honest networks are
drawn anew `--tries` times, each on examples of its own: how often they are refused is a rate, and is stated.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import trying
from worlds import EVERY, WORLDS, Fault, Network, World

from edgeprune import target, validate
from edgeprune.errors import EdgepruneError
from edgeprune.pipeline import feasible, objects
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.events import silent
from edgeprune.pipeline.rundir import RunDirectory
from edgeprune.recipe import BudgetSection
from edgeprune.workload import Budget, Data

CONFIDENCE = 0.95
FAST = {"spread": 0.005, "rounds": [1.0] * 24, "valid": True}


class Examples:
    """A map-style dataset of drawn examples."""

    def __init__(self, world: World, count: int, seed: str) -> None:
        rng = np.random.default_rng([int.from_bytes(seed.encode(), "little") % 2**63])
        inputs, self.targets = world.draw(count, rng)
        self.inputs = torch.from_numpy(np.asarray(inputs, np.float32))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.inputs[index], self.targets[index]


def planned(world: World, fault: Fault | None, seed: str, folder: Path) -> list[str]:
    """The gates that the plan says a dense network cannot pass."""
    train = Examples(world, 40, f"{seed} train")
    data = Data(train=train, selection=train, calibration=train, test=Examples(world, world.examples, seed))
    budget = Budget(speedup=1.5, max_drop=world.max_drop)
    device = target.load("x86-onnxruntime")
    try:
        asked, handed = objects.recipe_of(lambda: Network(world, fault), data, world.task, budget, name="x")
        with RunDirectory(folder) as run, Context(asked, device, run, "", silent, handed) as context:
            found = feasible.look_at_dense(context.subject)
            known = [*found.heads, *validate.ask(found.sanity, world.examples, asked.budget)]
            return [one.name for one in known if one.severity == "error"]
    except EdgepruneError as error:
        if "NaN or infinite" in error.message:
            return ["finite"]
        if "same" in error.message or "chance" in error.message or "shuffled" in error.message:
            return ["sane"]
        return [f"{type(error).__name__}: {error.message}"]


def gated(world: World, fault: Fault | None, seed: str, max_drop: float | None = None) -> list[str]:
    """The gates that an artifact does not pass whose dense network is honest: judged as the validation does it.

    The honest artifact computes what the dense network does, and rounds it: 2 % of noise on its inputs.
    """
    examples = Examples(world, world.examples, seed)
    noise = torch.randn(examples.inputs.shape, generator=torch.Generator().manual_seed(1)) * examples.inputs.std()
    judges = {}
    for name, network, inputs in (
        ("dense_fp32", Network(world), examples.inputs),
        ("dense_int8", Network(world), examples.inputs),
        ("pruned_int8", Network(world, fault), examples.inputs + (0.02 * noise if fault is None else 0)),
    ):
        judge = judges[name] = validate.Judge(world.task)
        with torch.no_grad():
            for start in range(0, len(examples), 64):
                made = network(inputs[start : start + 64])
                outputs = tuple(one.numpy() for one in (made if isinstance(made, tuple) else (made,)))
                judge.add(outputs, examples.targets[start : start + 64])
    medians = {"dense_fp32": 3.0, "dense_int8": 2.0, "pruned_int8": 1.0}
    scores = {name: judge.score() for name, judge in judges.items()}
    result = {
        "version": 2,
        "unit": "ms",
        "claim": {"answer": "here", "verdict": "release", "unit": "ms"},
        "proof": {"passed": True, "max_error": 0.0, "method": "masked"},
        "precision": {"by": "profiler", "operators": 2, "int8": 2, "float": [], "share": 1.0},
        **{
            name: {**msgspec.to_builtins(judge.network(judges["dense_fp32"])), "bytes": 10,
                   "latency_ms": {"median": medians[name], **FAST}}
            for name, judge in judges.items()
        },
        "comparison": msgspec.to_builtins(
            validate.comparison(scores["pruned_int8"], scores["dense_fp32"], CONFIDENCE)
        ),
        "sanity": {name: msgspec.to_builtins(judges[name].sanity()) for name in ("dense_fp32", "pruned_int8")},
    }  # fmt: skip
    budget = BudgetSection(speedup=1.5, max_drop=world.max_drop if max_drop is None else max_drop)
    return [gate.name for gate in validate.gates(result, budget) if not gate.passed]


def campaign(tries: int, seed: int, names: Sequence[str] = tuple(WORLDS)) -> dict[str, Any]:
    """Every fault of every world once in both places; honest networks `tries` times each."""
    return together([one_world(name, tries, seed) for name in names], seed)


def one_world(name: str, tries: int, seed: int) -> dict[str, Any]:
    """The cases of one world, what went wrong, and its honest networks."""
    world, cases, wrong = WORLDS[name], {}, []
    with tempfile.TemporaryDirectory() as folder:
        for kind, fault in {**EVERY, **world.faults}.items():
            found: dict[str, list[str]] = {"released": gated(world, fault, f"{seed} {name}")}
            if fault.dense:
                found["dense"] = planned(world, fault, f"{seed} {name}", Path(folder) / "run")
            cases[kind] = found
            for place, gates in found.items():
                right = fault.released if place == "released" else fault.dense
                if not set(gates) & set(right):
                    wrong.append(f"{name}: {kind}: {place}: {gates or 'released'}, wanted {' or '.join(right)}")
        honest = _honest(world, name, tries, seed, Path(folder) / "run")
    wrong += [f"{name}: an honest network: {words}" for words in honest.pop("wrong")]
    return {"name": name, "cases": cases, "wrong": wrong, "honest": honest}


def together(worlds: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The facts of all worlds."""
    book = trying.Book("networks", seed)
    must: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for world in worlds:
        for found in world["cases"].values():
            for place, gates in found.items():
                must[place] += 1
                refused[place] += bool(gates)
                book.ends["refused" if gates else "released"] += 1
        for words in world["wrong"]:
            book.fail(words)
    keys = ("plans", "plans_refused", "gates", "gates_refused")
    return book.facts(
        must_not_be_released=dict(must),
        refused=dict(refused),
        honest_refused_by_chance={key: sum(world["honest"][key] for world in worlds) for key in keys},
        confidence=CONFIDENCE,
        worlds=list(worlds),
    )


def _honest(world: World, name: str, tries: int, seed: int, folder: Path) -> dict[str, Any]:
    """How often chance refuses an honest network: in the plan, and at the gates."""
    plans = [planned(world, None, f"{seed} {name} honest {n}", folder) for n in range(max(1, tries // 4))]
    gates = [gated(world, None, f"{seed} {name} honest {n}") for n in range(tries)]
    odd = [one for one in plans if one and not set(one) <= {"sane", "accuracy"}]
    odd += [one for one in gates if not set(one) <= {"sane", "accuracy"}]
    return {
        "examples": world.examples,
        "max_drop": world.max_drop,
        "plans": len(plans),
        "plans_refused": sum(map(bool, plans)),
        "gates": len(gates),
        "gates_refused": sum(map(bool, gates)),
        "wrong": [str(one) for one in odd],
    }


def main() -> None:
    """The command line: worlds that the JSON has already, of the same seed, are kept."""
    parser = trying.arguments(__doc__, "networks", 40)
    parser.add_argument("--fresh", action="store_true", help="do all of them anew")
    given = parser.parse_args()
    torch.set_num_threads(1)
    before = json.loads(given.out.read_text()) if given.out.is_file() and not given.fresh else {}
    worlds = before.get("worlds", []) if before.get("seed") == given.seed else []
    clock = trying.Clock(given.minutes)
    for name in WORLDS:
        if clock and name not in [world["name"] for world in worlds]:
            worlds.append(one_world(name, given.tries, given.seed))
            trying.write(together(worlds, given.seed), given.out)
    trying.ended(together(worlds, given.seed))


if __name__ == "__main__":
    main()
