"""The methods that benchmarks/head_to_head.py compares: each finds the largest network that it can within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

TRIALS = 8  # the recipe's default


@dataclass(frozen=True, eq=False)
class Bench:
    """What every method may look at."""

    model: Any
    structure: Any
    predictor: Any
    allowed: Mapping[str, tuple[int, ...]]
    curves: Any
    images: Any
    labels: Any
    judge: Any
    rounds: int
    by_fp32: Any  # a predictor whose table was measured in FP32
    memory: dict[str, Any]  # what a method keeps from one round of closure to the next

    def l1(self) -> dict[str, tuple[int, ...]]:
        from edgeprune.search.saliency import orders

        return orders(self.model, self.structure, self.images, "l1")

    def plan(
        self, widths: Mapping[str, int], order: Mapping[str, tuple[int, ...]], removed: tuple[str, ...] = ()
    ) -> Any:
        inner = {name for b in self.structure.blocks if b.module in removed for name in b.inner}
        kept = {name: sorted(order[name][:width]) for name, width in widths.items() if name not in inner}
        return self.structure.plan(kept, removed)


def ours(bench: Bench, ms: float, **options: bool) -> Any:
    """The joint search, or half of it; later rounds of closure solve and evaluate its best programs again."""
    from edgeprune.search import Again, find

    key = f"ours {sorted(options.items())}"
    if key not in bench.memory:
        found = find(
            bench.structure, bench.predictor, ms, bench.curves, judge=bench.judge, rounds=bench.rounds,
            trials=TRIALS, **options
        )  # fmt: skip
        bench.memory[key] = Again(bench.structure, bench.curves, found, bench.judge)
    return bench.memory[key](bench.predictor, ms)


def uniform(bench: Bench, ms: float) -> Any:
    """The largest uniform fraction that fits, by L1."""
    order = bench.l1()
    for fraction in np.arange(0.99, 0.0, -0.01):
        widths = {n: min(w, key=lambda u: (abs(u - fraction * w[-1]), -u)) for n, w in bench.allowed.items()}
        if bench.predictor.predict(widths) <= ms:
            return bench.plan(widths, order)
    return None


def random(bench: Bench, ms: float, seed: int = 0) -> Any:
    """Of 300 random networks the one that comes nearest to the budget; random channels, no blocks."""
    from edgeprune.search.saliency import orders

    generator = np.random.default_rng(seed)
    best, found = 0.0, None
    for _ in range(300):
        share = generator.uniform(0, 1)
        widths = {
            n: min(w, key=lambda u: abs(u - np.clip(generator.normal(share, 0.25), 0, 1) * w[-1]))
            for n, w in bench.allowed.items()
        }
        value = bench.predictor.predict(widths)
        if best < value <= ms:
            best, found = value, widths
    order = orders(bench.model, bench.structure, bench.images, "random", seed=seed)
    return None if found is None else bench.plan(found, order)


class Macs:
    """A cost that counts multiply-accumulates."""

    beta = 0.0

    def __init__(self, structure: Any) -> None:
        self.layers = {layer.name: layer for layer in structure.layers}

    def kernel(self, layer: str, c_in: int, c_out: int) -> float:
        from edgeprune.graph import width

        found = self.layers[layer]
        full = width(found.inputs, {}) * (1 if found.groups > 1 else width(found.outputs, {}))
        return found.macs * c_in * (1 if found.groups > 1 else c_out) / full / 1e6


class Frozen:
    """The true predictor with every layer's input channels held at their dense number."""

    def __init__(self, structure: Any, predictor: Any) -> None:
        from edgeprune.graph import width

        self.predictor, self.beta = predictor, predictor.beta
        self.inputs = {layer.name: width(layer.inputs, {}) for layer in structure.layers}
        self.depthwise = {layer.name for layer in structure.layers if layer.groups > 1}

    def kernel(self, layer: str, c_in: int, c_out: int) -> float:
        return float(self.predictor.kernel(layer, c_in if layer in self.depthwise else self.inputs[layer], c_out))


def blind(bench: Bench, ms: float, cost: Any, blocks: bool = False) -> Any:
    """Solve with another cost; of its own budgets, the largest whose answer fits the true one."""
    from edgeprune.search import formulate, solve, to_plan
    from edgeprune.search.solve import floor

    program = formulate(bench.structure, cost, bench.curves, blocks=blocks)
    least, most = floor(program), program.totals(program.dense()).ms
    found = None
    for _ in range(10):
        middle = (least + most) / 2
        plan = to_plan(bench.structure, bench.curves, solve(program, [middle * 1.000001])[0].choice)
        if bench.predictor.predict(plan) <= ms:
            least, found = middle, plan
        else:
            most = middle
    return found


def torch_pruning(bench: Bench, ms: float, importance: str, multiple: int) -> Any:
    """Torch-Pruning, global: the smallest ratio whose network fits. Its cuts become a plan of ours."""
    import torch_pruning as tp

    from edgeprune.errors import BudgetError

    fastest = (float("inf"), 0.0)
    for ratio in np.arange(0.05, 0.96, 0.05):
        if ratio not in bench.memory:
            try:
                kept = _peer_cuts(tp, bench, float(ratio), importance, multiple)
                bench.memory[ratio] = bench.structure.plan(kept)
            except Exception as error:
                print(f"   torch_pruning at {ratio:.2f}: {type(error).__name__}: {error}", flush=True)
                bench.memory[ratio] = None
        plan = bench.memory[ratio]
        if plan is None:
            continue
        predicted = bench.predictor.predict(plan)
        if predicted <= ms:
            return plan
        fastest = min(fastest, (predicted, float(ratio)))
    speedup = bench.predictor.dense / fastest[0]
    raise BudgetError(
        f"its fastest is {speedup:.2f}x at a ratio of {fastest[1]:.2f} (groups that would vanish stay whole)."
    )


def _peer_cuts(
    tp: Any, bench: Bench, ratio: float, importance: str, multiple: int, everywhere: bool = True
) -> dict[str, list[int]]:
    import copy

    import torch
    from torch import nn

    model = copy.deepcopy(bench.model).eval()
    example = bench.images[:1]
    measure = {
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": lambda: tp.importance.GroupTaylorImportance(),
    }[importance]()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        model, example, importance=measure, global_pruning=everywhere, pruning_ratio=ratio, max_pruning_ratio=0.9,
        ignored_layers=[last], round_to=multiple,
    )  # fmt: skip
    if importance == "taylor":
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(bench.images), bench.labels)
        loss.backward()
    names = {module: name for name, module in model.named_modules()}
    producers = {layer: group for group in bench.structure.groups for layer in group.producers}
    gone: dict[str, set[int]] = {}
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            name = names.get(dependency.target.module, "")
            if name in producers and "out" in getattr(dependency.handler, "__name__", ""):
                gone.setdefault(producers[name].name, set()).update(int(k) for k in indices)
                break
        group.prune()
    torch.manual_seed(0)
    return {
        name: [u for u in range(bench.structure.group(name).size) if u not in spots]
        for name, spots in gone.items()
        if len(spots) < bench.structure.group(name).size
    }


METHODS: dict[str, Callable[[Bench, float], Any]] = {
    "ours": lambda b, ms: ours(b, ms),
    "ours without blocks": lambda b, ms: ours(b, ms, blocks=False),
    "ours, blocks alone": lambda b, ms: ours(b, ms, widths=False),
    "ours, tables measured in FP32": lambda b, ms: blind(b, ms, b.by_fp32, blocks=True),
    "ours, c_in frozen": lambda b, ms: blind(b, ms, Frozen(b.structure, b.predictor), blocks=True),
    "uniform L1": uniform,
    "random": random,
    "FLOPs-driven": lambda b, ms: blind(b, ms, Macs(b.structure)),
    "additive knapsack, c_in frozen": lambda b, ms: blind(b, ms, Frozen(b.structure, b.predictor)),
    "Torch-Pruning L2, rounded to 8": lambda b, ms: torch_pruning(b, ms, "l2", 8),
    "Torch-Pruning L2, rounded to 16": lambda b, ms: torch_pruning(b, ms, "l2", 16),
    "Torch-Pruning Taylor, rounded to 8": lambda b, ms: torch_pruning(b, ms, "taylor", 8),
    "Torch-Pruning Taylor, rounded to 16": lambda b, ms: torch_pruning(b, ms, "taylor", 16),
}
EVALUATED = {METHODS[name] for name in ("ours", "ours without blocks", "ours, blocks alone")}  # their memory: `Again`
