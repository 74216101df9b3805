"""Networks of the kinds that people ship, written here at their usual sizes; weights are as initialised.

MiniLM (6 layers of width 384, 12 heads, 128 tokens: Wang et al., arXiv 2002.10957), DS-CNN for keywords (Zhang et al.,
arXiv 1711.07128), TC-ResNet8 (temporal convolutions over 40 features: Choi et al., arXiv 1904.03814), and a detector of
YOLOv8n's size and parts (C2f, SPPF, a neck with Resize and Concat, three heads of boxes and classes; layout as in the
ultralytics documentation, written anew).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn


class Encoder(nn.Module):
    """A transformer layer, post-norm as in BERT."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.head = heads, width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width)
        self.up, self.down, self.norm2 = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            part(x).view(batch, tokens, -1, self.head).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / self.head**0.5, -1)
        x = self.norm1(x + self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, -1)))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class MiniLM(nn.Module):
    """Embedded tokens in, one vector out."""

    def __init__(self, width: int = 384, layers: int = 6, heads: int = 12) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(1, 128, width))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(Encoder(width, heads, 4 * width) for _ in range(layers)))
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.norm(x + self.position)).mean(1))


def _conv(
    c_in: int, c_out: int, kernel: Any, stride: Any = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    padding = tuple(k // 2 for k in kernel) if isinstance(kernel, tuple) else kernel // 2
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(c_out), act()
    )


class DSCNN(nn.Module):
    """MFCC of a second in, 12 words out."""

    def __init__(self, width: int = 172) -> None:
        super().__init__()
        self.stem = _conv(1, width, (10, 4), (2, 1))
        self.body = nn.Sequential(
            *(
                nn.Sequential(_conv(width, width, 3, 2 if i == 0 else 1, width), _conv(width, width, 1))
                for i in range(5)
            )
        )
        self.head = nn.Linear(width, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Temporal(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(c_in, c_out, 9, stride, 4, bias=False)
        self.bn1 = nn.BatchNorm1d(c_out)
        self.conv2 = nn.Conv1d(c_out, c_out, 9, 1, 4, bias=False)
        self.bn2 = nn.BatchNorm1d(c_out)
        self.short = None
        if stride != 1 or c_in != c_out:
            self.short = nn.Sequential(nn.Conv1d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm1d(c_out), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.short is None else self.short(x)))


class TCResNet(nn.Module):
    """[40, 101] features in, 12 words out; `k` times the widths of TC-ResNet8."""

    def __init__(self, k: float = 3.0) -> None:
        super().__init__()
        widths = [int(k * width) for width in (16, 24, 32, 48)]
        self.stem = nn.Conv1d(40, widths[0], 3, padding=1, bias=False)
        self.body = nn.Sequential(*(Temporal(a, b, 2) for a, b in itertools.pairwise(widths)))
        self.head = nn.Linear(widths[-1], 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).mean(2))


class Bottleneck(nn.Module):
    def __init__(self, width: int, add: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = _conv(width, width, 3, act=nn.SiLU), _conv(width, width, 3, act=nn.SiLU), add

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C2f(nn.Module):
    """Split, bottlenecks one behind the other, all of them joined."""

    def __init__(self, c_in: int, c_out: int, repeats: int, add: bool = False) -> None:
        super().__init__()
        self.cv1 = _conv(c_in, c_out, 1, act=nn.SiLU)
        self.cv2 = _conv((2 + repeats) * c_out // 2, c_out, 1, act=nn.SiLU)
        self.m = nn.ModuleList(Bottleneck(c_out // 2, add) for _ in range(repeats))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for one in self.m:
            parts.append(one(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class SPPF(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = _conv(width, width // 2, 1, act=nn.SiLU), _conv(2 * width, width, 1, act=nn.SiLU)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class Detector(nn.Module):
    """YOLOv8n's size: three maps of 64 box bins and 80 classes."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU
        self.s1, self.s2, self.c2 = _conv(3, 16, 3, 2, act=act), _conv(16, 32, 3, 2, act=act), C2f(32, 32, 1, True)
        self.s3, self.c3 = _conv(32, 64, 3, 2, act=act), C2f(64, 64, 2, True)
        self.s4, self.c4 = _conv(64, 128, 3, 2, act=act), C2f(128, 128, 2, True)
        self.s5, self.c5, self.sppf = _conv(128, 256, 3, 2, act=act), C2f(256, 256, 1, True), SPPF(256)
        self.up = nn.Upsample(scale_factor=2)
        self.n4, self.n3 = C2f(384, 128, 1), C2f(192, 64, 1)
        self.d3, self.n4b = _conv(64, 64, 3, 2, act=act), C2f(192, 128, 1)
        self.d4, self.n5b = _conv(128, 128, 3, 2, act=act), C2f(384, 256, 1)
        widths = (64, 128, 256)
        self.boxes, self.classes = nn.ModuleList(), nn.ModuleList()
        for width in widths:
            for heads, inner, out in ((self.boxes, 64, 64), (self.classes, 80, 80)):
                heads.append(
                    nn.Sequential(
                        _conv(width, inner, 3, act=act), _conv(inner, inner, 3, act=act), nn.Conv2d(inner, out, 1)
                    )
                )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p3 = self.c3(self.s3(self.c2(self.s2(self.s1(x)))))
        p4 = self.c4(self.s4(p3))
        p5 = self.sppf(self.c5(self.s5(p4)))
        n4 = self.n4(torch.cat([self.up(p5), p4], 1))
        n3 = self.n3(torch.cat([self.up(n4), p3], 1))
        n4 = self.n4b(torch.cat([self.d3(n3), n4], 1))
        n5 = self.n5b(torch.cat([self.d4(n4), p5], 1))
        maps = [
            torch.cat([box(one), kind(one)], 1).flatten(2)
            for box, kind, one in zip(self.boxes, self.classes, (n3, n4, n5), strict=True)
        ]
        return torch.cat(maps, 2)


SHAPES = {"minilm": (128, 384), "dscnn": (1, 49, 10), "tcresnet": (40, 101), "detector": (3, 320, 320)}
_MADE = {"minilm": MiniLM, "dscnn": DSCNN, "tcresnet": TCResNet, "detector": Detector}


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """(model in eval mode, input shape without batch)."""
    torch.manual_seed(0)
    return _MADE[name]().eval(), SHAPES[name]
