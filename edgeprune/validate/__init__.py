"""The verdict: figures from outputs, and the gates that a release must pass. Pure functions on measured figures."""

from __future__ import annotations

from edgeprune.result import Comparison, Sanity
from edgeprune.validate.answers import Answers, ExampleIds, on_the_same
from edgeprune.validate.ask import Finding, ask, hidden
from edgeprune.validate.gate import Gate
from edgeprune.validate.gates import gates, verdict
from edgeprune.validate.heads import swapped
from edgeprune.validate.judge import Judge, Kept, agreed, comparison, difference, network
from edgeprune.validate.precision import precision
from edgeprune.validate.speed import deadline, disagreement, latency_share, speedup
from edgeprune.validate.timing import entry, quiet

__all__ = [
    "Answers",
    "Comparison",
    "ExampleIds",
    "Finding",
    "Gate",
    "Judge",
    "Kept",
    "Sanity",
    "agreed",
    "ask",
    "comparison",
    "deadline",
    "difference",
    "disagreement",
    "entry",
    "gates",
    "hidden",
    "latency_share",
    "network",
    "on_the_same",
    "precision",
    "quiet",
    "speedup",
    "swapped",
    "verdict",
]
