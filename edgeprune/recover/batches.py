"""Batches for training, the same for the same seed and step: an interrupted run goes on exactly where it was."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.model import Split
from edgeprune.recover.source import share

PRELOAD_BYTES = 2 << 30  # splits up to this size, as float32, are kept in memory


class Batches:
    """Shuffled and augmented batches of a split; batch number `step` is a function of the seed alone.

    Args:
        augment: "crop" shifts by up to an eighth of the size, filling with the border's pixels; "flip" mirrors.
        workers: threads that read images ahead; 0 reads when asked. Small splits are kept in memory instead.
        rank, world: this process's number and how many there are; each reads only its own images.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        seed: int,
        augment: tuple[str, ...] = (),
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.split, self.seed, self.augment, self.rank, self.world = split, seed, augment, rank, world
        self.size = min(size, len(split))
        self.labels = torch.from_numpy(split.labels)
        small = len(split) * int(np.prod(split.preprocess.shape)) * 4 <= PRELOAD_BYTES
        self.images = torch.from_numpy(split.arrays()) if small else None
        self.pool = ThreadPoolExecutor(workers) if workers and not small else None
        self.ahead: OrderedDict[int, Future[Tensor]] = OrderedDict()
        self.workers = workers

    def __len__(self) -> int:
        """Batches an epoch; the last images of a shuffle that fill no batch wait for the next epoch."""
        return max(1, len(self.split) // self.size)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Batch number `step`: images [size, C, H, W] and labels [size]."""
        chosen = self._chosen(step)
        images = self.images[chosen] if self.images is not None else self._read(step)
        return self._augment(images, step), self.labels[chosen]

    def _chosen(self, step: int) -> Tensor:
        epoch, batch = divmod(step, len(self))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.split))
        return torch.from_numpy(share(order[batch * self.size : (batch + 1) * self.size], self.rank, self.world))

    def _read(self, step: int) -> Tensor:
        if self.pool is None:
            return self._load(step)
        for number in range(step, step + self.workers):
            if number not in self.ahead:
                self.ahead[number] = self.pool.submit(self._load, number)
        while next(iter(self.ahead)) < step:
            self.ahead.popitem(last=False)
        return self.ahead.pop(step).result()

    def _load(self, step: int) -> Tensor:
        return torch.from_numpy(self.split.arrays(self._chosen(step).tolist()))

    def _augment(self, images: Tensor, step: int) -> Tensor:
        if not self.augment:
            return images
        random = np.random.default_rng((self.seed, 1, step))
        _, _, height, width = images.shape
        count = self.size  # of the whole batch, so that an image is augmented alike however many processes there are
        mine = torch.from_numpy(share(np.arange(count), self.rank, self.world))
        if "crop" in self.augment:
            dy, dx = max(1, height // 8), max(1, width // 8)
            padded = nn.functional.pad(images, (dx, dx, dy, dy), mode="replicate")
            rows = torch.from_numpy(random.integers(0, 2 * dy + 1, count))[mine, None] + torch.arange(height)
            columns = torch.from_numpy(random.integers(0, 2 * dx + 1, count))[mine, None] + torch.arange(width)
            images = padded[torch.arange(len(mine))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
            images = images.permute(0, 3, 1, 2)
        if "flip" in self.augment:
            mirrored = torch.from_numpy(random.random(count) < 0.5)[mine]
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images


@torch.no_grad()
def logits(model: nn.Module, split: Split, size: int = 256) -> Tensor:
    """The outputs of `model`, in eval mode, for every image of `split`: [N, classes] float32 on the CPU."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    out = [model(torch.from_numpy(batch).to(device)).float().cpu() for batch in split.batches(size)]
    model.train(training)
    return torch.cat(out)


def evaluate(model: nn.Module, split: Split) -> float:
    """Top-1 accuracy as a fraction, in PyTorch; for choosing while training. Gates measure on the device."""
    return float((logits(model, split).argmax(1) == torch.from_numpy(split.labels)).float().mean())
