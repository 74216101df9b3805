"""Train the super-resolution network on photographs.

    python examples/restoration/train.py [--epochs 20] [--minutes M]

Mean absolute error on cuts of 24 x 24 pixels, mirrored and turned. Writes `upscaler.safetensors` beside this file and
prints PSNR on luma of the test photographs, and that of bicubic interpolation.
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
from photos import PHOTOS, Photos, bicubic, photo  # noqa: E402
from upscaler import upscaler  # noqa: E402

from edgeprune import tasks  # noqa: E402

BATCH, SIDE, STEPS = 16, 24, 120


def main() -> None:
    """Fetch, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=1e9, help="at most")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    pairs = [photo(name) for name in PHOTOS["train"]]

    def batches(epoch: int) -> Iterator[fit.Batch]:
        """Cuts at random places."""
        draw = np.random.default_rng(epoch)
        for _ in range(STEPS):
            small, large = [], []
            for _ in range(BATCH):
                half, whole = pairs[draw.integers(len(pairs))]
                y, x = (int(draw.integers(0, size - SIDE + 1)) for size in half.shape[:2])
                turn, mirror = int(draw.integers(4)), 1 - 2 * int(draw.integers(2))
                one = half[y : y + SIDE, x : x + SIDE], whole[2 * y : 2 * (y + SIDE), 2 * x : 2 * (x + SIDE)]
                for made, cut in zip((small, large), one, strict=True):
                    made.append(np.rot90(cut[:, ::mirror], turn).transpose(2, 0, 1).astype(np.float32) / 255)
            yield torch.from_numpy(np.stack(small)), torch.from_numpy(np.stack(large))

    def loss(said: object, truth: object) -> Tensor:
        assert isinstance(said, Tensor) and isinstance(truth, Tensor)
        return functional.l1_loss(said, truth)

    network = upscaler()
    torch.nn.init.zeros_(network.last.weight)  # it starts as interpolation
    torch.nn.init.zeros_(network.last.bias)
    trained = fit.fit(
        network,
        batches,
        loss,
        epochs=arguments.epochs,
        steps=STEPS,
        rate=2e-3,
        decay=0.0,
        average=0.99,
        minutes=arguments.minutes,
    )
    fit.save(trained, HERE / "upscaler.safetensors")
    test = Photos("test")
    task = tasks.Restoration("PSNR", on="Y", crop=2)
    print(task.score(*fit.outputs(trained, test, len(test))))
    every = [test[i] for i in range(len(test))]
    print("bicubic:", task.score((np.stack([bicubic(x) for x, _ in every]),), [y for _, y in every]))


if __name__ == "__main__":
    main()
