"""Repair, orders and statistics on networks small enough to know the answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.engine import Tape, batches, weights_of
from edgeprune.errors import UsageError
from edgeprune.recover.repair import repair
from edgeprune.search.saliency import orders


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 12, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.act = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(Block(8), Block(8), Block(8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.stem(x)))
        return self.fc(x.mean((2, 3)))


def _net() -> Net:
    torch.manual_seed(0)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.5, 1.0)  # every channel lives
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.eval()


IMAGES = torch.rand(96, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _error(net: nn.Module, pruned: nn.Module, images: Tensor = IMAGES) -> float:
    dense = net(images)
    return float((pruned.eval()(images) - dense).norm() / (dense - dense.mean(0)).norm())


def test_a_tape_computes_what_the_network_computes_from_any_point() -> None:
    net = _net()
    tape, weights = Tape.of(net, IMAGES[:32]), weights_of(net)
    values = tape.begin(batches(IMAGES, 32)[0])
    middle = tape.route().steps[len(tape.steps) // 2]
    with torch.no_grad():
        tape.run(values, tape.route(), weights, stop=middle)
        before = dict(values)
        tape.run(values, tape.route(), weights, start=middle)
        again = dict(before)
        tape.run(again, tape.route(), weights, start=middle)
        expected = net(IMAGES[:32])
    found, same = tape.results(values, weights)[0], tape.results(again, weights)[0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(found, same), "a run must not change the values it started from"


@pytest.mark.long
def test_a_route_skips_removed_blocks() -> None:
    net = _net()
    structure = edgeprune.trace(net, IMAGES[:2])
    removed = ("blocks.1", "blocks.2")
    pruned = structure.plan({}, removed).apply(net)
    tape = Tape.of(net, IMAGES[:32])
    values = tape.begin((IMAGES[:32],))
    with torch.no_grad():
        gone = [block for block in structure.blocks if block.module in removed]
        tape.run(values, tape.route(gone), weights_of(pruned))
        assert torch.allclose(tape.results(values, {})[0], pruned(IMAGES[:32]), atol=1e-5)


@pytest.mark.long
def test_a_redundant_channel_is_found_and_repaired_exactly() -> None:
    net = _net()
    block = net.blocks[1]
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(block.bn1, name)[7] = getattr(block.bn1, name)[2]
        block.conv1.weight[7] = block.conv1.weight[2]
    structure = edgeprune.trace(net, IMAGES[:2])
    group = next(g for g in structure.groups if g.name == "blocks.1.conv1")
    order = orders(net, structure, IMAGES)[group.name]
    assert order[-1] in (2, 7), "one of the twins goes first"
    plan = structure.plan({group.name: sorted(order[:-1])})
    pruned = plan.apply(net)
    assert _error(net, pruned) > 0.02
    repair(net, pruned, structure, plan, IMAGES, ridge=1e-9)
    assert _error(net, pruned) < 1e-3


@pytest.mark.long
@pytest.mark.parametrize("removed", [(), ("blocks.1",), ("blocks.1", "blocks.2"), ("blocks.0",)])
def test_repair_brings_the_network_nearer_on_images_it_never_saw(removed: tuple[str, ...]) -> None:
    net = _net()
    structure = edgeprune.trace(net, IMAGES[:2])
    order = orders(net, structure, IMAGES, "l1")
    inner = {name for block in structure.blocks if block.module in removed for name in block.inner}
    kept = {name: sorted(units[: max(1, len(units) * 2 // 3)]) for name, units in order.items() if name not in inner}
    plan = structure.plan(kept, removed)
    pruned = plan.apply(net)
    unseen = torch.rand(64, 3, 10, 10, generator=torch.Generator().manual_seed(2))
    before = _error(net, pruned, unseen)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert repair(net, pruned, structure, plan, IMAGES) is pruned
    assert _error(net, pruned, unseen) < 0.6 * before
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items()), (
        "the dense net is untouched"
    )
    assert not any(value.isnan().any() for value in pruned.state_dict().values())


@pytest.mark.long
def test_nothing_pruned_nothing_changed() -> None:
    net = _net()
    structure = edgeprune.trace(net, IMAGES[:2])
    plan = structure.plan({})
    pruned = plan.apply(net)
    repair(net, pruned, structure, plan, IMAGES)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in pruned.state_dict().items())


@pytest.mark.long
def test_the_repaired_function_is_the_same_in_training_statistics() -> None:
    """Running statistics are the true ones, so that fine-tuning starts from what was fitted."""
    net = _net()
    structure = edgeprune.trace(net, IMAGES[:2])
    plan = structure.plan({"blocks.0.conv1": range(6)})
    pruned = repair(net, plan.apply(net), structure, plan, IMAGES)
    trained = repair(net, plan.apply(net), structure, plan, IMAGES).train()
    with torch.no_grad():
        norm = trained.blocks[2].bn2
        norm.momentum = 1.0
        mean, var = norm.running_mean.clone(), norm.running_var.clone()
        for other in trained.modules():
            if isinstance(other, nn.BatchNorm2d) and other is not norm:
                other.eval()
        trained(IMAGES)
        assert torch.allclose(mean, norm.running_mean, atol=0.05 * float(var.sqrt().max()))
        assert torch.allclose(var, norm.running_var, rtol=0.1)
        assert _error(net, pruned) < 1.0


@pytest.mark.long
@pytest.mark.parametrize("kind", ["obs", "l1", "l2", "bn-scale", "taylor", "fisher", "random"])
def test_every_order_is_a_permutation_and_a_dead_channel_goes_early(kind: str) -> None:
    net = _net()
    with torch.no_grad():
        block = net.blocks[0]
        block.conv1.weight[5] = 0
        block.bn1.weight[5] = 0
        block.bn1.bias[5] = 0
        block.conv2.weight[:, 5] = 0
    structure = edgeprune.trace(net, IMAGES[:2])
    found = orders(net, structure, IMAGES, kind, seed=3)  # type: ignore[arg-type]
    for group in structure.groups:
        assert sorted(found[group.name]) == list(range(group.size))
    if kind != "random":
        assert found["blocks.0.conv1"][-1] == 5
    assert found == orders(net, structure, IMAGES, kind, seed=3)  # type: ignore[arg-type]


@pytest.mark.long
def test_an_unknown_order_is_refused() -> None:
    net = _net()
    with pytest.raises(UsageError, match="no saliency 'taylr'"):
        orders(net, edgeprune.trace(net, IMAGES[:2]), IMAGES, "taylr")  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["taylor", "fisher"])
@pytest.mark.parametrize("frozen", ["", "blocks.0"], ids=["all", "a part"])
def test_frozen_parameters_are_ranked_as_if_they_were_not(kind: str, frozen: str) -> None:
    net = _net()
    structure = edgeprune.trace(net, IMAGES[:2])
    wanted = orders(net, structure, IMAGES, kind)  # type: ignore[arg-type]
    net.get_submodule(frozen).requires_grad_(False)
    before = [p.requires_grad for p in net.parameters()]
    assert orders(net, structure, IMAGES, kind) == wanted  # type: ignore[arg-type]
    assert [p.requires_grad for p in net.parameters()] == before
