"""Inputs, data, workload and budget: several inputs of several dtypes, splits, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune import tasks
from edgeprune.errors import DataError, ModelError, TaskError, UsageError
from edgeprune.workload import Inputs, Workload


class Dataset:
    """Token ids, a mask and a number, by name; the class is the parity of the first token."""

    def __init__(self, count=40, seed=0, **change):
        self.count, self.seed, self.change = count, seed, change

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        random = np.random.default_rng([self.seed, index])
        ids = random.integers(0, 50, 6)
        example = {
            "ids": torch.tensor(ids),
            "mask": torch.tensor(ids > 3),
            "size": torch.rand(2, generator=torch.Generator().manual_seed(index)),
        }
        example.update({k: v(index) if callable(v) else v for k, v in self.change.items()})
        return {k: v for k, v in example.items() if v is not None}, int(ids[0] % 2)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(50, 4), nn.Linear(6, 2)

    def forward(self, ids, mask, size):
        x = (self.embed(ids) * mask[..., None]).mean(1)
        return {"scores": self.head(torch.cat([x, size], 1)), "x": x}


INPUTS = Inputs.of(Dataset()[0][0], below={"ids": 50})


def test_inputs_know_names_shapes_and_dtypes():
    assert [(p.name, p.shape, p.dtype) for p in INPUTS.parts] == [
        ("ids", (6,), "int64"),
        ("mask", (6,), "bool"),
        ("size", (2,), "float32"),
    ]
    batch = INPUTS.batch([Dataset()[i][0] for i in range(5)])
    assert [(b.shape, str(b.dtype)) for b in batch] == [((5, 6), "int64"), ((5, 6), "bool"), ((5, 2), "float32")]
    again = INPUTS.example(batch, 3)
    assert set(again) == {"ids", "mask", "size"} and np.array_equal(again["ids"], Dataset()[3][0]["ids"])
    scores, hidden = INPUTS.call(Network(), batch)
    assert scores.shape == (5, 2) and hidden.shape == (5, 4)
    noise = INPUTS.random(3)
    assert noise[0].max() < 50 and [str(n.dtype) for n in noise] == ["int64", "bool", "float32"]
    assert INPUTS.call(Network(), noise)[0].shape == (3, 2)


def test_one_tensor_and_a_tuple_are_inputs_too():
    one = Inputs.of(np.zeros((3, 4, 4)))  # float64 becomes float32
    assert one.names == ("input",) and one.batch([np.ones((3, 4, 4))])[0].dtype == np.float32
    two = Inputs.of((np.zeros(3, np.float16), np.zeros((2, 2), np.uint8)), names=("wave", "picture"))
    assert two.names == ("wave", "picture") and [p.dtype for p in two.parts] == ["float16", "uint8"]
    assert isinstance(two.example(two.batch([two.example(two.random(1))])), tuple)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ids": torch.tensor([0, 1, 2, 3, 4, 50])}, "ids of example 7 holds 50; it must be from 0 to 49"),
        ({"ids": torch.tensor([0, 1, 2, 3, 4, -1])}, "holds -1"),
        ({"ids": torch.zeros(6)}, "ids of example 7 is float32; it must be int64"),
        ({"ids": torch.zeros(5, dtype=torch.int64)}, r"is \[5\]; it must be \[6\]"),
        ({"size": torch.tensor([1.0, torch.nan])}, "NaN"),
        ({"mask": None}, "lacks the input mask"),
        ({"maks": torch.zeros(1)}, "Did you mean 'mask'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, text):
    with pytest.raises(DataError, match=text):
        INPUTS.batch([Dataset(**change)[0][0]], first=7)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Inputs.of(np.zeros(3, complex)), "complex128"),
        (lambda: Inputs.of({}), "no input"),
        (lambda: Inputs.of((np.zeros(1), np.zeros(1)), names=("a", "a")), "two inputs are called a"),
        (lambda: Inputs.of(np.zeros((3, 0))), "at least 1"),
        (lambda: Inputs.of({"a": np.zeros(1)}, below={"b": 3}), "no input"),
        (lambda: INPUTS.batch([np.zeros(3)]), "gives no dict"),
        (lambda: Inputs.of(np.zeros(3)).batch([(np.zeros(3), np.zeros(3))]), "2 inputs"),
        (lambda: Inputs.of(np.zeros(3)).batch([]), "at least one"),
    ],
)
def test_impossible_inputs_are_refused(make, text):
    with pytest.raises(DataError, match=text):
        make()


def test_splits_are_seeded_apart_and_whole():
    data = edgeprune.Data(
        train=Dataset(100), test=lambda: Dataset(30, 1), selection_examples=20, calibration_examples=16
    )
    train, selection, calibration = (data.split(name).indices for name in ("train", "selection", "calibration"))
    assert len(train) == 80 and len(selection) == 20 and not set(train) & set(selection)
    assert set(train) | set(selection) == set(range(100)) and set(calibration) < set(train) and len(calibration) == 16
    assert max(calibration) > 50  # not the first ones: a set sorted by class must not give one class
    again = edgeprune.Data(train=Dataset(100), test=Dataset(30, 1), selection_examples=20, calibration_examples=16)
    assert again.split("selection").indices == selection
    own = edgeprune.Data(Dataset(100), Dataset(30, 1), Dataset(10, 2), Dataset(12, 3))
    assert [len(own.split(n)) for n in ("train", "calibration", "selection", "test")] == [100, 10, 12, 30]


def test_targets_stay_with_their_inputs_in_order():
    data = edgeprune.Data(Dataset(100), Dataset(30, 1), selection_examples=20)
    seen = list(data.batches("test", data.inputs(), 7))
    assert [len(targets) for _, targets in seen] == [7, 7, 7, 7, 2]
    assert [t for _, targets in seen for t in targets] == [Dataset(30, 1)[i][1] for i in range(30)]
    for (ids, _, _), targets in data.batches("selection", data.inputs()):
        assert [int(row[0] % 2) for row in ids] == targets


@pytest.mark.long
def test_the_digest_is_of_the_content():
    def digest(**change):
        return edgeprune.Data(Dataset(600), Dataset(30, 1, **change)).digest()

    assert digest() == digest() and digest() != digest(size=torch.zeros(2))
    assert edgeprune.Data(Dataset(600), Dataset(31, 1)).digest() != digest()


def test_a_dataset_that_changes_between_two_reads_is_caught():
    random = np.random.default_rng(0)
    moving = Dataset(600, size=lambda _: torch.tensor(random.random(2), dtype=torch.float32))
    with pytest.raises(DataError, match="of the test split changes"):
        edgeprune.Data(Dataset(600), moving).digest()
    with pytest.raises(DataError, match=r"of the (calibration|selection) split changes"):
        edgeprune.Data(moving, Dataset(600)).digest()
    edgeprune.Data(
        moving, Dataset(60), Dataset(9), Dataset(9)
    ).digest()  # augmentation while training is as it should be


def fails(_):
    raise OSError("disk on fire")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: edgeprune.Data(3, Dataset()), "map-style"),
        (lambda: edgeprune.Data({"a": 1}, Dataset()), "map-style"),
        (lambda: edgeprune.Data(None, Dataset()), "train is missing"),
        (
            lambda: edgeprune.Data(Dataset(10), Dataset()).split("selection"),
            "10 examples; selection would hold out 512",
        ),
        (lambda: edgeprune.Data(Dataset(10), lambda: 1 / 0).split("test"), "ZeroDivisionError"),
        (lambda: edgeprune.Data(Dataset(10), lambda: iter([])).split("test"), "no examples"),
        (lambda: edgeprune.Data(Dataset(10), lambda: 3).split("test"), "__len__ and __getitem__, or __iter__"),
        (lambda: edgeprune.Data(Dataset(10), []).split("test"), "no examples"),
        (lambda: edgeprune.Data(Dataset(10), [1, 2]).inputs(), r"must be \(inputs, target\)"),
        (lambda: edgeprune.Data(Dataset(10), [(1, 2, 3)]).inputs(), "3 things"),
        (lambda: edgeprune.Data(Dataset(10), Dataset(size=fails)).inputs(), "disk on fire"),
        (lambda: edgeprune.Data(Dataset(10), Dataset()).split("tset"), "no split"),
    ],
)
def test_data_that_is_none_is_refused(make, text):
    with pytest.raises(DataError, match=text):
        make()


@pytest.mark.long
def test_a_workload_is_checked_on_real_examples():
    data = edgeprune.Data(Dataset(100), Dataset(30, 1), selection_examples=20)
    made = Workload.of(Network, data, tasks.Classification())
    assert made.inputs.names == ("ids", "mask", "size")
    assert made.digest == Workload.of(Network, data, tasks.Classification()).digest
    assert made.digest != Workload.of(Network, data, tasks.Classification(smoothing=0.1)).digest
    with pytest.raises(ModelError, match="segmentation needs"):
        Workload.of(Network, data, tasks.Segmentation())
    with pytest.raises(TaskError, match="mine"):
        Workload.of(Network, data, tasks.Custom(lambda o, t: 1 / 0, "mine"))
    with pytest.raises(ModelError, match="does not take its inputs"):
        Workload.of(lambda: nn.Linear(3, 2), data, tasks.Classification())
    with pytest.raises(ModelError, match=r"torch\.nn\.Module"):
        Workload.of(lambda: 3, data, tasks.Classification())


def test_a_budget_says_what_is_impossible():
    assert edgeprune.Budget(speedup=2.0).confidence == 0.95
    for arguments, text in (
        ({}, "exactly one"),
        ({"speedup": 2.0, "latency_ms": 3.0}, "exactly one"),
        ({"speedup": 1.0}, "more than 1"),
        ({"latency_ms": float("nan")}, "more than 0"),
        ({"speedup": 2.0, "max_drop": -1.0}, "at least 0"),
        ({"speedup": 2.0, "max_drop": float("inf")}, "at least 0"),
        ({"speedup": 2.0, "confidence": 1.0}, "confidence"),
        ({"speedup": 2.0, "max_bytes": 0}, "max_bytes"),
    ):
        with pytest.raises(UsageError, match=text):
            edgeprune.Budget(**arguments)


class Sorted:
    """Examples in the order of their class, as people keep them."""

    classes = ("a", "b")

    def __len__(self):
        return 400

    def __getitem__(self, index):
        return np.full(2, index, np.float32), int(index >= 200)


@pytest.mark.parametrize("splits", [{}, {"selection": Sorted(), "calibration": Sorted()}])
def test_the_first_examples_that_a_stage_looks_at_are_of_all_classes(splits):
    data = edgeprune.Data(Sorted(), Sorted(), **splits, selection_examples=100)
    for name in ("train", "calibration"):
        share = np.mean([data.split(name)[i][1] for i in range(64)])
        assert 0.25 < share < 0.75
    assert [data.split("test")[i][1] for i in range(3)] == [0, 0, 0] and data.names == ("a", "b")
    as_they_lie = edgeprune.Data(Sorted(), Sorted(), Sorted(), Sorted(), seed=None)
    assert [int(as_they_lie.split("train")[i][0][0]) for i in range(3)] == [0, 1, 2]
