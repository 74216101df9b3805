"""Repeats without a sum: found where they are asked for, proven, and the same in ONNX and in slices of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.engine import Session, Tape
from edgeprune.engine.session import weights_of
from edgeprune.graph import Configuration, width
from edgeprune.latency.slicing import narrow
from edgeprune.model import export_onnx
from edgeprune.search import measure
from edgeprune.search.formulate import formulate
from edgeprune.search.program import Assignment

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(wide: int, out: int, **how: int) -> list[nn.Module]:
    return [nn.Conv2d(wide, out, 3, padding=1, **how), nn.BatchNorm2d(out), nn.ReLU()]


def vgg() -> nn.Module:
    """Rows of layers in one Sequential, as VGG's; a pair that is wide in between; the stage's tail."""
    rows = [*conv(3, 8), *conv(8, 8), nn.MaxPool2d(2), *conv(8, 12), *conv(12, 20), *conv(20, 12), *conv(12, 12)]
    return nn.Sequential(nn.Sequential(*rows), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


class Bottleneck(nn.Module):
    def __init__(self, width: int, summed: bool) -> None:
        super().__init__()
        self.cv1, self.cv2 = nn.Sequential(*conv(width, 6)), nn.Sequential(*conv(6, width))
        self.summed = summed

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.summed else y


class C2f(nn.Module):
    """YOLOv8's: each of n bottlenecks reads the one before, and all are read by the closing convolution."""

    def __init__(self, n: int, summed: bool) -> None:
        super().__init__()
        self.cv1, self.cv2 = nn.Conv2d(8, 16, 1), nn.Conv2d(8 * (2 + n), 8, 1)
        self.m = nn.ModuleList(Bottleneck(8, summed) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Csp(nn.Module):
    """YOLOv5's C3: a Sequential of bottlenecks beside a branch."""

    def __init__(self, n: int, summed: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)
        self.m = nn.Sequential(*(Bottleneck(8, summed) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


def around(part: nn.Module) -> nn.Module:
    return nn.Sequential(*conv(3, 8), part, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


CASES = {
    "rows of layers": (vgg, ["0.3", "0.10", "0.16"], []),
    "C2f without sums": (lambda: around(C2f(2, False)), ["3.m.0", "3.m.1"], []),
    "CSP without sums": (lambda: around(Csp(2, False)), ["3.m.0", "3.m.1"], []),
    "C2f with sums": (lambda: around(C2f(2, True)), ["3.m.0", "3.m.1"], ["3.m.0", "3.m.1"]),
    "CSP with sums": (lambda: around(Csp(2, True)), ["3.m.0", "3.m.1"], ["3.m.0", "3.m.1"]),
}


def _net(case: str) -> nn.Module:
    torch.manual_seed(1)
    return CASES[case][0]().eval()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_repeats_go_alone_together_and_with_widths(case: str) -> None:
    net, names = _net(case), CASES[case][1]
    assert [b.module for b in edgeprune.trace(net, X).blocks] == CASES[case][2]
    structure = edgeprune.trace(net, X, repeats=True)
    assert [block.module for block in structure.blocks] == names
    for gone in (*([name] for name in names), names):
        plan = structure.plan({}, gone)
        assert structure.prove(net, plan).passed
        pruned = plan.apply(net)
        for seed in range(2):
            x = torch.randn(2 + seed, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
            assert torch.allclose(pruned(x), _without(net, structure, gone)(x), atol=1e-5)
        assert structure.prove(net, structure.plan(structure.uniform(0.4).kept, gone)).passed


def _without(net: nn.Module, structure: edgeprune.Structure, gone: list[str]) -> nn.Module:
    """The same without edgeprune: identities in place of the modules that go."""
    import copy

    other = copy.deepcopy(net)
    for block in structure.blocks:
        for name in block.modules if block.module in gone else ():
            parent, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(parent), leaf, nn.Identity())
    return other


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_onnx_slices_tape_and_curves(case: str, tmp_path: Path) -> None:
    net, names = _net(case), CASES[case][1]
    structure = edgeprune.trace(net, X, repeats=True)
    dense = export_onnx(net, X, tmp_path / "dense.onnx")
    pruned = structure.plan({}, names).apply(net)
    sliced = narrow(dense, structure, Configuration({}, tuple(names)))
    assert sliced is not None
    reads = {}
    for graph in (export_onnx(pruned, X, tmp_path / "pruned.onnx"), sliced):
        weights = {t.name: tuple(t.dims) for t in graph.graph.initializer}
        reads = {n.name: weights[n.input[1]] for n in graph.graph.node if n.op_type == "Conv"}
        if case.startswith("C2f"):
            assert reads["3.cv2"][:2] == (8, 16), "the slices of both bottlenecks go with them"
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        assert np.allclose(session.run(None, {"input": X.numpy()})[0], pruned(X).detach().numpy(), atol=1e-4)
    examples = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    tape = Tape.of(net, examples)
    values = tape.begin((examples,))
    with torch.no_grad():
        tape.run(values, tape.route(structure.blocks), weights_of(net))
    assert torch.allclose(tape.results(values, {})[0], pruned(examples), atol=1e-4)
    session = Session(net, examples, capture=structure.capture)
    curves = measure(structure, session, {g.name: (g.size,) for g in structure.groups})
    assert set(curves.blocks) == set(names) and all(loss > 0 for loss in curves.blocks.values())
    program = formulate(structure, Product(), curves)
    dense_ms = sum(width(la.inputs, {}) * width(la.outputs, {}) for la in structure.layers)
    assert program.totals(program.dense()).ms == pytest.approx(dense_ms)
    inner = {name for block in structure.blocks for name in block.inner}
    left = Assignment({g.name: g.size for g in structure.groups if g.name not in inner}, tuple(names))
    linear = next(la for la in structure.layers if la.kind == "linear")
    known = sum(shape[0] * shape[1] for shape in reads.values()) + width(linear.inputs, {}) * width(linear.outputs, {})
    assert program.totals(left).ms == pytest.approx(known)


class Product:
    """A device on which a layer takes its channels' product."""

    beta = 0.0

    def kernel(self, layer: str, c_in: int, c_out: int) -> float:
        return float(c_in * c_out)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_bottleneck_of_yolov8n_may_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("YOLO_OFFLINE", "1")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    net, x = tasks.DetectionModel("yolov8n.yaml", verbose=False).eval(), torch.rand(1, 3, 64, 64)
    structure = edgeprune.trace(net, x, repeats=True)
    names = [block.module for block in structure.blocks]
    bottlenecks = [name for name, part in net.named_modules() if type(part).__name__ == "Bottleneck"]
    assert set(bottlenecks) <= set(names) and len(bottlenecks) == 10
    assert structure.prove(net, structure.plan({}, names)).passed
    assert all(block.slices for block in structure.blocks if block.module in bottlenecks)
