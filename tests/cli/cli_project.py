"""A tiny project, what a command did, and a stand-in for the pipeline; the fixtures are in conftest.py."""

from __future__ import annotations

import json
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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

[measure]
patience = 5
"""
NETWORK = '''\
import torch
from torch import nn


def net():
    """Random features; the last layer is fitted by least squares to the images of `cli_project.pixels`."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 128, 3, padding=1), nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 4),
    ).eval()
    labels = torch.arange(256) % 4
    colour = torch.tensor([[0.7, 0.3, 0.3], [0.3, 0.7, 0.3], [0.3, 0.3, 0.7], [0.6, 0.6, 0.2]])[labels]
    images = (colour[:, :, None, None] + 0.6 * (torch.rand(256, 3, 16, 16) - 0.5)).clamp(0, 1)
    with torch.no_grad():
        features = torch.cat([model[:-1](images), torch.ones(256, 1)], 1).double()
        wanted = 4 * nn.functional.one_hot(labels, 4).double() - 1
        fit = torch.linalg.solve(features.T @ features + 1e-4 * torch.eye(129), features.T @ wanted).float()
        model[-1].weight.copy_(fit[:128].T)
        model[-1].bias.copy_(fit[128])
    return model
'''


def pixels(labels, seed=0):
    """Noisy images [N, 16, 16, 3] whose colour tells the class, which `NETWORK` knows."""
    colours = np.array([[0.7, 0.3, 0.3], [0.3, 0.7, 0.3], [0.3, 0.3, 0.7], [0.6, 0.6, 0.2]])[labels]
    noise = np.random.default_rng(seed).random((len(labels), 16, 16, 3)) - 0.5
    return (255 * np.clip(colours[:, None, None] + 0.6 * noise, 0, 1)).astype(np.uint8)


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

    def run(self, recipe, target, run_dir=None, *, until="package", start="", device="", events=None, weights=None):
        self._note(
            recipe=recipe, target=target, run_dir=run_dir, until=until, start=start, device=device, weights=weights
        )
        for event in self.events:
            events(event)
        if self.error is not None:
            raise self.error
        report = Path("runs/tiny/report.html") if until == "package" else None
        return types.SimpleNamespace(run_dir=Path("runs/tiny"), result=self.result, bundle=self.bundle, report=report)

    def plan(self, recipe, target, run_dir=None, *, device="", events=None, accuracy=False):
        self._note(
            recipe=recipe, target=target, run_dir=run_dir, until="plan", start="", device=device, accuracy=accuracy
        )
        return self.plan_result
