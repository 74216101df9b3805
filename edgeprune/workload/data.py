"""The data of a run: train, calibration, selection and test, as map-style datasets.

A dataset is torch's map-style protocol: `len(dataset)` and `dataset[i] -> (inputs, target)`, inputs a tensor, a tuple,
or a dict by forward's argument names, without a batch axis. Or a stream of such examples, an iterable without numbers
(streams.py). Or a callable without arguments that gives either, called when the split is first read. Targets stay with
their inputs, always, and `test` and `selection` in their order; `train` and `calibration` are dealt out anew, so that
their first examples, which is all that some stages look at, are a fair draw.

Nothing is ever chosen by `test`. Where `selection` is missing, examples are held out from `train` by a seeded
permutation; where `calibration` is missing it is taken from what is left of `train`, at random too: a dataset that is
sorted by class must not give a calibration set of one class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import DataError, EdgepruneError
from edgeprune.workload.arrays import to_array
from edgeprune.workload.inputs import Inputs
from edgeprune.workload.streams import Spooled, Streamed, is_stream

SPLITS = ("train", "calibration", "selection", "test")
SAMPLE = 64  # examples of a split whose bytes are in the digest, and that are read twice


@dataclass(frozen=True)
class Subset:
    """Some examples of a dataset, in a fixed order."""

    dataset: Any
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


@dataclass(frozen=True, eq=False)
class Data:
    """What a network is compressed and judged with.

    Attributes:
        train: learned from; targets may be None where only the dense network teaches.
        test: only the gates see it.
        calibration: ranges of activations are taken from it; None: some of `train`.
        selection: candidates are chosen by it; None: some of `train`, held out.
        calibration_examples, selection_examples: how many, where they come from `train`.
        seed: of what is held out and of the order of `train` and `calibration`; None: they are in a fair order already.
        classes: their names by number; empty: those that the test dataset has as `classes`, if any.
        prepare: what makes the network's input of one file on the device, where the bundle's run.py is to do so too:
            a `model.Preprocess` (of a picture), `Features` (of a sound), or the file of a tokenizer (of a text).
    """

    train: Any
    test: Any
    calibration: Any = None
    selection: Any = None
    calibration_examples: int = 256
    selection_examples: int = 512
    seed: int | None = 0
    classes: tuple[str, ...] = ()
    prepare: Callable[..., Any] | str | Path | None = None
    _made: dict[str, object] = field(default_factory=dict, repr=False)
    _whole: dict[str, object] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in SPLITS:
            given = getattr(self, name)
            if given is not None and not callable(given) and not _is_dataset(given) and not is_stream(given):
                raise DataError(
                    f"Data: {name} is {type(given).__name__}; give a map-style dataset, a stream, or a callable that "
                    "gives one.",
                    "It needs __len__ and __getitem__(i) -> (inputs, target), or __iter__.",
                )
        for name in ("train", "test"):
            if getattr(self, name) is None:
                raise DataError(f"Data: {name} is missing.", "Data(train=..., test=...) are needed.")
        if self.calibration_examples < 1 or self.selection_examples < 1:
            raise DataError("Data: calibration_examples and selection_examples are at least 1.")

    def split(self, name: str) -> Any:
        """The dataset of "train", "calibration", "selection" or "test"; raises DataError."""
        if name not in SPLITS:
            raise DataError(f"there is no split '{name}'.", f"Known: {', '.join(SPLITS)}.")
        if name not in self._made:
            self._make(name)
        return self._made[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names by number; empty where nobody named them."""
        return self.classes or tuple(str(name) for name in getattr(self.split("test"), "classes", None) or ())

    def said(self) -> list[str]:
        """A line for each split that was made of a stream, so far."""
        return [one.said() for one in self._whole.values() if isinstance(one, Spooled)]

    def _open(self, name: str) -> Any:
        """What was given for a split, opened once."""
        if name not in self._whole:
            self._whole[name] = _opened(getattr(self, name), name)
        return self._whole[name]

    def _order(self, count: int) -> list[int]:
        if self.seed is None:
            return list(range(count))
        return [int(i) for i in np.random.default_rng(self.seed).permutation(count)]

    def _make(self, name: str) -> None:
        if name == "test" or (name != "train" and getattr(self, name) is not None):
            made = self._open(name)
            fixed = name != "calibration" or self.seed is None
            self._made[name] = made if fixed else Subset(made, tuple(self._order(len(made))))
            return
        every = self._open("train")
        order = self._order(len(every))
        held = 0 if self.selection is not None else self.selection_examples
        if len(order) < held + 1:
            raise DataError(
                f"the train split has {len(order)} examples; selection would hold out {held} of them.",
                "Give a selection split, more examples, or a smaller selection_examples.",
            )
        rest = order[held:]
        self._made["train"] = every if self.seed is None and not held else Subset(every, tuple(rest))
        if self.selection is None:
            self._made["selection"] = Subset(every, tuple(order[:held]))
        if self.calibration is None:
            self._made["calibration"] = Subset(every, tuple(rest[: self.calibration_examples]))

    def inputs(self, names: Sequence[str] = (), below: Mapping[str, int] | None = None) -> Inputs:
        """The inputs of the first test example; `names` are those of the network's forward."""
        return Inputs.of(item(self.split("test"), 0, "test")[0], names, below)

    def batches(
        self, name: str, inputs: Inputs, size: int = 64, limit: int | None = None
    ) -> Iterator[tuple[tuple[Any, ...], list[Any]]]:
        """(one array [N, ...] an input, N targets) of the split, in its order; the first `limit` examples."""
        dataset = self.split(name)
        count = len(dataset) if limit is None else min(limit, len(dataset))
        for start in range(0, count, size):
            items = [item(dataset, place, name) for place in range(start, min(start + size, count))]
            yield inputs.batch([inputs_ for inputs_, _ in items], start), [target for _, target in items]

    def digest(self) -> str:
        """A hash of each split's length and of up to 64 of its examples, spread over it; raises DataError.

        Each is read twice: a dataset that gives something else the second time (random augmentation, a file that is
        being written) cannot be judged by.
        """
        sha = hashlib.sha256()
        for name in SPLITS:
            dataset = self.split(name)
            sha.update(f"{name} {len(dataset)}\n".encode())
            for place in sorted({int(i) for i in np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset)))}):
                first, second = (_fingerprint(item(dataset, place, name)) for _ in range(2))
                if first != second and name != "train":  # training examples may be augmented
                    raise DataError(
                        f"example {place} of the {name} split changes from one read to the next.",
                        "It must always give the same: leave augmentation to training, or give a split without it.",
                    )
                sha.update(first if first == second else b"changes")
        if self.prepare is not None:
            file = Path(self.prepare) if isinstance(self.prepare, str | Path) else None
            sha.update(file.read_bytes() if file is not None and file.is_file() else repr(self.prepare).encode())
        return f"sha256:{sha.hexdigest()}"


def item(dataset: Any, place: int, name: str) -> tuple[Any, Any]:
    """Example `place`: (inputs, target); whatever the dataset raises becomes a DataError."""
    try:
        found = dataset[place]
    except EdgepruneError:
        raise
    except Exception as cause:
        raise DataError(
            f"example {place} of the {name} split cannot be read: {type(cause).__name__}: {cause}.",
            "The dataset raised this.",
        ) from cause
    if not isinstance(found, tuple | list) or len(found) != 2:
        kind = f"{len(found)} things" if isinstance(found, tuple | list) else type(found).__name__
        raise DataError(
            f"example {place} of the {name} split is {kind}; it must be (inputs, target).",
            "Without labels, the target is None.",
        )
    return found[0], found[1]


def _is_dataset(given: Any) -> bool:
    listed = hasattr(given, "__len__") and hasattr(given, "__getitem__")
    return listed and not isinstance(given, Mapping | str | bytes) and not is_stream(given)


def _opened(given: Any, name: str) -> Any:
    listed = _is_dataset(given) or is_stream(given)
    make: Callable[[], Any] | None = given if callable(given) and not listed else None
    if make is not None:
        try:
            given = make()
        except EdgepruneError:
            raise
        except Exception as cause:
            raise DataError(f"the function of the {name} split failed: {type(cause).__name__}: {cause}.") from cause
        if is_stream(given) and not isinstance(given, Streamed) and iter(given) is given:
            given = Streamed(make)  # a generator: it can be started again by the function alone
    if is_stream(given):
        given = Spooled(given, name)
    if not _is_dataset(given):
        raise DataError(
            f"the {name} split is {type(given).__name__}; it must have __len__ and __getitem__, or __iter__.",
            "Give a map-style dataset, or an iterable of (inputs, target).",
        )
    try:
        count = len(given)
    except Exception as cause:
        raise DataError(f"the length of the {name} split is not known: {type(cause).__name__}: {cause}.") from cause
    if not count:
        raise DataError(f"the {name} split has no examples.", "Give at least one.")
    return given


def _fingerprint(value: Any) -> bytes:
    """A hash of whatever an example holds: arrays by shape, dtype and bytes."""
    sha = hashlib.sha256()

    def feed(part: Any) -> None:
        if isinstance(part, Mapping):
            for key in sorted(part, key=str):
                sha.update(f"key {key}\n".encode())
                feed(part[key])
        elif isinstance(part, tuple | list):
            sha.update(f"{len(part)} parts\n".encode())
            for one in part:
                feed(one)
        elif isinstance(part, str | bytes) or part is None:
            sha.update(repr(part).encode())
        else:
            array = to_array(part)
            if array.dtype == object:
                sha.update(repr(part).encode())
            else:
                sha.update(f"{array.dtype} {array.shape}\n".encode())
                sha.update(np.ascontiguousarray(array).tobytes())

    feed(value)
    return sha.digest()
