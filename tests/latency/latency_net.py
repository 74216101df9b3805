"""A small residual network for the tests of this folder; the fixtures that export it are in conftest.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class Net(nn.Module):
    """Stem, two removable blocks, a strided depthwise-separable pair, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.first = Block(32, 48)
        self.second = Block(32, 64)
        self.depthwise = nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32)
        self.point = nn.Conv2d(32, 96, 1)
        self.head = nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = self.second(self.first(x))
        x = torch.relu(self.point(torch.relu(self.depthwise(x))))
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Prepared:
    model: nn.Module
    structure: Any
    example: torch.Tensor
    dense: onnx.ModelProto
