"""The whole search: solve the program, look at what its answer truly costs, correct the curves, solve again.

Losses of single cuts do not add up: several cuts in one stage hurt more than their sum. After each answer every stage's
share is measured on its own (only that stage cut, repaired) and its curves are scaled by measured / predicted. The
answers themselves are evaluated whole, and the best *evaluated* one is kept, never merely the best predicted one.

Source: LANA (arXiv 2107.10624) and SPDY (arXiv 2201.13096) correct additive surrogates by evaluating stitched networks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeprune.errors import BudgetError
from edgeprune.graph.structure import Structure
from edgeprune.search.curves import Curves
from edgeprune.search.formulate import formulate, stages, to_plan
from edgeprune.search.program import Choice, Cost, Program
from edgeprune.search.solve import Solution, solve
from edgeprune.search.stitch import Verdict

if TYPE_CHECKING:
    from edgeprune.graph import Plan

Judge = Callable[["Plan"], Verdict]


@dataclass(frozen=True)
class Round:
    """One answer of the program and what it truly costs.

    Attributes:
        predicted: loss by the (uncorrected) curves, in nats.
        loss, agreement: of the stitched network after repair.
        ms: predicted latency.
        factors: stage -> what its curves were multiplied with when this answer was found.
        removed: blocks left out.
    """

    predicted: float
    loss: float
    agreement: float
    ms: float
    factors: Mapping[str, float]
    removed: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One point of the accuracy-latency front: what the program says about a budget."""

    budget: float
    ms: float
    loss: float
    gap: float
    removed: int


@dataclass(frozen=True)
class SearchResult:
    """What the search found.

    Attributes:
        plan: the network.
        predicted: its latency in ms by the table.
        bound, gap: certificate of the program that gave it: no network within the budget has a smaller surrogate loss
            than `bound`. The surrogate and the table are certified, not the accuracy.
        surrogate: loss of the answer by that program.
        loss, agreement: of the repaired network on images that the repair did not see; NaN when nobody judged.
        rounds: every answer that was evaluated.
        front: the program's answers at other budgets.
        widths: group -> units kept.
    """

    plan: Plan
    budget: float
    predicted: float
    bound: float
    gap: float
    surrogate: float
    loss: float
    agreement: float
    rounds: tuple[Round, ...]
    front: tuple[Point, ...]
    widths: Mapping[str, int]
    seconds: float
    solver: str
    options: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything but the plan itself, which has its own file."""
        own = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("plan", "rounds", "front")
        }
        rounds = [{**vars(item), "factors": dict(item.factors), "removed": list(item.removed)} for item in self.rounds]
        return {
            **own,
            "widths": dict(self.widths),
            "options": list(self.options),
            "removed": list(self.plan.removed),
            "rounds": rounds,
            "front": [vars(item) for item in self.front],
        }


def find(
    structure: Structure,
    cost: Cost,
    budget: float,
    curves: Curves,
    *,
    judge: Judge | None = None,
    rounds: int = 3,
    blocks: bool = True,
    widths: bool = True,
    max_bytes: float = float("inf"),
    time_limit: float = 60.0,
    front: Sequence[float] = (),
    progress: Callable[[Round], None] | None = None,
) -> SearchResult:
    """The best network within `budget` milliseconds.

    Args:
        cost: the latency predictor.
        curves: from `measure`.
        judge: evaluates a plan (`stitch.Stitcher`); without it the program's first answer is taken.
        rounds: answers to evaluate; each costs one evaluation and one for each stage that is cut.
        blocks, widths: may blocks go, may groups be narrowed?
        max_bytes: of the INT8 weights.
        time_limit: seconds for one solve.
        front: further budgets whose answers are reported.

    Raises:
        BudgetError: the budget lies under the floor of the table, or `max_bytes` under the smallest network.
    """
    start = time.perf_counter()
    program = formulate(structure, cost, curves, blocks=blocks, widths=widths, sizes=math.isfinite(max_bytes))
    stage_of = stages(structure)
    factors: dict[str, float] = {}
    done: list[tuple[Round, Solution, Plan]] = []
    seen: set[str] = set()
    for k in range(max(1, rounds) if judge is not None else 1):
        scaled = _scaled(program, stage_of, factors)
        answer = solve(scaled, [budget], max_bytes=max_bytes, seconds=time_limit)[0]
        plan = to_plan(structure, curves, answer.choice)
        key = repr((sorted(answer.choice.widths.items()), answer.choice.removed))
        if key in seen:
            break
        seen.add(key)
        verdict = judge(plan) if judge is not None else Verdict(float("nan"), float("nan"))
        predicted = program.totals(answer.choice).loss
        item = Round(predicted, verdict.loss, verdict.agreement, answer.ms, dict(factors), tuple(answer.choice.removed))
        done.append((item, answer, plan))
        if progress is not None:
            progress(item)
        if judge is not None and k + 1 < rounds:
            factors = _corrected(structure, program, curves, answer.choice, stage_of, factors, judge)
    best, answer, plan = min(done, key=lambda entry: entry[0].loss if judge is not None else entry[0].predicted)
    points = _front(_scaled(program, stage_of, best.factors), front, max_bytes, time_limit)
    return SearchResult(
        plan=plan,
        budget=budget,
        predicted=answer.ms,
        bound=answer.bound,
        gap=answer.gap,
        surrogate=answer.loss,
        loss=best.loss,
        agreement=best.agreement,
        rounds=tuple(item for item, _, _ in done),
        front=points,
        widths=dict(answer.choice.widths),
        seconds=time.perf_counter() - start,
        solver=answer.method,
        options=answer.options,
    )


def _scaled(program: Program, stage_of: Mapping[str, str], factors: Mapping[str, float]) -> Program:
    def times(name: str) -> float:
        return factors.get(stage_of.get(name, ""), 1.0)

    return replace(
        program,
        groups=tuple(replace(g, losses=tuple(times(g.name) * value for value in g.losses)) for g in program.groups),
        blocks=tuple(replace(b, loss=times(b.name) * b.loss) for b in program.blocks),
    )


def _corrected(
    structure: Structure,
    program: Program,
    curves: Curves,
    choice: Choice,
    stage_of: Mapping[str, str],
    factors: Mapping[str, float],
    judge: Judge,
) -> dict[str, float]:
    """Each stage's factor: what its cuts cost on their own over what the curves say; halfway in the logarithm."""
    dense = {group.name: group.widths[-1] for group in program.groups}
    home = {group.name: group.block for group in program.groups}
    result = dict(factors)
    for stage in dict.fromkeys(stage_of.values()):
        removed = tuple(name for name in choice.removed if stage_of[name] == stage)
        chosen = {
            name: (choice.widths.get(name, dense[name]) if stage_of[name] == stage else dense[name])
            for name in dense
            if home[name] not in removed or not home[name]
        }
        if not removed and all(value == dense[name] for name, value in chosen.items()):
            continue
        part = Choice(chosen, removed)
        predicted = program.totals(part).loss
        if predicted <= 0:
            continue
        ratio = min(max(judge(to_plan(structure, curves, part)).loss / predicted, 0.1), 10.0)
        result[stage] = (factors.get(stage, 1.0) * ratio) ** 0.5 if stage in factors else ratio
    return result


def _front(program: Program, budgets: Sequence[float], max_bytes: float, time_limit: float) -> tuple[Point, ...]:
    points = []
    for budget in budgets:
        try:
            answer = solve(program, [budget], max_bytes=max_bytes, seconds=time_limit)[0]
        except BudgetError:
            continue
        points.append(Point(budget, answer.ms, answer.loss, answer.gap, len(answer.choice.removed)))
    return tuple(points)
