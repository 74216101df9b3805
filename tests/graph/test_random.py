"""Random small networks from all supported operators, random plans: the proof holds, and the structure is valid."""

from __future__ import annotations

import random
from typing import Any

import graph_nets as nets
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import edgeprune
from edgeprune.graph.check import check

Step = tuple[nn.Module, int]  # a module on images (batch, channels, 8, 8), and the channels that it gives


def conv(c: int, wide: int, choose: random.Random) -> Step:
    return nn.Sequential(nn.Conv2d(c, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.SiLU()), wide


def residual(c: int, wide: int, choose: random.Random) -> Step:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x)
        return F.relu(x + m.d(F.relu(m.b(x))))

    layers = {"a": nn.Conv2d(c, wide, 1), "b": nn.Conv2d(wide, wide, 3, padding=1), "d": nn.Conv2d(wide, wide, 1)}
    return nets.Call(body, **layers), wide


def dense(c: int, wide: int, choose: random.Random) -> Step:
    return nets.Call(lambda m, x: torch.cat([x, F.gelu(m.a(x))], 1), a=nn.Conv2d(c, wide, 3, padding=1)), c + wide


def gate(c: int, wide: int, choose: random.Random) -> Step:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x)
        return x * torch.sigmoid(m.e(F.relu(m.r(F.adaptive_avg_pool2d(x, 1)))))

    return nets.Call(body, a=nn.Conv2d(c, wide, 1), r=nn.Conv2d(wide, 4, 1), e=nn.Conv2d(4, wide, 1)), wide


def grouped(c: int, wide: int, choose: random.Random) -> Step:
    second = nn.Conv2d(wide, wide, 3, padding=1, groups=choose.choice([2, 4]))
    return nets.Call(lambda m, x: F.relu(m.g(m.a(x))), a=nn.Conv2d(c, wide, 1), g=second), wide


def shuffle(c: int, wide: int, choose: random.Random) -> Step:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.d(m.a(x))
        n, k, h, w = x.shape
        return x.view(n, 2, k // 2, h, w).transpose(1, 2).reshape(n, k, h, w)

    return nets.Call(body, a=nn.Conv2d(c, wide, 1), d=nn.Conv2d(wide, wide, 3, padding=1, groups=wide)), wide


def halves(c: int, wide: int, choose: random.Random) -> Step:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        p, q = m.a(x).chunk(2, 1)
        return p * torch.tanh(q)

    return nets.Call(body, a=nn.Conv2d(c, 2 * wide, 1)), wide


def tokens(c: int, wide: int, choose: random.Random) -> Step:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.b(m.n(m.a(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    return nets.Call(body, a=nn.Conv2d(c, wide, 1), n=nn.LayerNorm(wide), b=nn.Linear(wide, wide + 4)), wide + 4


def attend(c: int, wide: int, choose: random.Random) -> Step:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x).flatten(2).transpose(1, 2)
        return (y + m.t(y)).transpose(1, 2).unflatten(2, (8, 8))

    inner = nets.Attention(choose.random() < 0.5, choose.random() < 0.5)
    return nets.Call(body, a=nn.Conv2d(c, 12, 1), t=inner), 12


def pixels(c: int, wide: int, choose: random.Random) -> Step:
    layers = {"a": nn.Conv2d(c, 4 * wide, 3, padding=1), "b": nn.Conv2d(4 * wide, wide, 1)}
    return nets.Call(lambda m, x: m.b(F.pixel_unshuffle(F.pixel_shuffle(m.a(x), 2), 2)), **layers), wide


def shared(c: int, wide: int, choose: random.Random) -> Step:
    layers = {"a": nn.Conv2d(c, wide, 1), "s": nn.Conv2d(wide, wide, 3, padding=1)}
    return nets.Call(lambda m, x: m.s(F.relu(m.s(m.a(x)))), **layers), wide


def norm(c: int, wide: int, choose: random.Random) -> Step:
    layers = {"a": nn.Conv2d(c, wide, 1), "g": nn.GroupNorm(4, wide)}
    return nets.Call(lambda m, x: F.max_pool2d(F.relu(m.g(m.a(x))), 3, 1, 1), **layers), wide


STEPS = [conv, residual, dense, gate, grouped, shuffle, halves, tokens, attend, pixels, shared, norm]


class RandomNet(nn.Module):
    """A few steps and a classifier; `seed` chooses everything."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        choose = random.Random(seed)
        channels, steps = 3, []
        for _ in range(choose.randint(3, 6)):
            step, channels = choose.choice(STEPS)(channels, choose.choice([8, 12, 16]), choose)
            steps.append(step)
        self.steps = nn.Sequential(*steps)
        self.flat = choose.random() < 0.5
        self.head = nn.Linear(channels * 64 if self.flat else channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.steps(x)
        return self.head(x.flatten(1) if self.flat else x.mean((2, 3)))


def prove(seed: int) -> int:
    """Trace, check and prove one random plan; returns the number of groups."""
    torch.manual_seed(seed)
    net = RandomNet(seed)
    structure = edgeprune.trace(net, torch.randn(1, 3, 8, 8))
    check(structure)
    choose = random.Random(seed)
    kept = {g.name: sorted(choose.sample(range(g.size), choose.randint(1, g.size))) for g in structure.groups}
    gone = [b.module for b in structure.blocks if choose.random() < 0.3]
    proof = structure.prove(net, structure.plan(kept, gone))
    assert proof.passed, (seed, proof.detail, structure.describe())
    return len(structure.groups)


@pytest.mark.parametrize("seed", range(3))
def test_random_networks(seed: int) -> None:
    assert prove(seed) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_random_networks() -> None:
    assert sum(prove(seed) for seed in range(3, 33)) > 60
