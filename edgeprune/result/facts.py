"""Plain data as JSON has it, read by name and kind: for pages that show what a stage wrote, whatever else it holds.

Who decides by a figure reads a `Record` instead, which refuses what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping


def finite(value: object) -> float | None:
    """The number, or None when there is none or it is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return number if math.isfinite(number) else None


class Facts:
    """Names and values. What is missing is empty; TypeError is raised where something of another kind lies there."""

    def __init__(self, data: object = None) -> None:
        if data is not None and not isinstance(data, Mapping):
            raise TypeError(f"{type(data).__name__} where names and values belong")
        self.data: Mapping[str, object] = data or {}

    def __bool__(self) -> bool:
        return bool(self.data)

    def __iter__(self) -> Iterator[tuple[str, object]]:
        return iter(self.data.items())

    def get(self, name: str) -> object:
        """The value as it lies there; None where there is none."""
        return self.data.get(name)

    def part(self, name: str) -> Facts:
        """What lies under this name; empty where nothing does."""
        return Facts(self.data.get(name) or None)

    def parts(self, name: str) -> list[Facts]:
        """The entries of the list of this name that are names and values themselves."""
        return [Facts(entry) for entry in self.listed(name) if isinstance(entry, Mapping)]

    def listed(self, name: str) -> tuple[object, ...]:
        """The list of this name."""
        found = self.data.get(name) or ()
        if not isinstance(found, list | tuple):
            raise TypeError(f"{type(found).__name__} where the list {name} belongs")
        return tuple(found)

    def entries(self) -> dict[str, Facts]:
        """The values that are names and values themselves, by name."""
        return {str(name): Facts(entry) for name, entry in self if isinstance(entry, Mapping)}

    def number(self, name: str) -> float | None:
        """The number of this name, where it is finite."""
        return finite(self.data.get(name))

    def text(self, name: str, default: str = "") -> str:
        """The value of this name in words."""
        found = self.data.get(name)
        return default if found is None else str(found)

    def points(self, name: str, x: str, y: str) -> list[tuple[float, float]]:
        """(x, y) of those entries of a list that have both as finite numbers."""
        pairs = [(entry.number(x), entry.number(y)) for entry in self.parts(name)]
        return [(first, second) for first, second in pairs if first is not None and second is not None]
