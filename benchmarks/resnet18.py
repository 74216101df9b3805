"""ResNet-18 for 32 x 32 images, trained here: nobody publishes weights of it in a package.

    python benchmarks/resnet18.py --data cifar45k.npz --to resnet18.safetensors [--epochs 10]

The 45,000 training images of long_runs.py's splits train it, at a rate that rises and falls once, in bf16; the 5,000
beside them are counted after each epoch and choose nothing. A checkpoint lies beside --to after each epoch, and the
same command goes on from it. Written for long_runs.py, which prunes what this has trained.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import beside
from safetensors.torch import save_file
from torch import Tensor, nn

beside("examples/cifar10")
from resnet import Block  # noqa: E402  # two 3x3 convolutions and a shortcut

BATCH, PEAK, DECAY, SMOOTHING = 128, 0.2, 5e-4, 0.1
STAGES = (
    (64, 1),
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
)  # width, stride


class ResNet18(nn.Module):
    """The form of papers on CIFAR-10: a 3x3 stem, no pooling; 11.2 M parameters, 556 M multiply-accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = [64, *(width for width, _ in STAGES)]
        self.blocks = nn.Sequential(*(Block(inputs, *stage) for inputs, stage in zip(widths[:-1], STAGES, strict=True)))
        self.linear = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels divided by 255, [N, 3, 32, 32] -> [N, 10] logits."""
        return self.linear(self.blocks(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def resnet18() -> ResNet18:
    """For a recipe's factory."""
    return ResNet18()


def as_input(images: Tensor) -> Tensor:
    """uint8 [N, 32, 32, 3] -> float [N, 3, 32, 32], 0 to 1."""
    return (images.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)


def augmented(images: Tensor, dice: torch.Generator) -> Tensor:
    """Each image shifted by up to 4 pixels and mirrored or not; [N, 3, 32, 32] both."""
    count = len(images)
    padded = F.pad(images, (4, 4, 4, 4))
    down, right = torch.randint(9, (2, count, 1), generator=dice)
    rows, columns = down + torch.arange(32), right + torch.arange(32)
    columns = torch.where(torch.rand(count, 1, generator=dice) < 0.5, columns, columns.flip(1))
    picked = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def score(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 in percent."""
    net.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        parts = zip(images.split(250), labels.split(250), strict=True)
        right = [int((net(as_input(some)).argmax(1) == wanted).sum()) for some, wanted in parts]
    return 100 * sum(right) / len(images)


def train(data: Path, to: Path, epochs: int) -> None:
    """Trains from the newest checkpoint, or from nothing, and writes the weights."""
    held = np.load(data)
    images, labels = (torch.from_numpy(held[f"train_{kind}"]) for kind in ("images", "labels"))
    others = tuple(torch.from_numpy(held[f"selection_{kind}"]) for kind in ("images", "labels"))
    labels = labels.long()
    torch.manual_seed(0)
    net = resnet18().to(memory_format=torch.channels_last)
    weights = torch.optim.SGD(net.parameters(), PEAK, momentum=0.9, nesterov=True, weight_decay=DECAY)
    steps = len(images) // BATCH
    rate = torch.optim.lr_scheduler.OneCycleLR(weights, PEAK, epochs * steps, pct_start=0.25, final_div_factor=1e3)
    point, begun = to.with_suffix(".checkpoint"), 0
    if point.exists():
        old = torch.load(point, weights_only=True)
        begun = old["epoch"]
        net.load_state_dict(old["net"]), weights.load_state_dict(old["weights"])
        for _ in range(begun * steps):  # so that --epochs may be another number by now
            rate.step()
    for epoch in range(begun, epochs):
        dice, start = torch.Generator().manual_seed(epoch), time.perf_counter()
        net.train()
        for batch in torch.randperm(len(images), generator=dice)[: steps * BATCH].split(BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                said = net(augmented(as_input(images[batch]), dice))
            loss = F.cross_entropy(said.float(), labels[batch], label_smoothing=SMOOTHING)
            weights.zero_grad()
            loss.backward()
            weights.step()
            rate.step()
        state = {
            "epoch": epoch + 1,
            "net": net.state_dict(),
            "weights": weights.state_dict(),
            "rate": rate.state_dict(),
        }
        torch.save(state, point)
        seconds, right = time.perf_counter() - start, score(net, *others)
        print(f"epoch {epoch + 1}: {seconds:.0f} s, loss {loss.item():.3f}, {right:.2f} % of the held-out", flush=True)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    train(options.data, options.to, options.epochs)


if __name__ == "__main__":
    main()
