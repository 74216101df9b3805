"""The whole room in seconds: trace, plan, apply, prove, save and load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.graph import save_pruned


class Residual(nn.Module):
    """A CIFAR block with an option-B shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class Small(nn.Module):
    """Two stages and a flatten into the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Residual(16, 16), Residual(16, 16))
        self.layer2 = nn.Sequential(Residual(16, 24, 2), Residual(24, 24))
        self.fc = nn.Linear(24 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(torch.relu(self.bn(self.stem(x)))))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 2), 1))


@pytest.mark.long
def test_trace_plan_apply_prove_save_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    structure = edgeprune.trace(model, x)
    assert [g.name for g in structure.groups] == [
        "stem", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.conv2", "layer2.1.conv1",
    ]  # fmt: skip
    assert [b.module for b in structure.blocks] == ["layer1.0", "layer1.1", "layer2.1"]
    plan = structure.uniform(0.3, 4)
    assert {len(units) for units in plan.kept.values()} == {12, 16}
    pruned = plan.apply(model)
    proof = structure.prove(model, plan)
    assert proof.passed, proof.detail
    assert proof.max_error < 1e-9
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    save_pruned(tmp_path, pruned, plan)
    again = edgeprune.load(tmp_path, Small)
    pruned.eval(), again.eval()
    assert torch.equal(again(x), pruned(x))


@pytest.mark.long
def test_removed_block_is_proven() -> None:
    model = Small()
    structure = edgeprune.trace(model, torch.randn(1, 3, 8, 8))
    plan = structure.plan({"stem": range(8)}, ["layer1.1"])
    assert structure.prove(model, plan).passed
    assert sum(p.numel() for p in plan.apply(model).layer1[1].parameters()) == 0


@pytest.mark.long
def test_unknown_group_is_refused() -> None:
    structure = edgeprune.trace(Small(), torch.randn(1, 3, 8, 8))
    with pytest.raises(edgeprune.EdgepruneError, match="no group 'sten'"):
        structure.plan({"sten": [0]})
