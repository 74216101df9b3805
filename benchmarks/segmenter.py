"""A segmenter of people: FastestDet's layers, fine-tuned on 80 photographs with the masks that lie beside them.

    python benchmarks/segmenter.py [--epochs 60]     # minutes on one core; writes .cache/tasks/segmenter.safetensors

There are no weights of a segmenter among the networks of task_networks.py, and what is trained on that folder's
photographs is not kept in this repository. 20 photographs choose the epoch, the 100 of `coco-val128` are only counted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import ROOT
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS = ROOT / ".cache" / "tasks" / "segmenter.safetensors"
PERSON, SIZE = 1, 88  # of the masks' classes; height and width of what the network says
TRAINING = 80  # of the 100 photographs
VIEWS = 8  # of each, an epoch of recovery


class Segmenter(nn.Module):
    """[3, 352, 352] BGR / 255 -> scores of background and person [2, 88, 88]."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        for unused in ("obj", "reg", "cls"):
            delattr(detector, unused)
        self.skip = nn.Sequential(nn.Conv2d(48, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.join = nn.Sequential(
            nn.Conv2d(128, 128, 3, padding=1, groups=128, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
            nn.Conv2d(128, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores, twice as fine as the finest layer that they come from."""
        d: Any = self.detector
        p1 = d.s2(d.pool(d.first(x)))
        p2 = d.s3(p1)
        p3 = d.s4(p2)
        x = d.reduce(torch.cat([F.avg_pool2d(p1, 3, 2, 1), p2, F.interpolate(p3, scale_factor=2.0)], 1))
        x = d.neck(F.relu(x + d.merge(torch.cat([d.a(x), d.b(x), d.c(x)], 1))))
        x = self.join(torch.cat([F.interpolate(x, scale_factor=2.0), self.skip(p1)], 1))
        return F.interpolate(self.head(x), scale_factor=2.0)


def segmenter() -> nn.Module:
    """The trained one; SystemExit says how to train it."""
    if not WEIGHTS.is_file():
        raise SystemExit(f"{WEIGHTS} is not there: python benchmarks/segmenter.py")
    network = fresh()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval()


def fresh() -> Segmenter:
    """The detector's weights, and a decoder of random ones."""
    import task_networks

    torch.manual_seed(0)
    return Segmenter(task_networks.fastestdet())


def photos(folder: str) -> list[Path]:
    """Those that have a mask."""
    import task_networks

    place = task_networks.TASKS / folder
    return [place / "images" / f"{mask.stem}.jpg" for mask in sorted((place / "masks").iterdir())]


def read(photo: Path, view: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A photograph and its mask; view 0 is the whole of it, others are pieces of a third and more, half mirrored."""
    image = Image.open(photo).convert("RGB")
    mask = Image.open(photo.parent.parent / "masks" / f"{photo.stem}.png")
    flip = 1
    if view:
        draw = np.random.default_rng([view, int(photo.stem)])
        across, down = (round(size * draw.uniform(0.6, 1)) for size in image.size)
        left, top = (int(draw.integers(0, free + 1)) for free in (image.width - across, image.height - down))
        box, flip = (left, top, left + across, top + down), int(draw.choice([-1, 1]))
        image, mask = image.crop(box), mask.crop(box)
    pixels = np.asarray(image.resize((352, 352), Image.Resampling.BILINEAR), np.float32)[:, ::flip, ::-1]
    found = np.asarray(mask.resize((SIZE, SIZE), Image.Resampling.NEAREST))[:, ::flip] == PERSON
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / np.float32(255), found.astype(np.int64)


def overlap(network: nn.Module, chosen: list[Path]) -> float:
    """mIoU of the two classes, in points, over all pixels together."""
    counts = np.zeros((2, 2))
    with torch.inference_mode():
        for photo in chosen:
            pixels, mask = read(photo)
            said = network(torch.from_numpy(pixels)[None])[0].argmax(0).numpy()
            np.add.at(counts, (mask.ravel(), said.ravel()), 1)
    hit = np.diag(counts)
    return float(100 * np.mean(hit / (counts.sum(0) + counts.sum(1) - hit)))


def train(epochs: int, batch: int = 16, seed: int = 0) -> nn.Module:
    """AdamW under one cycle; the detector's layers learn at a fifth of the rate."""
    network, known = fresh().train(), photos("coco-train128")
    learn, choose = known[:TRAINING], known[TRAINING:]
    own = [one for name, one in network.named_parameters() if not name.startswith("detector.")]
    groups = [{"params": own, "lr": 3e-3}, {"params": list(network.detector.parameters()), "lr": 6e-4}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    steps = epochs * (len(learn) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [3e-3, 6e-4], total_steps=steps)
    order, best, kept = np.random.default_rng(seed), 0.0, {}
    for epoch in range(epochs):
        for part in order.permutation(len(learn))[: len(learn) // batch * batch].reshape(-1, batch):
            pixels, masks = zip(*(read(learn[n], 1 + epoch) for n in part), strict=True)
            loss = F.cross_entropy(network(torch.from_numpy(np.stack(pixels))), torch.from_numpy(np.stack(masks)))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        if epoch % 5 == 4 or epoch == epochs - 1:
            found = overlap(network.eval(), choose)
            print(
                f"epoch {epoch + 1}: loss {loss.item():.3f}, mIoU {found:.2f} on {len(choose)} photographs", flush=True
            )
            if found > best:
                best, kept = found, {key: value.clone() for key, value in network.state_dict().items()}
            network.train()
    network.load_state_dict(kept)
    return network.eval()


def main() -> None:
    """Train and write; the test photographs are counted at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    given = parser.parse_args()
    network = train(given.epochs)
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    part = WEIGHTS.with_suffix(".part")
    save_file(network.state_dict(), part)
    part.replace(WEIGHTS)
    print(f"mIoU {overlap(network, photos('coco-val128')):.2f} on the 100 others; {WEIGHTS}")


if __name__ == "__main__":
    main()
