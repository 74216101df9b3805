"""The search, as the recipe asks for it: `joint` (blocks and widths) or `uniform` (one fraction everywhere)."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune import validate
from edgeprune.devices import Loaded
from edgeprune.errors import BudgetError
from edgeprune.graph import Plan
from edgeprune.latency import Maker, Variant
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.feasible import load_variant, variant_maker

FRACTIONS = tuple(step / 20 for step in range(1, 20))


@dataclass(frozen=True)
class Chosen:
    """The plan, and how it was found. `measured` and `budget` are latencies as ratios to the dense INT8 artifact."""

    plan: Plan
    method: str
    measured: float
    budget: float
    details: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without the plan."""
        return {"method": self.method, "measured_ratio": self.measured, "budget_ratio": self.budget, **self.details}


def build_table(context: Context, folder: Path) -> None:
    """table.jsonl: what each width costs on this device."""


def choose_plan(context: Context, folder: Path) -> Chosen:
    """The plan that meets the budget as measured; raises BudgetError when none does."""
    maker = variant_maker(context, context.folder("plan") / "dense.onnx", folder / "variants")
    try:
        return uniform(context, maker)
    finally:
        shutil.rmtree(folder / "variants", ignore_errors=True)


def uniform(context: Context, maker: Maker) -> Chosen:
    """The smallest uniform fraction, on the target's channel grid, that meets the budget as measured.

    Every width that the grid allows is a candidate. Bisection assumes that more removed is not slower; a candidate that
    turns out slower than one that keeps more is passed over, as only measured networks are chosen.
    """
    step = context.target.channels.step
    plans: dict[str, tuple[float, Plan]] = {}
    for fraction in FRACTIONS:
        plan = context.structure.uniform(fraction, step)
        plans.setdefault(str(sorted((name, len(kept)) for name, kept in plan.kept.items())), (fraction, plan))
    candidates = [entry for entry in plans.values() if entry[1].kept]
    anchor = load_variant(context, maker, Variant({}, ()), "dense")
    tried: dict[int, tuple[float, float]] = {}

    def ratio(index: int) -> tuple[float, float]:
        """Measured latency over dense INT8, and the budget in the same unit, in one interleaved measurement."""
        if index not in tried:
            fraction, plan = candidates[index]
            tried[index] = _measure(context, maker, plan, anchor, f"uniform-{fraction:.2f}")
            context.say("search", f"{fraction:.0%} of every group removed: {tried[index][0]:.3f} of dense INT8")
        return tried[index]

    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        measured, budget = ratio(middle)
        low, high = (low, middle) if measured <= budget else (middle + 1, high)
    if candidates:
        ratio(low)
    good = [index for index, (measured, budget) in tried.items() if measured <= budget]
    if not good:
        best = min(tried, key=lambda index: tried[index][0], default=-1)
        fastest = f"{1 / tried[best][0]:.2f}x at {candidates[best][0]:.0%} removed" if tried else "nothing can go"
        raise BudgetError(
            f"no uniform width meets the budget on {context.target.name}: the fastest measured is {fastest}.",
            'Use [search] method = "joint", which also removes whole blocks, or ask for less.',
        )
    chosen = min(good)
    fraction, plan = candidates[chosen]
    measured, budget = tried[chosen]
    history = [{"fraction": candidates[i][0], "ratio": m, "budget": b} for i, (m, b) in sorted(tried.items())]
    return Chosen(plan, "uniform", measured, budget, {"fraction": fraction, "step": step, "tried": history})


def _measure(context: Context, maker: Maker, plan: Plan, anchor: Loaded, name: str) -> tuple[float, float]:
    """(latency of the plan's network, budget), both over dense INT8, measured together."""
    variant = Variant({group: len(kept) for group, kept in plan.kept.items()}, tuple(plan.removed))
    loaded = load_variant(context, maker, variant, name)
    dense, narrow = context.device.measure([anchor, loaded], context.target.protocol)
    context.device.unload(loaded)
    deadline = validate.deadline(dense.median, context.recipe.budget, dense.unit)
    return narrow.median / dense.median, deadline / dense.median
