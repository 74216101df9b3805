"""How a score is spelled, the same everywhere: the report, the terminal, the gates, a bundle's README."""

from __future__ import annotations

import math

NONE = "–"


def scale(unit: str) -> str:
    """The unit that a value is shown in: a score in points is a percentage, differences of it are points."""
    return "%" if unit == "points" else unit


def number(value: float | None, unit: str = "points") -> str:
    """Without its unit: two decimals of points, four significant digits of anything else."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.2f}" if unit == "points" or 10 <= abs(value) < 1e5 else f"{value:.4g}"


def quantity(value: float | None, unit: str, shown: str | None = None) -> str:
    """93.60 %; 31.20 dB; 0.8311."""
    return f"{number(value, unit)} {scale(unit) if shown is None else shown}".strip()
