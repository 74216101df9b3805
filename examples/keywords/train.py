"""Train the DS-CNN on spoken words.

    python examples/keywords/train.py [--epochs 20] [--minutes M]

Cross-entropy; clips are shifted in time, and bands and spans are blanked out (SpecAugment, Park et al.,
arXiv:1904.08779). Writes `dscnn.safetensors` beside this file and prints the accuracy on speakers never heard before.
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
import words  # noqa: E402
from dscnn import dscnn  # noqa: E402

from edgeprune import tasks  # noqa: E402

BATCH = 32


def main() -> None:
    """Speak, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=1e9, help="at most")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    train = words.Words("train")
    features = torch.from_numpy(np.stack([train[i][0] for i in range(len(train))]))
    labels = torch.tensor([train[i][1] for i in range(len(train))])
    mean, deviation = float(features.mean()), float(features.std())
    features = (features - mean) / deviation
    print(f"{len(features)} clips", flush=True)

    def batches(epoch: int) -> Iterator[fit.Batch]:
        """Each clip once an epoch, shifted by up to 5 frames, with blanks."""
        draw = np.random.default_rng(epoch)
        order = torch.from_numpy(draw.permutation(len(features)))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            batch = torch.stack([features[i].roll(int(draw.integers(-5, 6)), 1) for i in chosen])
            for one in batch:
                at, wide = int(draw.integers(0, 40)), int(draw.integers(0, 7))
                one[:, :, at : at + wide] = 0
                at, wide = int(draw.integers(0, 49)), int(draw.integers(0, 9))
                one[:, at : at + wide] = 0
            yield batch, labels[chosen]

    def loss(logits: object, truth: object) -> Tensor:
        assert isinstance(logits, Tensor) and isinstance(truth, Tensor)
        return functional.cross_entropy(logits, truth, label_smoothing=0.05)

    trained = fit.fit(
        dscnn(),
        batches,
        loss,
        epochs=arguments.epochs,
        steps=len(features) // BATCH,
        rate=5e-3,
        average=0.99,
        minutes=arguments.minutes,
    )
    trained.fold(mean, deviation)
    fit.save(trained, HERE / "dscnn.safetensors")
    test = words.Words("test")
    print(tasks.Classification().score(*fit.outputs(trained, test, len(test))))


if __name__ == "__main__":
    main()
