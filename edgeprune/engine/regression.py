"""Ridge regression of a layer's wanted results on its inputs, from second moments or, where rows are few, from rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from edgeprune.engine.examples import layout
from edgeprune.engine.layers import AffineLayer, matrix, tensor

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

    def solve(self, start: Tensor, ridge: float, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """Weight [G, d, o] and intercept [G, o]; see `fit`."""
        if intercept:
            xx, xy, x, y = self.centred()
        else:
            xx, xy = self.xx / self.count, self.xy / self.count
            x, y = torch.zeros_like(self.x), torch.zeros_like(self.y)
        scale = xx.diagonal(dim1=1, dim2=2).mean(1)
        weight = start + torch.cholesky_solve(xy - xx @ start, _factor(xx, ridge, scale))
        return weight, y - (x[:, None, :] @ weight)[:, 0]

    def error(self, weight: Tensor, intercept: Tensor) -> float:
        """Mean squared error of a fit on these data, summed over outputs."""
        cross = (weight * self.xy).sum(1)
        square = (weight * (self.xx @ weight)).sum(1)
        mean = (self.x[:, None, :] @ weight)[:, 0]
        total = self.yy - 2 * cross + square + intercept * (2 * mean - 2 * self.y + self.count * intercept)
        return float(total.sum()) / self.count

    def second_moments(self, centred: bool) -> Tensor:
        """Of the inputs, [G, d, d]; about their mean where an intercept takes that."""
        return self.centred()[0] if centred else self.xx / self.count

    def products(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of x W over the rows, [G, o] each."""
        xx, _, x, _ = self.centred()
        return (x[:, None, :] @ weight)[:, 0], (weight * (xx @ weight)).sum(1).clamp_min(0)


@dataclass(frozen=True, eq=False)
class Samples:
    """The rows themselves, float32: inputs [G, R, d], targets [G, R, o].

    With fewer rows than unknowns the same ridge regression needs a system of R equations only: for a layer of 4,608
    inputs and 512 rows a seven-hundredth of the work.
    """

    inputs: Tensor
    targets: Tensor

    @staticmethod
    def of(inputs: Tensor, targets: Tensor) -> Samples:
        """Of one batch."""
        return Samples(inputs, targets)

    def __add__(self, other: Samples) -> Samples:
        return Samples(torch.cat([self.inputs, other.inputs], 1), torch.cat([self.targets, other.targets], 1))

    @property
    def count(self) -> int:
        """Rows."""
        return self.inputs.shape[1]

    @cached_property
    def _centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs about their mean, their products [G, R, R] over R, and the mean."""
        mean = self.inputs.mean(1)
        x = self.inputs - mean[:, None]
        return x, (x @ x.transpose(1, 2)).double() / self.count, mean

    def solve(self, start: Tensor, ridge: float, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """Weight [G, d, o] and intercept [G, o]; see `fit`."""
        wanted = self.targets.double()
        if intercept:
            x, products, mean = self._centred
            y = wanted.mean(1)
        else:
            x, mean = self.inputs, torch.zeros_like(self.inputs[:, 0])
            products = (x @ x.transpose(1, 2)).double() / self.count
            y = torch.zeros_like(wanted[:, 0])
        scale = products.diagonal(dim1=1, dim2=2).sum(1) / x.shape[-1]
        missing = (wanted - y[:, None] - (x @ start.float()).double()) / self.count
        dual = torch.cholesky_solve(missing, _factor(products, ridge, scale))
        weight = start + (x.transpose(1, 2) @ dual.float()).double()
        return weight, y - (mean.double()[:, None, :] @ weight)[:, 0]

    def error(self, weight: Tensor, intercept: Tensor) -> float:
        """Mean squared error of a fit on these data, summed over outputs."""
        left = self.targets - self.inputs @ weight.float() - intercept.float()[:, None]
        return float(left.double().square().sum()) / self.count

    def second_moments(self, centred: bool) -> Tensor:
        """Of the inputs, [G, d, d]; about their mean where an intercept takes that."""
        x = self._centred[0] if centred else self.inputs
        return (x.transpose(1, 2) @ x).double() / self.count

    def products(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of x W over the rows, [G, o] each."""
        x, _, mean = self._centred
        return (mean.double()[:, None, :] @ weight)[:, 0], (x @ weight.float()).double().square().mean(1)


Data = Moments | Samples


def _factor(xx: Tensor, ridge: float, scale: Tensor) -> Tensor:
    """Cholesky factor of xx + ridge * scale."""
    scale = scale.clamp_min(1e-30)[:, None, None] * torch.eye(xx.shape[-1], dtype=xx.dtype, device=xx.device)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(xx + ridge * scale)
    if int(failed.max()) != 0:
        factor = torch.linalg.cholesky(xx + (ridge + 1e-2) * scale)
    return factor


class Gathered:
    """Data for one layer's fit, batch by batch, in two halves: what one fits is judged on the other."""

    def __init__(self, rows: int, unknowns: int) -> None:
        """`rows`: how many there will be."""
        self.kind: type[Moments] | type[Samples] = Samples if rows <= unknowns else Moments
        self.parts: list[Data] = []

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """One batch: inputs [G, R, d], targets [G, R, o]."""
        part = self.kind.of(inputs, targets)
        if len(self.parts) < 2:
            self.parts.append(part)
        else:
            self.parts = [self.parts[1], self.parts[0] + part]  # type: ignore[operator]


@dataclass(frozen=True, eq=False)
class Fit:
    """The best affine map: weight [G, d, o], intercept [G, o]; mean and variance of x W over its data, [G, o] each."""

    weight: Tensor
    intercept: Tensor
    mean: Tensor
    variance: Tensor


def fit(
    parts: Sequence[Data],
    start: Tensor,
    intercept: bool = True,
    ridge: float | None = None,
    project: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Fit:
    """Minimise |y - x W - b|^2 + ridge * mean variance * |W - start|^2; without b when there is nowhere to put it.

    Args:
        parts: disjoint images, all of one kind; what one part fits is judged on the others to choose the ridge.
        start: [G, d, o], the weights that are there.
        ridge: taken as given instead.
        project: (weight, second moments of the inputs) -> the nearest weight that the layer can hold.
    """
    if ridge is None:
        ridge = choose_ridge(parts, start, intercept)
    total = _sum(parts)
    weight, offset = total.solve(start, ridge, intercept)
    if project is not None:
        held = project(weight, total.second_moments(intercept))
        offset = offset + total.products(weight)[0] - total.products(held)[0] if intercept else offset
        weight = held
    return Fit(weight, offset, *total.products(weight))


def _sum(parts: Sequence[Data]) -> Data:
    total = parts[0]
    for part in parts[1:]:
        total = total + part  # type: ignore[operator]
    return total


def choose_ridge(parts: Sequence[Data], start: Tensor, intercept: bool = True) -> float:
    """The ridge whose fit on one half of the parts loses least on the other, both ways round."""
    if len(parts) < 2:
        return 1e-2
    halves = [_sum(parts[0::2]), _sum(parts[1::2])]
    grid = RIDGES[1::2] if start.shape[1] > LARGE else RIDGES
    errors = {
        ridge: sum(halves[1 - a].error(*halves[a].solve(start, ridge, intercept)) for a in (0, 1)) for ridge in grid
    }
    return min(errors, key=lambda ridge: errors[ridge])


def effective(layer: AffineLayer, weights: Mapping[str, Tensor]) -> Tensor:
    """The layer's weight with its batch norm folded in, [G, d, o] in float64."""
    flat = matrix(layer, weights[layer.weight])
    if layer.norm is None:
        return flat
    scale = weights[layer.norm.weight].double() / (weights[layer.norm.var].double() + layer.norm.eps).sqrt()
    return flat * scale.reshape(layer.groups, 1, -1)


def install(layer: AffineLayer, found: Fit, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that make the layer compute the fit exactly, in evaluation mode.

    With a batch norm the running statistics become the true ones of the new layer, and scale and shift take the
    rest, so that training goes on from the same function; filters keep their norms (the learning rate means what it
    meant).
    """
    old = weights[layer.weight]
    if layer.norm is None:
        new = {layer.weight: layout(tensor(layer, found.weight, old))}
        if layer.bias:
            new[layer.bias] = found.intercept.reshape(-1).to(old.dtype)
        return new
    before = matrix(layer, old).norm(dim=1)
    size = found.weight.norm(dim=1)
    scale = torch.where((size > 1e-12) & (before > 1e-12), before / size.clamp_min(1e-12), torch.ones_like(size))
    flat = found.weight * scale[:, None, :]
    mean = (found.mean * scale).reshape(-1)
    var = (found.variance * scale * scale).reshape(-1)
    centre = (found.intercept + found.mean).reshape(-1)
    if layer.bias:
        mean = mean + weights[layer.bias].double()
    norm = layer.norm
    return {
        layer.weight: layout(tensor(layer, flat, old)),
        norm.mean: mean.to(weights[norm.mean].dtype),
        norm.var: var.to(weights[norm.var].dtype),
        norm.weight: ((var + norm.eps).sqrt() / scale.reshape(-1)).to(weights[norm.weight].dtype),
        norm.bias: centre.to(weights[norm.bias].dtype),
    }
