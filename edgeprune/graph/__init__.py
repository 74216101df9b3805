"""The graph room: what of a network may be pruned, plans, surgery on the user's own module, and the proof."""

from __future__ import annotations

from edgeprune.graph.attention import with_free_heads
from edgeprune.graph.capture import Capture, as_inputs, capture_error, capture_model, owner_of
from edgeprune.graph.configuration import DENSE, Configuration
from edgeprune.graph.options import LayerOption, fill, layer_options, merged, option_of, spelt
from edgeprune.graph.parts import Block, Frozen, Group, Layer, Member, Operation, Segment, SumPlace, sliced, width
from edgeprune.graph.plan import Plan
from edgeprune.graph.prove import OutputProof, Proof
from edgeprune.graph.saved import load, save_pruned
from edgeprune.graph.state import kept as attributes_kept
from edgeprune.graph.structure import Structure
from edgeprune.graph.surgery import Attribute, Cut, Removed
from edgeprune.graph.terms import drop_zeros
from edgeprune.graph.tracer import trace

__all__ = [
    "DENSE",
    "Attribute",
    "Block",
    "Capture",
    "Configuration",
    "Cut",
    "Frozen",
    "Group",
    "Layer",
    "LayerOption",
    "Member",
    "Operation",
    "OutputProof",
    "Plan",
    "Proof",
    "Removed",
    "Segment",
    "Structure",
    "SumPlace",
    "as_inputs",
    "attributes_kept",
    "capture_error",
    "capture_model",
    "drop_zeros",
    "fill",
    "layer_options",
    "load",
    "merged",
    "option_of",
    "owner_of",
    "save_pruned",
    "sliced",
    "spelt",
    "trace",
    "width",
    "with_free_heads",
]
