"""More than one run: the front of one network, sweeps over many, on one machine or on a cluster."""

from __future__ import annotations

from edgeprune.scale.front import front
from edgeprune.scale.reproduce import Reproduction, reproduce
from edgeprune.scale.sweep import sweep
from edgeprune.scale.tune import tune
from edgeprune.scale.workers import tune_side_by_side

__all__ = ["Reproduction", "front", "reproduce", "sweep", "tune", "tune_side_by_side"]
