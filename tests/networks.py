"""Small networks that the tests build from a factory spec, such as "tests/networks.py:tiny_resnet"."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor, nn


class TinyBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class TinyResNet(nn.Module):
    """Four blocks, 64 and 96 channels wide: wide enough that narrowing is faster on every runtime."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(TinyBlock(64, 64, 2), TinyBlock(64, 64, 1))
        self.layer2 = nn.Sequential(TinyBlock(64, 96, 2), TinyBlock(96, 96, 1))
        self.linear = nn.Linear(96, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer2(self.layer1(x)).mean((2, 3)))


def tiny_resnet() -> nn.Module:
    """Seeded random weights; its batch norms have seen random images."""
    torch.manual_seed(0)
    model = TinyResNet()
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(32, 3, 32, 32))
    return model.eval()


@functools.cache
def _fitted() -> dict[str, Tensor]:
    """tiny_resnet with a last layer fitted by least squares to 600 CIFAR-10 images: about 28 %, by chance 10 %."""
    from edgeprune import model as models
    from edgeprune import recipe

    root = Path(__file__).parents[1]
    section = recipe.ModelSection(factory=f"{__file__}:tiny_resnet", input=(3, 32, 32))
    source = recipe.DataSection(source=str(root / "calibration" / "cifar10"))
    data = models.load_data(recipe.Recipe(section, source, recipe.BudgetSection(speedup=2.0)))
    images, labels = torch.from_numpy(data.train.take(600).arrays()), torch.from_numpy(data.train.labels[:600])
    model = tiny_resnet()
    assert isinstance(model, TinyResNet)
    found = []
    model.linear.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        model(images)
        features = torch.cat([found[0], torch.ones(len(labels), 1)], 1).double()
        wanted = 4 * nn.functional.one_hot(labels, 10).double() - 1
        gram = features.T @ features + 0.1 * torch.eye(features.shape[1])
        fit = torch.linalg.solve(gram, features.T @ wanted).float()
        model.linear.weight.copy_(fit[:-1].T)
        model.linear.bias.copy_(fit[-1])
    return model.state_dict()


def fitted_resnet() -> nn.Module:
    """tiny_resnet that is better than chance on CIFAR-10."""
    model = tiny_resnet()
    model.load_state_dict(_fitted())
    return model


def two_outputs() -> nn.Module:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    return Two()


def failing() -> nn.Module:
    raise RuntimeError("no such checkpoint on this planet")


not_a_module = {"a": 1}.copy
