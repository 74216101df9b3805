"""front.json, typed: the networks of one recipe for several budgets."""

from __future__ import annotations

import msgspec


class FrontPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One budget and the network for it.

    Attributes:
        speedup: asked for, over dense INT8; `measured` as closure measured it.
        latency: in the front's unit, of the dense latency that the plan measured.
        loss, agreement: of the repaired network on examples that the repair did not see.
        score: the task's metric of the repaired network on the selection split, in PyTorch, float.
        bound, gap: the certificate of the search's program.
        networks: measured for this point.
        released: of a picked point: the artifact's metric on the test split, on the device.
        better: the label of a faster point whose score is as good or better; "": there is none.
        why: there is no network for this budget; in a sentence.
    """

    label: str
    speedup: float
    run_dir: str
    measured: float | None = None
    latency: float | None = None
    loss: float | None = None
    agreement: float | None = None
    score: float | None = None
    bound: float | None = None
    gap: float | None = None
    removed: int = 0
    units: int = 0
    networks: int = 0
    seconds: float = 0.0
    verdict: str = ""
    released: float | None = None
    bundle: str = ""
    better: str = ""
    why: str = ""

    @property
    def beaten(self) -> str:
        """That a faster point is as good, as it is shown; "" where none is."""
        return f"{self.better} is as good and faster" if self.better else ""


class Front(msgspec.Struct, frozen=True, kw_only=True):
    """All points, from the mildest budget on; `dense` is the dense INT8 latency, `dense_score` the dense network's."""

    name: str
    target: str
    unit: str
    dense: float
    max_speedup: float
    metric: str
    scale: str
    higher_is_better: bool
    dense_score: float | None
    points: tuple[FrontPoint, ...]
    seconds: float = 0.0
