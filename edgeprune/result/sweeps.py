"""sweep.json, typed: all runs of a sweep, one row each, and what was shared between them."""

from __future__ import annotations

from typing import Literal

import msgspec

RunState = Literal["waiting", "running", "release", "refused", "unverified", "searched", "impossible", "failed"]


class SweepRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a sweep.

    Attributes:
        budget: as asked for, such as "2.00x" or "1.40 ms".
        state: "impossible": no network meets the budget; "failed": for any other reason, which `why` has.
        score, drop, drop_high: of the released artifact, and below the dense network, in the metric's unit.
        latency, speedup: measured, over dense INT8.
        made, taken: stages that this run made, and took over from others.
    """

    run: str
    recipe: str
    target: str
    budget: str
    seed: int
    folder: str
    state: RunState = "waiting"
    why: str = ""
    metric: str = ""
    score: float | None = None
    drop: float | None = None
    drop_high: float | None = None
    unit: str = ""
    latency: float | None = None
    speedup: float | None = None
    bytes: int | None = None
    bundle: str = ""
    made: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    seconds: float = 0.0


class SweepReport(msgspec.Struct, frozen=True, kw_only=True):
    """All runs; `tasks` is how many were done in this call, of how many there are."""

    name: str
    engine: str
    rows: tuple[SweepRow, ...]
    tasks: int = 0
    done: int = 0
    seconds: float = 0.0
