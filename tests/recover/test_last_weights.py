"""Which weights a training leaves: the last ones, unless held-out examples tell that they are worse than the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune import tasks
from edgeprune.recipe import RecoverSection
from edgeprune.recover import train
from edgeprune.recover.judge import HeldOutScorer
from edgeprune.workload import Classification, Inputs


class Numbered(torch.utils.data.Dataset[Any]):
    """Example k is the number k, of class 0."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return torch.tensor([float(place)]), 0


class Right(nn.Module):
    """Right of the examples of some numbers, and wrong of all others."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor(numbers, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        right = (x == self.numbers).any(1, keepdim=True).float()
        return torch.cat([right, 1 - right], 1)


HELD = Numbered(100)
INPUTS = Inputs.of(HELD[0][0])


@pytest.mark.parametrize(
    ("last", "told"),
    [(range(90), False), (range(89), False), (range(5, 90), True), (range(2, 92), False), (range(20, 100), True)],
    ids=["same", "one worse", "five worse", "two others", "many others"],
)
def test_held_out_examples_tell_a_difference_beyond_its_noise(last: range, told: bool) -> None:
    """Of 90 right answers; five lost and none won are more than chance, two lost and two won are none."""
    judge = HeldOutScorer(HELD, Classification(), INPUTS)
    assert judge.told_worse(Right(*last), Right(*range(90))) == told


def test_nan_is_worse_and_so_is_a_larger_error() -> None:
    def error(outputs: Any, targets: list[Any]) -> float:
        return float(np.abs(outputs[0][:, 0] - 1).mean())

    judge = HeldOutScorer(HELD, tasks.Custom(error, "error", higher_is_better=False), INPUTS)
    assert judge.told_worse(Right(*range(50)), Right(*range(90)))
    assert not judge.told_worse(Right(*range(90)), Right(*range(50)))
    assert HeldOutScorer(HELD, Classification(), INPUTS).told_worse(_Nan(), Right(*range(90)))


class _Nan(Right):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 2), float("nan"))


@pytest.mark.parametrize(
    ("scores", "worse", "options", "kept"),
    [
        ([50.0, 70.0, 60.0, 65.0, 66.0], False, {}, 4),
        ([50.0, 70.0, 60.0, 65.0, 66.0], True, {}, 1),
        ([50.0, 60.0, 61.0, 65.0, 66.0], True, {}, 4),
        ([80.0, 70.0, 60.0, 65.0, 66.0], False, {}, 0),
        ([50.0, 70.0, 60.0, 65.0, 66.0], False, {"patience": 2}, 1),
    ],
    ids=["an early peak is luck", "unless they tell", "the last is the best", "the untrained is the best", "patience"],
)
def test_the_last_weights_are_kept(
    scores: list[float],
    worse: bool,
    options: dict[str, Any],
    kept: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Red before: the weights of the highest score, the luckiest of many, whatever the schedule did afterwards."""
    told, seen = iter(scores), list[list[float]]()

    def score(judge: HeldOutScorer, network: nn.Module) -> float:
        seen.append(network.state_dict()["weight"].flatten().tolist())
        return next(told)

    monkeypatch.setattr(HeldOutScorer, "__call__", score)
    monkeypatch.setattr(HeldOutScorer, "told_worse", lambda judge, one, other: worse)
    torch.manual_seed(0)
    student, teacher = nn.Linear(1, 2), nn.Linear(1, 2)
    settings = RecoverSection(epochs=4, batch=8, lr=0.1, ema=0.5, precision="fp32", **options)
    found = train(student, teacher, Numbered(32), Numbered(8), settings, tmp_path, task=Classification())
    assert found.best_epoch == kept and found.best_score == scores[kept]
    assert student.weight.flatten().tolist() == seen[kept]
    assert len({tuple(one) for one in seen}) == len(seen)
