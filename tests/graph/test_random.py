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


def upward(c: int, wide: int, choose: random.Random) -> Step:
    layers = {"a": nn.Conv2d(c, wide, 2, 2), "u": nn.ConvTranspose2d(wide, wide, 2, 2, groups=choose.choice([1, 4]))}
    return nets.Call(lambda m, x: F.interpolate(F.relu(m.u(m.a(x))), (8, 8), mode="bilinear"), **layers), wide


def sequence(c: int, wide: int, choose: random.Random) -> Step:
    """Rows as one sequence, through a recurrent layer and a one-dimensional convolution."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.c(m.r(m.a(x).flatten(2).transpose(1, 2))[0].transpose(1, 2))
        return y.unflatten(2, (8, 8))

    kind, both = choose.choice([nn.LSTM, nn.GRU]), choose.random() < 0.5
    recurrent = kind(6, wide, batch_first=True, bidirectional=both)
    return nets.Call(body, a=nn.Conv2d(c, 6, 1), r=recurrent, c=nn.Conv1d(wide * (1 + both), wide, 1)), wide


def windows(c: int, wide: int, choose: random.Random) -> Step:
    """Attention of torch's own in shifted windows of four by four."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.roll(m.a(x), (-2, -2), (2, 3)).permute(0, 2, 3, 1)
        n, h, w, k = y.shape
        y = y.view(n, 2, 4, 2, 4, k).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, k)
        y = y + m.t(y, y, y, need_weights=False)[0]
        y = y.view(n, 2, 2, 4, 4, k).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, k)
        return torch.roll(y.permute(0, 3, 1, 2), (2, 2), (2, 3))

    return nets.Call(body, a=nn.Conv2d(c, wide, 1), t=nn.MultiheadAttention(wide, 4, batch_first=True)), wide


def shares(c: int, wide: int, choose: random.Random) -> Step:
    """Two heads of queries to one of keys, by einsum or by the operator."""
    explicit = choose.random() < 0.5

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.n(m.a(x).flatten(2).transpose(1, 2))
        q, k, v = (f(y).unflatten(2, (-1, 3)).transpose(1, 2) for f in (m.q, m.k, m.v))
        if explicit:
            k, v = (t.repeat_interleave(2, 1) for t in (k, v))
            y = torch.einsum("bhqk,bhkd->bqhd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)
        return m.o(y.flatten(2)).transpose(1, 2).unflatten(2, (8, 8))

    layers = {"a": nn.Conv2d(c, wide, 1), "n": nn.RMSNorm(wide), "q": nn.Linear(wide, 12), "k": nn.Linear(wide, 6)}
    return nets.Call(body, **layers, v=nn.Linear(wide, 6), o=nn.Linear(12, wide)), wide


def columns(c: int, wide: int, choose: random.Random) -> Step:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        return F.fold(torch.tanh(F.unfold(m.i(m.a(x)), 2, stride=2)), (8, 8), 2, stride=2)

    return nets.Call(body, a=nn.Conv2d(c, wide, 1), i=nn.InstanceNorm2d(wide, affine=True)), wide


def parts(c: int, wide: int, choose: random.Random) -> Step:
    """Unequal parts by sizes, one of them passed through, and a stack."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        p, q, r = torch.split(m.a(x), [m.first, m.second, m.second], 1)
        y = torch.stack([q, r * torch.sigmoid(q)]).mean(0)
        return torch.cat([F.relu(m.b(p)), y], 1)

    layers = {"a": nn.Conv2d(c, wide + 8, 1), "b": nn.Conv2d(wide, wide, 3, padding=1), "first": wide, "second": 4}
    return nets.Call(body, **layers), wide + 4


def scaled(c: int, wide: int, choose: random.Random) -> Step:
    """Weight norm, a learned scale a channel, and a slice of the channels."""

    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.prelu(m.w(x), m.p) * m.scale
        return torch.cat([y[:, m.half :], m.d(y)], 1)

    weighted = nn.utils.parametrizations.weight_norm(nn.Conv2d(c, wide, 3, padding=1))
    layers = {"w": weighted, "p": nn.Parameter(torch.full((wide,), 0.2)), "half": wide // 2}
    return nets.Call(body, **layers, scale=nn.Parameter(torch.rand(wide, 1, 1)), d=nn.Conv2d(wide, 4, 1)), (
        wide - wide // 2 + 4
    )


def depth(c: int, wide: int, choose: random.Random) -> Step:
    layers = {"a": nn.Conv2d(c, wide, 1), "v": nn.Conv3d(wide, wide, (1, 3, 3), padding=(0, 1, 1))}
    return nets.Call(lambda m, x: F.gelu(m.v(m.a(x).unsqueeze(2)).amax(2)), **layers), wide


STEPS = [
    conv, residual, dense, gate, grouped, shuffle, halves, tokens, attend, pixels, shared, norm,
    upward, sequence, windows, shares, columns, parts, scaled, depth,
]  # fmt: skip


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


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_random_networks(seed: int) -> None:
    assert prove(seed) > 0


@pytest.mark.slow
def test_many_random_networks() -> None:
    assert sum(prove(seed) for seed in range(3, 33)) > 60
