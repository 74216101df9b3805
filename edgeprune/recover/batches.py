"""Batches for training, the same for the same seed and step: an interrupted run goes on exactly where it was."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.engine import Examples
from edgeprune.model import Split
from edgeprune.recover.augment import Augment
from edgeprune.recover.source import share

PRELOAD_BYTES = 2 << 30  # splits up to this size, as float32, are kept in memory


class Batches:
    """Shuffled and augmented batches of a split; batch number `step` is a function of the seed alone.

    Args:
        augment: see `augment.Augment`.
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
        self.split, self.seed, self.rank, self.world = split, seed, rank, world
        self.size = min(size, len(split))
        self.augment = Augment(augment, split.preprocess, seed, self.size, rank, world)
        self.labels = torch.from_numpy(split.labels)
        small = len(split) * int(np.prod(split.preprocess.shape)) * 4 <= PRELOAD_BYTES
        self.images = torch.from_numpy(split.arrays()) if small else None
        self.pool = ThreadPoolExecutor(workers) if workers and not small else None
        self.ahead: OrderedDict[int, Future[Tensor]] = OrderedDict()
        self.workers = workers

    def __len__(self) -> int:
        """Batches an epoch; the last images of a shuffle that fill no batch wait for the next epoch."""
        return max(1, len(self.split) // self.size)

    def at(self, step: int) -> tuple[Examples, Tensor]:
        """Batch number `step`: images [size, C, H, W] and labels [size]."""
        chosen = self._chosen(step)
        images = self.images[chosen] if self.images is not None else self._read(step)
        return self.augment(images, step), self.labels[chosen]

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
