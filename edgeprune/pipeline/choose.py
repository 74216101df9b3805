"""The search, as the recipe asks for it: `joint` (blocks and widths), `learned` (the same by learned masks), or
`uniform` (one fraction everywhere).
"""

from __future__ import annotations

import contextlib
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import torch

from edgeprune import graph, latency, validate
from edgeprune.devices import Loaded
from edgeprune.errors import BudgetError, PlanError, RecipeError, did_you_mean
from edgeprune.graph import DENSE, Layer, Plan
from edgeprune.latency import ArtifactBuilder, Predictor, Table
from edgeprune.pipeline import recovery, warm, workloads
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.bounded import within_drop
from edgeprune.pipeline.events import Voice
from edgeprune.pipeline.feasible import load_variant, variant_maker
from edgeprune.pipeline.precision import in_float
from edgeprune.pipeline.rundir import RunDirectory, read_json, write_json
from edgeprune.pipeline.subject import Subject
from edgeprune.recipe import Recipe, SearchSection
from edgeprune.report import write_profile
from edgeprune.search import Again, Closure, Evaluator, MaskSettings, Sensitivity, find, learn, measure, refine

FRACTIONS = tuple(step / 20 for step in range(1, 20))
FRONT = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0)  # speed-ups over dense INT8 at which the front is told
AIM = 0.985  # share of the budget that the search is asked for: the margin covers the noise of a quiet measurement
MORE_ROUNDS = 16  # of closure, where the table predicts badly; otherwise 10
MASK_BATCH = 16  # examples of a step of learning masks, at least; 64 of 32 x 32
CONFIRM = 4  # measurements of one uniform network, where the device is noisy


@dataclass(frozen=True)
class Chosen:
    """The plan, and how it was found. `measured` and `budget` are latencies as ratios to the dense INT8 artifact."""

    plan: Plan
    method: str
    measured: float
    budget: float
    details: dict[str, object]

    def to_dict(self) -> dict[str, object]:
        """As plain data, without the plan."""
        return {"method": self.method, "measured_ratio": self.measured, "budget_ratio": self.budget, **self.details}


TABLE = "table.jsonl"


def build_table(subject: Subject, bench: Bench, run: RunDirectory, voice: Voice, folder: Path) -> None:
    """table.jsonl: what each width costs on this device; profile.json, profile.html: its error on unseen networks.

    An interrupted stage goes on from the table that it left.
    """
    maker = _maker(subject, bench, run, folder)
    path, unit = folder / TABLE, bench.target.protocol.unit
    fingerprint = bench.probe.fingerprint
    table = Table.load(path, fingerprint, unit) if path.exists() else warm.fleet(bench, run, voice, maker.network)
    report = voice.progress("latency")
    measure = subject.recipe.measure
    found = latency.quick(
        table,
        bench.device,
        maker,
        subject.recipe.search.blocks,
        progress=report,
        keep=lambda new: new.save(path),
        max_error=measure.max_error,
        patience=patience(subject.recipe, voice, "latency"),
    )
    table = found.table
    if ways := layer_options(subject):
        names = ", ".join(subject.recipe.search.options)
        voice.say("latency", f"{sum(map(len, ways.values()))} choices for {len(ways)} layers beside widths: {names}")
        table = latency.with_options(table, bench.device, maker, ways, report, lambda new: new.save(path))
    table.save(path)
    warm.tell_fleet(voice, "latency", table)
    shutil.rmtree(folder / "variants", ignore_errors=True)
    errors, by_macs = asdict(found.errors), asdict(found.by_macs)
    account = {
        "errors": errors,
        "by_macs": by_macs,
        "predicted": found.predicted,
        "measured": found.measured,
        "predicted_by_macs": found.predicted_by_macs,
        "good": found.good,
        "verdict": found.verdict,
        "spread": found.spread,
        "seconds": found.seconds,
        "networks": found.networks,
        "cells": found.cells,
    }
    write_json(folder / "profile.json", account)
    write_profile(account, f"{subject.recipe.name} on {bench.target.name}", folder / "profile.html")
    shown = run.folder("latency") / "profile.html"  # `folder` is renamed to it when the stage is whole
    voice.say(
        "latency",
        f"table of {found.cells} cells from {found.networks} networks; error on {errors['count']} unseen networks: "
        f"median {100 * errors['median']:.1f} %, p90 {100 * errors['p90']:.1f} % "
        f"(by MACs alone: {100 * by_macs['median']:.1f} %, {100 * by_macs['p90']:.1f} %); plot: {shown}",
    )
    if not found.good:
        voice.say("latency", found.verdict)


def _maker(subject: Subject, bench: Bench, run: RunDirectory, folder: Path) -> ArtifactBuilder:
    """Makes networks as they will be shipped: in INT8, but for what stays in float."""
    dense = run.folder("plan") / "dense.onnx"
    return variant_maker(subject, bench.target, dense, folder / "variants", in_float(run, "dense"))


def patience(recipe: Recipe, voice: Voice, stage: str) -> latency.Patience:
    """How much longer than on a quiet device a stage may measure."""
    return latency.Patience(recipe.measure.patience, lambda line: voice.say(stage, line))


def choose_plan(
    subject: Subject,
    bench: Bench,
    run: RunDirectory,
    voice: Voice,
    shared: Sequence[Path],
    neighbour: Path | None,
    folder: Path,
) -> Chosen:
    """The plan that meets the budget as measured; raises BudgetError when none does."""
    maker = _maker(subject, bench, run, folder)
    try:
        if subject.recipe.search.method == "uniform":
            return uniform(subject, bench, voice, maker)
        return joint(subject, bench, run, voice, shared, neighbour, maker, folder)
    finally:
        shutil.rmtree(folder / "variants", ignore_errors=True)


def joint(
    subject: Subject,
    bench: Bench,
    run: RunDirectory,
    voice: Voice,
    shared: Sequence[Path],
    neighbour: Path | None,
    maker: ArtifactBuilder,
    folder: Path,
) -> Chosen:
    """Blocks and widths together: loss curves, the program with its certificate, then closure on measured latency."""
    options, structure = subject.recipe.search, subject.structure
    limit = weights_limit(subject.recipe.budget.max_bytes, structure.layers, maker)
    table, start = warm.start(bench, run, neighbour, TABLE)
    predictor = Predictor(table, structure, maker.network)
    session = subject.session
    evaluator, widths = Evaluator(structure, session), latency.options(structure, bench.target.channels)
    budget, bounded = validate.deadline(predictor.dense, subject.recipe.budget, predictor.unit), None
    if options.method == "learned":
        curves, start = _masks(subject, voice, predictor, AIM * budget, widths, limit, folder), {}
    else:
        warm.curves(shared, folder)
        curves = _curves(subject, voice, widths, folder / "curves.json")
    if subject.recipe.budget.fastest:
        bounded = within_drop(subject, run, voice, predictor, curves, evaluator, limit, folder)
        budget /= bounded.speedup
    found = find(
        structure,
        predictor,
        AIM * budget,
        curves,
        judge=evaluator,
        rounds=options.rounds if not start else 1,
        trials=options.trials,
        factors=start,
        seed=options.seed,
        blocks=options.blocks,
        max_bytes=limit,
        time_limit=options.time_limit,
        front=[predictor.dense / speedup for speedup in FRONT],
    )
    voice.say(
        "search",
        f"{len(found.plan.removed)} blocks and {sum(found.widths.values())} units stay or go by a program solved to "
        f"{100 * found.gap:.2f} %; {session.distance.title} to the dense network {found.loss:.3f}"
        + ("" if found.agreement is None else f", agreement {100 * found.agreement:.1f} %"),
    )
    again = Again(structure, curves, found, evaluator, max_bytes=limit, time_limit=options.time_limit)
    closed = _closed(subject.recipe, bench, run, voice, maker, table, again, budget / predictor.dense)
    assert isinstance(closed.answer, Plan)
    loss = again.loss(closed.answer)
    voice.say("search", _told(closed, session.distance.title, loss))
    closed.table.save(folder / TABLE)
    warm.tell_fleet(voice, "search", closed.table)
    details = {**found.to_dict(), **_answer(closed, loss), **({"bounded": bounded.to_dict()} if bounded else {})}
    return Chosen(closed.answer, options.method, closed.ratio, closed.budget, details)


def _answer(closed: Closure, loss: float) -> dict[str, object]:
    """What closure took, in place of the search's own answer, and how it came to it."""
    steps = [
        {"asked": step.asked, "predicted": step.predicted, "measured": step.measured, "spread": step.spread}
        for step in closed.steps
    ]
    network = closed.answer.configuration if isinstance(closed.answer, Plan) else closed.variant
    options = {"options_of_layers": dict(network.options)} if network.options else {}
    judged = msgspec.to_builtins(closed.judged)
    closure = {"of_budget": closed.of_budget, "loss": loss, "steps": steps, "judged": judged}
    return {"widths": dict(network.widths), "removed": list(network.removed), **options, "closure": closure}


def _told(closed: Closure, distance: str, loss: float) -> str:
    steps = len(closed.steps)
    return f"closed in {steps} measurements: {100 * closed.of_budget:.1f} % of the budget; {distance} {loss:.3f}"


def _curves(subject: Subject, voice: Voice, widths: Mapping[str, Sequence[int]], cache: Path) -> Sensitivity:
    """What each width and each block costs, measured on the session's examples."""
    options, report = subject.recipe.search, voice.progress("search")
    return measure(
        subject.structure,
        subject.session,
        widths,
        saliency=options.saliency,
        blocks=options.blocks,
        labels=_labels(subject),
        options=layer_options(subject),
        cache=cache,
        progress=lambda done, total: report(done, total, "loss curves"),
    )


def _masks(
    subject: Subject,
    voice: Voice,
    predictor: Predictor,
    budget: float,
    widths: Mapping[str, Sequence[int]],
    limit: float,
    folder: Path,
) -> Sensitivity:
    """What each width and each block costs, by masks learnt on the training split under the budget."""
    from edgeprune.recover import batch_source

    options, session, data = subject.recipe.search, subject.session, subject.recipe.data
    how = msgspec.structs.replace(
        subject.recipe.recover, batch=max(MASK_BATCH, session.size), micro_batch=0, seed=options.seed
    )
    examples = recovery.split_of(subject)("train")
    source = batch_source(examples, subject.workload.inputs, how, (), data.workers)
    return learn(
        subject.structure,
        session,
        predictor,
        budget,
        widths,
        lambda step: source.at(step)[0],
        MaskSettings(options.mask_steps, options.seed, blocks=options.blocks, max_bytes=limit),
        folder=folder,
        progress=voice.progress("search"),
    )


def check_masks(subject: Subject) -> None:
    """Learned masks need something to mask: said before any work. Raises RecipeError."""
    structure = subject.structure
    if subject.recipe.search.method == "learned" and not structure.groups and not structure.blocks:
        raise RecipeError(
            '[search] method = "learned" has nothing to mask: no units and no blocks of the network may go.',
            "structure.json, or structure.describe() in Python, says what keeps it whole.",
        )


def check_options(section: SearchSection) -> None:
    """[search] options and repeats must be for a search that knows them; raises RecipeError."""
    known = graph.layer_options()
    for name in section.options:
        if name not in known:
            raise RecipeError(f"[search] options: there is no '{name}'.", did_you_mean(name, known))
    if section.options and section.method != "joint":
        raise RecipeError('[search] options is for method = "joint".', "Leave one of them out.")
    if section.repeats and (section.method != "joint" or not section.blocks):
        raise RecipeError(
            '[search] repeats is for method = "joint" and blocks = true: it offers blocks, and ties widths for them.',
            "Leave it out.",
        )


def layer_options(subject: Subject) -> dict[str, tuple[str, ...]]:
    """Layer -> what it may become beside narrower, as [search] options asks."""
    names = subject.recipe.search.options
    return subject.structure.options(subject.model, names) if names else {}


def _closed(
    recipe: Recipe,
    bench: Bench,
    run: RunDirectory,
    voice: Voice,
    maker: ArtifactBuilder,
    table: Table,
    again: Again,
    ratio: float,
) -> Closure:
    """Closure on measured latency, to `ratio` of the dense network's."""
    rounds = 10 if read_json(run.folder("latency") / "profile.json").get("good", True) else MORE_ROUNDS
    report = voice.progress("search")
    return refine(
        again,
        table,
        bench.device,
        maker,
        ratio,
        rounds,
        absolute=recipe.budget.latency_ms is not None,
        loss=again.loss,
        patience=patience(recipe, voice, "search"),
        told=lambda count, share: report(
            min(count, rounds), rounds, f"network {count}: {100 * share:.1f} % of the budget"
        ),
    )


def _labels(subject: Subject) -> torch.Tensor | None:
    """The classes of the session's examples, for saliencies that take them; None where the task has no classes."""
    work = subject.workload
    if not workloads.is_top_class(work.task):
        return None
    found = workloads.targets(work, "train", subject.recipe.search.images)
    return None if any(one is None for one in found) else torch.tensor([int(one) for one in found])


def weights_limit(limit: int | None, layers: Sequence[Layer], maker: ArtifactBuilder) -> float:
    """What [budget] max_bytes leaves for INT8 weights: less all else that the dense artifact holds (graph, scales)."""
    if limit is None:
        return float("inf")
    sizes = {layer.weight: math.prod(layer.weight_shape) for layer in layers}
    rest = max(0, maker.build(DENSE, "dense").artifact.bytes - sum(sizes.values()))
    if limit <= rest:
        raise BudgetError(
            f"[budget] max_bytes = {limit:,} leaves nothing for weights: graph and scales alone take {rest:,} bytes.",
            "Allow more.",
        )
    return limit - rest


def uniform(subject: Subject, bench: Bench, voice: Voice, maker: ArtifactBuilder) -> Chosen:
    """The smallest uniform fraction, on the target's channel grid, that meets the budget as measured.

    Every width that the grid allows is a candidate. Bisection assumes that more removed is not slower; a candidate that
    turns out slower than one that keeps more is passed over, as only measured networks are chosen.
    """
    step = bench.target.channels.step
    plans: dict[str, tuple[float, Plan]] = {}
    for fraction in FRACTIONS:
        try:
            plan = subject.structure.uniform(fraction, step)
        except PlanError:  # on this grid nothing would go
            continue
        plans.setdefault(plan.configuration.key, (fraction, plan))
    candidates = [entry for entry in plans.values() if entry[1].kept]
    anchor = load_variant(bench, maker, DENSE, "dense")
    tried: dict[int, Uniform] = {}
    wait = patience(subject.recipe, voice, "search")

    def fits(index: int) -> bool:
        """Measured beside dense INT8, below the budget by the room that this device's noise needs."""
        if index not in tried:
            fraction, plan = candidates[index]
            tried[index] = _measure(subject.recipe, bench, maker, plan, anchor, f"uniform-{fraction:.2f}", wait)
            voice.say(
                "search", f"{100 * fraction:.0f} % of every group removed: {tried[index].ratio:.3f} of dense INT8"
            )
        return tried[index].fits

    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    if candidates:
        fits(low)
    good = [index for index, one in tried.items() if one.fits]
    if not good:
        best = min(tried, key=lambda index: tried[index].ratio, default=-1)
        fastest = (
            f"{1 / tried[best].ratio:.2f}x at {100 * candidates[best][0]:.0f} % removed" if tried else "nothing can go"
        )
        raise BudgetError(
            f"no uniform width meets the budget on {bench.target.name}: the fastest measured is {fastest}.",
            'Use [search] method = "joint", which also removes whole blocks, or ask for less.',
        )
    chosen = min(good)
    fraction, plan = candidates[chosen]
    one = tried[chosen]
    history = [{"fraction": candidates[i][0], "ratio": m.ratio, "budget": m.budget} for i, m in sorted(tried.items())]
    return Chosen(plan, "uniform", one.ratio, one.budget, {"fraction": fraction, "step": step, "tried": history})


@dataclass(frozen=True)
class Uniform:
    """Latency and budget over dense INT8, measured together; `room`: the share of the budget that noise leaves."""

    ratio: float
    budget: float
    room: float

    @property
    def fits(self) -> bool:
        """The latency gate will be sure of it."""
        return self.ratio <= self.room * self.budget


def _measure(
    recipe: Recipe, bench: Bench, maker: ArtifactBuilder, plan: Plan, anchor: Loaded, name: str, wait: latency.Patience
) -> Uniform:
    """The plan's network beside dense INT8; again, while noise could hide whether it fits."""
    loaded = load_variant(bench, maker, plan.configuration, name)
    ratios, deadlines, deviations = list[float](), list[float](), list[float]()
    try:
        while True:
            with wait.again() if ratios else contextlib.nullcontext():
                dense, narrow = bench.device.measure([anchor, loaded], bench.target.protocol)
            ratios.append(narrow.median / dense.median)
            deadlines.append(validate.deadline(dense.median, recipe.budget, dense.unit) / dense.median)
            deviations.append(latency.deviation((dense, narrow), dense.unit))
            noise = statistics.median(deviations)
            found = Uniform(statistics.median(ratios), statistics.median(deadlines), latency.room(noise, dense.unit))
            doubt = 2 * noise / len(ratios) ** 0.5
            if len(ratios) == CONFIRM or not wait.left or abs(found.ratio / found.budget / found.room - 1) > doubt:
                return found
            if len(ratios) == 1 and noise > 0.01:
                wait.tell(bench.device, f"latency is good to {100 * doubt:.1f} % so far")
    finally:
        bench.device.unload(loaded)
