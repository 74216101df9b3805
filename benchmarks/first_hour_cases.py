"""The networks of first_hour.py that no example has: FastestDet, a MiniLM of 128 tokens, ResNet-18, as recipes.

No trained ResNet-18 for 224 x 224 is at hand. This one has features as they were initialised and a head fitted to them
by least squares: its times are a ResNet-18's, its accuracy (a few times chance) is not.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import msgspec
import numpy as np
import task_networks
import torch
from common import HERE, ROOT
from torch import nn

from edgeprune import recipe

TOKENS = 128
CASES: dict[str, dict[str, Any]] = {
    "fastestdet": {
        "file": "task_networks.py",
        "task": {"kind": "detection", "decode": "FastestDet"},
        "budget": {"speedup": 1.15, "max_drop": 6.0},
    },
    "minilm-128": {"file": "first_hour_cases.py", "factory": "minilm", "budget": {"speedup": 1.2, "max_drop": 5.0}},
    "resnet18": {"file": "first_hour_cases.py", "factory": "resnet18", "budget": {"speedup": 1.3, "max_drop": 10.0}},
}


def load(name: str) -> recipe.Recipe:
    """The recipe, without training, as a user would write it."""
    case = CASES[name]
    factory = f"{HERE / case['file']}:{case.get('factory', name)}"
    made = msgspec.convert(
        {
            "name": name,
            "model": {"factory": factory},
            "data": {"source": f"{factory}_data", "kind": "function"},
            "task": case.get("task", {"kind": "classification"}),
            "budget": case["budget"],
            "search": {"images": 64, "rounds": 1, "trials": 2},
            "recover": {"epochs": 0},
        },
        recipe.Recipe,
    )
    recipe.check(made)
    return made


def minilm() -> nn.Module:
    """ids, mask [128] -> 2."""
    return task_networks.minilm()


def minilm_data() -> Any:
    """The reviews of `task_networks`, cut or padded to 128 tokens."""
    _, tokenizer = task_networks._minilm()
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    return task_networks.minilm_data()


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet18(nn.Module):
    """[N, 3, 224, 224] -> [N, 14]; He et al., arXiv:1512.03385."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks, width = list[nn.Module](), 64
        for outputs in (64, 128, 256, 512):
            for stride in (1 if outputs == 64 else 2, 1):
                blocks.append(Residual(width, outputs, stride))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores."""
        return self.head(self.pooled(x))

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 512]."""
        return self.blocks(self.stem(x)).mean((2, 3))


@functools.cache
def _groceries() -> Any:
    sys.path.insert(0, str(ROOT / "examples" / "transfer"))
    return __import__("groceries").data()


def resnet18_data() -> Any:
    """The photographs of examples/transfer."""
    return _groceries()


def resnet18() -> nn.Module:
    """Features as initialised with batch norms of the data, a head by ridge regression."""
    held = ROOT / ".cache" / "examples" / "resnet18-random.pt"
    torch.manual_seed(0)
    data = _groceries()
    labels = [int(data.train[n][1]) for n in range(len(data.train))]
    network = ResNet18(max(labels) + 1)
    if held.is_file():
        network.load_state_dict(torch.load(held, weights_only=True))
        return network.eval()
    pictures = torch.stack([torch.as_tensor(np.asarray(data.train[n][0])) for n in range(len(labels))]).float()
    with torch.no_grad():
        network.train()
        for batch in pictures.split(64)[:8]:
            network(batch)
        network.eval()
        features = torch.cat([network.pooled(batch) for batch in pictures.split(64)]).double()
        mean = features.mean(0)
        centred, wanted = features - mean, nn.functional.one_hot(torch.tensor(labels)).double()
        gram = centred.T @ centred
        weight = torch.linalg.solve(gram + 1e-2 * gram.diagonal().mean() * torch.eye(512), centred.T @ wanted)
        network.head.weight.copy_(10 * weight.T)
        network.head.bias.copy_(10 * (wanted.mean(0) - mean @ weight))
    torch.save(network.state_dict(), held)
    return network
