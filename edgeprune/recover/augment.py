"""Augmentation of batches of images while training; a function of seed and step alone, however many processes train.

Sources: random erasing, arXiv:1708.04896; RandAugment, arXiv:1909.13719, by torchvision's transforms v2.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.engine import Examples
from edgeprune.errors import MissingDependency, RecipeError
from edgeprune.model import Preprocess
from edgeprune.recover import mixing
from edgeprune.recover.mixing import Mixing
from edgeprune.recover.source import share

ERASED, LEAST, MOST, ASPECT = 0.25, 0.02, 0.2, 0.3  # how often; of the area; the least of height over width


COLOURS = (1, 3)  # channels that torchvision's colours know


def check(names: Sequence[str], labelled: bool, channels: int = 3) -> None:
    """What cannot be augmented so is said before any work.

    Args:
        labelled: labels teach.
        channels: of an image.

    Raises:
        RecipeError: mixed images have no label; colours of other than 1 or 3 channels. MissingDependency: torchvision.
    """
    mixing.check(names, labelled)
    if "randaugment" in names:
        if channels not in COLOURS:
            raise RecipeError(
                f"[data] augment: randaugment changes colours, of 1 or 3 channels; these images have {channels}.",
                "Leave it out.",
            )
        _transforms()


def _transforms() -> object:
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError, OSError) as cause:  # one built for another torch raises RuntimeError
        reason = str(cause).splitlines()[0][:200]
        raise MissingDependency(
            f"[data] augment = randaugment needs torchvision, which cannot be imported: {reason}.",
            "Install the torchvision of your torch: pip install torchvision.",
        ) from None


class Augment:
    """What is done to the images of a batch.

    Args:
        names: in any order; they are applied in this one: "randaugment" to the pixels; "crop" shifts by up to an
            eighth of the size, filling with the border's pixels; "flip" mirrors; "erasing" sets a rectangle of a
            quarter of the images to 0 ([data] mean); "mixup" and "cutmix" mix each image with another one of the
            process's share (with both, one of them a batch).
        size: examples in the batch of all processes.
        rank, world: this process's number and how many there are.
    """

    def __init__(
        self, names: Sequence[str], preprocess: Preprocess, seed: int, size: int, rank: int = 0, world: int = 1
    ) -> None:
        self.names, self.preprocess, self.seed, self.size = tuple(names), preprocess, seed, size
        self.rank, self.world = rank, world
        self.mixing = Mixing(names, seed, rank)
        self.mine = torch.from_numpy(share(np.arange(size), rank, world))

    def __call__(self, images: Tensor, step: int) -> Examples:
        """Images [N, C, H, W] of this process's share of batch number `step`."""
        if not self.names:
            return images
        if "randaugment" in self.names:
            images = self._randaugment(images, step)
        random = np.random.default_rng((self.seed, 1, step))  # of the whole batch: an image is augmented alike, whoever
        if "crop" in self.names:
            images = self._shift(images, random)
        if "flip" in self.names:
            mirrored = torch.from_numpy(random.random(self.size) < 0.5)[self.mine]
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if "erasing" in self.names:
            images = self._erase(images, random)
        return self.mixing(images, step)

    def _shift(self, images: Tensor, random: np.random.Generator) -> Tensor:
        _, _, height, width = images.shape
        dy, dx = max(1, height // 8), max(1, width // 8)
        padded = nn.functional.pad(images, (dx, dx, dy, dy), mode="replicate")
        rows = torch.from_numpy(random.integers(0, 2 * dy + 1, self.size))[self.mine, None] + torch.arange(height)
        columns = torch.from_numpy(random.integers(0, 2 * dx + 1, self.size))[self.mine, None] + torch.arange(width)
        found = padded[torch.arange(len(self.mine))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return found.permute(0, 3, 1, 2)

    def _erase(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """A rectangle of what the network reads is 0, which is [data] mean; the same one, whoever's share it is."""
        _, _, height, width = images.shape
        often, area = random.random(self.size) < ERASED, random.uniform(LEAST, MOST, self.size)
        aspect = np.exp(random.uniform(np.log(ASPECT), -np.log(ASPECT), self.size))
        tall = np.clip(np.round(np.sqrt(area * aspect) * height), 1, height).astype(int)
        wide = np.clip(np.round(np.sqrt(area / aspect) * width), 1, width).astype(int)
        top, left = (random.random((2, self.size)) * [height - tall + 1, width - wide + 1]).astype(int)
        found = images.clone()
        for place, index in enumerate(self.mine.tolist()):
            if often[index]:
                y, x = top[index], left[index]
                found[place, :, y : y + tall[index], x : x + wide[index]] = 0.0
        return found

    def _randaugment(self, images: Tensor, step: int) -> Tensor:
        """On pixels of 0..255, each image with its own seed."""
        transform = _transforms().RandAugment()  # type: ignore[attr-defined]
        prepare = self.preprocess
        mean, std = (torch.tensor(one, dtype=torch.float32)[:, None, None] for one in (prepare.mean, prepare.std))
        pixels = ((images * std + mean) / prepare.scale).round().clamp(0, 255).to(torch.uint8)
        turned = prepare.order == "BGR"
        pixels = pixels.flip(1) if turned else pixels
        found = []
        with torch.random.fork_rng(devices=[]):
            for index, image in zip(self.mine.tolist(), pixels, strict=True):
                torch.manual_seed(hash((self.seed, 2, step, index)) % 2**63)
                found.append(transform(image))
        changed = torch.stack(found).flip(1) if turned else torch.stack(found)
        return (changed.float() * prepare.scale - mean) / std
