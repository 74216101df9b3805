"""Second moments of a layer's inputs and targets, and the ridge regression that they allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.recover.tape import layout
from edgeprune.recover.units import Unit, matrix, tensor

# Pull towards the weights that are there, times the mean variance of an input. Chosen a layer by cross-validation: 256
# images have many rows but few independent ones, and the last layers fit them by heart.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
LARGE = 1500  # unknowns, above which only every other ridge is tried


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over rows, in float64: inputs x [G, R, d], targets y [G, R, o].

    xx [G, d, d], xy [G, d, o], x [G, d], y [G, o], yy [G, o].
    """

    count: int
    xx: Tensor
    xy: Tensor
    x: Tensor
    y: Tensor
    yy: Tensor

    @staticmethod
    def of(inputs: Tensor, targets: Tensor) -> Moments:
        """Of one batch; the products are taken in float32 about a batch's own mean, which loses nothing that
        matters.
        """
        a, b = inputs.mean(1), targets.mean(1)
        x, y = inputs - a[:, None], targets - b[:, None]
        count = inputs.shape[1]
        xx = (x.transpose(1, 2) @ x).double()
        xy = (x.transpose(1, 2) @ y).double()
        yy = (y * y).sum(1).double()
        a, b = a.double(), b.double()
        return Moments(
            count,
            xx + count * a[:, :, None] * a[:, None, :],
            xy + count * a[:, :, None] * b[:, None, :],
            count * a,
            count * b,
            yy + count * b * b,
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.xx + other.xx,
            self.xy + other.xy,
            self.x + other.x,
            self.y + other.y,
            self.yy + other.yy,
        )

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Covariance of the inputs, covariance with the targets, and both means."""
        x, y = self.x / self.count, self.y / self.count
        xx = self.xx / self.count - x[:, :, None] * x[:, None, :]
        return xx, self.xy / self.count - x[:, :, None] * y[:, None, :], x, y


@dataclass(frozen=True, eq=False)
class Fit:
    """weights [G, d, o] and intercept [G, o] of the best affine map; `xx`, `mean` and `centre` describe its data."""

    weight: Tensor
    intercept: Tensor
    xx: Tensor
    mean: Tensor
    centre: Tensor


def fit(parts: Sequence[Moments], start: Tensor, intercept: bool = True, ridge: float | None = None) -> Fit:
    """Minimise |y - x W - b|^2 + ridge * mean variance * |W - start|^2; without b when there is nowhere to put it.

    Args:
        parts: moments of disjoint images; what one part fits is judged on the others to choose the ridge.
        start: [G, d, o], the weights that are there.
        ridge: taken as given instead.
    """
    if ridge is None:
        ridge = choose_ridge(parts, start, intercept)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return solve(total, start, ridge, intercept)


def choose_ridge(parts: Sequence[Moments], start: Tensor, intercept: bool = True) -> float:
    """The ridge whose fit on one half of the parts loses least on the other, both ways round."""
    if len(parts) < 2:
        return 1e-2
    halves = [parts[0], parts[1]]
    for k, part in enumerate(parts[2:]):
        halves[k % 2] = halves[k % 2] + part
    grid = RIDGES[1::2] if start.shape[1] > LARGE else RIDGES
    errors = {}
    for ridge in grid:
        errors[ridge] = sum(
            error(solve(halves[a], start, ridge, intercept), halves[1 - a]) for a in (0, 1)
        )  # fmt: skip
    return min(errors, key=lambda ridge: errors[ridge])


def error(found: Fit, moments: Moments) -> float:
    """Mean squared error of a fit on other data, summed over outputs."""
    count = moments.count
    weight, offset = found.weight, found.intercept
    cross = (weight * moments.xy).sum(1)
    square = (weight * (moments.xx @ weight)).sum(1)
    mean = (moments.x[:, None, :] @ weight)[:, 0]
    total = moments.yy - 2 * cross + square + offset * (2 * mean - 2 * moments.y + count * offset)
    return float(total.sum()) / count


def solve(moments: Moments, start: Tensor, ridge: float, intercept: bool = True) -> Fit:
    """The ridge regression itself; see `fit`."""
    if intercept:
        xx, xy, x, y = moments.centred()
    else:
        xx, xy = moments.xx / moments.count, moments.xy / moments.count
        x, y = torch.zeros_like(moments.x), torch.zeros_like(moments.y)
    size = xx.shape[-1]
    scale = xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    damped = xx + (ridge * scale)[:, None, None] * torch.eye(size, dtype=xx.dtype)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if int(failed.max()) != 0:
        factor = torch.linalg.cholesky(damped + (1e-2 * scale)[:, None, None] * torch.eye(size, dtype=xx.dtype))
    weight = start + torch.cholesky_solve(xy - xx @ start, factor)
    offset = y - (x[:, None, :] @ weight)[:, 0]
    return Fit(weight, offset, xx, x, y)


def effective(unit: Unit, weights: dict[str, Tensor]) -> Tensor:
    """The unit's weight with its batch norm folded in, [G, d, o] in float64."""
    flat = matrix(unit, weights[unit.weight])
    if unit.norm is None:
        return flat
    scale = weights[unit.norm.weight].double() / (weights[unit.norm.var].double() + unit.norm.eps).sqrt()
    return flat * scale.reshape(unit.groups, 1, -1)


def install(unit: Unit, found: Fit, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that make the unit compute the fit exactly, in evaluation mode.

    With a batch norm the running statistics become the true ones of the new layer, and scale and shift take the
    rest, so that training goes on from the same function; filters keep their norms (the learning rate means what it
    meant).
    """
    old = weights[unit.weight]
    if unit.norm is None:
        new = {unit.weight: layout(tensor(unit, found.weight, old))}
        if unit.bias:
            new[unit.bias] = found.intercept.reshape(-1).to(old.dtype)
        return new
    before = matrix(unit, old).norm(dim=1)
    size = found.weight.norm(dim=1)
    scale = torch.where((size > 1e-12) & (before > 1e-12), before / size.clamp_min(1e-12), torch.ones_like(size))
    flat = found.weight * scale[:, None, :]
    mean = (found.mean[:, None, :] @ flat)[:, 0].reshape(-1)
    var = (flat * (found.xx @ flat)).sum(1).clamp_min(0).reshape(-1)
    centre = (found.intercept + (found.mean[:, None, :] @ found.weight)[:, 0]).reshape(-1)
    if unit.bias:
        mean = mean + weights[unit.bias].double()
    norm = unit.norm
    return {
        unit.weight: layout(tensor(unit, flat, old)),
        norm.mean: mean.to(weights[norm.mean].dtype),
        norm.var: var.to(weights[norm.var].dtype),
        norm.weight: ((var + norm.eps).sqrt() / scale.reshape(-1)).to(weights[norm.weight].dtype),
        norm.bias: centre.to(weights[norm.bias].dtype),
    }
