"""Closure: solve, build, measure, refit, solve again, until measured latency meets the budget, before any epoch.

Everything is a ratio to an anchor measured in the same interleaved run, so a device whose speed drifts still closes.
What is measured stays in the table: the kernels of every network tried (the lazy table fills exactly the cells that
solutions use) and its whole run, which recalibrates alpha and beta where the answer lies.

What calibration still gets wrong at the answer is corrected by asking the solver for a budget that is smaller or larger
by that error (a fixed-point iteration; the model's error varies slowly along the front of solutions).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeprune.devices.types import Device
from edgeprune.errors import BudgetError
from edgeprune.latency.build import Built, Maker
from edgeprune.latency.predict import PlanLike, Predictor, as_variant
from edgeprune.latency.rounds import Measured, Pace
from edgeprune.latency.sample import kept_open, start
from edgeprune.latency.table import Table
from edgeprune.latency.timing import Effort, measure_quietly, record
from edgeprune.latency.variants import DENSE, Variant

# Shares of the budget: aimed at, acceptable, good enough to stop (from, to). What is within the budget by less than the
# noise of a measurement would often be refused by the next one. A clock that repeats within 0.2 % needs less room.
MARGINS = {"ms": (0.985, 0.97, 0.975, 0.994), "repeats": (0.996, 0.99, 0.991, 1.0)}
SLACK = (0.93, 1.05)  # what is wanted, while there is no verdict yet
Solve = Callable[[Predictor, float], Variant | PlanLike]


@dataclass(frozen=True)
class Step:
    """One round.

    Attributes:
        asked: what the solver was asked for, over the dense latency.
        predicted, measured: of its answer, over the dense latency.
        spread: how far the halves of the measurement disagree.
        confirmed: measured under the target's own protocol as well; then `measured` is that figure.
    """

    variant: Variant
    asked: float
    predicted: float
    measured: float
    spread: float
    confirmed: bool


@dataclass(frozen=True, eq=False)
class Closure:
    """The network that meets the budget.

    Attributes:
        answer: as the solver gave it (a plan, for the search).
        ratio: measured latency over the dense one's.
        budget: what it had to be, over the dense latency.
        of_budget: ratio / budget; wanted within 0.97 and 1.00.
        within: it is.
        steps: every round.
        table, predictor: with everything that was measured.
    """

    answer: Variant | PlanLike
    variant: Variant
    ratio: float
    budget: float
    of_budget: float
    within: bool
    steps: tuple[Step, ...]
    table: Table
    predictor: Predictor


def close(
    solve: Solve,
    table: Table,
    device: Device,
    maker: Maker,
    budget: float,
    aim: float | None = None,
    low: float | None = None,
    good: tuple[float, float] | None = None,
    rounds: int = 10,
    refits: int = 3,
    effort: Effort | None = None,
    absolute: bool = False,
    loss: Callable[[Any], float] | None = None,
    keep: Callable[[Table], None] | None = None,
    progress: Callable[[Step], None] | None = None,
) -> Closure:
    """Find the network whose measured latency is just within the budget.

    The first `refits` rounds learn: each measurement refits the predictor. Later rounds ask one and the same predictor,
    so that their answers lie on one front, and the budget asked for is enclosed from both sides. A network that seems
    to fit is measured once more under the target's own protocol, the one that the release is judged by; that figure
    counts.

    Args:
        solve: (predictor, latency in the table's unit) -> the best network that is predicted to meet that latency. It
            may raise BudgetError when there is none.
        budget: latency over the dense artifact's: 0.5 for a speed-up of two.
        aim: the share of the budget that is aimed at; the margin covers the noise of the measurement.
        low: least share of the budget that is acceptable. Default: MARGINS.
        good: shares of the budget between which the search ends at once. A network nearer to the budget than that is
            only taken where no other fits. Default: MARGINS.
        rounds: at most so many networks are measured.
        absolute: the deadline is a latency, not a speed-up: what the dense artifact takes today does not matter, nor
            how well it repeats itself.
        loss: of an answer; of the networks within the budget the one of least loss is taken, without it the slowest.

    Raises:
        BudgetError: no network measured within the budget was found.
    """
    margins = MARGINS["ms" if table.unit == "ms" else "repeats"]
    aim, low = margins[0] if aim is None else aim, margins[1] if low is None else low
    least, most = margins[2:] if good is None else good
    effort = effort or Effort(batch=1, rounds=48, runs=16)
    pace = Pace()
    table, anchor = start(table, device, maker, effort, pace)
    dense = maker.build(DENSE, "dense")
    effort = effort.for_latency(table.networks[maker.network].dense, table.unit)
    fixed = table.networks[maker.network].dense if absolute else None
    once = dataclasses.replace(effort, retries=0)
    timer = _Timer(device, maker, anchor, dense, once, pace, (low * budget, budget), fixed)
    predictor = Predictor(table, maker.structure, maker.network)
    steps: list[Step] = []
    tried: dict[str, Step] = {}
    best: tuple[tuple[bool, float], Step, Variant | PlanLike] | None = None
    enclosed = Enclosed(aim * budget)
    asked = aim * budget
    with kept_open(device, anchor):
        for index in range(rounds):
            try:
                answer = solve(predictor, asked * predictor.dense)
            except BudgetError:
                if best is None:
                    raise
                break
            variant = as_variant(answer)
            step = tried.get(_name(variant))
            if step is None:
                found, ratio, confirmed = timer(variant, table.unit == "ms")
                predicted = predictor.predict(variant) / predictor.dense
                step = Step(variant, asked, predicted, ratio, found[1].spread, confirmed)
                table = record(table, maker, found, effort.max_spread)
                tried[_name(variant)] = step
                steps.append(step)
                if keep:
                    keep(table)
                if progress:
                    progress(step)
            if step.measured <= budget:
                rank = step.measured > most * budget, -step.measured if loss is None else loss(answer)
                if best is None or rank < best[0]:
                    best = (rank, step, answer)
            if step.confirmed and least * budget <= step.measured <= most * budget:
                break
            if index < refits:
                predictor = Predictor(table, maker.structure, maker.network)
                asked = aim * budget * predictor.predict(variant) / predictor.dense / step.measured
            else:
                asked = enclosed.after(asked, step.measured)
    if best is None:
        nearest = min(steps, key=lambda step: step.measured)
        raise BudgetError(
            f"after {len(steps)} networks the fastest measured takes {nearest.measured:.3f} of the dense latency; "
            f"the budget is {budget:.3f}.",
            "Ask for less speed-up, or let blocks go: [search] blocks = true.",
        )
    _, step, answer = best
    of_budget = step.measured / budget
    return Closure(
        answer, step.variant, step.measured, budget, of_budget, of_budget >= low, tuple(steps), table, predictor
    )


class Enclosed:
    """What to ask a solver for, when what its answers measure is near what it was asked for but not equal."""

    def __init__(self, wanted: float) -> None:
        """`wanted`: the measured latency to arrive at."""
        self.wanted, self.below, self.above = wanted, 0.0, float("inf")
        self._least = 0.005

    def after(self, asked: float, measured: float) -> float:
        """The next latency to ask for: in proportion, but always between what was too little and what was too much."""
        if measured <= self.wanted:
            self.below = max(self.below, asked)
        else:
            self.above = min(self.above, asked)
        following = asked * self.wanted / measured
        if 0 < self.below < self.above < float("inf"):
            margin = 0.1 * (self.above - self.below)
            return min(max(following, self.below + margin), self.above - margin)
        least, self._least = self._least, 2 * self._least  # answers come in steps: go further each time
        return max(following, asked * (1 + least)) if measured <= self.wanted else min(following, asked * (1 - least))


class _Timer:
    """Builds networks and times them: beside the anchor, and those that seem to fit under the target's own protocol.

    What that protocol, whose verdict counts, finds over what the anchor told (the median of all so far) corrects what
    the anchor tells of the next network: the dense latency that the table knows is of another day.
    """

    def __init__(
        self,
        device: Device,
        maker: Maker,
        anchor: Built,
        dense: Built,
        effort: Effort,
        pace: Pace,
        wanted: tuple[float, float],
        fixed: float | None,
    ) -> None:
        """`wanted`: latency over the dense one's, from and to; `fixed`: that dense latency, None: today's."""
        self.fixed = fixed
        self.device, self.maker, self.anchor, self.dense = device, maker, anchor, dense
        self.effort, self.pace, self.wanted = effort, pace, wanted
        self.verdicts: list[float] = []

    def __call__(self, variant: Variant, judged: bool) -> tuple[list[Measured], float, bool]:
        """What was found (anchor first), latency over the dense artifact's, and whether the network seemed to fit.

        `judged`: the release will be judged by medians of this clock; one that counts instructions repeats itself.
        """
        protocol = self.maker.target.protocol
        candidate = self.maker.build(variant, "candidate")
        try:
            found = measure_quietly(self.device, [self.anchor, candidate], protocol, self.effort, self.pace)
            ratio = found[1].ratio * (float(np.median(self.verdicts)) if self.verdicts else 1.0)
            slack = (1.0, 1.0) if self.verdicts or not judged else SLACK
            fits = slack[0] * self.wanted[0] <= ratio <= slack[1] * self.wanted[1]
            if fits and judged:
                ratio = self._verdict(candidate)
                self.verdicts.append(ratio / found[1].ratio)
        finally:
            self.maker.forget(candidate)
        return found, ratio, fits

    def _verdict(self, candidate: Built) -> float:
        loaded = [self.device.load(one.artifact) for one in (self.dense, candidate)]
        try:
            dense, pruned = self.device.measure(loaded, self.maker.target.protocol)
        finally:
            for one in loaded:
                self.device.unload(one)
        return pruned.median / (dense.median if self.fixed is None else self.fixed)


def _name(variant: Variant) -> str:
    return repr((sorted(variant.widths.items()), sorted(variant.removed)))
