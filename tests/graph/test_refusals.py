"""Bad input: one clear error each, that says what, where and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.errors import CaptureError, ModelError, PlanError
from edgeprune.graph import Attribute, Cut, Plan, save_pruned


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.LazyLinear(4)
    )


@pytest.fixture
def model() -> nn.Module:
    made = net()
    made(torch.randn(2, 3, 8, 8))
    return made


X = torch.randn(2, 3, 8, 8)


def test_what_is_not_a_module_that_can_be_analysed(model: nn.Module) -> None:
    for bad, words in (
        (net(), "has no shape yet"),
        (net, "not an nn.Module"),
        (nn.Linear(3, 3, device="meta"), "meta device"),
    ):
        with pytest.raises(ModelError, match=words):
            edgeprune.trace(bad, X)
    with pytest.raises(ModelError, match="example_inputs"):
        edgeprune.trace(model, 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module() -> None:
    with pytest.raises(ModelError, match="scripted"):
        edgeprune.trace(torch.jit.script(nn.Linear(3, 3)), torch.randn(1, 3))


def test_a_wrong_input_shape_names_the_module_and_the_shape(model: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"own forward fails .*:\d+ \(module '0'\).* 3 channels") as caught:
        edgeprune.trace(model, torch.randn(2, 5, 8, 8))
    assert "float32 (2, 5, 8, 8)" in str(caught.value)


class Broken(nn.Module):
    def __init__(self, fault: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fault = fault
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.fault(self, x)


def _divide(m: Any, x: torch.Tensor) -> torch.Tensor:
    raise ZeroDivisionError("one over nothing")


@pytest.mark.parametrize(
    ("fault", "words"), [(_divide, "one over nothing"), (lambda m, x: m.missing(x), "no attribute 'missing'")]
)
def test_a_forward_that_fails(fault: Callable[[Any, torch.Tensor], torch.Tensor], words: str) -> None:
    made = Broken(fault)
    with pytest.raises(ModelError, match=rf"test_refusals.py:\d+.*{words}"):
        edgeprune.trace(made, X)
    assert made.calls == 0


def test_a_forward_that_only_torch_export_refuses() -> None:
    made = Broken(lambda m, x: x * torch.from_numpy(x.numpy()).sum())
    with pytest.raises(CaptureError, match=r"torch.export could not capture the network at .*test_refusals.py:\d+"):
        edgeprune.trace(made, X)
    assert made.calls == 0


def test_opaque_names_that_do_not_exist(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="no submodule"):
        edgeprune.trace(model, X, opaque=["nms"])


def test_illegal_choices_of_units(model: nn.Module) -> None:
    structure = edgeprune.trace(model, X)
    for kept in ([], [0, 0], [8], [-1]):
        with pytest.raises(PlanError, match="Group '0' must keep"):
            structure.plan({"0": kept})
    with pytest.raises(PlanError, match="not a removable block"):
        structure.plan({}, ["0"])
    with pytest.raises(PlanError, match="fraction"):
        structure.uniform(1.0)


@pytest.mark.long
def test_a_plan_for_another_model(model: nn.Module) -> None:
    structure = edgeprune.trace(model, X)
    plan = structure.uniform(0.5)
    with pytest.raises(PlanError, match="does not have"):
        plan.apply(nn.Linear(3, 3))
    wide = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 4)
    )
    with pytest.raises(PlanError, match="In the cut of"):
        structure.plan({"0": [5, 7]}).apply(wide)
    with pytest.raises(PlanError, match="another network"):
        edgeprune.trace(wide, X).prove(wide, plan)


def test_a_plan_edited_by_hand(model: nn.Module, tmp_path: Path) -> None:
    structure = edgeprune.trace(model, X)
    plan = structure.uniform(0.5)
    for i, cut in enumerate(plan.cuts):
        cuts = list(plan.cuts)
        cuts[i] = Cut(cut.parameter, cut.axis, cut.kept[:-1])
        with pytest.raises(PlanError, match="Layer '"):
            replace(plan, cuts=tuple(cuts)).apply(model)
    with pytest.raises(PlanError, match="does not have"):
        replace(plan, attributes=(Attribute("0", "colour", 3),)).apply(model)
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    whole = json.loads(path.read_text())
    for key, value in (
        ("version", 9),
        ("cuts", 3),
        ("cuts", [{"parameter": "0.weight"}]),
        ("removed", [1]),
        ("structure", 0),
    ):
        path.write_text(json.dumps({**whole, key: value}))
        with pytest.raises(PlanError, match=r"plan\.json"):
            Plan.load(path)
    path.write_text("{")
    with pytest.raises(PlanError, match="not valid JSON"):
        Plan.load(path)
    with pytest.raises(PlanError, match="no such file"):
        Plan.load(tmp_path / "none.json")


def test_damaged_weights(model: nn.Module, tmp_path: Path) -> None:
    def factory() -> nn.Module:
        made = net()
        made(X)
        return made

    structure = edgeprune.trace(model, X)
    plan = structure.uniform(0.5)
    save_pruned(tmp_path, plan.apply(model), plan)
    assert edgeprune.load(tmp_path, factory)[0].out_channels == 4
    weights = tmp_path / "weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(PlanError, match="damaged"):
        edgeprune.load(tmp_path, factory)
    save_pruned(tmp_path, model, plan)
    with pytest.raises(PlanError, match="in the model"):
        edgeprune.load(tmp_path, factory)
    weights.unlink()
    with pytest.raises(PlanError, match="cannot be read"):
        edgeprune.load(tmp_path, factory)
