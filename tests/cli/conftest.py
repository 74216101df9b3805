"""A tiny project in a folder of its own, a stand-in for the pipeline, and the command line to call."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgeprune
from edgeprune.cli import main

EXAMPLE = Path(__file__).parent.parent / "report" / "example.json"
RECIPE = """\
name = "tiny"

[model]
factory = "net.py:net"
input = [3, 16, 16]

[data]
source = "data.npz"
calibration = 32
selection = 60

[budget]
speedup = 1.05
max_drop = 90.0

[search]
method = "uniform"

[recover]
epochs = 0.2
batch = 32

[quantize]
images = 32
"""
NETWORK = """\
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    )
"""
QUICK = """\
name = "quick"
title = "ONNX Runtime here, measured in a hurry"
family = "x86"
runtime = "onnxruntime"
dialect = "ort-x86"

[channels]
step = 8

[protocol]
warmup_runs = 3
runs = 15
rounds = 3
max_spread = 5.0
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a recipe, a network, images and a target called `quick`; the commands run in it."""
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(RECIPE)
    Path("net.py").write_text(NETWORK)
    Path("targets/quick").mkdir(parents=True)
    Path("targets/quick/profile.toml").write_text(QUICK)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 200), ("test", 60)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (count, 16, 16, 3)).astype(np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 4, count)
    np.savez("data.npz", classes=np.array(["ant", "bee", "cat", "dog"]), **arrays)
    return tmp_path


@dataclass
class Called:
    """What a command did."""

    exit_code: int
    stdout: str
    stderr: str
    exception: BaseException | None

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


@pytest.fixture
def edgeprune_command():
    """Call the command line: edgeprune_command("targets", "--json")."""

    def call(*arguments: Any) -> Called:
        done = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="edgeprune")
        return Called(done.exit_code, done.stdout, done.stderr, done.exception)

    return call


@dataclass(frozen=True)
class Event:
    kind: str
    stage: str
    message: str = ""
    done: float = 0.0
    total: float = 0.0


@dataclass
class Pipeline:
    """Stands in for edgeprune.pipeline where a test is about the command line alone; records how it was called."""

    result: dict[str, Any]
    events: list[Event] = field(default_factory=list)
    error: BaseException | None = None
    plan_result: dict[str, Any] = field(default_factory=dict)
    bundle: Path | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def _note(self, **call):
        self.calls.append(call)

    def run(self, recipe, target, run_dir=None, *, until="package", start="", device="", events=None):
        self._note(recipe=recipe, target=target, run_dir=run_dir, until=until, start=start, device=device)
        for event in self.events:
            events(event)
        if self.error is not None:
            raise self.error
        report = Path("runs/tiny/report.html") if until == "package" else None
        return types.SimpleNamespace(run_dir=Path("runs/tiny"), result=self.result, bundle=self.bundle, report=report)

    def plan(self, recipe, target, run_dir=None, *, device="", events=None):
        self._note(recipe=recipe, target=target, run_dir=run_dir, until="plan", start="", device=device)
        return self.plan_result


@pytest.fixture
def pipeline(monkeypatch):
    """The stand-in, in place."""
    stand_in = Pipeline(json.loads(EXAMPLE.read_text()))
    module: Any = types.ModuleType("edgeprune.pipeline")
    module.run, module.plan, module.Event = stand_in.run, stand_in.plan, Event
    monkeypatch.setitem(sys.modules, "edgeprune.pipeline", module)
    monkeypatch.setattr(edgeprune, "pipeline", module, raising=False)
    return stand_in
