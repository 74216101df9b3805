"""One gate's answer, and how quantities are spelled in all of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

ROUNDING = 1e-9  # relative; a float's own error is no reason to refuse


@dataclass(frozen=True)
class Gate:
    """One gate's answer.

    Attributes:
        value, limit: in `unit`; None where it cannot be told (then the gate has not passed).
        message: what was found against what was wanted, and by how much it fails.
        remedy: what would help; empty when it passed.
    """

    name: str
    passed: bool
    value: float | None
    limit: float | None
    unit: str
    message: str
    remedy: str = ""

    def to_dict(self) -> dict[str, object]:
        """As in result.json."""
        return asdict(self)


def quantity(value: float, unit: str) -> str:
    if unit != "instructions":
        return f"{value:.{4 if 0 < value < 0.1 else 3}f} {unit}"  # 0.0476 ms of 0.0483
    return f"{value / 1e6:.3f} million {unit}"


def up(value: float, unit: str = "points") -> str:
    """Rounded up, so that the advice would be enough: points to one decimal, anything else to three digits."""
    if unit == "points" or value <= 0:
        return f"{math.ceil(value * 10 - 1e-9) / 10:g}"
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / step - 1e-9) * step:.6g}"
