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

from edgeprune.engine import (
    AffineLayer,
    Batch,
    Examples,
    Gathered,
    Goal,
    Route,
    Session,
    Tape,
    Values,
    choose_ridge,
    effective,
    fit,
    goal_of,
    install,
    layout,
    positions,
    positions_each,
    results,
    rows,
    weights_of,
)
from edgeprune.graph import fill, merged, option_of

_SIZED = frozenset(  # operators with sizes written into the graph that a plan may change
    ["view", "reshape", "_unsafe_view", "expand", "repeat", "unflatten"]
    + ["split", "split_with_sizes", "slice", "narrow", "chunk"]
    + ["layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm", "group_norm", "native_group_norm"]
    + [f"{own}{name}" for own in ("", "new_") for name in ("zeros", "ones", "full", "empty", "rand", "randn")]
)

if TYPE_CHECKING:
    from edgeprune.graph import Plan, Structure


def repair(
    model: nn.Module,
    pruned: nn.Module,
    structure: Structure,
    plan: Plan,
    examples: Examples,
    *,
    session: Session | None = None,
    ridge: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Fit every layer of `pruned` again, in place; needs no labels. Returns `pruned`.

    Args:
        model: the dense network that `plan` was made for.
        pruned: `plan.apply(model)`, trained or not.
        structure: of `model`.
        examples: as the network takes them (one tensor [N, ...], a tuple, or a dict by argument name); more of them,
            not more rows, is what helps: 2,000 where there are.
        session: the dense network, where it is captured already.
        ridge: pull towards the present weights, as a share of the inputs' mean variance; None: cross-validated.
        progress: called with (layers done, layers in all).

    Raises:
        CaptureError, GraphError: the network cannot be followed on a tape (a removed block with several inputs).
    """
    session = session or Session(model, examples)
    narrow = same_steps(session, structure, plan)
    with torch.no_grad():
        ordinary = merged(pruned, plan.options)  # of layers that became something else
        own = {**dict(pruned.named_parameters()), **dict(pruned.named_buffers())}
        for layer, module in ordinary.items():
            own |= {f"{layer}.{name}": value for name, value in module.named_parameters()}
        now = {**weights_of(pruned), **{name: layout(own[name].detach()) for name in _names(ordinary)}}
        new = repair_weights(
            session, narrow, now, session.tape.route(structure.gone(plan)), kept_outputs(plan, session.device),
            session.batches(examples), options=plan.options, ridge=ridge, seed=seed, progress=progress,
        )  # fmt: skip
        for name, value in new.items():
            own[name].copy_(value)
        fill(pruned, ordinary, plan.options)
    return pruned


def _names(layers: Mapping[str, nn.Module]) -> list[str]:
    return [f"{layer}.{name}" for layer, module in layers.items() for name, _ in module.named_parameters()]


def kept_outputs(plan: Plan, device: torch.device | None = None) -> dict[str, Tensor]:
    """Parameter -> the outputs (axis 0) that the plan keeps of it; parameters that stay whole are not listed."""
    return {cut.parameter: torch.as_tensor(list(cut.kept), device=device) for cut in plan.cuts if cut.axis == 0}


def same_steps(session: Session, structure: Structure, plan: Plan) -> Tape:
    """A tape that narrowed weights run on, with the dense tape's numbering of steps.

    That is the dense tape itself unless sizes are written into the graph (a channel shuffle's views, the shape that a
    layer norm norms, the groups of a group norm, the first state of a recurrent layer).
    """
    dense = session.tape
    if not any(step.op in _SIZED for step in dense.steps):
        return dense
    found = Tape.of(_narrowed(session.model, structure, plan), session.first)
    if [step.op for step in found.steps] != [step.op for step in dense.steps]:
        return dense
    return found


def _narrowed(model: nn.Module, structure: Structure, plan: Plan) -> nn.Module:
    """The plan's widths without its removed blocks and options."""
    plan = plan.narrowing
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
    session: Session,
    narrow: Tape,
    now: Mapping[str, Tensor],
    route: Route,
    kept: Mapping[str, Tensor],
    examples: Sequence[Batch],
    *,
    options: Mapping[str, str] | None = None,
    ridge: float | None = None,
    ridges: dict[str, float] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """The tensors that a repair changes, by name; nothing is written.

    Args:
        session: the dense network; its weights run on its own tape, narrowed ones on `narrow`, of the same steps.
        now: narrowed weights.
        route: round the removed blocks.
        kept: parameter -> outputs kept, where not all.
        examples: whole batches.
        options: layer -> what it became; its new weight is one that it can hold.
        ridges: layer -> ridge that an earlier repair chose; taken where it is there, noted where it is not.
    """
    ridges = {} if ridges is None else ridges
    dense, before = session.tape, session.weights
    todo = [layer for layer in session.layers if layer.step in route.last]
    goals = {layer.step: goal_of(dense, route, layer) for layer in todo}
    full = dense.route()
    weights = dict(now)
    changed: dict[str, Tensor] = {}
    mine, theirs = ([dense.begin(batch) for batch in examples] for _ in range(2))
    wanted = {goal.dense for goal in goals.values()} | {goal.minus for goal in goals.values()}
    pending = {goal.dense for goal in goals.values()}
    generator = torch.Generator().manual_seed(seed)
    at = ahead = 0
    for k, layer in enumerate(todo):
        goal, source = goals[layer.step], route.resolve(layer.source)
        for values in mine:
            narrow.run(values, route, weights, at, layer.step, keep=wanted | {source})
        at = layer.step
        if goal.dense >= ahead:
            for values in theirs:
                dense.run(values, full, before, ahead, goal.dense + 1, keep=pending)
            ahead = goal.dense + 1
        option = (options or {}).get(layer.name, "")
        if option or _touched(layer, before, weights, goal, bool(changed)):
            new = _refit(
                layer, goal, weights, kept.get(layer.weight), source, mine, theirs, ridge, ridges, generator, option
            )
            weights.update(new)
            changed.update(new)
        pending = {goals[later.step].dense for later in todo[k + 1 :]}
        for values in theirs:
            if goal.dense not in pending and full.last.get(goal.dense, 0) < ahead:
                values.pop(goal.dense, None)
        if progress is not None:
            progress(k + 1, len(todo))
    return changed


def _touched(
    layer: AffineLayer, before: Mapping[str, Tensor], now: Mapping[str, Tensor], goal: Goal, started: bool
) -> bool:
    """Whether there is something to mend: an earlier layer changed, inputs went, or blocks after it did."""
    return started or before[layer.weight].shape[1:] != now[layer.weight].shape[1:] or goal.dense > layer.out + 1


def _refit(
    layer: AffineLayer,
    goal: Goal,
    weights: dict[str, Tensor],
    outputs: Tensor | None,
    source: int,
    mine: Sequence[Values],
    theirs: Sequence[Values],
    ridge: float | None,
    ridges: dict[str, float],
    generator: torch.Generator,
    option: str = "",
) -> dict[str, Tensor]:
    if layer.groups > 1:
        layer = replace(layer, groups=mine[0][source].shape[1] // weights[layer.weight].shape[1])
    count = sum(len(values[source]) for values in mine)
    each = positions_each(layer, weights, count)
    data: Gathered | None = None
    for own, other in zip(mine, theirs, strict=True):
        picks = positions(layer, own[source], each, generator)
        wanted = results(layer, _outputs(other[goal.dense], outputs, layer), picks)
        if goal.minus >= 0:
            wanted = wanted - results(layer, own[goal.minus], picks)
        data = data or Gathered(count * len(picks), int(weights[layer.weight][0].numel()))
        data.add(rows(layer, own[source], picks), wanted)
    assert data is not None
    intercept = layer.norm is not None or bool(layer.bias)
    start = effective(layer, weights)
    if ridge is None:
        ridge = ridges[layer.name] if layer.name in ridges else choose_ridge(data.parts, start, intercept)
        ridges[layer.name] = ridge
    project = _projection(option, weights[layer.weight].shape) if option else None
    return install(layer, fit(data.parts, start, intercept, ridge, project), weights)


def _projection(text: str, shape: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """(weight, second moments of its inputs) -> the nearest weight that a layer can hold under this option."""
    option, setting = option_of(text)
    return lambda weight, moments: option.project(weight, moments, shape, setting)


def _outputs(value: Tensor, kept: Tensor | None, layer: AffineLayer) -> Tensor:
    if kept is None:
        return value
    return value.index_select(1 if layer.kernel else value.dim() - 1, kept)
