"""A one-shot detector without anchors: one map [4 + 6, 12, 12] at stride 8.

Of every place: the distances from its centre to the four sides of the box, in strides, and a logit for each class, of
which the sigmoid is how well the box will fit (Zhang et al., VarifocalNet, arXiv:2008.13367): one number both finds and
ranks. Sides need no distribution and scores no second branch, so that there is nothing behind the last convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeprune.tasks import decoders

CLASSES = 6
SIDE, STRIDE = 96, 8

decode = decoders.YoloAnchorFree(size=(SIDE, SIDE), bins=1)  # [task] decode: the map -> boxes in 0..1, scores, labels


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Block(nn.Module):
    """Two 3x3 convolutions and what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + x)


class Detector(nn.Module):
    """[N, 3, 96, 96] in 0..1 -> [N, 10, 12, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 24, 5, 4)
        self.near = Block(24)
        self.down = conv(24, 48, 3, 2)
        self.far = nn.Sequential(Block(48), Block(48))
        self.neck = conv(48, 48)
        self.head = nn.Conv2d(48, 4 + CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.far(self.down(self.near(self.stem(x))))))


def detector() -> Detector:
    """The detector, untrained; `detector.safetensors` has the weights."""
    return Detector()
