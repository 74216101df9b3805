"""Kinds of network that people ship, each once brought to a wrong plan or to nothing."""

from __future__ import annotations

import itertools
import math
from typing import Any

import graph_nets as nets
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.graph import tracer


class Disentangled(nn.Module):
    """Explicit attention on embedded tokens, its scale a tensor made from the width of the queries."""

    def __init__(self, scale: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.o = nn.Linear(32, 5)
        self.q, self.k, self.v = (nn.Linear(16, 32) for _ in "qkv")
        self.head, self.scale = 8, scale

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        q, k, v = (f(x).view(*x.shape[:2], -1, self.head).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.scale == "tensor":
            scale: Any = torch.sqrt(torch.tensor(q.size(-1), dtype=torch.float) * 3).to(x.dtype)
        elif self.scale == "full":
            scale = torch.full((), q.size(-1), dtype=x.dtype).sqrt()
        else:
            scale = math.sqrt(self.head)
        y = torch.softmax(q @ k.transpose(-1, -2) / scale, -1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


@pytest.mark.long
@pytest.mark.parametrize("scale", ["tensor", "full", "number"])
def test_a_scale_made_from_the_width_of_query_and_key_keeps_that_width(scale: str) -> None:
    torch.manual_seed(0)
    model = Disentangled(scale)
    structure = edgeprune.trace(model, torch.randint(0, 20, (1, 6)))
    assert {g.unit for g in structure.groups if g.name == "q"} <= {"head"}
    plan = structure.uniform(0.5)
    proof = structure.prove(model, plan)
    assert proof.passed, proof.detail
    assert plan.apply(model).q.out_features == 16


class Sliced(nn.Module):
    """Layers that are reached through a slice of their list: torch.export names them after the slice."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 12, 1), nn.Conv2d(12, 16, 1), nn.Conv2d(16, 20, 1), nn.Conv2d(20, 2, 1)]
        self.layers = nn.Sequential(*layers) if kind is nn.Sequential else nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x)
        for layer in self.layers[1:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


@pytest.mark.long
@pytest.mark.parametrize("kind", [nn.Sequential, nn.ModuleList])
def test_layers_reached_through_a_slice_have_their_own_names(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = Sliced(kind)
    structure = edgeprune.trace(model, torch.rand(1, 3, 5, 5))
    assert [layer.name for layer in structure.layers] == [f"layers.{i}" for i in range(4)]
    assert [g.name for g in structure.groups] == ["layers.0", "layers.1", "layers.2"]
    assert structure.prove(model, structure.uniform(0.5)).passed


class Biased(nn.Module):
    """A bias by place, picked out of a parameter by index and kept, in eval only, until train() is called."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(12, 72), nn.Linear(24, 3)
        self.biases = nn.Parameter(torch.randn(4, 9))
        self.register_buffer("places", torch.randint(0, 9, (5, 5)))
        self.heads, self.cache = 4, {}

    def train(self, mode: bool = True) -> Biased:
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], self.heads, 18).permute(0, 2, 1, 3).split([6, 6, 6], -1)
        if not self.training and "cpu" not in self.cache:
            self.cache["cpu"] = self.biases[:, self.places]
        bias = self.biases[:, self.places] if self.training else self.cache["cpu"]
        y = torch.softmax(q @ k.transpose(-1, -2) * 6**-0.5 + bias, -1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


@pytest.mark.long
@pytest.mark.parametrize("forwards", [0, 1])
def test_what_was_made_from_weights_and_kept_is_made_again_from_narrow_ones(forwards: int) -> None:
    torch.manual_seed(0)
    model, x = Biased(), torch.rand(1, 5, 12)
    model.eval()
    with torch.no_grad():
        for _ in range(forwards):
            model(x)
    structure = edgeprune.trace(model, x)
    assert model.cache.keys() == ({"cpu"} if forwards else set())
    if not structure.groups:  # of a network that was run before, what it keeps is a plain tensor
        assert forwards
        return
    plan = structure.uniform(0.5)
    proof = structure.prove(model, plan)
    assert proof.passed, proof.detail
    with torch.no_grad():
        plan.apply(model)(x)


class Decoding(nn.Module):
    """A head, its boxes as sums over bins with fixed weights, and the best places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 1)
        self.bins = nn.Conv2d(4, 1, 1, bias=False).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(torch.relu(self.a(x * 2))).flatten(2)
        box = self.bins(y[:, :8].view(y.shape[0], 2, 4, -1).transpose(1, 2).softmax(1)).squeeze(1)
        place = torch.topk(y[:, 8:].sigmoid().amax(1), 3).indices
        return torch.gather(box, 2, place.unsqueeze(1).expand(-1, 2, -1))


@pytest.mark.long
def test_what_lies_behind_the_last_weights_is_found_and_freezes_nothing_before_it() -> None:
    model = Decoding()
    structure = edgeprune.trace(model, torch.rand(1, 3, 6, 6))
    names = [o.operator for o in structure.postprocessing]
    assert names[0] == "flatten" and names[-1] == "gather" and {"topk", "sigmoid", "softmax", "conv2d"} <= set(names)
    assert not {"relu", "mul"} & set(names)
    assert all("test_shipped.py" in o.source for o in structure.postprocessing if o.operator != "conv2d")
    assert structure.prove(model, structure.plan({"a": range(6)})).passed


@pytest.mark.long
@pytest.mark.parametrize("case", [nets.values_that_agree_by_accident, nets.numbers_that_agree_by_accident])
def test_no_trial_is_made_twice(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hint that brought a trial further is not tried again in the next round: each trial is a capture."""
    made: list[Any] = []
    real = tracer.try_plan

    def noted(model: nn.Module, analysis: Any, kept: Any) -> Any:
        made.append((analysis.spell(kept), len(analysis.walk.space.edges), len(analysis.walk.space.freezes)))
        return real(model, analysis, kept)

    monkeypatch.setattr(tracer, "try_plan", noted)
    torch.manual_seed(0)
    edgeprune.trace(*case())
    assert len(made) > 1 and all(a != b for a, b in itertools.combinations(made, 2))
