"""result.json, typed, and how its figures are spelled."""

from __future__ import annotations

from edgeprune.result.facts import Facts, finite
from edgeprune.result.fleets import FleetBoard, FleetInfo
from edgeprune.result.fronts import Front, FrontPoint
from edgeprune.result.reading import glance, read
from edgeprune.result.records import (
    NAMES,
    VERSION,
    ArtifactFiles,
    ClaimInfo,
    Comparison,
    DifferenceInfo,
    Emulated,
    FloatDefault,
    GateResult,
    InputInfo,
    Latency,
    Network,
    Precision,
    ProofInfo,
    Result,
    RuntimeInfo,
    Sanity,
    ScoreInfo,
    TaskInfo,
    Timed,
    Validation,
)
from edgeprune.result.sweeps import RunState, SweepReport, SweepRow
from edgeprune.result.tuned import Trial, Tuned
from edgeprune.result.words import NONE, number, quantity, scale

__all__ = [
    "NAMES",
    "NONE",
    "VERSION",
    "ArtifactFiles",
    "ClaimInfo",
    "Comparison",
    "DifferenceInfo",
    "Emulated",
    "Facts",
    "FleetBoard",
    "FleetInfo",
    "FloatDefault",
    "Front",
    "FrontPoint",
    "GateResult",
    "InputInfo",
    "Latency",
    "Network",
    "Precision",
    "ProofInfo",
    "Result",
    "RunState",
    "RuntimeInfo",
    "Sanity",
    "ScoreInfo",
    "SweepReport",
    "SweepRow",
    "TaskInfo",
    "Timed",
    "Trial",
    "Tuned",
    "Validation",
    "finite",
    "glance",
    "number",
    "quantity",
    "read",
    "scale",
]
