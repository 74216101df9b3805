"""A small U-Net (Ronneberger et al., arXiv:1505.04597): three scales, skips joined by concatenation.

Its map is half as large as the picture (`[task] resize = true` compares it with masks of the picture's size): most of a
U-Net's time goes where it is largest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 7  # ground and six kinds of clothing


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """[N, 3, 96, 96] in 0..1 -> logits [N, 7, 48, 48]."""

    def __init__(self) -> None:
        super().__init__()
        self.at_half = conv(3, 12, 3, 2)
        self.at_quarter = nn.Sequential(conv(12, 24, 3, 2), conv(24, 24))
        self.at_eighth = nn.Sequential(conv(24, 48, 3, 2), conv(48, 48))
        self.at_sixteenth = nn.Sequential(conv(48, 64, 3, 2), conv(64, 64))
        self.to_eighth = conv(64 + 48, 48)
        self.to_quarter = conv(48 + 24, 24)
        self.to_half = conv(24 + 12, 16)
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        half = self.at_half(x)
        quarter = self.at_quarter(half)
        eighth = self.at_eighth(quarter)
        up = self.to_eighth(torch.cat([twice(self.at_sixteenth(eighth)), eighth], 1))
        up = self.to_quarter(torch.cat([twice(up), quarter], 1))
        return self.head(self.to_half(torch.cat([twice(up), half], 1)))


def twice(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2 H, 2 W], each pixel four times."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def unet() -> UNet:
    """The U-Net, untrained; `unet.safetensors` has the weights."""
    return UNet()
