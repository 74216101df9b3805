from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.latency.fit import Cells, calibrate, fit_surface


def cells(points: list[tuple[int, int]], time: list[float], noise: float = 0.01) -> Cells:
    pairs = np.array(points, np.float64)
    return Cells(pairs[:, 0], pairs[:, 1], np.array(time), np.full(len(points), noise))


def staircase(c_in: float, c_out: float) -> float:
    return 5 + 0.02 * (np.ceil(c_in / 4) * 4) * (np.ceil(c_out / 16) * 16)


GRID = [(i, o) for i in range(8, 129, 24) for o in range(8, 129, 24)]


def test_blocks_are_found_and_unseen_points_predicted() -> None:
    surface = fit_surface(cells(GRID, [staircase(*p) for p in GRID]))
    assert surface.blocks[1] == 16
    unseen = np.array([(20, 100), (60, 20), (100, 60), (36, 36)], np.float64)
    wanted = np.array([staircase(*p) for p in unseen])
    assert np.abs(surface(unseen[:, 0], unseen[:, 1]) / wanted - 1).max() < 0.05


def test_a_measured_outlier_is_kept_and_stays_local() -> None:
    """3 % of real steps get faster with more channels: a measured cell is believed over the trend."""
    time = [staircase(*p) * (1.6 if p == (56, 56) else 1.0) for p in GRID]
    surface = fit_surface(cells(GRID, time))
    at = float(surface(np.array([56.0]), np.array([56.0]))[0])
    far = float(surface(np.array([128.0]), np.array([8.0]))[0])
    assert at == pytest.approx(staircase(56, 56) * 1.6, rel=0.1)
    assert far == pytest.approx(staircase(128, 8), rel=0.1)


def test_one_cell_is_enough() -> None:
    surface = fit_surface(cells([(16, 32)], [7.0]))
    assert float(surface(np.array([16.0]), np.array([32.0]))[0]) == pytest.approx(7.0, rel=1e-3)
    assert surface.distance(16, 32) == 0.0
    assert surface.distance(16, 64) == pytest.approx(1.0)


@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64), st.floats(0.01, 10)), min_size=1, max_size=12))
def test_predictions_are_positive_and_finite_whatever_was_measured(rows: list[tuple[int, int, float]]) -> None:
    unique = {(i, o): t for i, o, t in rows}
    surface = fit_surface(cells(list(unique), list(unique.values())))
    grid = np.arange(1.0, 129.0, 9.0)
    found = surface(*np.meshgrid(grid, grid))
    assert np.isfinite(found).all() and (found > 0).all()


def test_calibration_recovers_alpha_and_beta() -> None:
    random = np.random.default_rng(0)
    sums = [{"conv": float(a), "linear": float(b)} for a, b in random.uniform(1, 5, (12, 2))]
    latency = [0.5 + 0.8 * s["conv"] + 1.2 * s["linear"] for s in sums]
    found = calibrate(sums, latency, pull=0.0)
    assert found.beta == pytest.approx(0.5, abs=1e-3)
    assert found.alpha == pytest.approx({"conv": 0.8, "linear": 1.2}, abs=1e-3)
    assert found.runs == 12 and found.error < 1e-3


def test_beta_may_be_negative_but_not_by_much() -> None:
    sums = [{"conv": x, "other": 0.1 * x} for x in (1.0, 2.0, 3.0, 4.0, 5.0)]
    latency = [1.1 * (s["conv"] + s["other"]) - 0.3 for s in sums]
    found = calibrate(sums, latency)
    assert found.beta == pytest.approx(-0.3, abs=0.02) and found.error < 0.005
    steep = calibrate(sums, [max(0.05, latency - 3.0) for latency in latency])
    assert steep.beta >= -0.15 * 5.0


def test_classes_that_move_together_share_one_factor() -> None:
    sums = [{"conv": x, "other": 0.1 * x} for x in (1.0, 2.0, 3.0, 4.0)]
    found = calibrate(sums, [0.9 * (s["conv"] + s["other"]) for s in sums])
    assert found.alpha["other"] == pytest.approx(0.9, rel=0.05)


def test_one_run_gives_one_factor_and_no_constant() -> None:
    found = calibrate([{"conv": 2.0}], [1.5])
    assert found.alpha["conv"] == pytest.approx(0.75, rel=1e-6)
    assert found.beta == pytest.approx(0.0, abs=1e-6)
