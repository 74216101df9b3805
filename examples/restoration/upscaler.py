"""Twice the size: convolutions on the small picture, then pixel shuffle (Shi et al., arXiv:1609.05158).

The network says what is missing from the picture enlarged by interpolation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 32


class Block(nn.Module):
    """Two 3x3 convolutions and what came in; without batch norm, as is usual for pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Upscaler(nn.Module):
    """[N, 3, H, W] in 0..1 -> [N, 3, 2 H, 2 W]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, 1, 1)
        self.body = nn.Sequential(Block(), Block(), Block())
        self.last = nn.Conv2d(WIDTH, 12, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        missing = self.last(self.body(torch.relu(self.first(x))))
        large = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return large + functional.pixel_shuffle(missing, 2)


def upscaler() -> Upscaler:
    """The network, untrained; `upscaler.safetensors` has the weights."""
    return Upscaler()
