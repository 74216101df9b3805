"""The front: the best network for each of several budgets, each with its certificate and as measured; nothing trained.

Every point is an ordinary run directory, `RUN/front/2.00x`, that stops after its search: a picked point is the ordinary
run that goes on from there. The points share what does not depend on the budget (graph, dense measurements, latency
table, loss curves), and each search starts from its neighbour's: from the table as closure has taught it, and from the
factors of its best answer. So nothing is measured twice.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeprune import files, pipeline, report
from edgeprune import recipe as recipes
from edgeprune import result as results
from edgeprune.errors import BudgetError, GateError, RunError, UsageError
from edgeprune.graph import Plan
from edgeprune.pipeline import Context, Event, Listener, RunDirectory, keep_memory, recovery, silent, workloads
from edgeprune.recipe import Recipe
from edgeprune.result import Front, FrontPoint
from edgeprune.target import Target

FOLDER, FILE, PAGE, SCORE = "front", "front.json", "front.html", "repaired.json"
MILDEST, LEAST = 1.15, 1.06  # the mildest speed-up; the fastest network's, below which there is no front
LEFT = 0.1  # of what the fastest network saves, that the last point leaves: nearer to it nothing is left to choose
MOST = 100


class Repaired(msgspec.Struct, frozen=True, kw_only=True):
    """Scores on the selection split, in the metric's unit; `search`: the files of the search that they belong to."""

    search: dict[str, str]
    metric: str
    unit: str
    higher_is_better: bool
    dense: float
    repaired: float


@dataclass(frozen=True)
class _Asked:
    """What every point shares."""

    recipe: Recipe
    target: Target
    folder: Path
    device: str
    events: Listener


def front(
    recipe: Recipe,
    target: Target,
    run_dir: Path | None = None,
    *,
    points: int = 6,
    speedups: Sequence[float] = (),
    pick: Sequence[float] = (),
    device: str = "",
    events: Listener = silent,
) -> Front:
    """The front of a recipe's network; its own budget is left aside, all else of it holds.

    Args:
        points: how many, spread evenly over the latency, from 1.15x to close to the fastest network that was measured.
        speedups: these instead.
        pick: speed-ups of points that become bundles: the ordinary run, with its training.

    Raises:
        BudgetError: no budget can be met.
        UsageError: the recipe's search has no front, or a picked point is none.
    """
    began = time.monotonic()
    if recipe.search.method != "joint":
        raise UsageError(
            f'{recipe.path or "recipe"}: [search] method = "{recipe.search.method}" has no front.',
            'Use method = "joint": its curves and table serve every budget.',
        )
    _sensible(points, speedups, pick)
    keep_memory()
    path = run_dir or pipeline.default_run_dir(recipe, target)
    asked = _Asked(recipe, target, path / FOLDER, device, events)
    plan = pipeline.plan(recipe, target, path, device=device, events=events)
    wanted = _speedups(points, speedups, pick, float(plan["max_speedup"]))
    found, scored = _points(asked, wanted, path)
    made = Front(
        name=recipe.name,
        target=target.name,
        unit=str(plan["unit"]),
        dense=float(plan["dense_int8"]),
        max_speedup=float(plan["max_speedup"]),
        metric=scored.metric if scored else "",
        scale=results.scale(scored.unit) if scored else "",
        higher_is_better=scored.higher_is_better if scored else True,
        dense_score=scored.dense if scored else None,
        points=marked(found, scored.higher_is_better if scored else True),
        seconds=round(time.monotonic() - began, 1),
    )
    write(made, asked.folder)
    for speedup in pick:
        made = _released(asked, made, speedup, path)
        write(made, asked.folder)
    if all(point.why for point in made.points):
        raise BudgetError(f"{target.name}: no point of the front can be met: {made.points[0].why}", "Ask for less.")
    return made


def label(speedup: float) -> str:
    """A point's name and folder."""
    return f"{speedup:.2f}x"


def marked(points: Sequence[FrontPoint], higher_is_better: bool) -> tuple[FrontPoint, ...]:
    """The points, each with the fastest one of those that are faster and whose score is as good or better."""
    sign = 1 if higher_is_better else -1

    def of(point: FrontPoint) -> str:
        if point.measured is None or point.score is None:
            return ""
        faster = [
            (other.measured, other.label)
            for other in points
            if other.measured is not None and other.score is not None
            and other.measured > point.measured and sign * (other.score - point.score) >= 0
        ]  # fmt: skip
        return max(faster, default=(0.0, ""))[1]

    return tuple(msgspec.structs.replace(point, better=of(point)) for point in points)


def write(made: Front, folder: Path) -> None:
    """front.json and front.html."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / FILE, msgspec.to_builtins(made))
    report.write_front(made, folder / PAGE)


def _sensible(points: int, given: Sequence[float], pick: Sequence[float]) -> None:
    """Before anything is measured; raises UsageError."""
    for value in (*given, *pick):
        if not 1.005 <= value <= 10_000:
            raise UsageError(f"a speed-up of {value:g}: it must be more than 1 and at most 10,000.")
    if not 1 <= points <= MOST:
        raise UsageError(f"{points} points: from 1 to {MOST} are possible.")


def _speedups(points: int, given: Sequence[float], pick: Sequence[float], most: float) -> list[float]:
    """The budgets, ascending; raises BudgetError where none can be met."""
    if given:
        chosen = [round(value, 2) for value in (*given, *pick)]
    else:
        if most <= LEAST:
            raise BudgetError(
                f"the fastest network that was measured is {most:.2f} times as fast as dense INT8: there is no front.",
                "edgeprune TARGET plan RECIPE says where the time goes.",
            )
        end = LEFT + (1 - LEFT) / most  # latencies over the dense one's
        start = max(1 / MILDEST, end)
        chosen = [round(float(1 / share), 2) for share in np.linspace(end, start, points)]
        chosen += [round(value, 2) for value in pick]
    return sorted({value for value in chosen if value > 1})


def _points(asked: _Asked, wanted: Sequence[float], main: Path) -> tuple[list[FrontPoint], Repaired | None]:
    """All points, each with what is known of those before it, and a score for what scores are in."""
    found: list[FrontPoint] = []
    scored: Repaired | None = None
    for speedup in wanted:
        asked.events(Event("line", "front", f"{label(speedup)}: point {len(found) + 1} of {len(wanted)}"))
        last = next((Path(one.run_dir) for one in reversed(found) if not one.why), None)
        point, facts = _point(asked, speedup, [main, *(Path(one.run_dir) for one in reversed(found))], last)
        found.append(point)
        scored = facts or scored
    return found, scored


def _point(
    asked: _Asked, speedup: float, shared: Sequence[Path], neighbour: Path | None
) -> tuple[FrontPoint, Repaired | None]:
    """One point, searched and repaired, and its score; or why there is none."""
    folder = asked.folder / label(speedup)
    began = time.monotonic()
    point = FrontPoint(label=label(speedup), speedup=speedup, run_dir=str(folder))
    recipe = _of_budget(asked.recipe, speedup)
    try:
        with (
            RunDirectory(folder) as directory,
            Context(
                recipe, asked.target, directory, asked.device, asked.events, shared=shared, neighbour=neighbour
            ) as context,
        ):
            pipeline.until_search(context)
            score = _repaired(context)
            search = _read(folder / "search" / "search.json")
            dense = float(_read(folder / "plan" / "feasibility.json")["dense_int8"])
    except BudgetError as cause:
        return msgspec.structs.replace(point, why=cause.message, seconds=round(time.monotonic() - began, 1)), None
    measured = 1 / float(search["measured_ratio"])
    made = msgspec.structs.replace(
        point,
        measured=measured,
        latency=dense / measured,
        loss=search["closure"]["loss"],
        agreement=search.get("agreement"),
        score=score.repaired,
        bound=search["bound"],
        gap=search["gap"],
        removed=len(search["removed"]),
        units=sum(search["widths"].values()),
        networks=len(search["closure"]["steps"]),
        seconds=round(time.monotonic() - began, 1),
    )
    return _with_release(made, folder), score


def _with_release(point: FrontPoint, folder: Path) -> FrontPoint:
    """With what this point's run says, if it came to its end; a run that has changed since has withdrawn that."""
    if not (folder / "result.json").is_file():
        return point
    found = results.glance(_read(folder / "result.json"))
    rated = found.pruned_int8.rated if found.pruned_int8 else None
    bundle = next(iter(sorted((folder / "release").glob("*.tar"))), None)
    return msgspec.structs.replace(
        point, verdict=found.verdict, bundle=str(bundle or ""), released=rated.value if rated else None
    )


def _of_budget(recipe: Recipe, speedup: float) -> Recipe:
    changed = msgspec.structs.replace(recipe, budget=recipe.budget.of_latency(speedup, None))
    recipes.check(changed)
    return changed


def _repaired(context: Context) -> Repaired:
    """The score of the repaired network on the selection split; kept beside the search that it belongs to."""
    from edgeprune.recover import repair

    path, work, search = context.run.path / SCORE, context.subject.workload, context.run.hashes("search")
    with contextlib.suppress(RunError, msgspec.ValidationError):
        if (known := msgspec.convert(_read(path), Repaired)).search == search:
            return known
    plan = Plan.load(context.run.folder("search") / "plan.json")
    student = plan.apply(context.subject.model)
    examples = workloads.examples(work, "train", max(recovery.REPAIR_EXAMPLES, context.recipe.search.images))
    student = repair(
        context.subject.model, student, context.subject.structure, plan, examples, session=context.subject.session
    )
    found = Repaired(
        search=search,
        metric=work.task.metric,
        unit=work.task.unit,
        higher_is_better=work.task.higher_is_better,
        dense=recovery.score(work, context.subject.model),
        repaired=recovery.score(work, student),
    )
    context.voice.say("front", f"repaired, not trained: {recovery.shown(work, found.repaired)}")
    files.write_json(path, msgspec.to_builtins(found))
    return found


def _read(path: Path) -> Any:
    return files.read_json(path, RunError, "Delete its folder and run the same command again.")


def _released(asked: _Asked, made: Front, speedup: float, main: Path) -> Front:
    """The front with one point run to its end; a refused one is on it too, with its verdict."""
    wanted = label(round(speedup, 2))
    point = next(one for one in made.points if one.label == wanted)
    if point.why:
        return made
    recipe = _of_budget(asked.recipe, point.speedup)
    folder = Path(point.run_dir)
    try:
        pipeline.run(recipe, asked.target, folder, device=asked.device, events=asked.events, shared=[main])
    except GateError as refused:
        if getattr(refused, "outcome", None) is None:
            raise
    changed = _with_release(point, folder)
    points = tuple(changed if one.label == wanted else one for one in made.points)
    return msgspec.structs.replace(made, points=points)


__all__ = ["Front", "FrontPoint", "front", "label", "marked", "write"]
