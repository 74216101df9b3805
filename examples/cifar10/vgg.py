"""VGG16 with batch norms (Simonyan and Zisserman, arXiv:1409.1556, configuration D) for 32 x 32 images.

The network takes RGB pixels divided by 255. Parameter names fit the published weights that `fetch.py` writes.
"""

from __future__ import annotations

from torch import Tensor, nn

CONFIGURATION = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: 2x2 max pool


class VGG(nn.Module):
    """Thirteen 3x3 convolutions and two linear layers."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, following in zip(CONFIGURATION, (*CONFIGURATION[1:], 0), strict=True):
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            if following:
                layers.append(nn.Dropout(0.3 if len(layers) == 3 else 0.4))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(512, 512),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(512, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] -> [N, classes] logits."""
        return self.classifier(self.features(x).flatten(1))


def vgg16_bn() -> VGG:
    """VGG16-BN: 15.0 M parameters, 313 M multiply-accumulates."""
    return VGG()
