"""Closure: solve, build, measure, refit, solve again, until measured latency meets the budget, before any epoch.

Everything is a ratio to an anchor measured in the same interleaved run, so a device whose speed drifts still closes.
What is measured stays in the table: the kernels of every network tried (the lazy table fills exactly the cells that
solutions use) and its whole run, which recalibrates alpha and beta where the answer lies.

What calibration still gets wrong at the answer is corrected by asking the solver for a budget that is smaller or larger
by that error (a fixed-point iteration; the model's error varies slowly along the front of solutions).

The release's latency gate wants to be sure, so a network is only taken where it leaves room for the noise of this very
device, as the confirming measurement shows it (`noise.room`): about a percent on a quiet one. On a noisy one that
measurement is repeated, all repeats together, while there is patience and the network may still be the one to take.

Of several networks the one that is taken was measured luckier than the others as a rule (the winner's curse), so it is
measured once more, loaded anew, and stays only where that figure agrees. Where luck had been the only one within the
budget, the rounds begin again with what is known now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeprune.devices import Device, Loaded
from edgeprune.errors import BudgetError
from edgeprune.graph import DENSE, Configuration
from edgeprune.latency import (
    ArtifactBuilder,
    Built,
    Effort,
    Measured,
    Pace,
    Patience,
    PlanLike,
    Predictor,
    Table,
    as_configuration,
    deviation,
    entry,
    kept_open,
    measure_quietly,
    measure_together,
    record,
    room,
    start,
)
from edgeprune.result import Validation
from edgeprune.search.enclosed import Enclosed

# Shares of the budget, from above: good enough to stop (from), acceptable, both below the room that noise needs.
GOOD, LEAST = {"ms": 0.013, "repeats": 0.008}, {"ms": 0.97, "repeats": 0.99}
WIDER = (
    0.5  # of GOOD, with each network after those that only learn: answers scatter more than that, and each costs time
)
AIM = {"ms": 0.004, "repeats": 0.003}  # below that room, as the answers of a solver scatter around what it is asked
REFITS = 3  # rounds that learn
FURTHER, APART = 6, 0.005  # rounds more while what is taken is faster than it need be, and what is asked for still so
# far from enclosed, relative: 4 % more of the budget are worth a point of accuracy, and a round costs seconds
SURE = 0.006  # the confirming measurement is repeated until its own standard deviation is so small, relative,
CLEAR = 2  # or the network is so many of them outside of what would be taken: it is one to learn from
CONFIRM = 6  # times at most, while there is patience
SLACK = (0.93, 1.05)  # what is wanted, while there is no verdict yet
Solve = Callable[[Predictor, float], Configuration | PlanLike]


@dataclass(frozen=True)
class ClosureStep:
    """One round.

    Attributes:
        asked: what the solver was asked for, over the dense latency.
        predicted, measured: of its answer, over the dense latency.
        spread: how far the halves of the measurement disagree.
        confirmed: measured under the target's own protocol as well; then `measured` is that figure.
    """

    variant: Configuration
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
        of_budget: ratio / budget; wanted within 0.97 and what the gate is sure of, just below 1.
        within: it is.
        steps: every round.
        judged: its measurements under the target's own protocol beside the dense network; none where the clock counts.
        table, predictor: with everything that was measured.
    """

    answer: Configuration | PlanLike
    variant: Configuration
    ratio: float
    budget: float
    of_budget: float
    within: bool
    steps: tuple[ClosureStep, ...]
    table: Table
    predictor: Predictor
    judged: tuple[Validation, ...] = ()


def refine(
    solve: Solve,
    table: Table,
    device: Device,
    maker: ArtifactBuilder,
    budget: float,
    rounds: int = 10,
    effort: Effort | None = None,
    absolute: bool = False,
    loss: Callable[[Any], float] | None = None,
    patience: Patience | None = None,
    told: Callable[[int, float], None] | None = None,
) -> Closure:
    """Find the network whose measured latency is just within the budget.

    The first rounds learn: each measurement refits the predictor. Later rounds ask one and the same predictor, so that
    their answers lie on one front, and the budget asked for is enclosed from both sides. A network that seems to fit is
    measured once more under the target's own protocol, the one that the release is judged by; that figure counts.

    Args:
        solve: (predictor, latency in the table's unit) -> the best network that is predicted to meet that latency. It
            may raise BudgetError when there is none.
        budget: latency over the dense artifact's: 0.5 for a speed-up of two.
        rounds: so many networks are measured at most, and a few more where the best is faster than it need be.
        absolute: the deadline is a latency, not a speed-up: what the dense artifact takes today does not matter, nor
            how well it repeats itself.
        loss: of an answer; of the networks within the budget the one of least loss is taken, without it the slowest.
        patience: how much longer than on a quiet device it may take.
        told: is called with each network's number, and its measured latency over the budget.

    Raises:
        BudgetError: no network measured within the budget was found.
    """
    effort, patience = effort or Effort(batch=1, rounds=48, runs=16), patience or Patience()
    pace = Pace()
    table, anchor = start(table, device, maker, effort, pace)
    dense = maker.build(DENSE, "dense")
    effort = effort.for_latency(table.networks[maker.network].dense, table.unit)
    fixed = table.networks[maker.network].dense if absolute else None
    once = dataclasses.replace(effort, retries=0)
    timer = _Timer(device, maker, anchor, dense, once, pace, budget, fixed, patience)
    closing = _Closing(table, timer, effort.max_spread, loss, told)
    with kept_open(device, anchor):
        closing.search(solve, rounds)
        if closing.best is not None and not closing.settle():
            closing.afresh()
            closing.search(solve, rounds, REFITS)
            closing.settle()
    return closing.outcome()


class _Closing:
    """One closure under way: the table that grows, the networks tried, the best within the budget.

    Attributes:
        asked: what the solver is asked for next, over the dense latency.
    """

    def __init__(
        self,
        table: Table,
        timer: _Timer,
        max_spread: float,
        loss: Callable[[Any], float] | None,
        told: Callable[[int, float], None] | None,
    ) -> None:
        self.table, self.timer, self.max_spread, self.loss, self.told = table, timer, max_spread, loss, told
        self.maker, self.budget = timer.maker, timer.budget
        self.kind = "ms" if table.unit == "ms" else "repeats"
        self.predictor = Predictor(table, self.maker.structure, self.maker.network)
        self.steps: list[ClosureStep] = []
        self.tried: dict[str, ClosureStep] = {}
        self.answers: dict[str, Configuration | PlanLike] = {}
        self.twice: set[str] = set()  # measured again, to know that it was not luck
        self.enclosed = Enclosed()
        self.asked = self.aim

    @property
    def aim(self) -> float:
        """The measured latency to arrive at."""
        return (self.timer.room - AIM[self.kind]) * self.budget

    def search(self, solve: Solve, rounds: int, first: int = 0) -> None:
        """Ask the solver, measure its answer, learn, until one fits; `first`: number of the first of these rounds."""
        for index in range(first, first + rounds + FURTHER):
            if index >= first + rounds and not self.unused:
                break
            try:
                answer = solve(self.predictor, self.asked * self.predictor.dense)
            except BudgetError:
                if self.best is None:
                    raise
                break
            step = self.measure(answer)
            if self.closed(step):
                break
            self.ask(index, self.tried[step.variant.key])

    def measure(self, answer: Configuration | PlanLike) -> ClosureStep:
        """Measure the solver's answer, unless it was before, and take it where it is the best so far."""
        variant = as_configuration(answer)
        step = self.tried.get(variant.key)
        if step is None:
            found, ratio, confirmed = self.timer(variant, self.table.unit == "ms")
            predicted = self.predictor.predict(variant) / self.predictor.dense
            step = ClosureStep(variant, self.asked, predicted, ratio, found[1].spread, confirmed)
            self.table = record(self.table, self.maker, found, self.max_spread)
            self.tried[variant.key], self.answers[variant.key] = step, answer
            self.steps.append(step)
            if self.told:
                self.told(len(self.steps), ratio / self.budget)
        return step

    @property
    def least(self) -> float:
        """The share of the budget that is near enough to it."""
        return min(LEAST[self.kind], self.timer.room - GOOD[self.kind])

    @property
    def best(self) -> ClosureStep | None:
        """Of the networks within the budget, those first that leave room for noise: the one of least loss."""

        def rank(step: ClosureStep) -> tuple[bool, float]:
            loss = -step.measured if self.loss is None else self.loss(self.answers[step.variant.key])
            return step.measured > self.timer.room * self.budget, loss

        return min((one for one in self.steps if one.measured <= self.budget), key=rank, default=None)

    def again(self, step: ClosureStep) -> ClosureStep:
        """The network measured once more; its latency is what all its measurements say together.

        A clock that repeats itself is not asked again, nor is a network that was.
        """
        name = step.variant.key
        if self.table.unit != "ms" or name in self.twice:
            return step
        self.twice.add(name)
        found = dataclasses.replace(step, measured=self.timer.again(step.variant), confirmed=True)
        self.steps[self.steps.index(step)] = self.tried[name] = found
        return found

    def settle(self) -> bool:
        """Measure the best once more, until the best is one that was; whether one is left."""
        while self.best is not None and (step := self.best) is not self.again(step):
            pass
        return self.best is not None

    def afresh(self) -> None:
        """Ask for what the fastest network, as measured now, says: those that were lucky misled the rounds."""
        fastest = min(self.steps, key=lambda step: step.measured)
        self.enclosed = Enclosed()
        self.asked = self.enclosed.after(fastest.asked, fastest.measured, self.aim)

    def closed(self, step: ClosureStep) -> bool:
        """Is this network, or the best so far, near enough to the budget, and still so when it is measured again?"""
        names = dict.fromkeys(one.variant.key for one in (step, self.best) if one is not None)
        return any(self.enough(self.tried[name]) and self.enough(self.again(self.tried[name])) for name in names)

    def enough(self, step: ClosureStep) -> bool:
        """The network fits, as closely as this device's noise allows, and less closely the more have been tried."""
        most, good = self.timer.room, GOOD[self.kind]
        if self.kind == "ms":
            good *= 1 + WIDER * max(0, len(self.steps) - REFITS)
        low, high = (most - good) * self.budget, most * self.budget
        return step.confirmed and low <= step.measured <= high

    @property
    def unused(self) -> bool:
        """The best leaves time of the budget unused, and between what was too much and too little is room to ask."""
        best = self.best
        return best is not None and self.enclosed.apart > APART and best.measured < self.least * self.budget

    def ask(self, index: int, step: ClosureStep) -> None:
        """Decide what to ask for after round `index`, which ended with `step`."""
        if index < REFITS:
            self.predictor = Predictor(self.table, self.maker.structure, self.maker.network)
            predicted = self.predictor.predict(step.variant)
            self.asked = self.aim * predicted / self.predictor.dense / step.measured
        else:
            self.asked = self.enclosed.after(self.asked, step.measured, self.aim)

    def outcome(self) -> Closure:
        """The best; raises BudgetError where no network was measured within the budget."""
        step = self.best
        if step is None:
            nearest = min(self.steps, key=lambda step: step.measured)
            raise BudgetError(
                f"after {len(self.steps)} networks the fastest measured takes {nearest.measured:.3f} of the dense "
                f"latency; the budget is {self.budget:.3f}.",
                "Ask for less speed-up, or let blocks go: [search] blocks = true.",
            )
        answer = self.answers[step.variant.key]
        of_budget = step.measured / self.budget
        return Closure(
            answer, step.variant, step.measured, self.budget, of_budget, of_budget >= self.least, tuple(self.steps),
            self.table, self.predictor, tuple(self.timer.judged.get(step.variant.key, ())),
        )  # fmt: skip


class _Timer:
    """Builds networks and times them: beside the anchor, and those that seem to fit under the target's own protocol.

    What that protocol, whose verdict counts, finds over what the anchor told (the median of all so far) corrects what
    the anchor tells of the next network: the dense latency that the table knows is of another day.

    Attributes:
        room: the share of the budget that leaves room for the noise that this device has shown.
    """

    def __init__(
        self,
        device: Device,
        maker: ArtifactBuilder,
        anchor: Built,
        dense: Built,
        effort: Effort,
        pace: Pace,
        budget: float,
        fixed: float | None,
        patience: Patience,
    ) -> None:
        """`budget`: latency over the dense one's; `fixed`: that dense latency, None: today's."""
        self.fixed, self.patience = fixed, patience
        self.device, self.maker, self.anchor, self.dense = device, maker, anchor, dense
        self.effort, self.pace, self.budget = effort, pace, budget
        self.unit = maker.target.protocol.unit
        self.verdicts: list[float] = []
        self.deviations: list[float] = []
        self.judged: dict[str, list[Validation]] = {}  # under the protocol, by network

    @property
    def room(self) -> float:
        typical = float(np.median(self.deviations)) if self.deviations else deviation((), self.unit)
        return room(typical, self.unit)

    def __call__(self, variant: Configuration, judged: bool) -> tuple[list[Measured], float, bool]:
        """What was found (anchor first), latency over the dense artifact's, and whether the network seemed to fit.

        `judged`: the release will be judged by medians of this clock; one that counts instructions repeats itself.
        """
        protocol = self.maker.target.protocol
        candidate = self.maker.build(variant, "candidate")
        try:
            found = measure_quietly(self.device, [self.anchor, candidate], protocol, self.effort, self.pace)
            while found[1].spread > self.effort.good_spread and self.patience.left:
                with self.patience.again():
                    again = measure_together(self.device, [self.anchor, candidate], protocol, self.effort, False)
                    found = self.pace.mark([old.and_again(new) for old, new in zip(found, again, strict=True)])
                if len(found[1].rounds) >= CONFIRM * self.effort.rounds:
                    break
            ratio = found[1].ratio * (float(np.median(self.verdicts)) if self.verdicts else 1.0)
            low, high = (self.room - GOOD["ms"], 1.0) if self.verdicts or not judged else SLACK
            fits = (low - found[1].spread) * self.budget <= ratio <= (high + found[1].spread) * self.budget
            if fits and judged:
                ratio = self._verdict(variant, candidate)
                self.verdicts.append(ratio / found[1].ratio)
        finally:
            self.maker.forget(candidate)
        return found, ratio, fits

    def again(self, variant: Configuration) -> float:
        """Latency over the dense one's: built and loaded anew, with what was found before."""
        candidate = self.maker.build(variant, "candidate")
        try:
            return self._verdict(variant, candidate)
        finally:
            self.maker.forget(candidate)

    def _verdict(self, variant: Configuration, candidate: Built) -> float:
        """Latency over the dense one's under the target's protocol; several times where it is noisy.

        Ratios of one network that differ by more than their rounds tell are noise as well.
        """
        known = self.judged.setdefault(variant.key, [])
        ratios = [self._ratio(one) for one in known]
        loaded = [self.device.load(one.artifact) for one in (self.dense, candidate)]
        try:
            ratios.append(self._judged(loaded, known))
            while self.patience.left and len(ratios) < CONFIRM:
                between = float(np.std(ratios, ddof=1) / np.median(ratios)) if len(ratios) > 1 else 0.0
                sure = max(float(np.mean(self.deviations[-len(ratios) :])), between) / len(ratios) ** 0.5
                if sure <= SURE or self._outside(float(np.median(ratios)), sure):
                    break
                if len(ratios) == 1:
                    self.patience.tell(self.device, f"this network's latency is good to {100 * 2 * sure:.1f} % so far")
                with self.patience.again():
                    ratios.append(self._judged(loaded, known))
        finally:
            for one in loaded:
                self.device.unload(one)
        return float(np.median(ratios))

    def _outside(self, ratio: float, sure: float) -> bool:
        """The network is clearly too slow, or clearly faster than it need be."""
        kind = "ms" if self.unit == "ms" else "repeats"
        low, high = (self.room - GOOD[kind]) * self.budget, self.budget
        return not low * (1 - CLEAR * sure) <= ratio <= high * (1 + CLEAR * sure)

    def _judged(self, loaded: Sequence[Loaded], known: list[Validation]) -> float:
        dense, pruned = self.device.measure(loaded, self.maker.target.protocol)
        self.deviations.append(deviation((pruned, dense), self.unit))
        known.append(entry({"dense_int8": dense, "pruned_int8": pruned}))
        return self._ratio(known[-1])

    def _ratio(self, found: Validation) -> float:
        dense = found.networks["dense_int8"].median if self.fixed is None else self.fixed
        return found.networks["pruned_int8"].median / dense
