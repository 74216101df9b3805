"""What a release says of the fleet that measured it: on which board, and how far the boards differ."""

from __future__ import annotations

import msgspec


class FleetBoard(msgspec.Struct, frozen=True, kw_only=True):
    """One board.

    Attributes:
        dense_int8, pruned_int8: medians in the result's unit; None where it did not measure them.
        valid: the measurement counts; `why` it does not, or why the board is not in the fleet any longer.
    """

    name: str
    where: str = ""
    dense_int8: float | None = None
    pruned_int8: float | None = None
    valid: bool = False
    why: str = ""

    @property
    def speedup(self) -> float | None:
        """Of pruned over dense INT8."""
        return self.dense_int8 / self.pruned_int8 if self.dense_int8 and self.pruned_int8 else None


class FleetInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The boards of a validation, and the one whose figures the result has."""

    validated_on: str
    boards: tuple[FleetBoard, ...] = ()

    @property
    def measured(self) -> tuple[FleetBoard, ...]:
        """Boards whose measurement counts."""
        return tuple(one for one in self.boards if one.valid and one.speedup)

    @property
    def latency_differs(self) -> float | None:
        """The slowest board's latency of the released network over the fastest's, less one; None of fewer than two."""
        found = [one.pruned_int8 for one in self.measured if one.pruned_int8]
        return max(found) / min(found) - 1 if len(found) > 1 else None

    @property
    def speedup_differs(self) -> float | None:
        """Likewise of the speed-up over dense INT8."""
        found = [one.speedup for one in self.measured if one.speedup]
        return max(found) / min(found) - 1 if len(found) > 1 else None

    @property
    def text(self) -> str:
        """In a sentence."""
        told = f"validated on {self.validated_on}, one of a fleet of {len(self.boards)}"
        if self.latency_differs is not None and self.speedup_differs is not None:
            told += (
                f"; {len(self.measured)} boards measured, whose latencies of this network differ by at most "
                f"{100 * self.latency_differs:.2f} %, and their speed-ups by {100 * self.speedup_differs:.2f} %"
            )
        gone = [f"{one.name} ({one.why})" if one.why else one.name for one in self.boards if not one.valid]
        return f"{told}; without a measurement that counts: {', '.join(gone)}." if gone else f"{told}."
