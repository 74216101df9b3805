"""Before the cut: a penalty that grows, on exactly those weights that the plan takes away.

The dense network is trained on while what will go is pressed towards zero and all else may take over, so that the cut
takes little away. The penalty's strength rises in proportion to what is done of the training; it lies on all weights
of a unit together: those that make it, its norm's scale and shift, and those that read it. A removed block's weights
are one unit.

Sources: growing regularisation, Wang et al., arXiv:2012.09243; group lasso over coupled weights, DepGraph,
arXiv:2301.12900; scales of batch norm, Liu et al., arXiv:1708.06519.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import RecipeError

if TYPE_CHECKING:
    from edgeprune.graph import Group, Plan, Structure

# Of each penalty at its end, where sparsity_strength is 1. l2 is the ceiling of the growing regularisation's paper; l1
# and group-lasso take some 0.7 off a weight in two epochs of 45,000 at the default rate, momentum and batch.
STRENGTH = {"l2": 1.0, "l1": 0.1, "group-lasso": 0.1, "bn-scale": 0.3}
TINY = 1e-12  # under the root of a norm: its gradient stays finite at zero


@dataclass(frozen=True)
class Pressed:
    """Weights that go: of a parameter the positions [units, k] along an axis; all of it where there is no axis."""

    name: str
    parameter: nn.Parameter
    axis: int = 0
    spots: Tensor | None = None

    def taken(self) -> Tensor:
        """[units, numbers]."""
        if self.spots is None:
            return self.parameter.reshape(1, -1)
        picked = self.parameter.index_select(self.axis, self.spots.reshape(-1).to(self.parameter.device))
        return picked.movedim(self.axis, 0).reshape(len(self.spots), -1)


class Penalty:
    """(share done) -> what is added to the loss.

    Args:
        network: that is trained; its parameters are looked up by name.
        structure, plan: which units and blocks of it go.
        kind: of `STRENGTH`. With bn-scale it lies on the scales of batch norms, as l1 where a unit has none.
        strength: times that kind's own.

    Raises:
        RecipeError: nothing goes that the penalty could lie on.
    """

    def __init__(self, network: nn.Module, structure: Structure, plan: Plan, kind: str, strength: float = 1.0) -> None:
        self.kind, self.strength = kind, strength * STRENGTH[kind]
        self.key = f"{plan.configuration.key} {sorted((name, list(kept)) for name, kept in plan.kept.items())}"
        parameters = {n: p for n, p in network.named_parameters(remove_duplicate=False) if p.is_floating_point()}
        vanished = {name for block in structure.gone(plan) for name in block.inner}
        cut = [group for group in structure.groups if group.name in plan.kept and group.name not in vanished]
        every = [_units(group, plan.kept[group.name], parameters) for group in cut]
        every += [
            [Pressed(name, parameter) for name, parameter in parameters.items() if block.holds(name)]
            for block in structure.gone(plan)
            if block.kind != "repeat"  # without its weights it is no identity
        ]
        self.places = [_scales(places, network) if kind == "bn-scale" else places for places in every if places]
        if not self.places:
            raise RecipeError(
                f'[recover] sparsity = "{kind}": the plan takes no unit and no block away that it could lie on.',
                'Use sparsity = "none".',
            )

    def __call__(self, done: float) -> Tensor:
        """A scalar; `done`: share of the training before the cut."""
        parts = [self._of([place.taken() for place in places]) for places in self.places]
        return self.strength * done * torch.stack(parts).sum()

    def size(self) -> float:
        """The norm of all weights that it lies on."""
        with torch.no_grad():
            each = [float(_squares([place.taken() for place in places]).sum()) for places in self.places]
        return math.sqrt(sum(each))

    def _of(self, values: list[Tensor]) -> Tensor:
        if self.kind in ("l1", "bn-scale"):
            return torch.stack([value.abs().sum() for value in values]).sum()
        squares = _squares(values)
        if self.kind == "l2":
            return 0.5 * squares.sum()
        return math.sqrt(sum(value.shape[1] for value in values)) * (squares + TINY).sqrt().sum()


def _units(group: Group, kept: Sequence[int], parameters: Mapping[str, nn.Parameter]) -> list[Pressed]:
    """Where the units of a group that go lie; a tied parameter counts once."""
    units, found = np.setdiff1d(np.arange(group.size), np.asarray(kept)), dict[tuple[int, int], Pressed]()
    for member in group.members:
        parameter = parameters.get(member.parameter)
        if parameter is not None and len(units):
            spots = torch.as_tensor(np.ascontiguousarray(member.indices[units]))
            found.setdefault((id(parameter), member.axis), Pressed(member.parameter, parameter, member.axis, spots))
    return list(found.values())


def _scales(places: list[Pressed], network: nn.Module) -> list[Pressed]:
    """The scales of batch norms among them; all of them where there is none."""
    modules = dict(network.named_modules())
    batch = nn.modules.batchnorm._BatchNorm
    stems = {place.name: place.name.rpartition(".") for place in places}
    norms = [p for p in places if stems[p.name][2] == "weight" and isinstance(modules.get(stems[p.name][0]), batch)]
    return norms or places


def _squares(values: list[Tensor]) -> Tensor:
    """[units]: the sum of squares of each."""
    return torch.stack([value.square().sum(1) for value in values]).sum(0)
