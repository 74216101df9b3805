"""The whole search: solve the program, look at what its answer truly costs, correct the curves, solve again.

Losses of single cuts do not add up: several cuts in one stage hurt more than their sum. After each answer every stage's
share is measured on its own (only that stage cut, repaired) and its curves are scaled by measured / predicted. The
answers themselves are evaluated whole, and so are those of the program that may cut blocks alone, of the one that may
cut widths alone, and of some whose factors are random ones near the best. The best *evaluated* one is kept, never the
best predicted one.

Source: LANA (arXiv 2107.10624) and SPDY (arXiv 2201.13096) correct additive surrogates by evaluating stitched networks.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeprune.errors import BudgetError
from edgeprune.graph import Structure
from edgeprune.search.curves import Sensitivity
from edgeprune.search.evaluator import Verdict
from edgeprune.search.formulate import formulate, stages, to_plan
from edgeprune.search.program import Assignment, Cost, Program
from edgeprune.search.solve import ProgramSolution, solve

if TYPE_CHECKING:
    from edgeprune.graph import Plan

Judge = Callable[["Plan"], Verdict]
Cuts = Literal["both", "blocks", "widths"]
# Of the logarithm of what a trial multiplies factors with: those of the stages, and of each block and group. Alone the
# stages' factors lead to few new answers (5 to 11 of 24 trials), as the order of blocks within a stage never changes.
STAGE_SPREAD, ITEM_SPREAD = 0.2, 0.3
SIMPLER: tuple[Cuts, ...] = ("blocks", "widths")
WIDER = 3  # of so many trials one is free to cut all, where the best answer cuts blocks alone or widths alone


@dataclass(frozen=True)
class Round:
    """One answer of the program and what it truly costs.

    Attributes:
        predicted: loss by the (uncorrected) curves, in nats.
        loss, agreement: of the stitched network after repair.
        ms: predicted latency.
        factors: stage and kind of cut, or block, or group -> what its curves were multiplied with for this answer.
        removed: blocks left out.
        cuts: what the program was free to cut.
    """

    predicted: float
    loss: float
    agreement: float | None
    ms: float
    factors: Mapping[str, float]
    removed: tuple[str, ...]
    cuts: Cuts


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
        bound, gap: certificate of the program that gave it: no network within the budget, of those that cut only what
            it was free to cut, has a smaller surrogate loss than `bound`. The surrogate and the table are certified,
            not the accuracy.
        cuts: what that program was free to cut.
        surrogate: loss of the answer by that program.
        loss, agreement: of the repaired network on examples that the repair did not see; NaN and None when nobody
            judged.
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
    agreement: float | None
    cuts: Cuts
    rounds: tuple[Round, ...]
    front: tuple[Point, ...]
    widths: Mapping[str, int]
    seconds: float
    solver: str
    options: tuple[int, int]

    def to_dict(self) -> dict[str, object]:
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
            **({"options_of_layers": dict(self.plan.options)} if self.plan.options else {}),
            "rounds": rounds,
            "front": [vars(item) for item in self.front],
        }


def find(
    structure: Structure,
    cost: Cost,
    budget: float,
    curves: Sensitivity,
    *,
    judge: Judge | None = None,
    rounds: int = 3,
    trials: int = 0,
    seed: int = 0,
    blocks: bool = True,
    widths: bool = True,
    factors: Mapping[str, float] | None = None,
    max_bytes: float = float("inf"),
    time_limit: float = 60.0,
    front: Sequence[float] = (),
    progress: Callable[[Round], None] | None = None,
) -> SearchResult:
    """The best network within `budget` milliseconds.

    Args:
        cost: the latency predictor.
        curves: from `measure`.
        judge: evaluates a plan (`Evaluator`); without it the program's first answer is taken.
        rounds: answers to evaluate; each costs one evaluation and one for each stage that is cut. Two more answers cut
            blocks alone and widths alone.
        trials: answers of factors near the best ones, evaluated too; one that is known already costs only its solve.
        seed: of the trials.
        blocks, widths: may blocks go, may groups be narrowed?
        factors: as in `Round`: what the curves are multiplied with at first; 1 where not named.
        max_bytes: of the INT8 weights.
        time_limit: seconds for one solve.
        front: further budgets whose answers are reported.

    Raises:
        BudgetError: the budget lies under the floor of the table, or `max_bytes` under the smallest network.
    """
    start = time.perf_counter()
    free: Cuts = "both" if blocks and widths else "blocks" if blocks else "widths"
    search = _Answers(structure, cost, curves, judge, budget, max_bytes, time_limit, progress, dict(factors or {}))
    whole = search.formulated(free)
    search.correct(whole, free, rounds)
    if judge is not None:
        if free == "both" and structure.blocks:
            search.simplify()
        search.vary(whole, free, trials, seed)
    best, _, _ = search.best()
    points = _front(_scaled(whole, search.stage_of, best.factors), front, max_bytes, time_limit)
    return search.result(points, start)


@dataclass
class _Answers:
    """Answers of the program under the present factors, each evaluated once. Arguments as `find` has them."""

    structure: Structure
    cost: Cost
    curves: Sensitivity
    judge: Judge | None
    budget: float
    max_bytes: float
    time_limit: float
    progress: Callable[[Round], None] | None
    present: dict[str, float]
    done: list[tuple[Round, ProgramSolution, Plan]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.stage_of = stages(self.structure)

    def formulated(self, cuts: Cuts) -> Program:
        sizes, blocks, widths = math.isfinite(self.max_bytes), cuts != "widths", cuts != "blocks"
        return formulate(self.structure, self.cost, self.curves, blocks=blocks, widths=widths, sizes=sizes)

    def correct(self, whole: Program, free: Cuts, rounds: int) -> None:
        """Evaluate answers, the curves corrected by each before the next; one answer where nobody judges."""
        for k in range(max(1, rounds) if self.judge is not None else 1):
            choice = self.evaluate(whole, free)
            if choice is None:
                break
            if self.judge is not None and k + 1 < rounds:
                self.present = _corrected(
                    self.structure, whole, self.curves, choice, self.stage_of, self.present, self.judge
                )

    def simplify(self) -> None:
        """Evaluate an answer that cuts blocks alone, and one that cuts widths alone, where there is one."""
        for cuts in SIMPLER:
            with contextlib.suppress(BudgetError):
                self.evaluate(self.formulated(cuts), cuts)

    def vary(self, whole: Program, free: Cuts, trials: int, seed: int) -> None:
        """Evaluate answers of factors near the best: by the program that gave it, every WIDER-th by the freest."""
        random, programs = np.random.default_rng(seed), {free: whole}
        for trial in range(1, trials + 1):
            best, _, _ = self.best()
            cuts = free if trial % WIDER == 0 else best.cuts
            if cuts not in programs:
                programs[cuts] = self.formulated(cuts)
            self.present = _perturbed(self.stage_of, best.factors, random)
            self.evaluate(programs[cuts], cuts)

    def evaluate(self, program: Program, cuts: Cuts) -> Assignment | None:
        """Solve with the present factors and judge the answer; None where it is known already."""
        scaled = _scaled(program, self.stage_of, self.present)
        answer = solve(scaled, [self.budget], max_bytes=self.max_bytes, seconds=self.time_limit)[0]
        plan = to_plan(self.structure, self.curves, answer.choice)
        key = plan.configuration.key
        if key in self.seen:
            return None
        self.seen.add(key)
        verdict = self.judge(plan) if self.judge is not None else Verdict(float("nan"), None)
        predicted, removed = program.totals(answer.choice).loss, tuple(answer.choice.removed)
        item = Round(predicted, verdict.loss, verdict.agreement, answer.ms, dict(self.present), removed, cuts)
        self.done.append((item, answer, plan))
        if self.progress is not None:
            self.progress(item)
        return answer.choice

    def best(self) -> tuple[Round, ProgramSolution, Plan]:
        """The evaluated answer of least loss; of least predicted loss where nobody judged."""
        judged = self.judge is not None
        return min(self.done, key=lambda entry: entry[0].loss if judged else entry[0].predicted)

    def result(self, front: tuple[Point, ...], start: float) -> SearchResult:
        """The best answer, with the others and the front; `start`: of the clock."""
        best, answer, plan = self.best()
        return SearchResult(
            plan=plan,
            budget=self.budget,
            predicted=answer.ms,
            bound=answer.bound,
            gap=answer.gap,
            surrogate=answer.loss,
            loss=best.loss,
            agreement=best.agreement,
            cuts=best.cuts,
            rounds=tuple(item for item, _, _ in self.done),
            front=front,
            widths=dict(answer.choice.widths),
            seconds=time.perf_counter() - start,
            solver=answer.method,
            options=answer.options,
        )


def _scaled(program: Program, stage_of: Mapping[str, str], factors: Mapping[str, float]) -> Program:
    def times(name: str) -> float:
        return factors.get(stage_of.get(name, ""), 1.0) * factors.get(name, 1.0)

    return replace(
        program,
        groups=tuple(replace(g, losses=tuple(times(g.name) * value for value in g.losses)) for g in program.groups),
        blocks=tuple(replace(b, loss=times(b.name) * b.loss) for b in program.blocks),
    )


def _corrected(
    structure: Structure,
    program: Program,
    curves: Sensitivity,
    choice: Assignment,
    stage_of: Mapping[str, str],
    factors: Mapping[str, float],
    judge: Judge,
) -> dict[str, float]:
    """Each stage's factor: what its cuts cost on their own over what the curves say; halfway in the logarithm."""
    dense = {group.name: group.widths[-1] for group in program.groups}
    home = {group.name: group.block for group in program.groups}
    result = dict(factors)
    for stage in dict.fromkeys(name.rpartition(" ")[0] for name in stage_of.values()):
        kinds = (f"{stage} blocks", f"{stage} widths")
        removed = tuple(name for name in choice.removed if stage_of[name] in kinds)
        chosen = {
            name: (choice.widths.get(name, dense[name]) if stage_of[name] in kinds else dense[name])
            for name in dense
            if home[name] not in removed or not home[name]
        }
        if not removed and all(value == dense[name] for name, value in chosen.items()):
            continue
        part = Assignment(chosen, removed)
        predicted = program.totals(part).loss
        if predicted <= 0:
            continue
        ratio = min(max(judge(to_plan(structure, curves, part)).loss / predicted, 0.1), 10.0)
        result |= {kind: (factors[kind] * ratio) ** 0.5 if kind in factors else ratio for kind in kinds}
    return result


def _perturbed(
    stage_of: Mapping[str, str], factors: Mapping[str, float], random: np.random.Generator
) -> dict[str, float]:
    """Every factor times a random one: of a stage's blocks and of its widths, of each block and of each group."""
    spreads = dict.fromkeys(stage_of.values(), STAGE_SPREAD) | dict.fromkeys(stage_of, ITEM_SPREAD)
    draws = np.exp(random.normal(0, list(spreads.values())))
    return {name: factors.get(name, 1.0) * float(draw) for name, draw in zip(spreads, draws, strict=True)}


def _front(program: Program, budgets: Sequence[float], max_bytes: float, time_limit: float) -> tuple[Point, ...]:
    points = []
    for budget in budgets:
        try:
            answer = solve(program, [budget], max_bytes=max_bytes, seconds=time_limit)[0]
        except BudgetError:
            continue
        points.append(Point(budget, answer.ms, answer.loss, answer.gap, len(answer.choice.removed)))
    return tuple(points)
