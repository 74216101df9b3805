"""Any map-style dataset as batches for training, through torch's DataLoader.

Batch number `step` is a function of the seed alone, whatever the number of workers and processes: the order of an
epoch is a seeded permutation, and the dataset's own random augmentation is seeded anew for each batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from edgeprune.engine import Examples, layout
from edgeprune.errors import DataError, EdgepruneError
from edgeprune.recover.mixing import Mixing
from edgeprune.workload import Inputs


class BatchSource(Protocol):
    """Batches of a split, by number."""

    size: int

    def __len__(self) -> int:
        """Batches an epoch."""

    def at(self, step: int) -> tuple[Examples, Any]:
        """Batch number `step`: what the network takes, and its targets; only this process's share of both."""


class Loader:
    """Batches of a map-style dataset whose items are (inputs, target).

    Args:
        inputs: names, shapes and dtypes; every example is checked against them.
        size: examples a batch, those of all processes together.
        workers: processes that read ahead; 0 reads when asked.
        rank, world: this process's number and how many there are; each reads only its own examples.
        augment: "mixup", "cutmix" (`Mixing`).

    Raises:
        DataError: an example cannot be read, or is not of the stated shape; a worker died.
    """

    def __init__(
        self,
        dataset: Any,
        inputs: Inputs,
        size: int,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        augment: Sequence[str] = (),
    ) -> None:
        self.size = min(size, len(dataset))
        self.order = _Order(len(dataset), self.size, seed, rank, world)
        self.reader = _Reader(dataset, inputs, seed)
        self.inputs, self.workers = inputs, workers
        self.mixing = Mixing(augment, seed, rank)
        self.next, self.stream = -1, iter(())  # type: tuple[int, Iterator[Any]]

    def __len__(self) -> int:
        """Batches an epoch; the last examples of a shuffle that fill no batch wait for the next epoch."""
        return len(self.order)

    def at(self, step: int) -> tuple[Examples, list[Any]]:
        """Batch number `step`; in order they come from the workers, and any other number starts those anew."""
        if step != self.next:
            self.order.first = step
            self.stream = iter(
                DataLoader(
                    self.reader,
                    batch_sampler=self.order,  # type: ignore[arg-type]
                    num_workers=self.workers,
                    collate_fn=_as_it_is,
                    prefetch_factor=2 if self.workers else None,
                )
            )
        try:
            columns, targets = next(self.stream)
        except EdgepruneError:
            raise
        except RuntimeError as cause:  # DataLoader's word for a worker that was killed
            raise DataError(f"[data] a worker that reads examples ended: {str(cause).splitlines()[0]}.") from cause
        self.next = step + 1
        if isinstance(columns, _Failed):
            raise DataError(columns.message, columns.remedy)
        return self.mixing(shaped(self.inputs, columns), step), targets


def shaped(inputs: Inputs, columns: tuple[Any, ...]) -> Examples:
    """Arrays in order -> what the network is called with: one tensor, several in order, or several by name."""
    tensors = tuple(layout(torch.as_tensor(column)) for column in columns)
    if inputs.keywords:
        return dict(zip(inputs.names, tensors, strict=True))
    return tensors[0] if len(tensors) == 1 else tensors


def share(places: Any, rank: int, world: int) -> Any:
    """The places of a batch that this process takes: every `world`-th, so that each has as many."""
    return places if world == 1 else places[rank : len(places) - len(places) % world : world]


class _Order(Sampler[tuple[int, list[int]]]):
    """(number of the batch, its places) without end, from batch `first` on."""

    def __init__(self, count: int, size: int, seed: int, rank: int, world: int) -> None:
        self.count, self.size, self.seed, self.rank, self.world, self.first = count, size, seed, rank, world, 0

    def __len__(self) -> int:
        return max(1, self.count // self.size)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        step, known, order = self.first, -1, np.empty(0, np.int64)
        while True:
            epoch, batch = divmod(step, len(self))
            if epoch != known:
                known, order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.count)
            places = order[batch * self.size : (batch + 1) * self.size]
            yield step, share(places, self.rank, self.world).tolist()
            step += 1


class _Failed:
    """An error on its way out of a worker process: DataLoader would wrap it in a traceback."""

    def __init__(self, error: EdgepruneError) -> None:
        self.message, self.remedy = error.message, error.remedy


class _Reader(Dataset[Any]):
    """Reads a batch at a time, with all random generators seeded by its number; they are put back afterwards."""

    def __init__(self, dataset: Any, inputs: Inputs, seed: int) -> None:
        self.dataset, self.inputs, self.seed = dataset, inputs, seed

    def __getitems__(self, batch: tuple[int, list[int]]) -> Any:
        from edgeprune.workload import item

        step, places = batch
        kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
        number = int(np.random.SeedSequence((self.seed, 2, step)).generate_state(1)[0])
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        try:
            items = [item(self.dataset, place, "train") for place in places]
            return self.inputs.batch([inputs for inputs, _ in items]), [target for _, target in items]
        except EdgepruneError as error:
            return _Failed(error), None
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
            torch.set_rng_state(kept[2])


def _as_it_is(batch: Any) -> Any:
    return batch


def moved(examples: Examples, device: torch.device) -> Examples:
    """The same examples on a device, images channels last."""
    if isinstance(examples, Tensor):
        return layout(examples.to(device))
    if isinstance(examples, dict):
        return {name: layout(value.to(device)) for name, value in examples.items()}
    return tuple(layout(value.to(device)) for value in examples)  # type: ignore[union-attr]
