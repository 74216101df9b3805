"""Examples that can only be read one after the other, and need not fit into memory: written to disk once, then read
from there in any order.

Every stage asks for examples by number: training shuffles, calibration draws, the gates compare two networks on the
same ones. So a stream is read through once, when its split is first asked for, into a file without a name that is gone
when the process ends. In memory stay its places in that file, some 50 bytes an example.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeprune.errors import DataError, EdgepruneError
from edgeprune.workload.arrays import to_array

SPARE = 1 << 30  # bytes that stay free on the disk
OFTEN = 64 << 20  # bytes between two looks at it
AGAIN = 4  # first examples that must be the same when a stream is started again

_ENCODER, _DECODER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder()


@dataclass(frozen=True, eq=False)
class Streamed:
    """A stream as a split of `Data`.

    Attributes:
        source: an iterable of (inputs, target), such as torch's IterableDataset; or a function that gives one.
        examples: how many are taken, from its beginning; None: all, to its end.
        folder: where they are written; None: the system's folder for such files (TMPDIR).
    """

    source: Iterable[Any] | Callable[[], Iterable[Any]]
    examples: int | None = None
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        if not callable(self.source) and not hasattr(self.source, "__iter__"):
            raise DataError(
                f"Streamed: the source is {type(self.source).__name__}.",
                "Give an iterable of (inputs, target), or a function that gives one.",
            )
        if self.examples is not None and self.examples < 1:
            raise DataError(f"Streamed: examples is {self.examples}; it must be at least 1.")

    def start(self) -> Iterator[Any]:
        """From its beginning, where it has one to go back to."""
        return iter(self.source() if callable(self.source) else self.source)


def is_stream(given: Any) -> bool:
    """Something that is read from its beginning, and has no examples by number."""
    if isinstance(given, Streamed):
        return True
    if isinstance(given, Mapping | str | bytes) or not hasattr(given, "__iter__"):
        return False
    torch = sys.modules.get("torch.utils.data")
    if torch is not None and isinstance(given, torch.IterableDataset):  # it inherits a __getitem__ that raises
        return True
    return not (hasattr(given, "__len__") and hasattr(given, "__getitem__"))


class Spooled:
    """The examples of a stream, on disk, as a map-style dataset.

    Attributes:
        classes: of the stream's source, where it names them.
        whole: whether the stream ended there.
        bytes: on disk.
        folder: where the disk is.
    """

    def __init__(self, given: Any, name: str) -> None:
        """Read it through.

        Raises:
            DataError: the stream raises, gives no examples or other ones when it is started again, or fills the disk.
        """
        stream = given if isinstance(given, Streamed) else Streamed(given)
        _refuse_batches(stream.source, name)
        self.classes = tuple(getattr(stream.source, "classes", None) or ())
        self.folder, self._name = Path(stream.folder or tempfile.gettempdir()), name
        self._ends = array("Q", [0])
        self._file = _nameless(self.folder)
        self._close = weakref.finalize(self, os.close, self._file)
        items = _explained(stream, name)
        with os.fdopen(os.dup(self._file), "wb") as file:
            self._fill(itertools.islice(items, stream.examples), file)
        self.whole = stream.examples is None or len(self) < stream.examples
        self.bytes = self._ends[-1]
        if name != "train" and _starts_again(stream):
            self._compare(stream)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index], self._ends[index + 1]
        inputs, target = _restored(_DECODER.decode(os.pread(self._file, end - start, start)))
        return inputs, target

    def __getstate__(self) -> Any:
        raise DataError(
            f"the {self._name} stream's examples lie in a file that no other process can open.",
            "[data] workers = 0, where processes are not forked.",
        )

    def said(self) -> str:
        """One line for the user."""
        part = "" if self.whole else "the first "
        size = f"{self.bytes / 1e9:.2f} GB" if self.bytes >= 1e7 else f"{self.bytes / 1e3:,.0f} kB"
        return f"{self._name}: {part}{len(self):,} examples of a stream, {size} in {self.folder}"

    def _fill(self, items: Iterator[Any], file: Any) -> None:
        looked = 0
        for number, one in enumerate(items):
            if not isinstance(one, tuple | list) or len(one) != 2:
                kind = f"{len(one)} things" if isinstance(one, tuple | list) else type(one).__name__
                raise DataError(
                    f"example {number} of the {self._name} stream is {kind}; it must be (inputs, target).",
                    "Without labels, the target is None.",
                )
            try:
                made = _ENCODER.encode(_plain(tuple(one)))
                file.write(made)
            except TypeError as cause:
                raise DataError(
                    f"example {number} of the {self._name} stream: {cause}.", "Give arrays, numbers and text."
                ) from None
            except OSError as cause:
                raise DataError(f"{self.folder}: {cause.strerror}.", self._remedy(number)) from None
            self._ends.append(self._ends[-1] + len(made))
            if self._ends[-1] - looked >= OFTEN:
                looked = self._ends[-1]
                if shutil.disk_usage(self.folder).free < SPARE:
                    raise DataError(
                        f"the {self._name} stream has given {number + 1:,} examples, {looked / 1e9:.1f} GB, and has "
                        f"not ended; the disk of {self.folder} is nearly full.",
                        self._remedy(number + 1),
                    )
        try:
            file.flush()
        except OSError as cause:
            raise DataError(f"{self.folder}: {cause.strerror}.", self._remedy(len(self))) from None

    def _remedy(self, number: int) -> str:
        half = max(1, number // 2)
        return f'edgeprune.Streamed(source, examples={half}) takes as many, folder="..." another disk.'

    def _compare(self, stream: Streamed) -> None:
        """A stream that gives other examples each time cannot be judged by, and no run with it can be resumed."""
        again = itertools.islice(_explained(stream, self._name), min(AGAIN, len(self)))
        for number, one in enumerate(again):
            start, end = self._ends[number], self._ends[number + 1]
            if _ENCODER.encode(_plain(tuple(one))) != os.pread(self._file, end - start, start):
                raise DataError(
                    f"example {number} of the {self._name} stream is another one when the stream is started again.",
                    "It must always give the same, in the same order: seed what it shuffles.",
                )


def _starts_again(stream: Streamed) -> bool:
    """Can it be started again? A generator that was handed over cannot."""
    return callable(stream.source) or iter(stream.source) is not stream.source


def _refuse_batches(source: Any, name: str) -> None:
    torch = sys.modules.get("torch.utils.data")
    if torch is not None and isinstance(source, torch.DataLoader):
        raise DataError(f"the {name} split is a DataLoader, which gives batches.", "Give its dataset: loader.dataset.")


def _explained(stream: Streamed, name: str) -> Iterator[Any]:
    """Its examples; whatever it raises becomes a DataError."""
    number = 0
    try:
        for one in stream.start():
            yield one
            number += 1
    except (EdgepruneError, GeneratorExit):
        raise
    except Exception as cause:
        raise DataError(
            f"the {name} stream failed after {number:,} examples: {type(cause).__name__}: {cause}.",
            "The stream raised this.",
        ) from cause


def _nameless(folder: Path) -> int:
    """A file that only this process has."""
    try:
        with tempfile.TemporaryFile(prefix="edgeprune-", dir=folder) as file:
            return os.dup(file.fileno())
    except OSError as cause:
        raise DataError(
            f"{folder}: nothing can be written there ({cause.strerror}).", "TMPDIR names another."
        ) from None


def _plain(value: Any) -> Any:
    """Whatever an example holds, as msgpack has it; raises TypeError."""
    if value is None or isinstance(value, bool | str | bytes):
        return value
    if isinstance(value, Mapping):
        return {"map": [[_plain(key), _plain(one)] for key, one in value.items()]}
    if isinstance(value, tuple | list):
        return {"list" if isinstance(value, list) else "tuple": [_plain(one) for one in value]}
    if type(value) in (int, float):
        return value
    made = to_array(value)
    if made.dtype.hasobject:
        raise TypeError(f"it holds a {type(value).__name__}, which is no tensor, array, number or text")
    return {"array": [made.dtype.str, list(made.shape), np.ascontiguousarray(made).tobytes()]}


def _restored(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "array":
        dtype, shape, data = held
        return np.frombuffer(data, dtype).reshape(shape).copy()
    if kind == "map":
        return {_restored(key): _restored(one) for key, one in held}
    parts = [_restored(one) for one in held]
    return parts if kind == "list" else tuple(parts)
