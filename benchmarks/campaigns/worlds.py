"""Small honest networks of every task, and what can be wrong with each.

A world has seeded examples whose inputs hold the answer under noise, a network that finds it, and faults: each makes
other outputs of the honest ones. A fault names the gates of which one must refuse it: in the dense network, before any
training; in the released artifact, afterwards. No gate for the dense one: it may be bad and honest all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeprune import tasks

Outputs = tuple[torch.Tensor, ...]
Breaks = Callable[[Outputs, torch.Tensor], Outputs]


@dataclass(frozen=True)
class Fault:
    """Outputs of an honest network -> bad ones; and the gates of which one must refuse them."""

    breaks: Breaks
    released: tuple[str, ...]
    dense: tuple[str, ...] = ()


@dataclass(frozen=True)
class World:
    """A task, how its examples are drawn, what an honest network makes of the inputs, and faults of this task alone."""

    task: Any
    draw: Callable[[int, np.random.Generator], tuple[Any, list[Any]]]  # -> inputs [N, ...], targets
    network: Callable[[torch.Tensor], Any]
    faults: Mapping[str, Fault] = field(default_factory=dict)
    examples: int = 400
    max_drop: float = 5.0


class Network(nn.Module):
    """A world's network, honest or with a fault; one weight, so that it is a network at all."""

    def __init__(self, world: World, fault: Fault | None = None) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self._world, self._fault = world, fault

    def forward(self, x: torch.Tensor) -> Any:
        made = self._world.network(x * self.one)
        outputs = made if isinstance(made, tuple) else (made,)
        if self._fault is not None:
            outputs = self._fault.breaks(outputs, x)
        return outputs if len(outputs) > 1 else outputs[0]


def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Breaks:
    """The same change to every output."""
    return lambda outputs, x: tuple(change(one) for one in outputs)


def _sometimes(bad: float) -> Breaks:
    """On one example in five, by its input."""

    def breaks(outputs: Outputs, x: torch.Tensor) -> Outputs:
        chosen = (1000 * x.flatten(1)[:, 0].abs()).long() % 5 == 0
        return tuple(torch.where(chosen.view(-1, *[1] * (o.ndim - 1)), torch.full_like(o, bad), o) for o in outputs)

    return breaks


def _noise(like: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Numbers of the outputs' size that follow from the input, and tell nothing of it."""
    seeds = (1e4 * x.flatten(1).double().sum(1)).sin().abs()
    steps = torch.arange(1, like[0].numel() + 1, dtype=torch.float64)
    made = ((1e4 * seeds[:, None] * steps).sin() * 4).to(like.dtype)
    spread = float(like.abs().max()) / 4
    return (made * spread).view_as(like)


def _blind(outputs: Outputs, x: torch.Tensor) -> Outputs:
    return tuple(_noise(one, x) for one in outputs)


def _partly(outputs: Outputs, x: torch.Tensor) -> Outputs:
    """Blind on three examples of ten."""
    chosen = (1000 * x.flatten(1)[:, 0].abs()).long() % 10 < 3
    return tuple(torch.where(chosen.view(-1, *[1] * (o.ndim - 1)), _noise(o, x), o) for o in outputs)


SANE = ("sane",)
EVERY = {
    "NaN on some inputs": Fault(_sometimes(float("nan")), ("finite",), ("finite",)),
    "infinite on some inputs": Fault(_sometimes(float("inf")), ("finite",), ("finite",)),
    "NaN always": Fault(each(lambda one: one * float("nan")), ("finite",), ("finite", "sane")),
    "all zero": Fault(each(torch.zeros_like), SANE, SANE),
    "constant": Fault(each(lambda one: torch.linspace(0.1, 0.9, one[0].numel()).view_as(one[0]).expand_as(one) + 0),
                      SANE, SANE),
    "blind": Fault(_blind, SANE, SANE),
    "blind on three of ten": Fault(_partly, ("accuracy",)),
}  # fmt: skip


def _classes(count: int, rng: np.random.Generator, classes: int = 4, noise: float = 0.4) -> tuple[Any, list[Any]]:
    labels = rng.integers(0, classes, count)
    return np.eye(classes)[labels] + noise * rng.standard_normal((count, classes)), labels.tolist()


def _less(outputs: Outputs, x: torch.Tensor) -> Outputs:
    return (torch.cat([outputs[0][:, :1] - 1e3, outputs[0][:, 1:]], 1), *outputs[1:])


def _first_always(outputs: Outputs, x: torch.Tensor) -> Outputs:
    return (torch.cat([outputs[0][:, :1] + 1e3, outputs[0][:, 1:]], 1), *outputs[1:])


CLASSIFIER = {
    "shifted classes": Fault(each(lambda one: one.roll(1, 1)), SANE, SANE),
    "swapped classes": Fault(each(lambda one: one.flip(1)), SANE, SANE),
    "one class never said": Fault(_less, ("accuracy",)),
    "sign of the scores": Fault(each(torch.neg), SANE, SANE),
    "one class always": Fault(_first_always, SANE, SANE),
}


def _labels(count: int, rng: np.random.Generator) -> tuple[Any, list[Any]]:
    truth = rng.random((count, 5)) < 0.3
    truth[np.arange(count), rng.integers(0, 5, count)] = True
    return 4.0 * truth - 2 + 1.2 * rng.standard_normal((count, 5)), list(truth.astype(np.int64))


def _yes_no(count: int, rng: np.random.Generator) -> tuple[Any, list[Any]]:
    truth = rng.integers(0, 2, count)
    return (2.0 * truth - 1 + 0.5 * rng.standard_normal(count))[:, None], truth.tolist()


def _masks(count: int, rng: np.random.Generator) -> tuple[Any, list[Any]]:
    coarse = rng.integers(0, 3, (count, 2, 2))
    masks = coarse.repeat(4, 1).repeat(4, 2)
    return np.eye(3)[masks].transpose(0, 3, 1, 2) + 0.4 * rng.standard_normal((count, 3, 8, 8)), list(masks)


def _boxes(count: int, rng: np.random.Generator) -> tuple[Any, list[Any]]:
    """Two objects a picture: the input holds corner, size, score and label of each, a little off."""
    corner, size = rng.uniform(0.05, 0.5, (count, 2, 2)), rng.uniform(0.2, 0.4, (count, 2, 2))
    labels = rng.integers(0, 3, (count, 2))
    rows = np.concatenate([corner, corner + size, rng.uniform(0.5, 1, (count, 2, 1)), labels[..., None]], 2)
    noisy = rows.copy()
    noisy[..., :4] += 0.01 * rng.standard_normal((count, 2, 4))
    targets = [{"boxes": rows[n, :, :4], "labels": labels[n]} for n in range(count)]
    return noisy, targets


def _decode(outputs: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    rows = np.asarray(outputs[0])
    kept = rows[np.isfinite(rows).all(1) & (rows[:, 4] > 0.05)]
    return kept[:, :4], kept[:, 4], np.clip(np.rint(kept[:, 5]), 0, 2).astype(np.int64)


def _boxes_with(column: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Breaks:
    def breaks(outputs: Outputs, x: torch.Tensor) -> Outputs:
        made = outputs[0].clone()
        made[..., column] = change(made[..., column])
        return (made,)

    return breaks


def _numbers(count: int, rng: np.random.Generator) -> tuple[Any, list[Any]]:
    truth = rng.normal(5, 2, count)
    return (truth + 0.3 * rng.standard_normal(count))[:, None], truth.tolist()


def _pictures(count: int, rng: np.random.Generator) -> tuple[Any, list[Any]]:
    coarse = rng.uniform(0.1, 0.9, (count, 1, 4, 4))
    clean = coarse.repeat(4, 2).repeat(4, 3)
    return np.clip(clean + 0.1 * rng.standard_normal(clean.shape), 0, 1), list(clean)


def _smooth(x: torch.Tensor) -> torch.Tensor:
    means = nn.functional.avg_pool2d(x, 4)
    return nn.functional.interpolate(means, scale_factor=4.0, mode="nearest")


def _faces(count: int, rng: np.random.Generator) -> tuple[Any, list[Any]]:
    centres = np.random.default_rng(7).standard_normal((20, 8))
    who = np.arange(count) % 20
    return centres[who] + 0.5 * rng.standard_normal((count, 8)), who.tolist()


def _lines(count: int, rng: np.random.Generator) -> tuple[Any, list[Any]]:
    """Eight steps of five labels, the first of them the blank; a letter, then a blank, four times."""
    letters = rng.integers(1, 5, (count, 4))
    steps = np.zeros((count, 8), np.int64)
    steps[:, ::2] = letters
    return 4 * np.eye(5)[steps] + 0.8 * rng.standard_normal((count, 8, 5)), [row.tolist() for row in letters]


def _blanks(outputs: Outputs, x: torch.Tensor) -> Outputs:
    return (torch.cat([outputs[0][..., :1] + 1e3, outputs[0][..., 1:]], -1),)


def _next_letters(outputs: Outputs, x: torch.Tensor) -> Outputs:
    return (torch.cat([outputs[0][..., :1], outputs[0][..., 1:].roll(1, -1)], -1),)


def _both(outputs: tuple[Any, ...], targets: list[Any]) -> float:
    """Share of right answers of the worse of two heads."""
    truth = np.asarray(targets)
    return 100 * min(float((np.argmax(outputs[n], 1) == truth[:, n]).mean()) for n in range(2))


def _pairs(count: int, rng: np.random.Generator) -> tuple[Any, list[Any]]:
    first, second = _classes(count, rng), _classes(count, rng)
    return np.concatenate([first[0], second[0]], 1), [list(pair) for pair in zip(first[1], second[1], strict=True)]


def _dead(head: int) -> Breaks:
    return lambda outputs, x: tuple(torch.zeros_like(one) if n == head else one for n, one in enumerate(outputs))


def same(x: torch.Tensor) -> torch.Tensor:
    """The input is the answer under noise already."""
    return x + 0.0


WORLDS = {
    "classification": World(tasks.Classification(), _classes, same, CLASSIFIER),
    "multilabel": World(tasks.MultiLabel(), _labels, same, {
        "sign of the scores": Fault(each(torch.neg), SANE, SANE),
        "labels shifted": Fault(each(lambda one: one.roll(1, 1)), ("sane", "accuracy")),
    }, examples=200),
    "binary": World(tasks.Binary(), _yes_no, same, {
        "always yes": Fault(each(lambda one: one.abs() + 5), SANE, SANE),
        "sign of the score": Fault(each(torch.neg), SANE, SANE),
    }),
    "segmentation": World(tasks.Segmentation(), _masks, same, {
        "one class everywhere": Fault(_first_always, SANE, SANE),
        "shifted classes": Fault(each(lambda one: one.roll(1, 1)), SANE, SANE),
        "one class never said": Fault(_less, ("accuracy",)),
        "mirrored": Fault(each(lambda one: one.flip(-1)), ("sane", "accuracy")),
    }, examples=100),
    "detection": World(tasks.Detection(_decode), _boxes, same, {
        "no boxes": Fault(_boxes_with(4, torch.zeros_like), SANE, SANE),
        "boxes of another unit": Fault(_boxes_with(2, lambda one: one * 416), ("sane", "accuracy")),
        "one label for all": Fault(_boxes_with(5, torch.zeros_like), ("accuracy",)),
        "labels shifted": Fault(_boxes_with(5, lambda one: (one.round() + 1) % 3), ("sane", "accuracy"), SANE),
    }, examples=100, max_drop=10.0),
    "regression": World(tasks.Regression(), _numbers, same, {
        "the mean": Fault(each(lambda one: torch.full_like(one, 5.0)), SANE, SANE),
        "sign": Fault(each(torch.neg), SANE, SANE),
        "scale of two": Fault(each(lambda one: 2 * one), ("sane", "accuracy")),
    }, max_drop=0.2),
    "restoration": World(tasks.Restoration(), _pictures, _smooth, {
        "grey": Fault(each(lambda one: torch.full_like(one, 0.5)), SANE, SANE),
        "negative": Fault(each(lambda one: 1 - one), SANE, SANE),
        "the input itself": Fault(lambda outputs, x: (x,), ("accuracy",)),
    }, examples=100, max_drop=1.0),
    "embedding": World(tasks.Embedding(), _faces, same, {
        "collapsed": Fault(each(lambda one: torch.ones_like(one) + 1e-9 * one), SANE, SANE),
        "one number of eight": Fault(each(lambda one: torch.cat([one[:, :1], 0 * one[:, 1:] + 1], 1)), ("accuracy",)),
    }),
    "sequence": World(tasks.SequenceLabels(), _lines, same, {
        "blanks alone": Fault(_blanks, SANE, SANE),
        "the next letter": Fault(_next_letters, SANE, SANE),
    }, examples=200),
    "two heads": World(tasks.Custom(_both, "worse head", unit="points"), _pairs, lambda x: (x[:, :4], x[:, 4:]), {
        "one head dead": Fault(_dead(1), ("sane", "accuracy"), SANE),
        "heads swapped": Fault(lambda outputs, x: (outputs[1], outputs[0]), ("sane", "accuracy"), SANE),
    }),
}  # fmt: skip
