"""Streams as splits: read once, in any order afterwards, from disk; what no stream can be is refused."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_stream import peak_of_a_stream
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import edgeprune
from edgeprune import Data, Streamed
from edgeprune.errors import DataError
from edgeprune.workload import item, streams


class Numbers(IterableDataset[Any]):
    """Example n is n, three times, and its target n."""

    classes = ("even", "odd")

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first, self.started = count, first, 0

    def __iter__(self) -> Iterator[Any]:
        self.started += 1
        for n in range(self.first, self.first + self.count):
            yield torch.full((3,), float(n)), n


class Counted(Numbers):
    """torch lets an IterableDataset say its length."""

    def __len__(self) -> int:
        return self.count


def numbers() -> Iterator[Any]:
    """A function that yields."""
    for n in range(30):
        yield {"x": np.full(2, n, np.float32), "ids": np.arange(n, n + 4)}, n


@pytest.mark.parametrize("kind", [Numbers, Counted])
def test_a_stream_is_split_drawn_and_read_in_any_order(kind: type[Numbers]) -> None:
    train = kind(100)
    data = Data(train=train, test=kind(30, 1000), selection_examples=20, calibration_examples=16)
    counts = [len(data.split(name)) for name in ("train", "selection", "calibration", "test")]
    assert counts == [80, 20, 16, 30] and train.started == 1  # train and what is held out of it: read once
    seen = [int(item(data.split("selection"), n, "selection")[1]) for n in range(20)]
    assert len(set(seen)) == 20 and seen != sorted(seen)  # a fair draw of all, not the first ones
    rest = {item(data.split("train"), n, "train")[1] for n in range(80)}
    assert rest | set(seen) == set(range(100))
    for inputs, targets in data.batches("test", data.inputs(), 7):
        assert inputs[0][:, 1].tolist() == targets
    assert data.names == ("even", "odd")
    again = Data(train=kind(100), test=kind(30, 1000), selection_examples=20, calibration_examples=16)
    assert data.digest() == again.digest()
    assert len(data.said()) == 2 and data.said()[0].startswith("train: 100 examples of a stream, ")


def test_a_function_that_yields_and_a_generator_are_streams_too() -> None:
    for given in (numbers, numbers(), Streamed(numbers), Streamed(numbers()), lambda: Streamed(numbers)):
        split = Data(train=[(np.zeros(2), 0)] * 9, test=given).split("test")
        inputs, target = split[7]
        assert len(split) == 30 and target == 7 and list(inputs) == ["x", "ids"]
        assert inputs["x"].dtype == np.float32 and inputs["ids"].tolist() == [7, 8, 9, 10]
        with pytest.raises(IndexError):
            split[30]


def test_as_many_as_are_asked_for_are_taken(tmp_path: Path) -> None:
    endless = Streamed(lambda: ((np.float32([n]), n % 2) for n in itertools.count()), examples=50, folder=tmp_path)
    data = Data(train=endless, test=endless, selection_examples=5)
    assert len(data.split("test")) == 50 and data.split("test")[49][0] == [49]
    assert data.said()[0].startswith("test: the first 50 examples of a stream, 1 kB in " + str(tmp_path)[:5])
    assert not list(tmp_path.iterdir())  # nothing is left behind, whatever ends the process


EXAMPLE = (
    (np.float16([[1, 2]]), True, 3, 2.5, "word", b"bytes", None, np.array(4), np.zeros((0, 4))),
    {"boxes": np.ones((2, 4)), "labels": [1, 2], 7: torch.ones(2, dtype=torch.int64)},
)


def test_an_example_comes_back_as_it_was() -> None:
    split = Data(train=[EXAMPLE] * 9, test=lambda: iter([EXAMPLE])).split("test")
    (half, yes, three, real, word, raw, none, four, empty), target = split[0]
    assert half.dtype == np.float16 and half.tolist() == [[1, 2]] and yes is True and three == 3 and real == 2.5
    assert (word, raw, none) == ("word", b"bytes", None) and four.shape == () and empty.shape == (0, 4)
    assert list(target) == ["boxes", "labels", 7] and target["labels"] == [1, 2] and target[7].tolist() == [1, 1]
    half += 1  # writable, and a copy
    assert split[0][0][0].tolist() == [[1, 2]]


def changing() -> Iterator[Any]:
    for n in range(9):
        yield os.urandom(4), n


def failing() -> Iterator[Any]:
    yield np.zeros(1), 0
    raise OSError("the socket closed")


def loader() -> Any:
    return DataLoader(TensorDataset(torch.zeros(9, 2), torch.zeros(9)), batch_size=3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (changing, "example 0 of the test stream is another one when the stream is started again"),
        (failing, "the test stream failed after 1 examples: OSError: the socket closed"),
        (lambda: iter([]), "no examples"),
        (lambda: iter([1]), r"example 0 of the test stream is int; it must be \(inputs, target\)"),
        (lambda: iter([(1, 2, 3)]), "is 3 things"),
        (lambda: iter([(np.zeros(1), object())]), "example 0 of the test stream: it holds a object"),
        (loader, "is a DataLoader, which gives batches"),
        (Streamed(numbers, folder="/no/such/folder"), "nothing can be written there"),
    ],
)
def test_what_no_stream_can_be_is_refused(given: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        Data(train=[(np.zeros(1), 0)] * 9, test=given).split("test")
    assert caught.value.remedy


def test_a_source_that_is_none_is_refused() -> None:
    with pytest.raises(DataError, match="the source is int"):
        Streamed(3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="examples is 0"):
        Streamed(numbers, examples=0)


def test_training_examples_may_change_and_a_stream_that_never_ends_stops_before_the_disk_is_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert len(Data(train=changing, test=numbers, selection_examples=1).split("train")) == 8
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(streams, "OFTEN", 10_000)
    monkeypatch.setattr(streams, "SPARE", used.free + (1 << 40))
    endless = Streamed(lambda: ((np.zeros(250, np.float32), 0) for _ in itertools.count()), folder=tmp_path)
    with pytest.raises(DataError, match="has not ended; the disk of") as caught:
        Data(train=endless, test=numbers).split("train")
    assert "Streamed(source, examples=5" in str(caught.value.remedy)


def test_another_process_that_was_not_forked_is_told() -> None:
    split = Data(train=[(np.zeros(1), 0)] * 9, test=numbers).split("test")
    with pytest.raises(DataError, match="no other process can open"):
        pickle.dumps(split)


def test_it_is_a_public_name() -> None:
    assert edgeprune.Streamed is Streamed


@pytest.mark.long
def test_it_does_not_lie_in_memory() -> None:
    """400 MB through a process that takes a tenth of that beside what it takes without."""
    assert peak_of_a_stream(4000) - peak_of_a_stream(40) < 60 << 20
