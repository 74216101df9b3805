"""In which order the units of a group should go.

Every order is a permutation of a group's units, the most valuable first: the first k are what a width of k keeps.

    obs       what the consumers' outputs lose when the rest is fitted again; greedy, so that redundancy counts
    (default) l1, l2    norms of the weights that make the unit
    bn-scale  size of the batch norm's scale
    taylor    |sum of weight x gradient|, first order change of the loss
    fisher    mean square of the same sum over small batches
    random    a seeded shuffle, to compare with

Sources: OBS for groups, OBC (NeurIPS'22, arXiv 2208.11580) and OSSCAR (arXiv 2403.12983); L1, Li et al. (1608.08710);
BN scale, Liu et al. (1708.06519); Taylor and Fisher, Molchanov et al. (1906.10771) and Theis et al. (1801.05787).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.engine import (
    AffineLayer,
    Examples,
    InputMoments,
    Session,
    call,
    count,
    effective,
    take,
    trainable,
    weights_of,
)
from edgeprune.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from edgeprune.graph import Group, Structure

Kind = Literal["obs", "l1", "l2", "bn-scale", "taylor", "fisher", "random"]
DAMP = 1e-2  # of the mean diagonal of H, for OBS
ROUNDS = 64  # OBS: at most this many steps a group; larger groups lose several units a step


def orders(
    model: nn.Module,
    structure: Structure,
    examples: Examples,
    kind: Kind = "obs",
    *,
    labels: Tensor | None = None,
    seed: int = 0,
) -> dict[str, tuple[int, ...]]:
    """The order of every group's units, the most valuable first.

    Args:
        examples: as the network takes them; only obs, taylor and fisher look at them.
        labels: [N] classes for taylor and fisher; without them the network's own answers serve.

    Raises:
        UsageError: an unknown kind.
    """
    if kind == "obs":
        session = Session(model, examples, seed=seed)
        session.fit = session.batches(examples)  # nothing is judged here
        return obs_orders(structure, session.layers, session.weights, session.moments)
    if kind not in get_args(Kind):
        raise UsageError(f"There is no saliency '{kind}'.", did_you_mean(kind, get_args(Kind)))
    scores = _scores(model, structure, examples, kind, labels, seed)
    return {name: tuple(score.argsort(descending=True, stable=True).tolist()) for name, score in scores.items()}


def obs_orders(
    structure: Structure, layers: Sequence[AffineLayer], weights: Mapping[str, Tensor], data: Mapping[str, InputMoments]
) -> dict[str, tuple[int, ...]]:
    """Group-OBS orders from input moments; groups without a consumer that is known go by L1."""
    by_weight = {layer.weight: layer for layer in layers}
    found = {}
    for group in structure.groups:
        uses = consumers(group, by_weight, weights)
        uses = [(layer, index) for layer, index in uses if layer.name in data]
        if uses:
            found[group.name] = _obs(
                group.size, [(effective(layer, weights), data[layer.name].xx, index) for layer, index in uses]
            )
        else:
            score = _norm(group, weights, 1)
            found[group.name] = tuple(score.argsort(descending=True, stable=True).tolist())
    return found


def consumers(
    group: Group, by_weight: Mapping[str, AffineLayer], weights: Mapping[str, Tensor]
) -> list[tuple[AffineLayer, Tensor]]:
    """The layers that read a group, each with the rows of its matrix that a unit stands for, [size, rows]."""
    found = []
    for member in group.members:
        layer = by_weight.get(member.parameter)
        if member.role == "input" and member.axis == 1 and layer is not None:
            weight = weights[layer.weight]
            taps = torch.arange(math.prod(layer.kernel), device=weight.device)
            spots = torch.as_tensor(member.indices, device=weight.device)
            index = (taps[None, :, None] * weight.shape[1] + spots[:, None, :]).flatten(1)
            found.append((layer, index))
    return found


def _obs(size: int, uses: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[int, ...]:
    """Greedy group-OBS over all consumers; `uses` holds weight [G, d, o], H [G, d, d] and rows [size, k]."""
    state: list[tuple[Tensor, Tensor, Tensor]] = []
    for weight, xx, index in uses:
        scale = xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
        damped = xx + (DAMP * scale)[:, None, None] * torch.eye(xx.shape[-1], dtype=xx.dtype, device=xx.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        state.append((weight, inverse, index))
    alive = torch.arange(size, device=uses[0][0].device)
    gone: list[int] = []
    many = max(1, size // ROUNDS)
    while len(alive) > 1:
        score = sum(_loss(weight, inverse, index) for weight, inverse, index in state)
        assert isinstance(score, Tensor)
        worst = score.argsort()[: min(many, len(alive) - 1)]
        rest = ~torch.isin(torch.arange(len(alive), device=alive.device), worst)
        gone += alive[worst].tolist()
        alive = alive[rest]
        if len(alive) > 1:
            state = [_without(*item, worst, rest) for item in state]
    return (*alive.tolist(), *reversed(gone))


def _loss(weight: Tensor, inverse: Tensor, index: Tensor) -> Tensor:
    """1/2 tr(W_c' (P_cc)^-1 W_c) of each unit c, summed over convolution groups."""
    count, size = index.shape
    block = inverse[:, index[:, :, None].expand(-1, -1, size), index[:, None, :].expand(-1, size, -1)]
    part = weight[:, index.reshape(-1)].reshape(len(weight), count, size, -1)
    total: Tensor = 0.5 * (part * torch.linalg.solve(block, part)).sum(dim=(0, 2, 3))
    return total


def _without(
    weight: Tensor, inverse: Tensor, index: Tensor, worst: Tensor, rest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The state without some units: W -= P_:c (P_cc)^-1 W_c and P -= P_:c (P_cc)^-1 P_c:, on the rows that are left."""
    spots = index[worst].reshape(-1)
    mask = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    mask[spots] = False
    left = mask.nonzero()[:, 0]
    column = inverse[:, left][:, :, spots]
    gain = torch.linalg.solve(inverse[:, spots][:, :, spots], column.transpose(1, 2)).transpose(1, 2)
    now = mask.cumsum(0) - 1  # where each row that is left lies from here on
    inner = torch.baddbmm(inverse[:, left][:, :, left], gain, column.transpose(1, 2), alpha=-1.0)
    return weight[:, left] - gain @ weight[:, spots], inner, now[index[rest]]


def _scores(
    model: nn.Module, structure: Structure, examples: Examples, kind: Kind, labels: Tensor | None, seed: int
) -> dict[str, Tensor]:
    weights = weights_of(model)
    if kind in ("l1", "l2"):
        return {group.name: _norm(group, weights, int(kind[1])) for group in structure.groups}
    if kind == "bn-scale":
        return {group.name: _scale(group, weights) for group in structure.groups}
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return {group.name: torch.rand(group.size, generator=generator) for group in structure.groups}
    return _gradient(model, structure, examples, labels, square=kind == "fisher")


def _norm(group: Group, weights: Mapping[str, Tensor], power: int) -> Tensor:
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members:
        if member.role == "output" and weights[member.parameter].dim() > 1:
            total += _by_unit(weights[member.parameter].cpu().double().abs() ** power, member.axis, member.indices)
    return total


def _scale(group: Group, weights: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(group.size, dtype=torch.float64)
    known = False
    for member in group.members:
        stem = member.parameter.rsplit(".", 1)[0]
        if member.role == "tied" and member.parameter.endswith(".weight") and f"{stem}.running_var" in weights:
            total += _by_unit(weights[member.parameter].cpu().double().abs(), member.axis, member.indices)
            known = True
    return total if known else _norm(group, weights, 1)


def _gradient(
    model: nn.Module, structure: Structure, examples: Examples, labels: Tensor | None, square: bool
) -> dict[str, Tensor]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    totals = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in structure.groups}
    generator, size = torch.Generator().manual_seed(0), 16 if square else 64
    try:
        with trainable(model):
            named = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
            for start in range(0, count(examples), size):
                with torch.enable_grad():
                    outputs = call(model, take(examples, start, start + size))
                    loss = _surrogate(outputs, None if labels is None else labels[start : start + size], generator)
                    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
                found = {name: g for name, g in zip(named, grads, strict=True) if g is not None}
                for group in structure.groups:
                    total = torch.zeros(group.size, dtype=torch.float64)
                    for member in group.members:
                        if member.role != "input" and member.parameter in found:
                            product = (named[member.parameter].detach() * found[member.parameter]).double().cpu()
                            total += _by_unit(product, member.axis, member.indices)
                    totals[group.name] += total**2 if square else total
    finally:
        for module, mode in training.items():
            module.training = mode
    return totals if square else {name: total.abs() for name, total in totals.items()}


def _surrogate(outputs: tuple[Tensor, ...], labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """Cross-entropy of the first output's scores [N, classes]; for other outputs a random projection of each, scaled
    by its spread, whose squared gradient is the Fisher information of a Gaussian likelihood.
    """
    first = outputs[0]
    if first.dim() == 2 and first.shape[1] >= 2 and (labels is not None or len(outputs) == 1):
        return F.cross_entropy(first, first.argmax(-1) if labels is None else labels.to(first.device))
    total = first.new_zeros(())
    for item in outputs:
        if item.is_floating_point():
            noise = torch.randn(item.shape, generator=generator).to(item)
            total = total + (item * noise).mean() / item.detach().std(unbiased=False).clamp_min(1e-12)
    return total


def _by_unit(value: Tensor, axis: int, indices: object) -> Tensor:
    """Sum over everything but one axis, then over the positions of each unit."""
    flat = value.transpose(0, axis).flatten(1).sum(1) if value.dim() > 1 else value
    return flat[torch.as_tensor(indices)].sum(1)
