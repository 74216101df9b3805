"""Collecting a profiler's samples, kernel by kernel; standard library only."""

from __future__ import annotations

import statistics
from typing import Any


class Samples:
    """Times of each kernel over many runs, in the order in which the kernels first ran."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._rows = {}  # type: dict[str, dict[str, Any]]

    def add(
        self, name: str, kind: str, nanoseconds: float, implementation: str = "", layers: tuple[str, ...] = ()
    ) -> None:
        """One execution of one kernel."""
        row = self._rows.setdefault(
            name, {"name": name, "kind": kind, "layers": list(layers), "implementation": implementation, "times": []}
        )
        row["times"].append(nanoseconds)

    def rows(self) -> list[dict[str, Any]]:
        """Median and median absolute deviation of each kernel's last runs, in nanoseconds; warm-up runs fall away."""
        result = []
        for row in self._rows.values():
            times = row.pop("times")[-self._runs :]
            median = statistics.median(times)
            mad = statistics.median([abs(value - median) for value in times])
            result.append(dict(row, median=median, mad=mad, count=len(times)))
        return result
