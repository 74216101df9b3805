"""What the plan takes away is pressed to nothing before the cut, all else stays; an interruption changes nothing."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from test_train import split
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import RecipeError
from edgeprune.graph import Plan, Structure
from edgeprune.recipe import RecoverSection
from edgeprune.recover import Penalty, train

LOOP = sys.modules["edgeprune.recover.loop"]
OPTIONS = RecoverSection(epochs=4, batch=16, lr=0.02, ema=0.0, schedule="constant", precision="fp32")
GONE = (1, 4, 6)  # units of the first layer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.block = Block()
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(x)))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def structure(net: Net) -> Structure:
    return edgeprune.trace(net, torch.rand(2, 3, 8, 8))


@pytest.fixture(scope="module")
def plan(structure: Structure) -> Plan:
    return structure.plan({"conv1": [k for k in range(8) if k not in GONE]})


def units(network: Net) -> Tensor:
    """[8]: the norm of all weights of each unit of the first layer's group."""
    made = network.conv1.weight.flatten(1).square().sum(1) + network.conv1.bias**2
    norm = network.bn1.weight**2 + network.bn1.bias**2
    read = network.block.conv1.weight.square().sum((0, 2, 3)) + network.fc.weight.square().sum(0)
    added = network.block.conv2.weight.flatten(1).square().sum(1) + network.block.conv2.bias**2
    return (made + norm + read + added).detach().sqrt()


def sparse(net: Net, structure: Structure, plan: Plan, kind: str, folder: Path, epochs: float = 4) -> Net:
    network, options = copy.deepcopy(net), msgspec.structs.replace(OPTIONS, epochs=epochs)
    train(network, net, split(64, 0), split(16, 1), options, folder, penalty=Penalty(network, structure, plan, kind))
    return network


@pytest.mark.long
@pytest.mark.parametrize("kind", ["l2", "l1", "group-lasso"])
def test_units_that_go_are_pressed_to_nothing_and_others_stay(
    net: Net, structure: Structure, plan: Plan, kind: str, tmp_path: Path
) -> None:
    found = sparse(net, structure, plan, kind, tmp_path, 32)
    before, after = units(net), units(found)
    gone = torch.tensor(GONE)
    stay = torch.tensor([k for k in range(8) if k not in GONE])
    assert float((after[gone] / before[gone]).max()) < 0.1
    assert float((after[stay] / before[stay]).min()) > 0.95


@pytest.mark.long
def test_scales_alone_are_pressed_to_nothing(net: Net, structure: Structure, plan: Plan, tmp_path: Path) -> None:
    found = sparse(net, structure, plan, "bn-scale", tmp_path, 32)
    scale = found.bn1.weight.detach().abs()
    gone = torch.tensor([k in GONE for k in range(8)])
    assert float(scale[gone].max()) < 0.1 < 0.9 < float(scale[~gone].min())


def test_the_penalty_is_the_norm_of_exactly_what_goes(net: Net, structure: Structure, plan: Plan) -> None:
    gone = torch.tensor(GONE)
    squares = units(net)[gone].square()
    l2 = Penalty(net, structure, plan, "l2", 2.0)
    assert float(l2(1.0).detach()) == pytest.approx(2.0 * 0.5 * float(squares.sum()), rel=1e-5)
    assert float(l2(0.0).detach()) == 0 and float(l2(0.5).detach()) == pytest.approx(float(l2(1.0).detach()) / 2)
    assert l2.size() == pytest.approx(float(squares.sum()) ** 0.5, rel=1e-5)
    each = 3 * 9 + 1 + 2 + 6 + 3 + 6 + 1  # numbers of one unit
    lasso = Penalty(net, structure, plan, "group-lasso")
    assert float(lasso(1.0).detach()) == pytest.approx(0.1 * each**0.5 * float(squares.sqrt().sum()), rel=1e-4)
    scale = Penalty(net, structure, plan, "bn-scale")
    assert float(scale(1.0).detach()) == pytest.approx(0.3 * float(net.bn1.weight.detach()[gone].abs().sum()), rel=1e-5)


def test_a_block_that_goes_is_one_unit(net: Net, structure: Structure) -> None:
    plan = structure.plan({}, [block.module for block in structure.blocks])
    penalty = Penalty(net, structure, plan, "l1")
    whole = sum(float(p.detach().abs().sum()) for p in net.block.parameters())
    assert float(penalty(1.0).detach()) == pytest.approx(0.1 * whole, rel=1e-5)
    lasso = Penalty(net, structure, plan, "group-lasso")
    numbers = sum(p.numel() for p in net.block.parameters())
    norm = sum(float(p.detach().square().sum()) for p in net.block.parameters()) ** 0.5
    assert float(lasso(1.0).detach()) == pytest.approx(0.1 * numbers**0.5 * norm, rel=1e-4)


def test_its_gradient_is_finite_at_zero(net: Net, structure: Structure, plan: Plan) -> None:
    network = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for kind in ("l2", "l1", "group-lasso", "bn-scale"):
        network.zero_grad()
        Penalty(network, structure, plan, kind)(1.0).backward()
        assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None), kind


@pytest.mark.long
def test_an_interrupted_training_ends_with_the_same_weights(
    net: Net, structure: Structure, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sparse(net, structure, plan, "group-lasso", tmp_path / "whole")
    monkeypatch.setattr(LOOP, "CHECKPOINT_SECONDS", 0.0)

    class Stop(Exception):
        pass

    def stop(done: float, total: float, message: str) -> None:
        if done == 9:
            raise Stop

    network = copy.deepcopy(net)
    penalty = Penalty(network, structure, plan, "group-lasso")
    with pytest.raises(Stop):
        train(
            network, net, split(64, 0), split(16, 1), OPTIONS, tmp_path / "cut", penalty=penalty, progress=stop
        )  # fmt: skip
    network = copy.deepcopy(net)
    penalty = Penalty(network, structure, plan, "group-lasso")
    found = train(network, net, split(64, 0), split(16, 1), OPTIONS, tmp_path / "cut", penalty=penalty)
    assert found.resumed == 9
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), whole.state_dict().values(), strict=True)
    )


def test_another_plan_starts_anew(net: Net, structure: Structure, plan: Plan) -> None:
    other = structure.plan({"conv1": list(range(5))})
    assert Penalty(net, structure, plan, "l2").key != Penalty(net, structure, other, "l2").key


def test_a_plan_that_takes_nothing_away_is_refused(net: Net, structure: Structure) -> None:
    with pytest.raises(RecipeError, match="takes no unit and no block away"):
        Penalty(net, structure, structure.plan({}), "l2")
