"""Small networks, one for each family of operators, with the inputs that they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Case = tuple[nn.Module, Any]


class Call(nn.Module):
    """Named layers and a function over them."""

    def __init__(self, forward: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.body = forward
        for name, value in layers.items():
            setattr(self, name, value)

    def forward(self, *args: Any) -> Any:
        return self.body(self, *args)


def _image(channels: int = 3, side: int = 8, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, side, side)


def grouped_convolution() -> Case:
    layers = {"a": nn.Conv2d(3, 24, 3), "b": nn.Conv2d(24, 36, 3, groups=6), "c": nn.Conv2d(36, 4, 1)}
    return Call(lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x))))), **layers), _image()


def depthwise_and_multiplier() -> Case:
    layers = {"a": nn.Conv2d(3, 8, 1), "d": nn.Conv2d(8, 16, 3, groups=8), "c": nn.Conv2d(16, 4, 1)}
    return Call(lambda m, x: m.c(torch.relu(m.d(m.a(x)))), **layers), _image()


def transposed_convolution() -> Case:
    layers = {"a": nn.Conv2d(3, 8, 2, 2), "u": nn.ConvTranspose2d(8, 12, 2, 2), "c": nn.Conv2d(12, 4, 1)}
    return Call(lambda m, x: m.c(torch.relu(m.u(m.a(x)))), **layers), _image()


def one_and_three_dimensions() -> Case:
    layers = {"a": nn.Conv1d(3, 8, 3), "b": nn.BatchNorm1d(8), "v": nn.Conv3d(8, 6, 1), "o": nn.Conv3d(6, 2, 1)}
    return Call(lambda m, x: m.o(m.v(m.b(m.a(x))[..., None, None])), **layers), torch.randn(2, 3, 9)


def squeeze_excite() -> Case:
    layers = {"a": nn.Conv2d(3, 16, 3), "r": nn.Conv2d(16, 4, 1), "e": nn.Conv2d(4, 16, 1), "o": nn.Conv2d(16, 2, 1)}

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x)
        return m.o(x * torch.sigmoid(m.e(F.silu(m.r(x.mean((2, 3), keepdim=True))))))

    return Call(forward, **layers), _image()


def concat_and_shared() -> Case:
    layers = {
        "a": nn.Conv2d(3, 6, 3, padding=1),
        "b": nn.Conv2d(9, 10, 1),
        "s": nn.Conv2d(10, 10, 1),
        "o": nn.Conv2d(16, 2, 1),
    }

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        z = m.b(torch.cat([x, y], 1))
        return m.o(torch.cat([m.s(torch.relu(m.s(z))), y], 1))

    return Call(forward, **layers), _image()


def chunk_and_shuffle() -> Case:
    layers = {"a": nn.Conv2d(3, 24, 1), "o": nn.Conv2d(12, 2, 1)}

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        b, c, h, w = y.shape
        y = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        left, right = y.chunk(2, 1)
        return m.o(left * torch.sigmoid(right))

    return Call(forward, **layers), _image()


def split_by_sizes() -> Case:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        p, q = torch.split(m.a(x), [m.first, m.second], 1)
        return m.o(p) + m.q(q)

    layers = {"a": nn.Conv2d(3, 20, 1), "o": nn.Conv2d(8, 2, 1), "q": nn.Conv2d(12, 2, 1), "first": 8, "second": 12}
    return Call(forward, **layers), _image()


def pixel_shuffles() -> Case:
    layers = {"a": nn.Conv2d(3, 16, 3, padding=1), "b": nn.Conv2d(4, 6, 1), "o": nn.Conv2d(24, 2, 1)}
    return Call(lambda m, x: m.o(F.pixel_unshuffle(m.b(F.pixel_shuffle(m.a(x), 2)), 2)), **layers), _image()


def norms() -> Case:
    layers = {
        "a": nn.Conv2d(3, 12, 3), "g": nn.GroupNorm(4, 12), "b": nn.Conv2d(12, 8, 1),
        "i": nn.InstanceNorm2d(8, affine=True), "l": nn.LayerNorm(8), "r": nn.RMSNorm(8), "o": nn.Linear(8, 3),
    }  # fmt: skip
    return Call(lambda m, x: m.o(m.r(m.l(m.i(m.b(m.g(m.a(x)))).permute(0, 2, 3, 1)))), **layers), _image()


def flatten_to_linear() -> Case:
    layers = {"a": nn.Conv2d(3, 7, 3), "f": nn.Linear(7 * 36, 20), "o": nn.Linear(20, 3)}
    return Call(lambda m, x: m.o(torch.relu(m.f(torch.relu(m.a(x)).flatten(1)))), **layers), _image()


class Attention(nn.Module):
    """Fused or separate query, key and value; heads of their own width."""

    def __init__(self, fused: bool, explicit: bool, width: int = 12, heads: int = 4, head: int = 5) -> None:
        super().__init__()
        self.fused, self.explicit, self.heads, self.head, self.inner = fused, explicit, heads, head, heads * head
        if fused:
            self.qkv = nn.Linear(width, 3 * self.inner)
        else:
            self.q, self.k, self.v = (nn.Linear(width, self.inner) for _ in range(3))
        self.out = nn.Linear(self.inner, width)
        self.scale = head**-0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        if self.fused:
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (f(x).view(b, n, self.heads, self.head).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.explicit:
            y = torch.softmax(q @ k.transpose(-2, -1) * self.scale, -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, self.inner))


class Encoder(nn.Module):
    """A pre-norm transformer block and a head."""

    def __init__(self, fused: bool = True, explicit: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        self.pos = nn.Parameter(torch.randn(1, 7, 12))
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attn = Attention(fused, explicit)
        self.fc1, self.fc2 = nn.Linear(12, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.pos
        x = x + self.attn(self.norm1(x))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean(1))


def attention_fused() -> Case:
    return Encoder(True, False), torch.randn(2, 7, 6)


def attention_separate() -> Case:
    return Encoder(False, True), torch.randn(2, 7, 6)


def width_from_the_input() -> Case:
    """`x.reshape(b, n, c)` on the heads with c read from the input: the stream follows the heads."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = 3
            self.embed, self.qkv, self.out, self.head = (
                nn.Linear(5, 12),
                nn.Linear(12, 36),
                nn.Linear(12, 12),
                nn.Linear(12, 2),
            )

        def attend(self, x: torch.Tensor) -> torch.Tensor:
            b, n, c = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
            y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            return self.out(y.transpose(1, 2).reshape(b, n, c))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            return self.head((x + self.attend(x)).mean(1))

    return Plain(), torch.randn(2, 4, 5)


def einsum_heads() -> Case:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).reshape(b, n, m.heads, 4) for f in (m.q, m.k, m.v))
        weight = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return m.o(torch.einsum("bhqk,bkhd->bqhd", weight, v).flatten(2))

    layers = {"q": nn.Linear(6, 12), "k": nn.Linear(6, 12), "v": nn.Linear(6, 12), "o": nn.Linear(12, 2), "heads": 3}
    return Call(forward, **layers), torch.randn(2, 5, 6)


def grouped_query() -> Case:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q = m.q(x).view(b, n, -1, 4).transpose(1, 2)
        k, v = (f(x).view(b, n, -1, 4).transpose(1, 2).repeat_interleave(2, 1) for f in (m.k, m.v))
        return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    layers = {"q": nn.Linear(6, 24), "k": nn.Linear(6, 12), "v": nn.Linear(6, 12), "o": nn.Linear(24, 2)}
    return Call(forward, **layers), torch.randn(2, 5, 6)


def window_partition() -> Case:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        x = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        x = torch.roll(m.b(torch.relu(x)), 1, 1)
        return m.o(x)

    return Call(forward, a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 10), o=nn.Linear(10, 2)), _image()


def im2col_mixer() -> Case:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.unfold(m.a(x), 2, stride=2)
        return m.o(F.fold(y, (8, 8), 2, stride=2))

    return Call(forward, a=nn.Conv2d(3, 8, 1), o=nn.Conv2d(8, 2, 1)), _image()


def lstm() -> Case:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.o(torch.relu(m.r(m.e(x))[0][:, -1]))

    layers = {"e": nn.Embedding(20, 6), "r": nn.LSTM(6, 10, 2, batch_first=True), "o": nn.Linear(10, 3)}
    return Call(forward, **layers), torch.randint(0, 20, (2, 5))


def gru_both_ways() -> Case:
    layers = {"r": nn.GRU(6, 8, batch_first=True, bidirectional=True), "o": nn.Linear(16, 3)}
    return Call(lambda m, x: m.o(m.r(x)[0]), **layers), torch.randn(2, 5, 6)


def weight_norm() -> Case:
    layers = {
        "a": nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
        "b": nn.Conv2d(8, 6, 1),
        "o": nn.Conv2d(6, 2, 1),
    }
    return Call(lambda m, x: m.o(torch.relu(m.b(torch.relu(m.a(x))))), **layers), _image()


def no_grad_part() -> Case:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = torch.relu(m.a(x))
        return m.o(y)

    return Call(forward, a=nn.Conv2d(3, 8, 1), o=nn.Conv2d(8, 2, 1)), _image()


def tied_weights() -> Case:
    model = Call(lambda m, x: m.o(m.b(torch.relu(m.a(x)))), a=nn.Linear(6, 6), b=nn.Linear(6, 6), o=nn.Linear(6, 2))
    model.b.weight = model.a.weight
    return model, torch.randn(3, 6)


def hidden_branch() -> Case:
    """An auxiliary head that only training runs."""

    def forward(m: Any, x: torch.Tensor) -> Any:
        y = torch.relu(m.a(x))
        z = m.o(m.b(y).mean((2, 3)))
        return (z, m.aux(y.mean((2, 3)))) if m.training else z

    layers = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 8, 3), "o": nn.Linear(8, 2), "aux": nn.Linear(8, 2)}
    return Call(forward, **layers), _image()


def queries_share_keys() -> Case:
    """Two heads of queries for each head of keys, by the operator's own flag."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(2, (-1, 4)).transpose(1, 2) for f in (m.q, m.k, m.v))
        return m.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))

    layers = {"q": nn.Linear(6, 24), "k": nn.Linear(6, 12), "v": nn.Linear(6, 12), "o": nn.Linear(24, 2)}
    return Call(forward, **layers), torch.randn(2, 5, 6)


def torch_attention() -> Case:
    """nn.MultiheadAttention as encoders call it, with a mask, and once for its weights."""

    def forward(m: Any, x: torch.Tensor) -> Any:
        x = m.t(m.e(x), src_mask=torch.triu(torch.full((5, 5), float("-inf")), 1))
        y, weights = m.w(x, x, x)
        return m.o(x + y), weights

    layers = {
        "e": nn.Linear(6, 12), "t": nn.TransformerEncoderLayer(12, 3, 16, batch_first=True, dropout=0.0),
        "w": nn.MultiheadAttention(12, 4, batch_first=True), "o": nn.Linear(12, 2),
    }  # fmt: skip
    return Call(forward, **layers), torch.randn(2, 5, 6)


def torch_cross_attention() -> Case:
    """Keys of another width, sequence first, padding."""

    def forward(m: Any, x: torch.Tensor, memory: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        y, _ = m.c(m.e(x), m.k(memory), m.k(memory), key_padding_mask=padding, need_weights=False)
        return m.o(y)

    layers = {
        "e": nn.Linear(6, 12), "k": nn.Linear(5, 8), "o": nn.Linear(12, 2),
        "c": nn.MultiheadAttention(12, 3, kdim=8, vdim=8, bias=False),
    }  # fmt: skip
    padding = torch.zeros(2, 4, dtype=torch.bool)
    padding[1, 2:] = True
    return Call(forward, **layers), (torch.randn(5, 2, 6), torch.randn(4, 2, 5), padding)


def torch_shuffle() -> Case:
    layers = {"a": nn.Conv2d(3, 12, 1), "s": nn.ChannelShuffle(3), "g": nn.Conv2d(12, 12, 3, groups=12)}
    return Call(lambda m, x: m.o(m.g(m.s(m.a(x)))), **layers, o=nn.Conv2d(12, 2, 1)), _image()


class Part(nn.Module):
    """Norms and mixes its first `part` channels, as wide as what it makes of them."""

    def __init__(self, width: int, part: int) -> None:
        super().__init__()
        self.width, self.part, self.keys = width, part, 4
        self.norm, self.mix = nn.GroupNorm(1, part), nn.Conv2d(part, 4 + part, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, rest = torch.split(x, [self.part, self.width - self.part], 1)
        key, value = torch.split(self.mix(self.norm(first)), [self.keys, self.part], 1)
        return self.out(torch.cat([value * key.mean(1, keepdim=True), rest], 1))


def one_attribute_for_two_axes() -> Case:
    """A module that is called by two names, and holds two widths in one attribute."""
    part = Part(20, 6)
    layers = {"a": nn.Conv2d(3, 20, 1), "b": nn.Sequential(part), "again": part, "o": nn.Conv2d(20, 2, 1)}
    return Call(lambda m, x: m.o(m.again(m.b(m.a(x)))), **layers), _image()


class Bias(nn.Module):
    """A bias a head, made by a method that is no forward; its shape repeats one number three times."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.shape = heads, (heads, heads, heads)
        self.mlp = nn.Linear(2, heads)
        self.register_buffer("places", torch.randn(heads * heads, 2))

    def bias(self) -> torch.Tensor:
        made = self.mlp(self.places).view(-1, self.heads)
        return made.view(self.shape).permute(2, 0, 1).contiguous()  # with one head left, it is so already


def size_held_by_another_module() -> Case:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        q, k = (torch.unflatten(f(x), 2, (-1, 3)).transpose(1, 2) for f in (m.q, m.k))
        y = (q @ k.transpose(-2, -1) * 0.5 + m.r.bias()).softmax(-1) @ k
        return m.o(y.transpose(1, 2).flatten(2))

    layers = {"q": nn.Linear(6, 6), "k": nn.Linear(6, 6), "r": Bias(2), "o": nn.Linear(6, 2)}
    return Call(forward, **layers), torch.randn(2, 2, 6)


def values_that_agree_by_accident() -> Case:
    """Three heads, rolled by three places, in windows of three by three: only the heads are narrowed."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.shift, self.window = 3, 3, [3, 3]
            self.embed, self.qkv = nn.Conv2d(5, 12, 1), nn.Linear(12, 36)
            self.out, self.head = nn.Linear(12, 12), nn.Linear(12, 2)

        def attend(self, x: torch.Tensor) -> torch.Tensor:
            b, h, w, c = x.shape
            r, s = self.window
            x = torch.roll(x, -self.shift, 1).view(b, h // r, r, w // s, s, c).permute(0, 1, 3, 2, 4, 5)
            qkv = self.qkv(x.reshape(-1, r * s, c)).reshape(-1, r * s, 3, self.heads, c // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            y = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1) @ v
            y = self.out(y.transpose(1, 2).reshape(-1, r * s, c)).view(b, h // r, w // s, r, s, c)
            return torch.roll(y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c), self.shift, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x).permute(0, 2, 3, 1)
            return self.head((x + self.attend(x)).mean((1, 2)))

    return Shifted(), _image(5, 9)


def numbers_that_agree_by_accident() -> Case:
    """A factor and a pool's kernel as large as a width, on sizes that do not tell them apart."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.o(F.avg_pool2d(m.a(x) * m.times, m.kernel, 1, m.kernel // 2)[:, :, ::3, ::3].reshape(-1, m.wide * 9))

    layers = {"a": nn.Conv2d(3, 9, 1), "o": nn.Linear(81, 2), "wide": 9, "times": 9, "kernel": 9}
    return Call(forward, **layers), _image(3, 9)


class Strict(nn.Module):
    """Checks the width of what it reads, which it writes nowhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.act = width, nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != self.width:
            raise ValueError(f"not {self.width} channels")
        return self.act(x) * 2


def widths_that_are_checked() -> Case:
    layers = {"a": nn.Conv2d(3, 8, 1), "p": nn.Sequential(Strict(8), nn.Conv2d(8, 10, 1), Strict(10))}
    return Call(lambda m, x: m.o(m.p(m.a(x))), **layers, o=nn.Conv2d(10, 2, 1)), _image()


def whole_transformer() -> Case:
    layers = {"e": nn.Linear(5, 12), "t": nn.Transformer(12, 4, 1, 1, 16, 0.0, batch_first=True), "o": nn.Linear(12, 3)}
    return Call(lambda m, x, y: m.o(m.t(m.e(x), m.e(y))), **layers), (torch.randn(2, 4, 5), torch.randn(2, 3, 5))


def mixed_over_tokens() -> Case:
    """A convolution of kernel one over (batch, tokens, channels): its places in space are the channels."""
    layers = {"e": nn.Linear(6, 12), "m": nn.Conv1d(5, 7, 1), "o": nn.Linear(12, 2)}
    return Call(lambda m, x: m.o(torch.relu(m.m(m.e(x)))), **layers), torch.randn(2, 5, 6)


ALL = [
    grouped_convolution, depthwise_and_multiplier, transposed_convolution, one_and_three_dimensions, squeeze_excite,
    concat_and_shared, chunk_and_shuffle, split_by_sizes, pixel_shuffles, norms, flatten_to_linear, attention_fused,
    attention_separate, width_from_the_input, einsum_heads, grouped_query, window_partition, im2col_mixer, lstm,
    gru_both_ways, weight_norm, no_grad_part, tied_weights, hidden_branch, queries_share_keys, torch_attention,
    torch_cross_attention, torch_shuffle, one_attribute_for_two_axes, mixed_over_tokens, size_held_by_another_module,
    values_that_agree_by_accident, numbers_that_agree_by_accident, widths_that_are_checked, whole_transformer,
]  # fmt: skip
