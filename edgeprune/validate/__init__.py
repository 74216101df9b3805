"""The verdict: accuracy from outputs, and the gates that a release must pass. Pure functions on measured figures."""

from __future__ import annotations

from edgeprune.validate.accuracy import Accuracy, Difference, accuracy, difference
from edgeprune.validate.gates import Gate, deadline, gates, verdict

__all__ = ["Accuracy", "Difference", "Gate", "accuracy", "deadline", "difference", "gates", "verdict"]
