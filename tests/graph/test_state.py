"""What networks keep between forwards, what stands in for a part of them, and parts that only training runs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import edgeprune
from edgeprune.errors import PlanError
from edgeprune.graph.state import changed_attributes, kept


class Conv(nn.Module):
    def __init__(self, a: int, b: int, k: int = 3, s: int = 1) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(a, b, k, s, k // 2, bias=False), nn.BatchNorm2d(b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(c, c), Conv(c, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Split in two by chunk, repeats, and a concat of all that came."""

    def __init__(self, a: int, b: int, n: int = 2) -> None:
        super().__init__()
        self.c = b // 2
        self.cv1, self.cv2 = Conv(a, 2 * self.c, 1), Conv((2 + n) * self.c, b, 1)
        self.m = nn.ModuleList(Bottleneck(self.c) for _ in range(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Concat(nn.Module):
    def forward(self, x: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(x, 1)


class Detect(nn.Module):
    """A head that decodes distances to anchors, which it keeps until the shape of what it reads changes."""

    anchors, strides, shape = torch.empty(0), torch.empty(0), None
    bins = 4

    def __init__(self, classes: int, widths: list[int]) -> None:
        super().__init__()
        self.classes = classes
        self.box = nn.ModuleList(nn.Sequential(Conv(w, 12), nn.Conv2d(12, 4 * self.bins, 1)) for w in widths)
        self.cls = nn.ModuleList(nn.Sequential(Conv(w, 12), nn.Conv2d(12, classes, 1)) for w in widths)
        self.dfl = nn.Conv2d(self.bins, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data[:] = torch.arange(self.bins, dtype=torch.float).view(1, self.bins, 1, 1)
        self.stride = torch.tensor([2.0, 4.0])

    def forward(self, x: list[torch.Tensor]) -> Any:
        shape, batch = x[0].shape, x[0].shape[0]
        boxes = torch.cat([b(v).view(batch, 4 * self.bins, -1) for b, v in zip(self.box, x, strict=True)], -1)
        scores = torch.cat([c(v).view(batch, self.classes, -1) for c, v in zip(self.cls, x, strict=True)], -1)
        if self.training:
            return boxes, scores
        if self.shape != shape:
            self.anchors, self.strides = (v.transpose(0, 1) for v in self._make(x))
            self.shape = shape
        bins = boxes.view(batch, 4, self.bins, -1).transpose(2, 1).softmax(1)
        lt, rb = self.dfl(bins).view(batch, 4, -1).chunk(2, 1)
        decoded = torch.cat([self.anchors - lt, self.anchors + rb], 1) * self.strides
        index = torch.topk(scores.sigmoid().amax(1), 5).indices
        every = torch.cat([decoded, scores], 1)
        return torch.gather(every, 2, index.unsqueeze(1).expand(-1, 4 + self.classes, -1))

    def _make(self, x: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        places, steps = [], []
        for i, s in enumerate(self.stride):
            h, w = x[i].shape[2:]
            rows, cols = torch.arange(h).type_as(x[0]) + 0.5, torch.arange(w).type_as(x[0]) + 0.5
            grid = torch.meshgrid(rows, cols, indexing="ij")
            places.append(torch.stack((grid[1], grid[0]), -1).view(-1, 2))
            steps.append(torch.full((h * w, 1), float(s), dtype=x[0].dtype))
        return torch.cat(places), torch.cat(steps)


class Detector(nn.Module):
    """Layers in a list that say from where they read (`f`) and where they stand (`i`)."""

    def __init__(self) -> None:
        super().__init__()
        layers = [Conv(3, 16, 3, 2), C2f(16, 16), Conv(16, 24, 3, 2), C2f(24, 24), nn.Upsample(None, 2), Concat()]
        layers += [C2f(40, 20), Detect(3, [20, 24])]
        self.model = nn.Sequential(*layers)
        for i, (layer, f) in enumerate(zip(layers, [-1, -1, -1, -1, -1, [-1, 1], -1, [6, 3]], strict=True)):
            layer.i, layer.f = i, f
        self.save = {1, 3, 6}

    def forward(self, x: torch.Tensor) -> Any:
        y: list[Any] = []
        for m in self.model:
            if m.f != -1:
                x = y[m.f] if isinstance(m.f, int) else [x if j == -1 else y[j] for j in m.f]
            if isinstance(m, Detect) and not self.model[-1].stride.numel():
                raise RuntimeError("no strides")
            x = m(x)
            y.append(x if m.i in self.save else None)
        return x


IMAGE = torch.rand(1, 3, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("forwards", [0, 2], ids=["fresh", "run before"])
def test_a_detector_that_keeps_its_anchors(forwards: int) -> None:
    torch.manual_seed(0)
    model = Detector().eval()
    for _ in range(forwards):
        model(IMAGE)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    structure = edgeprune.trace(model, IMAGE)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    frozen = {layer for f in structure.frozen for layer in f.layers}
    assert frozen == {"model.7.box.0.1", "model.7.box.1.1", "model.7.cls.0.1", "model.7.cls.1.1", "model.7.dfl"}
    plan = structure.uniform(0.3)
    pruned = plan.apply(model)
    assert sum(p.numel() for p in pruned.parameters()) < 0.65 * sum(p.numel() for p in model.parameters())
    proof = structure.prove(model, plan)
    assert proof.passed and not proof.vacuous, proof.detail
    pruned.train()(torch.rand(2, 3, 16, 16))[0].sum().backward()
    assert pruned.eval()(torch.rand(1, 3, 24, 24)).shape == (1, 7, 5)


@pytest.mark.long
def test_a_part_that_is_cut_out_still_looks_like_itself() -> None:
    """The network round it reads its attributes, checks its class, indexes and iterates."""
    torch.manual_seed(0)
    model = Detector().eval()
    structure = edgeprune.trace(model, IMAGE, opaque=["model.7"])
    plan = structure.uniform(0.3)
    assert structure.prove(model, plan).passed
    assert len(structure.groups) == 12
    plan.apply(model)(IMAGE)


def _late_mask(m: Any, x: torch.Tensor) -> torch.Tensor:
    if not hasattr(m, "mask"):
        m.mask = torch.ones(x.shape[-1])
    return x * m.mask


def _counts(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.calls += 1
    return x * 1.0 if m.calls == 1 else x


def _list(m: Any, x: torch.Tensor) -> torch.Tensor:
    if not m.kept:
        m.kept.append(torch.linspace(0, 1, x.shape[-1]))
    return x + m.kept[0]


def _by_shape(m: Any, x: torch.Tensor) -> torch.Tensor:
    if x.shape not in m.table:
        m.table[x.shape] = (torch.arange(x.shape[-1], dtype=x.dtype), x.shape)
    return x + m.table[x.shape][0]


class Cache:
    shape: Any = None
    value: Any = None


def _object(m: Any, x: torch.Tensor) -> torch.Tensor:
    if m.cache.shape != x.shape:
        m.cache.shape, m.cache.value = x.shape, torch.arange(x.shape[-1], dtype=x.dtype)
    return x + m.cache.value


class Keeps(nn.Module):
    def __init__(self, body: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3), nn.Conv2d(12, 2, 1)
        self.body, self.calls, self.kept, self.table, self.cache = body, 0, [], {}, Cache()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.body(self, torch.relu(self.b(torch.relu(self.a(x))))))


@pytest.mark.parametrize("forwards", [0, 1])
@pytest.mark.parametrize("body", [_late_mask, _counts, _list, _by_shape, _object])
def test_what_a_forward_leaves_behind(body: Callable[[Any, torch.Tensor], torch.Tensor], forwards: int) -> None:
    torch.manual_seed(0)
    model = Keeps(body).eval()
    for _ in range(forwards):
        model(torch.rand(1, 3, 9, 9))
    held = model.calls, len(model.kept), len(model.table), model.cache.shape, hasattr(model, "mask")
    structure = edgeprune.trace(model, torch.rand(1, 3, 9, 9))
    assert held == (model.calls, len(model.kept), len(model.table), model.cache.shape, hasattr(model, "mask"))
    assert [g.name for g in structure.groups] == ["a", "b"]
    plan = structure.uniform(0.5)
    assert structure.prove(model, plan).passed
    pruned = plan.apply(model)
    pruned(torch.rand(1, 3, 9, 9))
    pruned(torch.rand(1, 3, 9, 9))


def test_a_change_of_state_is_named_and_put_back() -> None:
    model = Keeps(_object)
    model.inner = Keeps(_list)
    x = torch.rand(1, 3, 9, 9)
    with kept(model):
        names = changed_attributes(model, lambda: (model(x), model.inner(x)))
        assert names == ("cache", "inner.kept")
    assert model.cache.value is None and model.inner.kept == []


class Encoder(nn.Module):
    """Layers dropped at random and a mask made outside torch in training: what speech encoders do."""

    def __init__(self, aux: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.mask = nn.Parameter(torch.randn(16))
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(16), nn.Linear(16, 40), nn.Linear(40, 16)]) for _ in range(2)
        )
        self.aux = nn.Linear(40, 3) if aux else None
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.embed(x)
        if self.training:
            masked = torch.tensor([random.random() < 0.5 for _ in range(x.shape[1])])
            x[:, masked] = self.mask.to(x.dtype)
        inner = None
        for norm, up, down in self.layers:
            if self.training and torch.rand([]) < 0.3:
                continue
            inner = torch.relu(up(norm(x)))
            x = x + down(inner)
        if self.training and self.aux is not None and inner is not None:
            return self.out(x), self.aux(inner)
        return self.out(x)


@pytest.mark.parametrize("aux", [False, True])
def test_what_only_training_runs_freezes_what_it_touches_and_nothing_else(aux: bool) -> None:
    torch.manual_seed(0)
    model = Encoder(aux)
    rolled = torch.random.get_rng_state(), random.getstate()
    structure = edgeprune.trace(model, torch.ones(1, 7, 5))
    assert torch.equal(rolled[0], torch.random.get_rng_state()) and rolled[1] == random.getstate()
    frozen = {layer: f for f in structure.frozen for layer in f.layers}
    held = {"embed", "layers.0.2", "layers.1.2", "out"}
    assert set(frozen) == held | ({"layers.0.1", "layers.1.1"} if aux else set())
    assert "'mask', used in training only" in frozen["embed"].why and "test_state.py" in frozen["embed"].source
    if aux:
        assert not structure.groups
        return
    assert [g.name for g in structure.groups] == ["layers.0.1", "layers.1.1"]
    plan = structure.uniform(0.5)
    assert structure.prove(model, plan).passed
    pruned = plan.apply(model).train()
    for seed in range(5):
        torch.manual_seed(seed)
        pruned(torch.rand(2, 7, 5)).sum().backward()


class Stuck(nn.Module):
    """A number in a view that no attribute holds, and a fixed index: nothing may go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(4, 30), nn.Linear(30, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(torch.flip(self.a(x), (-1,)))


def test_a_plan_that_removes_nothing_is_no_success() -> None:
    model = Stuck()
    structure = edgeprune.trace(model, torch.rand(2, 4))
    assert "Nothing can be narrowed. outputs of a stay whole (57 % of the parameters" in structure.describe()
    with pytest.raises(
        PlanError, match=r"Nothing of this network.*outputs of a stay.*order changes \[flip at .*:\d+\]"
    ):
        structure.uniform(0.3)
    proof = structure.prove(model, structure.plan({}))
    assert proof.vacuous and "removes nothing" in proof.detail and "nothing was shown" in proof.method
    entry = next(f for f in structure.frozen if "a" in f.layers)
    assert (entry.parameters, entry.macs) == (120, 120)
    assert math.isclose(sum(f.macs for f in structure.frozen), 180)


def test_a_grid_that_leaves_every_group_whole_gives_a_plan_that_says_so() -> None:
    """The nearest legal width may be the whole one: the plan is empty, and its proof says that it shows nothing."""
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    structure = edgeprune.trace(model, torch.rand(2, 4))
    plan = structure.uniform(0.3, 16)
    assert plan.kept == {} and structure.prove(model, plan).vacuous
    assert structure.uniform(0.0).kept == {}
