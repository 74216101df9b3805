"""The graph room: what of a network may be pruned, plans, surgery on the user's own module, and the proof."""

from __future__ import annotations

from edgeprune.graph.plan import Plan
from edgeprune.graph.prove import OutputProof, Proof
from edgeprune.graph.saved import load, save_pruned
from edgeprune.graph.structure import Block, Frozen, Group, Layer, Member, Segment, Structure, width
from edgeprune.graph.surgery import Attribute, Cut, Removed
from edgeprune.graph.tracer import trace

__all__ = [
    "Attribute",
    "Block",
    "Cut",
    "Frozen",
    "Group",
    "Layer",
    "Member",
    "OutputProof",
    "Plan",
    "Proof",
    "Removed",
    "Segment",
    "Structure",
    "load",
    "save_pruned",
    "trace",
    "width",
]
