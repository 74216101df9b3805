"""A tiny project, what a command did, and a stand-in for the pipeline; the fixtures are in conftest.py."""

from __future__ import annotations

import json
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
step = 32

[protocol]
warmup_runs = 3
runs = 40
rounds = 24
max_spread = 5.0
"""


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
