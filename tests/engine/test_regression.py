"""The two ways to the same ridge regression."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgeprune.engine.regression import Gathered, Moments, Samples, choose_ridge, fit


def _data(rows: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Three batches of inputs [2, rows, 40] with a mean and targets [2, rows, 6]; weights to start from."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(2, 40, 6, generator=generator)
    batches = []
    for _ in range(3):
        x = torch.randn(2, rows, 40, generator=generator) * torch.linspace(0.1, 2, 40) + 1.5
        batches.append((x, x @ true + 0.3 * torch.randn(2, rows, 6, generator=generator) - 2))
    return batches, (true + 0.2 * torch.randn(2, 40, 6, generator=generator)).double()


@pytest.mark.parametrize("rows", [6, 100])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [None, 1e-3])
def test_rows_and_moments_fit_alike(rows: int, intercept: bool, ridge: float | None) -> None:
    batches, start = _data(rows)
    one, two = (
        fit([kind.of(x, y) for x, y in batches], start, intercept, ridge)  # type: ignore[attr-defined]
        for kind in (Moments, Samples)
    )
    for name in ("weight", "intercept", "mean", "variance"):
        torch.testing.assert_close(getattr(two, name), getattr(one, name), rtol=2e-3, atol=2e-3)


def test_rows_and_moments_judge_alike_and_choose_the_same_ridge() -> None:
    batches, start = _data(30)
    moments, samples = ([kind.of(x, y) for x, y in batches] for kind in (Moments, Samples))
    offset = torch.zeros(2, 6, dtype=torch.float64)
    assert samples[0].error(start, offset) == pytest.approx(moments[0].error(start, offset), rel=1e-5)
    assert choose_ridge(samples, start) == choose_ridge(moments, start)


def test_fewer_rows_than_unknowns_are_kept_as_rows() -> None:
    batches, _ = _data(8)
    few, many = Gathered(24, 40), Gathered(41, 40)
    for x, y in batches:
        few.add(x, y)
        many.add(x, y)
    assert all(isinstance(part, Samples) for part in few.parts)
    assert all(isinstance(part, Moments) for part in many.parts)
    assert sum(part.count for part in few.parts) == sum(part.count for part in many.parts) == 24
