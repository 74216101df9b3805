"""A tiny network that tells bright images apart, its recipe, and targets that are measured in a hurry."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
QUICK = """
name = "{name}"
title = "ONNX Runtime here, measured in a hurry"
family = "x86"
runtime = "onnxruntime"
dialect = "ort-x86"
cpus = ["any"]
[channels]
step = 32
[protocol]
warmup_runs = 1
runs = 4
rounds = 12
max_spread = 50.0
"""
NETWORK = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 4),
    ).eval()


def brightest():
    model = net()
    with torch.no_grad():
        images = torch.rand(256, 3, 16, 16) * torch.arange(1, 5).repeat(64)[:, None, None, None] / 4
        labels = torch.arange(256) % 4
        features = torch.cat([model[:-1](images), torch.ones(256, 1)], 1).double()
        wanted = 4 * nn.functional.one_hot(labels, 4).double() - 1
        fit = torch.linalg.solve(features.T @ features + 1e-4 * torch.eye(129), features.T @ wanted).float()
        model[-1].weight.copy_(fit[:128].T)
        model[-1].bias.copy_(fit[128])
    return model
"""
RECIPE = """
name = "{name}"
[model]
factory = "net.py:brightest"
input = [3, 16, 16]
[data]
source = "data.npz"
calibration = 16
selection = 60
[budget]
speedup = 1.05
max_drop = 100.0
[search]
method = "{method}"
images = 16
rounds = 1
trials = 0
[recover]
epochs = 0
[quantize]
images = 16
[measure]
patience = 0
"""

SWEEP = """
name = "tiny"
recipes = ["one.toml"]
targets = ["quick"]
speedups = [1.05, 1.1]
until = "search"
"""
