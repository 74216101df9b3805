"""What a trace found (`Findings`), and what it keeps to spell out plans and to run the reference of a proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import PlanError, did_you_mean
from edgeprune.graph.attributes import AttributeRule, Dispute
from edgeprune.graph.blocks import Span
from edgeprune.graph.capture import Capture, Inputs
from edgeprune.graph.groups import Units
from edgeprune.graph.parts import Block, Frozen, Group, Layer, Operation
from edgeprune.graph.surgery import Attribute, Cut
from edgeprune.graph.walk import Walk


@dataclass(frozen=True)
class Analysis:
    """The inside of a trace.

    Attributes:
        walk: the graph and the axes of its values.
        units: the group and unit of each class of atoms.
        rules: the attributes that follow widths.
        disputes: the axes that one attribute would have to follow at once.
        values: current values of tuple attributes, by (module, name).
        aliases: every name of a tied parameter, by its canonical name.
        spans: input and output value of each removable block.
        norms: L1 norm of the weights that make each unit, by group.
        inputs: the example inputs.
        opaque: what the opaque submodules gave.
    """

    walk: Walk
    units: Units
    rules: tuple[AttributeRule, ...]
    disputes: tuple[Dispute, ...]
    values: dict[tuple[str, str], tuple[int, ...]]
    aliases: dict[str, tuple[str, ...]]
    spans: dict[str, Span]
    norms: dict[str, NDArray[np.float64]]
    inputs: Inputs
    opaque: dict[str, list[Any]] = field(default_factory=dict)

    def masks(self, kept: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.bool_]]:
        """Kept units by group as masks."""
        sizes = dict(zip(self.units.names, self.units.sizes, strict=True))
        masks = {}
        for name, units in kept.items():
            mask = np.zeros(sizes[name], dtype=bool)
            mask[list(units)] = True
            masks[name] = mask
        return masks

    def spell(
        self, kept: Mapping[str, tuple[int, ...]], removed: tuple[str, ...] = ()
    ) -> tuple[tuple[Cut, ...], tuple[Attribute, ...]]:
        """The cuts and attributes of a choice of units; what lies in a removed block is left out."""

        def gone(name: str) -> bool:
            return any(self.spans[block].gone(name) for block in removed)

        masks = self.masks(kept)
        cuts: list[Cut] = []
        for name, value in self.walk.tensors.items():
            for d, axis in enumerate(value.axes):
                if not axis.any():
                    continue
                alive = self.units.alive(axis, masks)
                if alive.all():
                    continue
                positions = tuple(np.flatnonzero(alive).tolist())
                cuts.extend(Cut(alias, d, positions) for alias in self.aliases[name] if not gone(alias))
        counts = {name: len(units) for name, units in kept.items()}
        attributes: dict[tuple[str, str], int | list[int]] = {}
        for rule in self.rules:
            new = rule.at(counts)
            if new == rule.value or gone(rule.module):
                continue
            if rule.part is None:
                attributes[rule.module, rule.name] = new
            else:
                whole = attributes.setdefault((rule.module, rule.name), list(self.values[rule.module, rule.name]))
                assert isinstance(whole, list)
                whole[rule.part] = new
        settings = tuple(
            Attribute(module, name, value if isinstance(value, int) else tuple(value))
            for (module, name), value in attributes.items()
        )
        return tuple(cuts), settings


@dataclass(frozen=True, eq=False)
class Findings:
    """Which units of a network may go, what stays and why.

    Attributes:
        groups: prunable groups, in graph order.
        frozen: parts that stay, with reasons.
        layers: every layer call, in graph order.
        blocks: residual blocks that may be removed whole.
        fingerprint: "sha256:..." of the traced structure; a plan carries it.
        parameters: number of parameters of the network.
        postprocessing: operations behind the last trained weights (decoding, top-k, ...), in graph order.
        capture: of the network as it was given; None where another one was walked (attention with heads of its own,
            opaque parts left out, or the network as a forward leaves it).
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    fingerprint: str
    parameters: int
    analysis: Analysis = field(repr=False)
    postprocessing: tuple[Operation, ...] = ()
    capture: Capture | None = field(default=None, repr=False)

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            PlanError: there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise PlanError(
            f"There is no group '{name}' in this network.", did_you_mean(name, [g.name for g in self.groups])
        )

    def obstacle(self) -> str:
        """What keeps most of the network whole, with its share, in one sentence; '' where nothing does."""
        if not self.frozen:
            return ""
        worst = max(self.frozen, key=lambda f: (f.parameters, f.macs))
        macs = max(1, sum(layer.macs for layer in self.layers))
        place = f" [{worst.place}]" if worst.place else ""
        return (
            f"{worst.what} stay whole ({100 * (worst.parameters / max(1, self.parameters)):.0f} % of the parameters, "
            f"{100 * worst.macs / macs:.0f} % of the multiply-accumulates): {worst.why}{place}."
        )
