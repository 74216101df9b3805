"""The best network that fits the budget, with a certificate.

1. Options that another option beats everywhere are dropped (a width on the same plateau of the step function, for one).
2. The Lagrangian dual is solved exactly: each evaluation is bucket elimination, the multiplier comes from intersecting
   the two best lines, which ends after some ten evaluations. It gives a bound and feasible networks.
3. Min-marginals bound every network that takes a given option; options that cannot beat the incumbent go.
4. A restricted program over the most promising options improves the incumbent, more options go, and HiGHS solves what
   is left.

A limit on bytes is a second row. Where the best network for the budget alone breaks it, steps 2 and 3 work on one row
that mixes both (a surrogate constraint: every network that keeps both rows keeps it), with the mixture that gives the
best bound.

The answer carries `bound` and `gap`: what is certified is the program (the loss surrogate and the latency table), not
the accuracy. Where the time limit stops the proof, the gap that remains is reported.

Source: Lagrangian relaxation with variable fixing for knapsack problems (Fisher, Management Science 27, 1981);
surrogate constraints (Glover, Operations Research 16, 1968).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import BudgetError
from edgeprune.search import exact, factors
from edgeprune.search.program import Array, Assignment, ChannelGroup, Kernel, KernelPrecision, Program

Mask = list[NDArray[np.bool_]]
SMALL = 120  # options left, above which a restricted program looks for a better incumbent first
TIGHT = 1e-4  # wanted gap: 0.01 %
MIXTURES = 12  # surrogate rows that are tried


@dataclass(frozen=True)
class ProgramSolution:
    """One network, and how far from the best it can be.

    Attributes:
        loss: of the choice, by the program.
        ms, bytes: of the choice, by the program's tables; `ms` never exceeds the budget.
        bound: no network within the budget has a smaller loss.
        gap: (loss - bound) / loss; 0 when the answer is proven to be the best.
        options: before and after the options that cannot win were dropped.
    """

    choice: Assignment
    budget: float
    loss: float
    ms: float
    bytes: float
    bound: float
    gap: float
    seconds: float
    method: str
    options: tuple[int, int]


def floor(program: Program) -> float:
    """The least milliseconds that any choice reaches."""
    network = factors.build(program)
    if network.order is not None:
        return program.beta + factors.minimise(network, 1.0, loss_weight=0.0).value
    least = replace(
        program,
        groups=tuple(replace(group, losses=(0.0,) * len(group.widths)) for group in program.groups),
        beta=0.0,
        blocks=tuple(replace(b, loss=0.0 if np.isfinite(b.loss) else b.loss) for b in program.blocks),
    )
    # Too wide for elimination: bisect on feasibility with HiGHS.
    low, high = 0.0, least.totals(least.dense()).ms
    for _ in range(20):
        middle = (low + high) / 2
        found = exact.solve(least, middle, float("inf"), _all(least), 10.0).choice is not None
        low, high = (low, middle) if found else (middle, high)
    return program.beta + high


def solve(
    program: Program,
    budgets: Sequence[float],
    *,
    max_bytes: float = float("inf"),
    seconds: float = 60.0,
    gap: float = TIGHT,
    progress: Callable[[int, int], None] | None = None,
) -> list[ProgramSolution]:
    """Solve for each budget in milliseconds, in the order given; together they are the accuracy-latency front.

    Args:
        max_bytes: of the kernels' own `bytes`.
        seconds: limit for one budget.
        gap: stop as soon as the answer is proven to be within this fraction of the best.

    Raises:
        BudgetError: a budget lies under the floor, or `max_bytes` under the smallest network; the message names the
            floor and what would lower it.
    """
    program.check()
    small = reduce(program)
    network = factors.build(small)
    if np.isfinite(max_bytes):
        lightest = floor(_mixed(small, 0.0, 1.0))
        if max_bytes < lightest:
            raise BudgetError(
                f"a limit of {max_bytes:,.0f} bytes of weights is below the {lightest:,.0f} of the smallest network.",
                "Allow more ([budget] max_bytes), or let whole residual blocks go ([search] blocks = true).",
            )
    least = floor(small)
    for budget in budgets:
        if budget < least:
            raise _refusal(program, budget, least)
    results = []
    for k, budget in enumerate(budgets):
        results.append(_one(program, small, network, budget, max_bytes, seconds, gap))
        if progress is not None:
            progress(k + 1, len(budgets))
    return results


def _refusal(program: Program, budget: float, least: float) -> BudgetError:
    blocks = sum(1 for block in program.blocks if np.isfinite(block.loss))
    dense = program.totals(program.dense()).ms
    what = (
        f"with every group at its narrowest and {blocks} blocks removable"
        if blocks
        else "with every group at its narrowest"
    )
    remedy = f"Ask for at least {least:.4g} ms ({dense / least:.2f}x over {dense:.4g} ms dense)"
    if not blocks:
        remedy += ", or let whole residual blocks go ([search] blocks = true)"
    fixed = f" ({program.beta:.4g} ms of it no choice changes)" if program.beta > 0 else ""
    return BudgetError(
        f"a budget of {budget:.4g} ms is below the floor of {least:.4g} ms, which is what remains {what}{fixed}.",
        remedy + ".",
    )


def _one(
    full: Program,
    program: Program,
    network: factors.FactorGraph,
    budget: float,
    limit: float,
    seconds: float,
    gap: float,
) -> ProgramSolution:
    start = time.perf_counter()
    best = _Incumbent(program, budget, limit)
    allowed = _all(program)
    bound, method = 0.0, "highs"
    if network.order is not None:
        bound, marginals = _dual(network, best, budget)[:2]
        if np.isfinite(limit):
            bound, marginals = _surrogate(program, best, bound, marginals)
        method = "lagrangian"
        if best.gap(bound) > gap:
            allowed = _fix(program, marginals, best.loss, gap)
            if _count(allowed) > SMALL:
                few = _promising(marginals, allowed, SMALL)
                best.offer(_highs(program, best, few, 0.25 * seconds, gap).choice)
                allowed = _fix(program, marginals, best.loss, gap)
            dropped = _dropped(marginals, allowed)
            answer = _highs(program, best, allowed, seconds - (time.perf_counter() - start), gap)
            best.offer(answer.choice)
            bound, method = max(bound, min(answer.bound, dropped)), "lagrangian + highs"
    else:
        answer = _highs(program, best, allowed, seconds, gap)
        best.offer(answer.choice)
        bound = answer.bound
    if best.choice is None:
        raise BudgetError(
            f"no network found within {budget:.4g} ms" + (f" and {limit:.4g} bytes." if np.isfinite(limit) else "."),
            "Raise the budget, the size limit or the time limit of the search.",
        )
    bound = min(bound, best.loss)
    totals = full.totals(best.choice)
    return ProgramSolution(
        choice=best.choice,
        budget=budget,
        loss=totals.loss,
        ms=totals.ms,
        bytes=totals.bytes,
        bound=bound,
        gap=best.gap(bound),
        seconds=time.perf_counter() - start,
        method=method,
        options=(full.options, _count(allowed)),
    )


class _Incumbent:
    """The best feasible network so far."""

    def __init__(self, program: Program, budget: float, limit: float) -> None:
        self.program, self.budget, self.limit = program, budget, limit
        self.choice: Assignment | None = None
        self.loss = float("inf")

    def fits(self, choice: Assignment) -> bool:
        totals = self.program.totals(choice)
        return totals.ms <= self.budget * (1 + 1e-12) and totals.bytes <= self.limit

    def offer(self, choice: Assignment | None) -> None:
        if choice is not None and self.fits(choice):
            loss = self.program.totals(choice).loss
            if loss < self.loss:
                self.choice, self.loss = choice, loss

    def gap(self, bound: float) -> float:
        if self.loss <= max(bound, 0.0) + 1e-15:
            return 0.0
        return (self.loss - bound) / self.loss if np.isfinite(self.loss) else float("inf")


def _dual(network: factors.FactorGraph, best: _Incumbent, budget: float) -> tuple[float, list[Array], Assignment]:
    """The exact Lagrangian dual over the row of `network`'s program; its value, the min-marginals and a network there.

    Every network seen on the way is offered to `best`, which judges it by the program that was asked for.
    """
    program = network.program

    def line(multiplier: float, weight: float = 1.0) -> tuple[factors.Relaxed, float, float, Assignment]:
        relaxed = factors.minimise(network, multiplier, weight)
        choice = network.choice(relaxed.states, multiplier)
        totals = program.totals(choice)
        best.offer(choice)
        return relaxed, totals.loss, totals.ms, choice

    relaxed, low_loss, low_ms, choice = line(0.0)
    multiplier = 0.0
    if low_ms > budget:
        _, high_loss, high_ms, _ = line(1.0, 0.0)
        for _ in range(60):
            multiplier = (high_loss - low_loss) / max(low_ms - high_ms, 1e-300)
            relaxed, loss, ms, choice = line(multiplier)
            value, chord = loss + multiplier * ms, low_loss + multiplier * low_ms
            if value >= chord - 1e-12 * max(abs(chord), 1e-12):
                break
            if ms > budget:
                low_loss, low_ms = loss, ms
            else:
                high_loss, high_ms = loss, ms
    shift = multiplier * (program.beta - budget)
    marginals = [m + shift for m in factors.min_marginals(network, relaxed)]
    return max(relaxed.value + shift, 0.0), marginals, choice


def _surrogate(program: Program, best: _Incumbent, bound: float, marginals: list[Array]) -> tuple[float, list[Array]]:
    """The best bound of the rows that mix milliseconds and bytes, and its min-marginals.

    Bisects on the share of bytes: more of them where the relaxed network is too large rather than too slow.
    """
    low, high = 0.0, 1.0
    room = max(best.budget - program.beta, 1e-12)
    for _ in range(MIXTURES):
        share = (low + high) / 2
        value, found, choice = _dual(factors.build(_mixed(program, (1 - share) / room, share / best.limit)), best, 1.0)
        if value > bound:
            bound, marginals = value, found
        totals = program.totals(choice)
        low, high = (share, high) if totals.bytes / best.limit > (totals.ms - program.beta) / room else (low, share)
    return bound, marginals


def _mixed(program: Program, ms: float, size: float) -> Program:
    """The program whose "milliseconds" are ms * milliseconds + size * bytes."""

    def way(item: KernelPrecision) -> KernelPrecision:
        return replace(item, ms=ms * item.ms + (0.0 if item.bytes is None else size * item.bytes))

    kernels = tuple(replace(item, precisions=tuple(way(p) for p in item.precisions)) for item in program.kernels)
    blocks = tuple(
        replace(block, variants=tuple(replace(v, ms=ms * v.ms + size * v.bytes) for v in block.variants))
        for block in program.blocks
    )
    return replace(program, kernels=kernels, blocks=blocks, beta=0.0)


def _fix(program: Program, marginals: Sequence[Array], loss: float, gap: float) -> Mask:
    """The options that may still be in a network clearly better than the incumbent."""
    if not np.isfinite(loss):
        return [np.isfinite(m) for m in marginals]
    return [m < loss * (1 - 0.5 * gap) for m in marginals]


def _dropped(marginals: Sequence[Array], allowed: Mask) -> float:
    return min(
        (float(m[~mask].min()) for m, mask in zip(marginals, allowed, strict=True) if not mask.all()), default=np.inf
    )


def _promising(marginals: Sequence[Array], allowed: Mask, count: int) -> Mask:
    """The `count` allowed options of smallest bound, and each variable's best one at least."""
    values = np.sort(np.concatenate([m[mask] for m, mask in zip(marginals, allowed, strict=True)]))
    cut = values[min(count, len(values) - 1)]
    return [mask & ((m <= cut) | (m <= m.min() + 1e-15)) for m, mask in zip(marginals, allowed, strict=True)]


def _highs(program: Program, best: _Incumbent, allowed: Mask, seconds: float, gap: float) -> exact.Answer:
    """HiGHS; once more with a hair less budget where its tolerance let the answer slip over."""
    answer = exact.solve(program, best.budget, best.limit, allowed, seconds, 0.1 * gap)
    if answer.choice is None or best.fits(answer.choice):
        return answer
    inner = program.beta + (best.budget - program.beta) * (1 - 3e-6)
    again = exact.solve(program, inner, best.limit * (1 - 3e-6), allowed, min(seconds, 15.0), 0.1 * gap)
    return exact.Answer(again.choice, answer.bound)


def _all(program: Program) -> Mask:
    sizes = [len(group.widths) + bool(group.block) for group in program.groups]
    return [np.ones(size, dtype=bool) for size in [*sizes, *(2 + len(block.variants) for block in program.blocks)]]


def _count(allowed: Mask) -> int:
    return int(sum(mask.sum() for mask in allowed if mask.sum() > 1))


def reduce(program: Program) -> Program:
    """Drop widths that another width of the same group beats in loss, and in time and bytes whatever the others do.

    Exact. On a plateau of a step function the widest one wins.
    """
    groups, kernels = list(program.groups), list(program.kernels)
    for g, group in enumerate(groups):
        axes = [(k, item.groups.index(group.name)) for k, item in enumerate(kernels) if group.name in item.groups]
        keep = _undominated(group, [(kernels[k], axis) for k, axis in axes])
        if len(keep) == len(group.widths):
            continue
        groups[g] = replace(
            group, widths=tuple(group.widths[i] for i in keep), losses=tuple(group.losses[i] for i in keep)
        )
        for k, axis in axes:
            kernels[k] = _take(kernels[k], axis, keep)
    return replace(program, groups=tuple(groups), kernels=tuple(kernels))


def _undominated(group: ChannelGroup, uses: Sequence[tuple[Kernel, int]]) -> list[int]:
    columns = [np.asarray(group.losses)[:, None]]
    for item, axis in uses:
        for way in item.precisions:
            columns.append(np.moveaxis(way.ms, axis, 0).reshape(len(group.widths), -1))
            if way.bytes is not None:
                columns.append(np.moveaxis(way.bytes, axis, 0).reshape(len(group.widths), -1))
    rows = np.concatenate(columns, axis=1)
    keep: list[int] = []
    for i in range(len(rows) - 1, -1, -1):  # the widest first, so that of equals the widest stays
        rivals = [j for j in range(len(rows)) if j != i and (j in keep or j < i)]
        if not any(np.all(rows[j] <= rows[i]) and (j in keep or np.any(rows[j] < rows[i])) for j in rivals):
            keep.append(i)
    return sorted(keep)


def _take(item: Kernel, axis: int, keep: Sequence[int]) -> Kernel:
    return replace(
        item,
        precisions=tuple(
            replace(
                way,
                ms=np.take(way.ms, keep, axis=axis),
                bytes=None if way.bytes is None else np.take(way.bytes, keep, axis=axis),
            )
            for way in item.precisions
        ),
    )
