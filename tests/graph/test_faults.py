"""A wrong prune must not pass: planted faults, each detected by the proof (or refused outright by the surgery)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import graph_nets as nets
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.errors import PlanError
from edgeprune.graph import Cut, Plan, Structure


class Net(nn.Module):
    """A residual stream, a concat, and tiny last weights behind which a fault could hide from a weak test."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.c, self.d = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 8, 1)
        self.gamma = nn.Parameter(torch.full((8, 1, 1), 1e-6))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        y = torch.relu(self.bn(self.b(x)))
        z = self.d(torch.relu(self.c(torch.cat([x, y], 1)))) * self.gamma
        return self.fc((x + z).mean((2, 3)))


def traced() -> tuple[nn.Module, Structure, Plan]:
    torch.manual_seed(0)
    model = Net()
    structure = edgeprune.trace(model, torch.randn(2, 3, 6, 6))
    plan = structure.plan({"a": [0, 2, 3, 5, 6], "b": [1, 2, 4, 7], "c": [0, 1, 3, 4, 6, 9, 10]})
    return model, structure, plan


def swaps(plan: Plan) -> Iterator[Plan]:
    """Two kept positions of one cut in the wrong order."""
    for i, cut in enumerate(plan.cuts):
        kept = list(cut.kept)
        kept[0], kept[-1] = kept[-1], kept[0]
        yield _with(plan, i, tuple(kept))


def others(plan: Plan, structure: Structure) -> Iterator[Plan]:
    """One cut keeps other positions, as many: a shifted offset in a concat, a wrong channel elsewhere."""
    sizes: dict[tuple[str, int], int] = {}
    for member in (m for g in structure.groups for m in g.members):
        key = (member.parameter, member.axis)
        sizes[key] = max(sizes.get(key, 0), int(member.indices.max()) + 1)
    for i, cut in enumerate(plan.cuts):
        free = sorted(set(range(sizes[cut.parameter, cut.axis])) - set(cut.kept))
        yield _with(plan, i, tuple(sorted([*cut.kept[1:], free[0]])))


def _with(plan: Plan, i: int, kept: tuple[int, ...]) -> Plan:
    cuts = list(plan.cuts)
    cuts[i] = Cut(cuts[i].parameter, cuts[i].axis, kept)
    return replace(plan, cuts=tuple(cuts))


@pytest.mark.long
def test_the_right_plan_passes_far_below_the_tolerance() -> None:
    model, structure, plan = traced()
    proof = structure.prove(model, plan)
    assert proof.passed, proof.detail
    assert proof.max_error < 1e-12


@pytest.mark.long
def test_every_swap_and_every_wrong_choice_is_detected() -> None:
    model, structure, plan = traced()
    wrong = [*swaps(plan), *others(plan, structure)]
    assert len(wrong) >= 30
    for bad in wrong:
        changed = next(c for c, d in zip(bad.cuts, plan.cuts, strict=True) if c != d)
        assert not structure.prove(model, bad).passed, f"missed: {changed}"


@pytest.mark.long
def test_a_forgotten_cut_is_detected() -> None:
    model, structure, plan = traced()
    for i, cut in enumerate(plan.cuts):
        proof = structure.prove(model, replace(plan, cuts=plan.cuts[:i] + plan.cuts[i + 1 :]))
        assert not proof.passed, f"missed: no {cut}"
        assert proof.detail


def _plain() -> nn.Module:
    """Eighteen convolutions with torch's own initial weights: each passes on a third of what it reads."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for _ in range(18):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def _separable() -> nn.Module:
    """Depthwise and pointwise layers, initialised as mobile networks are, with fresh statistics."""
    layers: list[nn.Module] = [nn.Conv2d(3, 96, 3, bias=False), nn.BatchNorm2d(96), nn.ReLU6()]
    for _ in range(8):
        layers += [nn.Conv2d(96, 96, 3, padding=1, groups=96, bias=False), nn.BatchNorm2d(96), nn.ReLU6()]
        layers += [nn.Conv2d(96, 96, 1, bias=False), nn.BatchNorm2d(96), nn.ReLU6()]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 5))


@pytest.mark.long
@pytest.mark.parametrize("make", [_plain, _separable])
def test_a_fault_far_from_the_outputs_of_a_fresh_network_is_detected(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    structure = edgeprune.trace(model, torch.randn(1, 3, 12, 12))
    plan = structure.uniform(0.3)
    assert structure.prove(model, plan).max_error < 1e-12
    for bad in itertools.islice(swaps(plan), 4):
        proof = structure.prove(model, bad)
        assert not proof.passed and proof.max_error > 1e-5


@pytest.mark.long
def test_one_narrowed_name_of_a_tied_weight_is_refused() -> None:
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 6), "c": nn.Linear(6, 8), "o": nn.Linear(8, 2)}
    model = nets.Call(lambda m, x: m.o(m.c(torch.relu(m.b(torch.relu(m.a(x)))))), **layers)
    model.c.weight = model.a.weight
    structure = edgeprune.trace(model, torch.randn(3, 6))
    plan = structure.uniform(0.5)
    names = [c.parameter for c in plan.cuts]
    assert "a.weight" in names and "c.weight" in names
    pruned = plan.apply(model)
    assert pruned.a.weight is pruned.c.weight
    assert structure.prove(model, plan).passed
    less = replace(plan, cuts=tuple(c for c in plan.cuts if not (c.parameter == "c.weight" and c.axis == 0)))
    assert structure.prove(model, less).passed  # the tie alone carries the cut
    wrong = tuple(Cut(c.parameter, c.axis, c.kept[::-1]) if c.parameter == "c.weight" else c for c in plan.cuts)
    with pytest.raises(edgeprune.EdgepruneError, match="tied"):
        replace(plan, cuts=wrong).apply(model)


def test_a_block_that_is_not_an_identity_is_detected() -> None:
    model, structure, _ = traced()
    plan = replace(structure.plan({}), removed=("bn",))
    with pytest.raises(PlanError, match="not a removable block"):
        structure.prove(model, plan)
