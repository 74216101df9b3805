"""Small networks of kinds that people ship and that come with no package: written here, each with its example input."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Built = tuple[nn.Module, Any]


def _conv(a: int, b: int, k: int = 3, s: int = 1, g: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(b), nn.SiLU())


class Crnn(nn.Module):
    """Text recognition: convolutions, columns as a sequence, two bidirectional LSTMs, a class a column."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv(1, 32),
            nn.MaxPool2d(2),
            _conv(32, 64),
            nn.MaxPool2d(2),
            _conv(64, 96),
            nn.MaxPool2d((2, 1)),
            _conv(96, 96),
        )
        self.rnn = nn.LSTM(96 * 4, 64, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(128, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        b, c, h, w = x.shape
        x, _ = self.rnn(x.permute(0, 3, 1, 2).reshape(b, w, c * h))
        return F.log_softmax(self.out(x), -1)


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, a gated depthwise convolution, half a feed-forward."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.ff1, self.ff2 = (
            nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.SiLU(), nn.Linear(4 * c, c)) for _ in "ab"
        )
        self.norm, self.attention = nn.LayerNorm(c), nn.MultiheadAttention(c, heads, batch_first=True)
        self.before, self.up = nn.LayerNorm(c), nn.Conv1d(c, 2 * c, 1)
        self.depth, self.bn, self.down = nn.Conv1d(c, c, 7, padding=3, groups=c), nn.BatchNorm1d(c), nn.Conv1d(c, c, 1)
        self.last = nn.LayerNorm(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 0.5 * self.ff1(x)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = F.glu(self.up(self.before(x).transpose(1, 2)), 1)
        x = x + self.down(F.silu(self.bn(self.depth(y)))).transpose(1, 2)
        return self.last(x + 0.5 * self.ff2(x))


class Conformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sub = nn.Sequential(nn.Conv2d(1, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU())
        self.project = nn.Linear(32 * 9, 64)
        self.blocks = nn.ModuleList(ConformerBlock(64, 4) for _ in range(2))
        self.out = nn.Linear(64, 30)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.sub(x.unsqueeze(1))
        x = self.project(x.permute(0, 2, 1, 3).flatten(2))
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class Espcn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(1, 64, 5, padding=2),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.Conv2d(32, 9, 3, padding=1),
        )
        self.shuffle = nn.PixelShuffle(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.shuffle(self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))))


class Fsrcnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 56, 5, padding=2), nn.PReLU(56), nn.Conv2d(56, 12, 1), nn.PReLU(12)]
        for _ in range(4):
            layers += [nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12)]
        layers += [nn.Conv2d(12, 56, 1), nn.PReLU(56)]
        self.body = nn.Sequential(*layers)
        self.up = nn.ConvTranspose2d(56, 1, 9, 3, 4, output_padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.body(x))


class Residual(nn.Module):
    def __init__(self, body: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.body, self.scale = body, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.body(x)


class Edsr(nn.Module):
    def __init__(self, c: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, c, 3, padding=1)
        parts = [
            Residual(nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1)), 0.1)
            for _ in range(blocks)
        ]
        self.body = Residual(nn.Sequential(*parts, nn.Conv2d(c, c, 3, padding=1)))
        self.tail = nn.Sequential(nn.Conv2d(c, 4 * c, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(c, 3, 3, padding=1))
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.40]).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.body(self.head(x - self.mean))) + self.mean


class TcnBlock(nn.Module):
    """Two causal, dilated convolutions with weight norm; the padding behind is cut off."""

    def __init__(self, a: int, b: int, dilation: int) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.c1 = nn.utils.parametrizations.weight_norm(nn.Conv1d(a, b, 3, padding=self.pad, dilation=dilation))
        self.c2 = nn.utils.parametrizations.weight_norm(nn.Conv1d(b, b, 3, padding=self.pad, dilation=dilation))
        self.match = nn.Conv1d(a, b, 1) if a != b else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.c1(x)[:, :, : -self.pad].contiguous())
        y = torch.relu(self.c2(y)[:, :, : -self.pad].contiguous())
        return torch.relu(y + (x if self.match is None else self.match(x)))


class Tcn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(TcnBlock(4, 32, 1), TcnBlock(32, 32, 2), TcnBlock(32, 32, 4))
        self.out = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(x)[:, :, -1])


class Vad(nn.Module):
    """Voice activity: a fixed Fourier basis, magnitudes, convolutions, an LSTM step whose state comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        basis = torch.fft.fft(torch.eye(128))[:65]
        self.register_buffer("basis", torch.cat([basis.real, basis.imag]).unsqueeze(1))
        self.encoder = nn.Sequential(
            nn.Conv1d(65, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(64, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv1d(32, 48, 3, 2, 1),
            nn.ReLU(),
        )
        self.cell = nn.LSTMCell(48, 48)
        self.out = nn.Conv1d(48, 1, 1)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = F.conv1d(F.pad(x.unsqueeze(1), (0, 64), mode="reflect"), self.basis, stride=64)
        y = torch.sqrt(y[:, :65] ** 2 + y[:, 65:] ** 2 + 1e-9)
        y = self.encoder(y).mean(-1)
        h, c = self.cell(y, (state[0], state[1]))
        return torch.sigmoid(self.out(torch.relu(h).unsqueeze(-1))).mean(-1), torch.stack([h, c])


class YoloxHead(nn.Module):
    """Decoupled branches a level; grids are made in the forward and kept, then all is decoded."""

    def __init__(self, widths: list[int], classes: int, c: int = 32) -> None:
        super().__init__()
        self.stems = nn.ModuleList(_conv(w, c, 1) for w in widths)
        self.cls = nn.ModuleList(nn.Sequential(_conv(c, c), _conv(c, c)) for _ in widths)
        self.reg = nn.ModuleList(nn.Sequential(_conv(c, c), _conv(c, c)) for _ in widths)
        self.cls_out = nn.ModuleList(nn.Conv2d(c, classes, 1) for _ in widths)
        self.reg_out = nn.ModuleList(nn.Conv2d(c, 4, 1) for _ in widths)
        self.obj_out = nn.ModuleList(nn.Conv2d(c, 1, 1) for _ in widths)
        self.grids = [torch.zeros(1)] * len(widths)
        self.strides = [8, 16, 32]

    def forward(self, maps: list[torch.Tensor]) -> Any:
        outputs = []
        for k, x in enumerate(maps):
            x = self.stems[k](x)
            cls, reg = self.cls[k](x), self.reg[k](x)
            out = torch.cat([self.reg_out[k](reg), self.obj_out[k](reg).sigmoid(), self.cls_out[k](cls).sigmoid()], 1)
            h, w = out.shape[-2:]
            if self.grids[k].shape[1:3] != out.shape[2:4]:
                rows, cols = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
                self.grids[k] = torch.stack((cols, rows), 2).view(1, h, w, 2).to(out.dtype)
            outputs.append((out, self.grids[k], self.strides[k]))
        if self.training:
            return [o for o, _, _ in outputs]
        decoded = []
        for out, grid, stride in outputs:
            y = out.permute(0, 2, 3, 1)
            y = torch.cat([(y[..., :2] + grid) * stride, torch.exp(y[..., 2:4]) * stride, y[..., 4:]], -1)
            decoded.append(y.flatten(1, 2))
        return torch.cat(decoded, 1)


class Csp(nn.Module):
    """A cross-stage block: one half through bottlenecks, the other past them."""

    def __init__(self, a: int, b: int, n: int = 1) -> None:
        super().__init__()
        c = b // 2
        self.left, self.right, self.join = _conv(a, c, 1), _conv(a, c, 1), _conv(2 * c, b, 1)
        self.body = nn.Sequential(*[Residual(nn.Sequential(_conv(c, c, 1), _conv(c, c))) for _ in range(n)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(torch.cat([self.body(self.left(x)), self.right(x)], 1))


class Yolox(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.focus = _conv(12, 16)
        self.stages = nn.ModuleList(
            nn.Sequential(_conv(a, b, 3, 2), Csp(b, b)) for a, b in ((16, 32), (32, 48), (48, 64), (64, 96))
        )
        self.lateral, self.merge = _conv(96, 64, 1), Csp(128, 64)
        self.down, self.merge2 = _conv(64, 64, 3, 2), Csp(128, 96)
        self.head = YoloxHead([48, 64, 96], 10)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        x = self.focus(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        top = self.lateral(maps[-1])
        mid = self.merge(torch.cat([F.interpolate(top, scale_factor=2.0), maps[-2]], 1))
        low = self.merge2(torch.cat([self.down(mid), top], 1))
        return self.head([maps[-3], mid, low])


class Nanodet(nn.Module):
    """Shuffled backbone, ghost-like pyramid, integral boxes on depthwise heads that the levels share."""

    def __init__(self, bins: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.bins, self.classes = bins, classes
        self.stem = _conv(3, 24, 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(_conv(a, b, 3, 2), Shuffle(b)) for a, b in ((24, 48), (48, 64), (64, 96))
        )
        self.reduce = nn.ModuleList(_conv(c, 48, 1) for c in (48, 64, 96))
        self.head = nn.Sequential(_conv(48, 48, 5, 1, 48), _conv(48, 48, 1))
        self.out = nn.Conv2d(48, classes + 4 * bins, 1)
        self.register_buffer("project", torch.linspace(0, bins - 1, bins))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, maps = self.stem(x), []
        for stage, reduce in zip(self.stages, self.reduce, strict=True):
            x = stage(x)
            maps.append(reduce(x))
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="bilinear")
        said = torch.cat([self.out(self.head(m)).flatten(2) for m in maps], 2).permute(0, 2, 1)
        cls, reg = said.split([self.classes, 4 * self.bins], -1)
        reg = F.linear(reg.reshape(-1, self.bins).softmax(-1), self.project.unsqueeze(0)).reshape(*reg.shape[:2], 4)
        scores, index = cls.sigmoid().amax(-1).topk(10)
        return torch.cat(
            [
                torch.gather(
                    torch.cat([reg, cls.sigmoid()], -1), 1, index.unsqueeze(-1).expand(-1, -1, 4 + self.classes)
                ),
                scores.unsqueeze(-1),
            ],
            -1,
        )


class Shuffle(nn.Module):
    """Half passes, half is worked on, the two are shuffled."""

    def __init__(self, c: int) -> None:
        super().__init__()
        h = c // 2
        self.body = nn.Sequential(_conv(h, h, 1), _conv(h, h, 3, 1, h), _conv(h, h, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.body(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class DsCnn(nn.Module):
    """Keyword spotting: depthwise separable convolutions on MFCCs."""

    def __init__(self, c: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, c, (10, 4), (2, 2), (4, 1), bias=False), nn.BatchNorm2d(c), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False), nn.BatchNorm2d(c), nn.ReLU()]
            layers += [nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU()]
        self.body, self.out = nn.Sequential(*layers), nn.Linear(c, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.adaptive_avg_pool2d(self.body(x), 1).flatten(1))


class TcResNet(nn.Module):
    """Keyword spotting in one dimension: MFCCs as channels."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 32, 48)) -> None:
        super().__init__()
        self.stem = nn.Conv1d(40, widths[0], 3, padding=1, bias=False)
        self.blocks = nn.ModuleList()
        for a, b in itertools.pairwise(widths):
            body = nn.Sequential(
                nn.Conv1d(a, b, 9, 2, 4, bias=False),
                nn.BatchNorm1d(b),
                nn.ReLU(),
                nn.Conv1d(b, b, 9, 1, 4, bias=False),
                nn.BatchNorm1d(b),
            )
            skip = nn.Sequential(nn.Conv1d(a, b, 1, 2, bias=False), nn.BatchNorm1d(b), nn.ReLU())
            self.blocks.append(nn.ModuleList([body, skip]))
        self.out = nn.Linear(widths[-1], 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for body, skip in self.blocks:
            x = torch.relu(body(x) + skip(x))
        return self.out(x.mean(-1))


class Detr(nn.Module):
    """Set prediction: a convolutional backbone, torch's own transformer, learnt queries."""

    def __init__(self, c: int = 64, queries: int = 10) -> None:
        super().__init__()
        self.backbone = nn.Sequential(_conv(3, 16, 3, 2), _conv(16, 32, 3, 2), _conv(32, 96, 3, 2))
        self.project = nn.Conv2d(96, c, 1)
        self.transformer = nn.Transformer(c, 4, 2, 2, 128, batch_first=True)
        self.queries, self.rows, self.cols = (
            nn.Parameter(torch.rand(n, d)) for n, d in ((queries, c), (50, c // 2), (50, c // 2))
        )
        self.cls, self.box = nn.Linear(c, 11), nn.Sequential(nn.Linear(c, c), nn.ReLU(), nn.Linear(c, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.project(self.backbone(x))
        h, w = x.shape[-2:]
        place = torch.cat([self.cols[:w].unsqueeze(0).repeat(h, 1, 1), self.rows[:h].unsqueeze(1).repeat(1, w, 1)], -1)
        x = place.flatten(0, 1).unsqueeze(0) + x.flatten(2).permute(0, 2, 1)
        y = self.transformer(x, self.queries.unsqueeze(0).expand(x.shape[0], -1, -1))
        return self.cls(y), self.box(y).sigmoid()


def crnn() -> Built:
    return Crnn(), torch.rand(1, 1, 32, 96)


def conformer() -> Built:
    return Conformer(), torch.rand(1, 80, 40)


def espcn() -> Built:
    return Espcn(), torch.rand(1, 1, 24, 24)


def fsrcnn() -> Built:
    return Fsrcnn(), torch.rand(1, 1, 24, 24)


def edsr() -> Built:
    return Edsr(), torch.rand(1, 3, 24, 24)


def tcn() -> Built:
    return Tcn(), torch.rand(1, 4, 40)


def vad() -> Built:
    return Vad(), (torch.rand(1, 512), torch.zeros(2, 1, 48))


def yolox() -> Built:
    return Yolox(), torch.rand(1, 3, 128, 128)


def nanodet() -> Built:
    return Nanodet(), torch.rand(1, 3, 128, 128)


def dscnn() -> Built:
    return DsCnn(), torch.rand(1, 1, 49, 10)


def tcresnet() -> Built:
    return TcResNet(), torch.rand(1, 40, 98)


def detr() -> Built:
    return Detr(), torch.rand(1, 3, 64, 64)
