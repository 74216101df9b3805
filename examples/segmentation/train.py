"""Train the U-Net on scenes.

    python examples/segmentation/train.py [--epochs 8] [--minutes M]

Cross-entropy in which a pixel of an item weighs more than one of the ground; mirrored pictures are the only
augmentation. Writes `unet.safetensors` beside this file and prints mIoU on the test scenes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import fit  # noqa: E402
import scenes  # noqa: E402
from unet import CLASSES, unet  # noqa: E402

from edgeprune import tasks  # noqa: E402

BATCH = 16


def main() -> None:
    """Draw the scenes, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=1e9, help="at most")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    made = scenes.drawn("train")
    images = torch.from_numpy(np.stack([one.picture for one in made])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([one.mask[::2, ::2] for one in made]))  # the map's size
    weight = torch.tensor([0.5] + [1.0] * (CLASSES - 1))
    print(f"{len(images)} pictures", flush=True)

    def batches(epoch: int) -> Iterator[fit.Batch]:
        """Each scene once an epoch, mirrored or not."""
        draw = np.random.default_rng(epoch)
        order = torch.from_numpy(draw.permutation(len(images)))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            picture, mask = images[chosen].float() / 255, masks[chosen].long()
            flip = torch.from_numpy(draw.random(BATCH) < 0.5)
            picture[flip], mask[flip] = picture[flip].flip(3), mask[flip].flip(2)
            yield picture, mask

    def loss(logits: object, mask: object) -> Tensor:
        assert isinstance(logits, Tensor) and isinstance(mask, Tensor)
        return functional.cross_entropy(logits, mask, weight)

    trained = fit.fit(
        unet(), batches, loss, epochs=arguments.epochs, steps=len(images) // BATCH, rate=4e-3, minutes=arguments.minutes
    )
    fit.save(trained, HERE / "unet.safetensors")
    test = scenes.Scenes("test", True)
    print(tasks.Segmentation(ignore=None, resize=True).score(*fit.outputs(trained, test, len(test))))


if __name__ == "__main__":
    main()
