"""Closure: solve, build, measure, refit, solve again, until measured latency meets the budget, before any epoch.

Everything is a ratio to the dense artifact measured in the same interleaved run, so a device whose speed drifts still
closes. What is measured stays in the table: the kernels of every network tried (the lazy table fills exactly the cells
that solutions use) and its whole run, which recalibrates alpha and beta where the answer lies.

What calibration still gets wrong at the answer is corrected by asking the solver for a budget that is smaller or larger
by that error (a fixed-point iteration; the model's error varies slowly along the front of solutions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgeprune.devices.types import Device
from edgeprune.errors import BudgetError
from edgeprune.latency.build import Maker
from edgeprune.latency.predict import PlanLike, Predictor, as_variant
from edgeprune.latency.sample import Effort, Measured, measure_together, record, start
from edgeprune.latency.table import Table
from edgeprune.latency.variants import DENSE, Variant

Solve = Callable[[Predictor, float], Variant | PlanLike]


@dataclass(frozen=True)
class Step:
    """One round.

    Attributes:
        asked: what the solver was asked for, over the dense latency.
        predicted, measured: of its answer, over the dense latency.
        spread: how far the halves of the measurement disagree.
        confirmed: measured twice.
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
    aim: float = 0.986,
    low: float = 0.97,
    good: float = 0.975,
    rounds: int = 8,
    effort: Effort | None = None,
    keep: Callable[[Table], None] | None = None,
    progress: Callable[[Step], None] | None = None,
) -> Closure:
    """Find the network whose measured latency is just within the budget.

    Args:
        solve: (predictor, latency in the table's unit) -> the best network that is predicted to meet that latency. It
            may
            raise BudgetError when there is none.
        budget: latency over the dense artifact's: 0.5 for a speed-up of two.
        aim: the share of the budget that is aimed at; the margin covers the noise of the measurement.
        low, good: share of the budget that is acceptable, and that ends the search at once.
        rounds: at most so many networks are measured.

    Raises:
        BudgetError: no network measured within the budget was found.
    """
    effort = effort or Effort(batch=1, rounds=40)
    table, _ = start(table, device, maker, effort)
    effort = effort.for_latency(table.networks[maker.network].dense, table.unit)
    predictor = Predictor(table, maker.structure, maker.network)
    steps: list[Step] = []
    tried: dict[str, Step] = {}
    best: tuple[Step, Variant | PlanLike] | None = None
    asked = aim * budget
    for index in range(rounds):
        try:
            answer = solve(predictor, asked * predictor.dense)
        except BudgetError:
            if best is None:
                raise
            break
        variant = as_variant(answer)
        predicted = predictor.predict(variant) / predictor.dense
        found = _measure(device, maker, variant, effort)
        confirmed = low * budget <= found[1].ratio <= budget
        if confirmed:  # one lucky measurement must not decide
            found = [
                old.and_again(new) for old, new in zip(found, _measure(device, maker, variant, effort), strict=True)
            ]
        here = found[1]
        table = record(table, maker, found, effort.max_spread)
        step = Step(variant, asked, predicted, here.ratio, here.spread, confirmed)
        steps.append(step)
        if keep:
            keep(table)
        if progress:
            progress(step)
        predictor = Predictor(table, maker.structure, maker.network)
        if here.ratio <= budget and (best is None or here.ratio > best[0].measured):
            best = (step, answer)
        if confirmed and here.ratio >= good * budget and here.ratio <= budget:
            break
        repeated = _name(variant) in tried
        tried[_name(variant)] = step
        error = here.ratio / (predictor.predict(variant) / predictor.dense)
        asked = (
            aim
            * budget
            / error
            * (1.0 if not repeated else 1.0 + 0.01 * (index + 1) * (1 if here.ratio < aim * budget else -1))
        )
    if best is None:
        nearest = min(steps, key=lambda step: step.measured)
        raise BudgetError(
            f"after {len(steps)} networks the fastest measured takes {nearest.measured:.3f} of the dense latency; "
            f"the budget is {budget:.3f}.",
            "Ask for less speed-up, or let blocks go: [search] blocks = true.",
        )
    step, answer = best
    of_budget = step.measured / budget
    return Closure(
        answer, step.variant, step.measured, budget, of_budget, of_budget >= low, tuple(steps), table, predictor
    )


def _measure(device: Device, maker: Maker, variant: Variant, effort: Effort) -> list[Measured]:
    anchor, built = maker.build(DENSE, "dense"), maker.build(variant, "candidate")
    try:
        return measure_together(device, [anchor, built], maker.target.protocol, effort)
    finally:
        maker.forget(built)


def _name(variant: Variant) -> str:
    return repr((sorted(variant.widths.items()), sorted(variant.removed)))
