"""A DS-CNN (Zhang et al., "Hello Edge", arXiv:1711.07128): one convolution, then depthwise separable ones, and a mean.

It takes log-mel as it is: the mean and deviation of the training sounds are folded into the first convolution, which
therefore has no padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 10
WIDTH = 48


def separable(width: int) -> nn.Sequential:
    """A depthwise 3x3 convolution and a pointwise one."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class DSCNN(nn.Module):
    """[N, 1, 49, 40] log-mel -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTH, (10, 4), 2, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.blocks = nn.Sequential(*(separable(WIDTH) for _ in range(4)))
        self.linear = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.norm(self.conv(x))))
        return self.linear(x.mean((2, 3)))

    def fold(self, mean: float, deviation: float) -> None:
        """From a network of (x - mean) / deviation to the same network of x."""
        with torch.no_grad():
            self.conv.weight /= deviation
            self.norm.running_mean += mean * self.conv.weight.sum((1, 2, 3))


def dscnn() -> DSCNN:
    """The network, untrained; `dscnn.safetensors` has the weights."""
    return DSCNN()
