"""The search, as the recipe asks for it: `joint` (blocks and widths) or `uniform` (one fraction everywhere)."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from edgeprune import latency, validate
from edgeprune.devices import Loaded
from edgeprune.errors import BudgetError
from edgeprune.graph import Plan
from edgeprune.latency import Maker, Predictor, Table, Variant
from edgeprune.latency.variants import DENSE
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.feasible import load_variant, variant_maker
from edgeprune.pipeline.rundir import write_json
from edgeprune.report import write_profile
from edgeprune.search.again import Again
from edgeprune.search.curves import measure
from edgeprune.search.find import find
from edgeprune.search.stitch import Stitcher

FRACTIONS = tuple(step / 20 for step in range(1, 20))
FRONT = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0)  # speed-ups over dense INT8 at which the front is told
AIM = 0.985  # share of the budget that is aimed at: the margin covers the noise of the measurement


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


TABLE = "table.jsonl"


def build_table(context: Context, folder: Path) -> None:
    """table.jsonl: what each width costs on this device; profile.json, profile.html: its error on unseen networks.

    An interrupted stage goes on from the table that it left.
    """
    maker = variant_maker(context, context.folder("plan") / "dense.onnx", folder / "variants")
    path, unit = folder / TABLE, context.target.protocol.unit
    fingerprint = context.probe.fingerprint
    table = Table.load(path, fingerprint, unit) if path.exists() else Table(fingerprint, unit)
    report = context.progress("latency")
    found = latency.quick(
        table, context.device, maker, context.recipe.search.blocks, progress=report, keep=lambda new: new.save(path)
    )
    found.table.save(path)
    shutil.rmtree(folder / "variants", ignore_errors=True)
    errors, by_macs = asdict(found.errors), asdict(found.by_macs)
    account = {
        "errors": errors,
        "by_macs": by_macs,
        "predicted": found.predicted,
        "measured": found.measured,
        "predicted_by_macs": found.predicted_by_macs,
        "seconds": found.seconds,
        "networks": found.networks,
        "cells": found.cells,
    }
    write_json(folder / "profile.json", account)
    write_profile(account, f"{context.recipe.name} on {context.target.name}", folder / "profile.html")
    shown = context.folder("latency") / "profile.html"  # `folder` is renamed to it when the stage is whole
    context.say(
        "latency",
        f"table of {found.cells} cells from {found.networks} networks; error on {errors['count']} unseen networks: "
        f"median {errors['median']:.1%}, p90 {errors['p90']:.1%} (by MACs alone: {by_macs['median']:.1%}, "
        f"{by_macs['p90']:.1%}); plot: {shown}",
    )


def choose_plan(context: Context, folder: Path) -> Chosen:
    """The plan that meets the budget as measured; raises BudgetError when none does."""
    maker = variant_maker(context, context.folder("plan") / "dense.onnx", folder / "variants")
    choose = {"joint": joint, "uniform": uniform}[context.recipe.search.method]
    try:
        return choose(context, maker, folder)
    finally:
        shutil.rmtree(folder / "variants", ignore_errors=True)


def joint(context: Context, maker: Maker, folder: Path) -> Chosen:
    """Blocks and widths together: loss curves, the program with its certificate, then closure on measured latency."""
    options, structure = context.recipe.search, context.structure
    limit = weights_limit(context, maker)
    table = Table.load(context.folder("latency") / TABLE, context.probe.fingerprint, context.target.protocol.unit)
    predictor = Predictor(table, structure, maker.network)
    split = context.data.train.take(options.images)
    images, labels = torch.from_numpy(split.arrays()), torch.from_numpy(split.labels)
    widths = latency.options(structure, context.target.channels)
    report = context.progress("search")
    curves = measure(
        context.model,
        structure,
        images,
        widths,
        saliency=options.saliency,
        blocks=options.blocks,
        labels=labels,
        seed=options.seed,
        cache=folder / "curves.json",
        progress=lambda done, total: report(done, total, "loss curves"),
    )
    budget = validate.deadline(predictor.dense, context.recipe.budget, predictor.unit)
    judge = Stitcher(context.model, structure, images, options.seed)
    found = find(
        structure,
        predictor,
        AIM * budget,
        curves,
        judge=judge,
        rounds=options.rounds,
        trials=options.trials,
        seed=options.seed,
        blocks=options.blocks,
        max_bytes=limit,
        time_limit=options.time_limit,
        front=[predictor.dense / speedup for speedup in FRONT],
    )
    context.say(
        "search",
        f"{len(found.plan.removed)} blocks and {sum(found.widths.values())} units stay or go by a program solved to "
        f"{found.gap:.2%}; KL to the dense network {found.loss:.3f}, agreement {found.agreement:.1%}",
    )
    again = Again(structure, curves, found, judge, max_bytes=limit, time_limit=options.time_limit)
    absolute = context.recipe.budget.latency_ms is not None
    ratio = budget / predictor.dense
    closed = latency.close(again, table, context.device, maker, ratio, absolute=absolute, loss=again.loss)
    assert isinstance(closed.answer, Plan)
    context.say(
        "search",
        f"closed in {len(closed.steps)} measurements: {closed.of_budget:.1%} of the budget; "
        f"KL {again.loss(closed.answer):.3f}",
    )
    closed.table.save(folder / TABLE)
    steps = [
        {"asked": step.asked, "predicted": step.predicted, "measured": step.measured, "spread": step.spread}
        for step in closed.steps
    ]
    closure = {"of_budget": closed.of_budget, "loss": again.loss(closed.answer), "steps": steps}
    answer = {
        "widths": {name: len(kept) for name, kept in closed.answer.kept.items()},
        "removed": list(closed.answer.removed),
    }
    details = {**found.to_dict(), **answer, "closure": closure}
    return Chosen(closed.answer, "joint", closed.ratio, closed.budget, details)


def weights_limit(context: Context, maker: Maker) -> float:
    """What [budget] max_bytes leaves for INT8 weights: less all else that the dense artifact holds (graph, scales)."""
    limit = context.recipe.budget.max_bytes
    if limit is None:
        return float("inf")
    layers = {layer.weight: math.prod(layer.weight_shape) for layer in context.structure.layers}
    rest = max(0, maker.build(DENSE, "dense").artifact.bytes - sum(layers.values()))
    if limit <= rest:
        raise BudgetError(
            f"[budget] max_bytes = {limit:,} leaves nothing for weights: graph and scales alone take {rest:,} bytes.",
            "Allow more.",
        )
    return limit - rest


def uniform(context: Context, maker: Maker, folder: Path) -> Chosen:
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
        low, high = (low, middle) if measured <= AIM * budget else (middle + 1, high)
    if candidates:
        ratio(low)
    good = [index for index, (measured, budget) in tried.items() if measured <= AIM * budget]
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
