"""Win accuracy back without training: every layer of the pruned network is fitted again, in the order of the graph.

Each convolution or linear layer is the least-squares map from what it reads in the *pruned* network to what the
dense one computes there (asymmetric, so that errors upstream are mended downstream). A layer that is added to a
shortcut aims at the dense sum less the pruned shortcut: one fit mends all that its stream has gathered, and a kept
block takes over what the removed blocks after it added. Batch norms get the true statistics of the new layers on the
way.

Source: asymmetric layer-wise reconstruction and the residual target, He et al. (ICCV'17, arXiv 1707.06168) and OSSCAR
(arXiv 2403.12983); least squares with a ridge towards the present weights; statistics as in EagleEye (arXiv
2007.02491).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeprune.recover.leastsquares import Gathered, choose_ridge, effective, fit, install
from edgeprune.recover.tape import Route, Tape, Values, batch_size, batches, weights_of
from edgeprune.recover.units import Target, Unit, positions, results, rows, target, units

if TYPE_CHECKING:
    from edgeprune.graph import Plan, Structure

ROWS = 24  # rows of data for each unknown of a fit, as far as the images go
LEAST, MOST = 8192, 32768


def repair(
    model: nn.Module,
    pruned: nn.Module,
    structure: Structure,
    plan: Plan,
    images: Tensor,
    *,
    ridge: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Fit every layer of `pruned` again, in place; needs no labels. Returns `pruned`.

    Args:
        model: the dense network that `plan` was made for.
        pruned: `plan.apply(model)`, trained or not.
        structure: of `model`.
        images: [N, ...] as the network takes them; more of them, not more rows, is what helps: 2,000 where there are.
        ridge: pull towards the present weights, as a share of the inputs' mean variance; None: cross-validated.
        progress: called with (layers done, layers in all).

    Raises:
        CaptureError, GraphError: the network cannot be followed on a tape (several inputs, or a removed block with
            several).
    """
    size = batch_size(images)
    dense = Tape.of(model, images[:size])
    narrow = same_steps(dense, model, structure, plan, images[:size])
    before, now = weights_of(model), weights_of(pruned)
    kept = kept_outputs(plan)
    with torch.no_grad():
        new = repair_weights(
            dense, narrow, units(dense, before), before, now, dense.route(plan.removed), kept, batches(images, size),
            ridge=ridge, seed=seed, progress=progress,
        )  # fmt: skip
        own = {**dict(pruned.named_parameters()), **dict(pruned.named_buffers())}
        for name, value in new.items():
            own[name].copy_(value)
    return pruned


def kept_outputs(plan: Plan) -> dict[str, Tensor]:
    """Parameter -> the outputs (axis 0) that the plan keeps of it; parameters that stay whole are not listed."""
    return {cut.parameter: torch.as_tensor(list(cut.kept)) for cut in plan.cuts if cut.axis == 0}


def same_steps(dense: Tape, model: nn.Module, structure: Structure, plan: Plan, images: Tensor) -> Tape:
    """A tape that narrowed weights run on, with the dense tape's numbering of steps.

    That is the dense tape itself unless sizes are written into the graph (a channel shuffle's views, say).
    """
    literal = {"view", "reshape", "expand", "split", "split_with_sizes", "slice", "narrow", "chunk", "unflatten"}
    if not any(step.op in literal for step in dense.steps):
        return dense
    found = Tape.of(_narrowed(model, structure, plan), images)
    if [step.op for step in found.steps] != [step.op for step in dense.steps]:
        return dense
    return found


def _narrowed(model: nn.Module, structure: Structure, plan: Plan) -> nn.Module:
    """The plan's widths without its removed blocks."""
    if not plan.removed:
        return plan.apply(model)
    cuts = {(cut.parameter, cut.axis): list(cut.kept) for cut in plan.cuts}
    gone = {name for block in structure.blocks if block.module in plan.removed for name in block.inner}
    kept = {}
    for group in structure.groups:
        member = next(m for m in group.members if m.role == "output")
        if group.name not in gone and (member.parameter, member.axis) in cuts:
            alive = set(cuts[member.parameter, member.axis])
            kept[group.name] = [u for u in range(group.size) if int(member.indices[u][0]) in alive]
    return structure.plan(kept).apply(model)


def repair_weights(
    dense: Tape,
    narrow: Tape,
    layers: Sequence[Unit],
    before: Mapping[str, Tensor],
    now: Mapping[str, Tensor],
    route: Route,
    kept: Mapping[str, Tensor],
    images: Sequence[Tensor],
    *,
    ridge: float | None = None,
    ridges: dict[str, float] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """The tensors that a repair changes, by name; nothing is written.

    Args:
        dense, narrow: tapes with the same steps; dense weights run on the first, narrowed ones on the second.
        before, now: dense and narrowed weights.
        route: round the removed blocks.
        kept: parameter -> outputs kept, where not all.
        images: whole batches.
        ridges: layer -> ridge that an earlier repair chose; taken where it is there, noted where it is not.
    """
    ridges = {} if ridges is None else ridges
    todo = [unit for unit in layers if unit.step in route.last]
    goals = {unit.step: target(dense, route, unit) for unit in todo}
    full = dense.route()
    weights = dict(now)
    changed: dict[str, Tensor] = {}
    mine: list[Values] = [{0: batch} for batch in images]
    theirs: list[Values] = [{0: batch} for batch in images]
    wanted = {goal.dense for goal in goals.values()} | {goal.minus for goal in goals.values()}
    pending = {goal.dense for goal in goals.values()}
    generator = torch.Generator().manual_seed(seed)
    at = 1
    ahead = 1
    for k, unit in enumerate(todo):
        goal, source = goals[unit.step], route.resolve(unit.source)
        for values in mine:
            narrow.run(values, route, weights, at, unit.step, keep=wanted | {source})
        at = unit.step
        if goal.dense >= ahead:
            for values in theirs:
                dense.run(values, full, before, ahead, goal.dense + 1, keep=pending)
            ahead = goal.dense + 1
        if _touched(unit, before, weights, goal, bool(changed)):
            new = _refit(unit, goal, weights, kept.get(unit.weight), source, mine, theirs, ridge, ridges, generator)
            weights.update(new)
            changed.update(new)
        pending = {goals[later.step].dense for later in todo[k + 1 :]}
        for values in theirs:
            if goal.dense not in pending and full.last.get(goal.dense, 0) < ahead:
                values.pop(goal.dense, None)
        if progress is not None:
            progress(k + 1, len(todo))
    return changed


def _touched(unit: Unit, before: Mapping[str, Tensor], now: Mapping[str, Tensor], goal: Target, started: bool) -> bool:
    """Whether there is something to mend: an earlier layer changed, inputs went, or blocks after it did."""
    return started or before[unit.weight].shape[1:] != now[unit.weight].shape[1:] or goal.dense > unit.out + 1


def _refit(
    unit: Unit,
    goal: Target,
    weights: dict[str, Tensor],
    outputs: Tensor | None,
    source: int,
    mine: Sequence[Values],
    theirs: Sequence[Values],
    ridge: float | None,
    ridges: dict[str, float],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    if unit.groups > 1:
        unit = replace(unit, groups=mine[0][source].shape[1] // weights[unit.weight].shape[1])
    images = sum(len(values[source]) for values in mine)
    unknowns = int(weights[unit.weight][0].numel())
    count = -(-min(max(ROWS * unknowns, LEAST), MOST) // images)
    data: Gathered | None = None
    for own, other in zip(mine, theirs, strict=True):
        picks = positions(unit, own[source], count, generator)
        wanted = results(unit, _outputs(other[goal.dense], outputs, unit), picks)
        if goal.minus >= 0:
            wanted = wanted - results(unit, own[goal.minus], picks)
        data = data or Gathered(images * len(picks), unknowns)
        data.add(rows(unit, own[source], picks), wanted)
    assert data is not None
    intercept = unit.norm is not None or bool(unit.bias)
    start = effective(unit, weights)
    if ridge is None:
        ridge = ridges[unit.name] if unit.name in ridges else choose_ridge(data.parts, start, intercept)
        ridges[unit.name] = ridge
    return install(unit, fit(data.parts, start, intercept, ridge), weights)


def _outputs(value: Tensor, kept: Tensor | None, unit: Unit) -> Tensor:
    if kept is None:
        return value
    return value.index_select(1 if unit.kernel else value.dim() - 1, kept)
