"""Learned masks: a closed gate is a pruned unit, what is worth nothing goes first, and the outcome is reproducible."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeprune
from edgeprune.engine import Session, call
from edgeprune.errors import BudgetError, ModelError
from edgeprune.graph import Structure
from edgeprune.latency.variants import options
from edgeprune.search import Evaluator, MaskSettings, Sensitivity, find, learn, masks, measure
from edgeprune.search.gates import Gates, Masked
from edgeprune.target import Channels

RANDOM = torch.Generator().manual_seed(1)
EXAMPLES = torch.randn(256, 3, 8, 8, generator=RANDOM)
GRID = Channels(step=2, input_step=2, depthwise_step=2, minimum=2)
ZERO, PAIRS = (0, 5, 9), ((1, 2), (3, 4), (6, 7))


class Residual(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, 1, 1, groups=inner, bias=False)
        self.conv3 = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv3(torch.relu(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.Sequential(Residual(8, 12), Residual(8, 12), Residual(8, 12))
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool2d(self.blocks(torch.relu(self.stem(x))), 4).flatten(1))


class Two(nn.Module):
    """Two inputs by name, attention with a residual sum in the forward, an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 16), nn.Linear(4, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        x = self.left(left) + self.right(right)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(torch.relu(self.up(x)))
        return self.out(x.mean(1))


class Steps:
    """A device whose kernels cost 1 for each started 2 inputs and 2 outputs."""

    beta = 1.0

    def kernel(self, layer: str, c_in: int, c_out: int) -> float:
        return float(np.ceil(c_in / 2) * np.ceil(c_out / 2))


@pytest.fixture(scope="module")
def net() -> Net:
    """In the first block three units are nothing and three pairs are the same twice; the second block adds nothing."""
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.bias, 0.2, 1.0)
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(2)
        first = net.blocks[0]
        first.bn1.weight[list(ZERO)] = first.bn1.bias[list(ZERO)] = 0.0
        for one, other in PAIRS:
            for value in (first.conv1.weight, first.bn1.bias, first.conv2.weight, first.conv3.weight.transpose(0, 1)):
                value[other] = value[one]
        net.blocks[1].conv3.weight.mul_(0.01)
        net.blocks[1].conv3.bias.zero_()
        net.fc.weight.mul_(2 / net(EXAMPLES).std())
    return net


@pytest.fixture(scope="module")
def structure(net: Net) -> Structure:
    return edgeprune.trace(net, EXAMPLES[:2])


def batch(step: int) -> Tensor:
    return EXAMPLES[torch.randperm(256, generator=torch.Generator().manual_seed(step))[:32]]


def dense(structure: Structure) -> float:
    layers = {layer.name: layer for layer in structure.layers}
    return 1.0 + sum(Steps().kernel(n, la.weight_shape[1] * la.groups, la.weight_shape[0]) for n, la in layers.items())


def learnt(
    net: nn.Module, structure: Structure, share: float = 0.5, steps: int = 120, blocks: bool = True, seed: int = 0,
    folder: Path | None = None, progress: Callable[[int, int, str], None] | None = None,
) -> Sensitivity:  # fmt: skip
    session, allowed = Session(net, EXAMPLES), options(structure, GRID)
    settings = MaskSettings(steps, seed, blocks=blocks)
    return learn(
        structure, session, Steps(), share * dense(structure), allowed, batch, settings, folder=folder,
        progress=progress,
    )  # fmt: skip


@pytest.fixture(scope="module")
def curves(net: Net, structure: Structure) -> Sensitivity:
    return learnt(net, structure, blocks=False)


def test_open_gates_change_nothing_and_closed_ones_are_a_pruned_network(net: Net, structure: Structure) -> None:
    gates = Gates(tuple(structure.groups), tuple(structure.blocks))
    masked, at, places = Masked(net, gates), gates.units(), gates.places()
    values = torch.ones(gates.count)
    with torch.no_grad():
        assert torch.allclose(masked(EXAMPLES, values)[0], net(EXAMPLES), atol=1e-6)
        kept = {"stem": [0, 2, 3, 7], "blocks.2.conv1": [1, 4, 5, 6, 10]}
        for name, units in kept.items():
            values[at[name]] = 0.0
            values[at[name].start + torch.tensor(units)] = 1.0
        values[places["blocks.1"]] = 0.0
        pruned = structure.plan(kept, ["blocks.1"]).apply(net)
        assert torch.allclose(masked(EXAMPLES, values)[0], pruned(EXAMPLES), atol=1e-5)


def test_several_inputs_heads_and_terms_of_sums(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Two().eval()
    examples = {"left": torch.randn(64, 5, 6), "right": torch.randn(64, 5, 4)}
    structure = edgeprune.trace(net, {name: value[:2] for name, value in examples.items()})
    assert {"attention", "up"} <= {group.name.split(".")[0] for group in structure.groups} and structure.blocks
    gates = Gates(tuple(structure.groups), tuple(structure.blocks))
    masked, at, places = Masked(net, gates), gates.units(), gates.places()
    head = next(group for group in structure.groups if group.unit == "head")
    gone = structure.blocks[-1]
    values = torch.ones(gates.count)
    values[at[head.name].start] = values[places[gone.module]] = 0.0
    pruned = structure.plan({head.name: range(1, head.size)}, [gone.module]).apply(net)
    with torch.no_grad():
        assert torch.allclose(masked(examples, torch.ones(gates.count))[0], call(net, examples)[0], atol=1e-6)
        assert torch.allclose(masked(examples, values)[0], call(pruned, examples)[0], atol=1e-5)
    session, allowed = Session(net, examples), options(structure, GRID)
    settings = MaskSettings(20)
    found = learn(structure, session, Steps(), 0.6 * dense(structure), allowed, lambda _: examples, settings)
    assert set(found.orders) == {group.name for group in structure.groups}
    assert set(found.blocks) == {block.module for block in structure.blocks}


def test_hidden_units_of_a_recurrent_layer() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(5, 8, num_layers=2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0])

    torch.manual_seed(0)
    net, examples = Recurrent().eval(), torch.randn(16, 6, 5)
    structure = edgeprune.trace(net, examples[:2])
    gates = Gates(tuple(structure.groups), ())
    masked, at = Masked(net, gates), gates.units()
    for group in structure.groups:
        values = torch.ones(gates.count)
        values[at[group.name].start] = 0.0
        pruned = structure.plan({group.name: range(1, group.size)}).apply(net)
        with torch.no_grad():
            assert torch.allclose(masked(examples, values)[0], pruned(examples), atol=1e-6), group.name
            assert not torch.allclose(pruned(examples), net(examples), atol=1e-4)
    assert {group.unit for group in structure.groups} == {"hidden unit"}


@pytest.mark.long
def test_units_that_are_nothing_go_first_and_of_two_alike_one_stays(curves: Sensitivity) -> None:
    order = curves.orders["blocks.0.conv1"]
    assert set(order[-len(ZERO) :]) == set(ZERO)
    assert all(len(set(order[:5]) & set(pair)) <= 1 for pair in PAIRS), "of the five most valuable no two are alike"


@pytest.mark.long
def test_a_block_that_adds_nothing_is_worth_nothing(net: Net, structure: Structure) -> None:
    found = learnt(net, structure)
    assert found.blocks["blocks.1"] < 0.1 * min(found.blocks["blocks.0"], found.blocks["blocks.2"])


@pytest.mark.long
def test_they_beat_random_and_are_no_worse_than_magnitude(net: Net, structure: Structure, curves: Sensitivity) -> None:
    session, budget = Session(net, EXAMPLES), 0.5 * dense(structure)
    judge, allowed = Evaluator(structure, session), options(structure, GRID)

    def loss(found: Sensitivity) -> float:
        return find(structure, Steps(), budget, found, judge=judge, rounds=3, blocks=False).loss

    mine = loss(curves)
    random, magnitude = (
        loss(measure(structure, session, allowed, saliency=kind, blocks=False)) for kind in ("random", "l2")
    )
    assert mine < random and mine <= magnitude


def test_one_unit_after_the_other_while_the_rest_makes_up_for_it() -> None:
    """Two units that say the same, one that says half of it besides its own, one that nobody misses."""
    answers = torch.tensor([[2.0, 2.0, 0.0, 1.0], [0.0, 0.0, 1.0, 3.0]], dtype=torch.float64)
    order, lost = masks.in_turn(answers.T @ answers, torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    assert set(order[:2]) == {2, order[0]} and len({0, 1} & set(order[:2])) == 1
    assert lost[4] == 0 and lost[2] == pytest.approx(0.0, abs=1e-2), "without its like and the one not missed"
    assert lost[0] == pytest.approx(0.5 * (4 + 1), rel=0.02), "at the end all that is missed is lost"
    assert lost == sorted(lost, reverse=True)


def test_curves_never_increase_and_are_plain_data(structure: Structure, curves: Sensitivity) -> None:
    for group in structure.groups:
        assert curves.widths[group.name] == curves.allowed[group.name] and curves.losses[group.name][-1] == 0.0
        assert list(curves.losses[group.name]) == sorted(curves.losses[group.name], reverse=True)
        assert sorted(curves.orders[group.name]) == list(range(group.size))
    assert Sensitivity.from_dict(json.loads(json.dumps(curves.to_dict()))) == curves


@pytest.mark.long
def test_an_interrupted_learning_ends_the_same_and_is_kept(
    net: Net, structure: Structure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learnt(net, structure, steps=30)
    assert whole.orders == learnt(net, structure, steps=30).orders
    assert whole.orders != learnt(net, structure, steps=30, seed=1).orders
    monkeypatch.setattr(masks, "SAVE_EVERY", 0.0)

    class Stop(Exception):
        pass

    def stop(done: int, total: int, text: str) -> None:
        if done == 18:
            raise Stop

    with pytest.raises(Stop):
        learnt(net, structure, steps=30, folder=tmp_path, progress=stop)
    steps: list[int] = []
    found = learnt(net, structure, steps=30, folder=tmp_path, progress=lambda done, total, text: steps.append(done))
    assert steps[0] == 18 and steps[-1] == 30
    assert (found.orders, found.losses, found.blocks) == (whole.orders, whole.losses, whole.blocks)
    assert not (tmp_path / "checkpoint.pt").exists()
    assert learnt(net, structure, steps=30, folder=tmp_path, progress=lambda *_: pytest.fail("learnt again")) == found


def test_what_cannot_be_learnt_is_one_clear_line(net: Net, structure: Structure) -> None:
    with pytest.raises(BudgetError, match="floor") as caught:
        learnt(net, structure, share=0.001, steps=20, progress=lambda *_: pytest.fail("learnt before it was said"))
    assert f"a budget of {0.001 * dense(structure):.4g} ms" in caught.value.message  # as asked for, not on the way
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
    whole = edgeprune.trace(frozen, EXAMPLES[:2])
    with pytest.raises(ModelError, match="nothing to learn a mask for"):
        learnt(frozen, whole, steps=2)
