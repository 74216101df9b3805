"""A run of a network of 2,000 weights that Python hands over, of 6x6 images, on this machine's ONNX Runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from edgeprune import Budget, Data, target
from edgeprune import recipe as recipes
from edgeprune.pipeline import objects
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.events import silent
from edgeprune.pipeline.rundir import RunDirectory

WIDTH = 12


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()]
    made = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 5)).eval()
    with torch.no_grad():  # every class as often
        scores = made(images())
        made[-1].weight /= scores.std(0)[:, None]
        made[-1].bias.sub_(scores.mean(0)).div_(scores.std(0))
    return made


def images() -> torch.Tensor:
    return torch.randn(160, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def data() -> Data:
    """Images whose class is what the network says."""
    with torch.no_grad():
        classes = network()(images()).argmax(1).tolist()
    items = list(zip(images(), classes, strict=True))
    return Data(train=items[:96], test=items[:32], selection=items[96:])


@contextlib.contextmanager
def run_of(folder: Path, **sections: Any) -> Iterator[Context]:
    """A run of that network on this machine's ONNX Runtime, with these sections of a recipe."""
    plain = {name: sections.get(name, {}) for name in ("search", "quantize")}
    made, handed = objects.recipe_of(network(), data(), "classification", Budget(speedup=1.5), None, **plain)
    made = recipes.of_python({**msgspec.to_builtins(made), **sections}, "recipe")
    with (
        RunDirectory(folder / "run") as run,
        Context(made, target.load("x86-onnxruntime"), run, "", silent, handed) as context,
    ):
        yield context
