"""The search on a small network: curves, the program of a real structure, correction, the callable package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.engine import Session
from edgeprune.errors import BudgetError
from edgeprune.graph import Structure
from edgeprune.latency.variants import options
from edgeprune.recipe import RecoverSection, SearchSection
from edgeprune.search import Again, Evaluator, SearchResult, Sensitivity, find, formulate, measure, to_plan
from edgeprune.search.curves import isotonic, spread
from edgeprune.search.evaluator import Verdict
from edgeprune.search.program import Assignment
from edgeprune.target import Channels

IMAGES = torch.rand(96, 3, 10, 10, generator=torch.Generator().manual_seed(1))
GRID = Channels(step=4, input_step=4, depthwise_step=4, minimum=4)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 16, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return x + self.bn3(self.conv3(y))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.Sequential(Residual(8), Residual(8), Residual(8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem(x)))
        return self.fc(x.mean((2, 3)))


class Steps:
    """A device whose kernels cost 1 for each started 4 inputs and 8 outputs."""

    beta = 1.0

    def kernel(self, layer: str, c_in: int, c_out: int) -> float:
        return float(np.ceil(c_in / 4) * np.ceil(c_out / 8))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0.2, 1.0)
    with torch.no_grad():
        net.blocks[1].bn3.weight.mul_(0.01)  # this block adds next to nothing
        net.fc.weight.mul_(4)
    return net.eval()


@pytest.fixture(scope="module")
def structure(net: Net) -> Structure:
    return edgeprune.trace(net, IMAGES[:2])


@pytest.fixture(scope="module")
def curves(net: Net, structure: Structure) -> Sensitivity:
    return measure(structure, Session(net, IMAGES), options(structure, GRID))


def test_curves_know_the_idle_block_and_never_increase(structure: Structure, curves: Sensitivity) -> None:
    assert set(curves.blocks) == {block.module for block in structure.blocks} == {f"blocks.{k}" for k in range(3)}
    assert curves.blocks["blocks.1"] < 0.05 * min(curves.blocks["blocks.0"], curves.blocks["blocks.2"])
    for group in structure.groups:
        assert curves.widths[group.name][-1] == group.size and curves.losses[group.name][-1] == 0.0
        assert list(curves.losses[group.name]) == sorted(curves.losses[group.name], reverse=True)
        values = [curves.loss(group.name, k) for k in range(1, group.size + 1)]
        assert values == sorted(values, reverse=True) and values[-1] == 0.0


def test_a_curve_is_what_the_pruned_network_truly_loses(net: Net, structure: Structure, curves: Sensitivity) -> None:
    """Masking at the consumers is pruning: the curve's KL against a narrowed module with the same repair."""
    from edgeprune.recover.repair import repair

    name = "blocks.2.conv1"
    width = curves.widths[name][0]
    plan = structure.plan({name: curves.keep(name, width)})
    pruned = repair(net, plan.apply(net), structure, plan, IMAGES)
    with torch.no_grad():
        dense, other = (torch.log_softmax(n(IMAGES), -1) for n in (net, pruned))
        loss = float((dense.exp() * (dense - other)).sum(-1).mean())
    assert loss <= curves.losses[name][0] * 1.2 + 1e-4
    assert curves.losses[name][0] > 0


@pytest.mark.long
def test_curves_are_cached_and_resumed(net: Net, structure: Structure, curves: Sensitivity, tmp_path: Path) -> None:
    cache, allowed = tmp_path / "curves.json", options(structure, GRID)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == total - 1:
            raise Stop

    from edgeprune.search import curves as module

    module.SAVE_EVERY, before = 0.0, module.SAVE_EVERY
    try:
        with pytest.raises(Stop):
            measure(structure, Session(net, IMAGES), allowed, cache=cache, progress=stop)
    finally:
        module.SAVE_EVERY = before
    assert "partial" in json.loads(cache.read_text())
    resumed = measure(structure, Session(net, IMAGES), allowed, cache=cache)
    assert resumed.blocks == pytest.approx(curves.blocks) and resumed.orders == curves.orders
    stamp = cache.stat().st_mtime_ns
    assert measure(structure, Session(net, IMAGES), allowed, cache=cache) == resumed
    assert cache.stat().st_mtime_ns == stamp
    assert Sensitivity.from_dict(json.loads(json.dumps(resumed.to_dict()))) == resumed
    other = measure(structure, Session(net, IMAGES[:64]), allowed, cache=cache)
    assert other.images == 64, "other images, other curves"


def test_the_program_is_the_predictor(structure: Structure, curves: Sensitivity) -> None:
    program = formulate(structure, Steps(), curves)
    layers = {layer.name: layer for layer in structure.layers}
    dense = 1.0 + sum(Steps().kernel(n, la.weight_shape[1] * la.groups, la.weight_shape[0]) for n, la in layers.items())
    assert program.totals(program.dense()).ms == pytest.approx(dense)
    assert program.totals(program.dense()).loss == 0


@pytest.mark.parametrize("share", [0.9, 0.6, 0.35])
def test_the_plan_fits_the_budget_and_runs(net: Net, structure: Structure, curves: Sensitivity, share: float) -> None:
    program = formulate(structure, Steps(), curves)
    budget = share * program.totals(program.dense()).ms
    plan = edgeprune.search(structure, Steps(), budget, curves)
    pruned = plan.apply(net)
    ms = 1.0
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d):
            ms += Steps().kernel("", module.in_channels, module.out_channels)
        elif isinstance(module, nn.Linear):
            ms += Steps().kernel("", module.in_features, module.out_features)
    assert ms <= budget
    assert structure.prove(net, plan).passed
    if share == 0.6:
        narrowest = min(curves.allowed["blocks.1.conv1"])
        gone = "blocks.1" in plan.removed or len(plan.kept["blocks.1.conv1"]) == narrowest
        assert gone, "the block that adds nothing goes first, or is as narrow as it can be"


def test_the_limit_on_bytes_counts_the_weights_that_are_left(
    net: Net, structure: Structure, curves: Sensitivity
) -> None:
    program = formulate(structure, Steps(), curves, sizes=True)
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    dense = program.totals(program.dense())
    assert dense.bytes == sum(layer.weight.numel() for layer in layers)
    limit = 0.6 * dense.bytes
    pruned = find(structure, Steps(), dense.ms, curves, max_bytes=limit).plan.apply(net)
    left = sum(m.weight.numel() for m in pruned.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert 0.5 * limit < left <= limit


def test_without_blocks_and_below_the_floor(structure: Structure, curves: Sensitivity) -> None:
    program = formulate(structure, Steps(), curves)
    dense = program.totals(program.dense()).ms
    assert edgeprune.search(structure, Steps(), 0.6 * dense, curves, blocks=False).removed == ()
    with pytest.raises(BudgetError, match="blocks = true"):
        find(structure, Steps(), 0.2 * dense, curves, blocks=False)


def test_the_best_evaluated_network_is_kept(net: Net, structure: Structure, curves: Sensitivity) -> None:
    program = formulate(structure, Steps(), curves)
    budget = 0.5 * program.totals(program.dense()).ms
    first = find(structure, Steps(), budget, curves)
    seen: list[tuple[str, ...]] = []

    def judge(plan: edgeprune.Plan) -> Verdict:
        """Says that the first answer is bad and that any other is better."""
        seen.append(plan.removed)
        same = {g: len(u) for g, u in plan.kept.items()} == {g: len(u) for g, u in first.plan.kept.items()}
        return Verdict(9.0 if same and plan.removed == first.plan.removed else 1.0 + len(seen), 0.5)

    result = find(structure, Steps(), budget, curves, judge=judge, rounds=3, front=[0.7 * budget, 0.9 * budget])
    assert result.loss == min(item.loss for item in result.rounds)
    assert result.predicted <= budget and result.gap <= 1e-4
    assert [point.budget for point in result.front] == [0.7 * budget, 0.9 * budget]
    assert json.loads(json.dumps(result.to_dict()))["rounds"][0]["loss"] == 9.0
    assert isinstance(result, SearchResult)


@pytest.mark.parametrize("cuts", ["blocks", "widths"])
def test_blocks_alone_and_widths_alone_are_evaluated_too(structure: Structure, curves: Sensitivity, cuts: str) -> None:
    dense = {group.name: group.size for group in structure.groups}
    budget = 0.7 * formulate(structure, Steps(), curves).totals(formulate(structure, Steps(), curves).dense()).ms

    def judge(plan: edgeprune.Plan) -> Verdict:
        narrowed = any(len(units) < dense[name] for name, units in plan.kept.items())
        wanted = (bool(plan.removed), narrowed) == (cuts == "blocks", cuts == "widths")
        return Verdict(1.0 if wanted else 2.0, 0.5)

    result = find(structure, Steps(), budget, curves, judge=judge)
    assert result.loss == 1.0 and result.predicted <= budget, [(item.cuts, item.removed) for item in result.rounds]
    assert bool(result.plan.removed) == (cuts == "blocks")


@pytest.mark.long
def test_trials_are_evaluated_and_never_make_it_worse(structure: Structure, curves: Sensitivity) -> None:
    close = {  # so that a small change of a factor changes the answer
        name: tuple((1 - width / max(widths)) ** 2 for width in widths) for name, widths in curves.widths.items()
    }
    curves = replace(curves, losses=close, blocks=dict.fromkeys(curves.blocks, 0.36))
    program = formulate(structure, Steps(), curves)
    budget = 0.5 * program.totals(program.dense()).ms

    def judge(plan: edgeprune.Plan) -> Verdict:
        return Verdict(1.0 + abs(sum(map(len, plan.kept.values())) - 60) + len(plan.removed), 0.5)

    few = find(structure, Steps(), budget, curves, judge=judge, rounds=1)
    more = find(structure, Steps(), budget, curves, judge=judge, rounds=1, trials=12)
    again = find(structure, Steps(), budget, curves, judge=judge, rounds=1, trials=12)
    assert len(more.rounds) > len(few.rounds) and more.loss <= few.loss
    assert all(item.ms <= budget for item in more.rounds)
    assert again.widths == more.widths and again.plan.removed == more.plan.removed  # seeded


def test_trials_find_a_better_block_of_the_same_stage(structure: Structure, curves: Sensitivity) -> None:
    names = sorted(curves.blocks)
    curves = replace(curves, blocks={name: 1 + 0.01 * k for k, name in enumerate(names)})
    program = formulate(structure, Steps(), curves, widths=False)
    dense = program.totals(program.dense()).ms

    def judge(plan: edgeprune.Plan) -> Verdict:
        return Verdict(1.0 + (names[0] in plan.removed), 0.5)

    few, more = (
        find(structure, Steps(), 0.95 * dense, curves, judge=judge, rounds=1, widths=False, trials=trials)
        for trials in (0, 12)
    )
    assert few.plan.removed == (names[0],) and few.loss == 2.0
    assert len(more.plan.removed) == 1 and more.loss == 1.0


def test_a_stitched_network_is_judged_after_its_repair(net: Net, structure: Structure, curves: Sensitivity) -> None:
    judge = Evaluator(structure, Session(net, IMAGES))
    assert judge(structure.plan({})).loss == pytest.approx(0.0, abs=1e-6)
    assert judge(structure.plan({})).agreement == 1.0
    good = to_plan(structure, curves, edgeprune.search.solve(formulate(structure, Steps(), curves), [60.0])[0].choice)
    bad = structure.plan({"stem": curves.keep("stem", 4)} if "stem" in curves.orders else {}, ("blocks.0", "blocks.2"))
    assert 0 <= judge(good).loss < 0.1 * judge(bad).loss


def test_the_package_and_the_function_are_one_door() -> None:
    import edgeprune.search as package

    assert callable(package) and callable(edgeprune.search)
    assert package.search is not package and package.measure is measure


def test_pieces() -> None:
    assert isotonic([3.0, 4.0, 1.0, 2.0, 0.0]) == (3.5, 3.5, 1.5, 1.5, 0.0)
    assert isotonic([-1.0, 0.5, 0.0]) == (0.25, 0.25, 0.0)
    assert spread([8]) == (8,)
    assert spread([8, 16]) == (8, 16)
    assert len(spread(list(range(8, 520, 8)))) == 5 and spread(list(range(8, 520, 8)))[0] == 8


def test_closure_asks_several_programs_and_keeps_the_best_evaluated(structure: Structure, curves: Sensitivity) -> None:
    program = formulate(structure, Steps(), curves)
    dense = program.totals(program.dense()).ms
    judged: list[str] = []

    def judge(plan: edgeprune.Plan) -> Verdict:
        """Fewer removed blocks are better, whatever the curves say."""
        judged.append(repr((sorted(plan.kept.items()), plan.removed)))
        return Verdict(1.0 + len(plan.removed), 0.5)

    found = find(structure, Steps(), 0.6 * dense, curves, judge=judge, rounds=1, trials=6)
    judged.clear()
    again, one = Again(structure, curves, found, judge), Again(structure, curves, found, judge, programs=1)
    for budget in (0.7 * dense, 0.65 * dense, 0.7 * dense):
        best = again(Steps(), budget)
        widths = {group.name: len(best.kept.get(group.name, range(group.size))) for group in structure.groups}
        assert program.totals(Assignment(widths, tuple(best.removed))).ms <= budget
        assert again.loss(best) <= one.loss(one(Steps(), budget))
    assert len(again.programs) == min(4, len(found.rounds)) and len(one.programs) == 1
    counts = [judged.count(name) for name in set(judged)]
    assert max(counts) <= 2  # once by each of the two
    with pytest.raises(BudgetError, match="below the floor"):
        again(Steps(), 1e-6 * dense)


def test_a_negative_seed_is_refused_before_anything_is_measured() -> None:
    for section in (SearchSection, RecoverSection):
        with pytest.raises(msgspec.ValidationError, match=">= 0"):
            msgspec.convert({"seed": -1}, section)


class Padded(nn.Module):
    """torch's own encoder, with padding; the second head of its first layer adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True)
        self.tokens, self.encoder = nn.Embedding(20, 16), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 3)
        with torch.no_grad():
            self.encoder.layers[0].self_attn.out_proj.weight[:, 8:] = 0

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        seen = self.encoder(self.tokens(ids), src_key_padding_mask=mask == 0)
        return self.head((seen * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_heads_of_torch_s_own_attention_may_go() -> None:
    """A tape of torch's operators holds the full width, and no narrowed weights run on it."""
    torch.manual_seed(0)
    net, random = Padded().eval(), torch.Generator().manual_seed(1)
    examples = {"ids": torch.randint(20, (16, 6), generator=random), "mask": torch.ones(16, 6)}
    examples["mask"][::2, 4:] = 0
    structure = edgeprune.trace(net, examples)
    judge = Evaluator(structure, Session(net, examples))
    useless, useful = (judge(structure.plan({"encoder.layers.0.self_attn": [head]})) for head in (0, 1))
    assert useless.loss < 1e-6 and useless.agreement == 1
    assert useful.loss > 100 * max(useless.loss, 1e-9)
