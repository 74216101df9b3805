"""Objects in, an outcome out: no recipe, no files. A task of one's own, and a trainer of one's own.

    python examples/python_api.py [target]        # two minutes on two quiet cores; nothing is fetched

The network says where in a noisy picture a blob is. Its metric is the mean distance in pixels, lower is better, which
edgeprune has never heard of; its trainer is the loop that trained it in the first place.
"""

# %% The network, as anybody writes one
from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune import tasks
from edgeprune.errors import GateError

SIDE = 48


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Finder(nn.Module):
    """[N, 1, 48, 48] -> [N, 2], the blob's centre in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(1, 24, 2), conv(24, 48, 2), conv(48, 48), conv(48, 48))
        self.narrow = nn.Conv2d(48, 8, 1)
        self.head = nn.Linear(8 * 12 * 12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.narrow(self.features(x))).flatten(1))


# %% The data: anything with a length that gives (inputs, target)
class Blobs:
    """Pictures of one blob in noise, each from its own seed."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        draw = np.random.default_rng(self.first + index)
        centre, size = draw.uniform(6, SIDE - 6, 2), draw.uniform(2, 5)
        y, x = np.mgrid[:SIDE, :SIDE]
        blob = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * size**2))
        picture = draw.uniform(0.7, 1.5) * blob + draw.normal(0, 0.4, (SIDE, SIDE))
        return picture.astype(np.float32)[None], centre.astype(np.float32)


# %% The metric: a tuple of arrays, one an output, and a list of targets
def distance(outputs: tuple[np.ndarray, ...], targets: list[np.ndarray]) -> float:
    """The mean distance between found and true centres, in pixels."""
    return float(np.mean(np.linalg.norm(outputs[0] - np.stack(targets), axis=1)))


# %% The training loop
def train(network: nn.Module, pictures: Tensor, centres: Tensor, epochs: int, rate: float) -> None:
    """Adam on the squared error, one cosine."""
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(pictures)).split(64):
            loss = (network(pictures[chosen]) - centres[chosen]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    network.eval()


def tensors(dataset: object) -> tuple[Tensor, Tensor]:
    """A dataset's inputs and targets, stacked."""
    items = [dataset[i] for i in range(len(dataset))]
    return tuple(torch.from_numpy(np.stack(column)) for column in zip(*items, strict=True))


def trainer(job: object) -> None:
    """Called once, with the pruned network, the dense one, the data and where to keep checkpoints."""
    job.say("training what is left")
    train(job.student, *tensors(job.data.split("train")), epochs=8, rate=1e-3)


# %% All of it together
def main(target: str = "x86-onnxruntime") -> None:
    """Train, compress, tell."""
    torch.manual_seed(0)
    data = edgeprune.Data(train=Blobs(0, 3000), test=Blobs(1_000_000, 1000), selection_examples=400)
    network = Finder()
    train(network, *tensors(data.split("train")), epochs=12, rate=2e-3)
    try:
        outcome = edgeprune.compress(
            network,
            target,
            data=data,
            task=tasks.Custom(distance, "distance", unit="px", higher_is_better=False),
            budget=edgeprune.Budget(speedup=1.3, max_drop=0.15),
            recover=trainer,
            search={"images": 128, "rounds": 1},
            events=lambda event: print(event.stage, event.message or event.kind, flush=True),
        )
    except GateError as refused:  # measured, and not good enough: the reasons, and what there is all the same
        print(refused)
        return
    print(outcome.verdict, outcome.bundle)


if __name__ == "__main__":
    main(*sys.argv[1:])
