"""What `edgeprune data` shows: a recipe's examples as the network gets them, with their labels and its metric on them.

No target is needed and nothing is kept: the recipe's network, data and task are opened as a run opens them, with the
same refusals, and the dense network is run in FP32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.errors import EdgepruneError, UsageError, did_you_mean
from edgeprune.pipeline import pictures
from edgeprune.pipeline.subject import Subject
from edgeprune.recipe import Recipe
from edgeprune.report import Tile
from edgeprune.workload import SPLITS, Score, Tally, Workload, check_metric, chosen, item, joined

BATCH = 32
Array = NDArray[Any]


@dataclass(frozen=True)
class InputRange:
    """One input over the examples looked at."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float
    high: float
    mean: float


@dataclass(frozen=True)
class Looks:
    """A split, looked at.

    Attributes:
        split: which.
        counts: split -> examples.
        notes: what was found and left out, one sentence each.
        classes: names by number; empty where there are none.
        shown: class -> how many of the examples looked at show it.
        inputs: their ranges.
        score: of the dense network; `chance` is what the best guess scores that does not look.
        fault: why the metric cannot be judged by; None.
        tiles: the sheet's pictures; empty where the first input is none. `how`: what their grey values mean.
        rows: the same examples as text.
    """

    split: str
    counts: dict[str, int]
    notes: tuple[str, ...]
    classes: tuple[str, ...]
    shown: dict[str, int]
    inputs: tuple[InputRange, ...]
    score: Score
    chance: float | None
    fault: EdgepruneError | None
    tiles: tuple[Tile, ...]
    how: str
    rows: tuple[str, ...]


def look(recipe: Recipe, split: str = "test", examples: int = 500, tiles: int = 24) -> Looks:
    """Run the dense network on a split.

    Args:
        split: "train", "calibration", "selection" or "test".
        examples: how many, spread over the split; 0: all.
        tiles: how many of them are shown.

    Raises:
        UsageError: an unknown split.
        EdgepruneError: whatever a run refuses of the recipe's network, data and task.
    """
    if split not in SPLITS:
        raise UsageError(f"there is no split '{split}'.", did_you_mean(split, SPLITS))
    notes: list[str] = []
    opened = Subject(recipe, 1, lambda about, line: notes.append(line.removeprefix("[data] ")))
    work = opened.workload
    dataset = work.data.split(split)
    places = _spread(len(dataset), examples or len(dataset))
    on_sheet = [places[i] for i in _spread(len(places), tiles)]
    tally, outputs, targets, kept = Tally(work.task), [], [], []
    shown: Counter[int] = Counter()
    ranges = _Ranges(len(work.inputs.parts))
    for start in range(0, len(places), BATCH):
        part = places[start : start + BATCH]
        items = [item(dataset, place, split) for place in part]
        batch = work.inputs.batch([inputs for inputs, _ in items], part[0])
        with torch.inference_mode():
            found = work.inputs.call(opened.model, batch)
        ranges.add(batch)
        wanted = [target for _, target in items]
        outputs.append(tally.add(found, wanted))
        targets += wanted
        shown.update(_classes(work, outputs[-1], wanted))
        mine = [row for row, place in enumerate(part) if place in on_sheet]
        kept += [(tuple(column[row] for column in batch), wanted[row], chosen(outputs[-1], [row])) for row in mine]
    names, inputs = work.data.names, ranges.read(work)
    undo, how = pictures.undone(opened, inputs[0].low, inputs[0].high)
    view = pictures.SheetView(work, undo, pictures.tokens(recipe, split))
    seen = [view.of(*one) for one in kept]
    fault: EdgepruneError | None = None
    try:
        check_metric(work.task, joined(outputs), targets)
    except EdgepruneError as cause:
        fault = cause
    return Looks(
        split,
        {name: len(work.data.split(name)) for name in SPLITS},
        tuple(notes),
        names,
        {pictures.named(names, number): count for number, count in sorted(shown.items())},
        inputs,
        tally.score(),
        work.task.chance(targets) if hasattr(work.task, "chance") else None,
        fault,
        tuple(one.tile for one in seen if one.tile is not None),
        how,
        tuple(one.text for one in seen),
    )


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` places of `count`, in order, from the first to the last."""
    return sorted({int(place) for place in np.linspace(0, count - 1, max(1, min(count, wanted)))})


def _classes(work: Workload, outputs: tuple[Any, ...], targets: Sequence[Any]) -> Counter[int]:
    """How many of these examples show each class; nothing where the task has no classes."""
    found: Counter[int] = Counter()
    tell: Callable[[Any, Sequence[Any]], tuple[set[int], int] | None] | None = getattr(work.task, "shown", None)
    if tell is None:
        return found
    for row, target in enumerate(targets):
        told = tell(chosen(outputs, [row]), [target])
        found.update(told[0] if told else ())
    return found


class _Ranges:
    """The smallest, largest and mean number of every input, a batch at a time."""

    def __init__(self, inputs: int) -> None:
        self.low, self.high = [np.inf] * inputs, [-np.inf] * inputs
        self.sum, self.count = [0.0] * inputs, [0] * inputs

    def add(self, batch: Sequence[Array]) -> None:
        for place, values in enumerate(batch):
            self.low[place] = min(self.low[place], float(values.min()))
            self.high[place] = max(self.high[place], float(values.max()))
            self.sum[place] += float(values.sum(dtype=np.float64))
            self.count[place] += values.size

    def read(self, work: Workload) -> tuple[InputRange, ...]:
        return tuple(
            InputRange(part.name, part.dtype, part.shape, self.low[n], self.high[n], self.sum[n] / self.count[n])
            for n, part in enumerate(work.inputs.parts)
        )


def as_dict(found: Looks) -> Mapping[str, object]:
    """For --json."""
    return {
        "split": found.split,
        "counts": found.counts,
        "notes": list(found.notes),
        "classes": list(found.classes),
        "shown": found.shown,
        "inputs": [asdict(one) for one in found.inputs],
        "score": found.score.to_dict(),
        "chance": found.chance,
        "fault": str(found.fault) if found.fault else None,
    }
