"""What a trace finds: groups, layers, blocks and frozen parts. `Structure` makes and proves plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import PlanError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.graph.analysis import Analysis
    from edgeprune.graph.plan import Plan
    from edgeprune.graph.prove import Proof


@dataclass(frozen=True)
class Segment:
    """A run of channels on an axis. `group` is None where the channels stay; `per_unit` channels go with one unit."""

    group: str | None
    size: int
    per_unit: int

    def width(self, units: Mapping[str, int]) -> int:
        """Channels left when group g keeps `units[g]` units (all of them where g is not listed)."""
        if self.group is None or self.group not in units:
            return self.size
        return units[self.group] * self.per_unit


def width(segments: Sequence[Segment], units: Mapping[str, int]) -> int:
    """Channels left on an axis when group g keeps `units[g]` units."""
    return sum(s.width(units) for s in segments)


@dataclass(frozen=True, eq=False)
class Member:
    """An axis of a parameter or buffer that a group narrows.

    Attributes:
        parameter: qualified name.
        axis: the dimension.
        indices: int array [size, k]; unit u occupies the positions indices[u] along that dimension.
        role: "output" (the layer produces it), "input" (it consumes it) or "tied" (norms, biases, depthwise, ...).
    """

    parameter: str
    axis: int
    indices: NDArray[np.int64]
    role: str


@dataclass(frozen=True, eq=False)
class Group:
    """Units that may be removed one by one, in any choice that leaves at least one.

    Attributes:
        name: the first producing layer's qualified name.
        size: number of units.
        unit: "channel", "head", "convolution group", "hidden unit", "4 channels" or "channels" (several at once).
        divisor: the number of units kept must be a multiple of this.
        members: everything that is narrowed together.
        producers, consumers: layer names.
    """

    name: str
    size: int
    unit: str
    divisor: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    parameters: int = 0
    macs: int = 0


@dataclass(frozen=True)
class Frozen:
    """Something that stays whole: what, why, by which operator and source line, and the layers that it blocks."""

    what: str
    why: str
    operator: str
    source: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """One call of a convolution, linear, recurrent or embedding layer, in graph order; sizes are for one example.

    `macs` are multiply-accumulates for one example at full width. `inputs` and `outputs` are the channel axes.
    """

    name: str
    kind: str
    weight: str
    weight_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    macs: int
    inputs: tuple[Segment, ...]
    outputs: tuple[Segment, ...]
    group_axis: tuple[Segment, ...] = ()

    def macs_at(self, units: Mapping[str, int]) -> int:
        """Multiply-accumulates for one example when group g keeps `units[g]` units."""
        full = width(self.inputs, {}) * width(self.outputs, {}) / max(1, self.groups)
        groups = width(self.group_axis, units) if self.group_axis else self.groups
        now = width(self.inputs, units) * width(self.outputs, units) / max(1, groups)
        return round(self.macs * now / full) if full else 0


@dataclass(frozen=True)
class Block:
    """A residual block that may go: `module` becomes an identity of its first input.

    Attributes:
        module: qualified name.
        groups: the groups of its input and output axis (one, unless the stream is a concat).
        inner: groups that live only inside it.
        layers: the layers inside.
    """

    module: str
    groups: tuple[str, ...]
    inner: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def group(self) -> str:
        """The group that the block lives on ('' where its stream is frozen)."""
        return self.groups[0] if self.groups else ""


@dataclass(frozen=True, eq=False)
class Structure:
    """Which units of a network may go, what stays and why.

    Attributes:
        groups: prunable groups, in graph order.
        frozen: parts that stay, with reasons.
        layers: every layer call, in graph order.
        blocks: residual blocks that may be removed whole.
        fingerprint: "sha256:..." of the traced structure; a plan carries it.
        parameters: number of parameters of the network.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    fingerprint: str
    parameters: int
    analysis: Analysis = field(repr=False)

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

    def plan(self, kept: Mapping[str, Sequence[int]], removed: Sequence[str] = ()) -> Plan:
        """Make a plan that keeps these units of each group (groups not named stay whole) and removes these blocks.

        Raises:
            PlanError: an unknown group or block, a unit out of range or twice, an empty group, an illegal count.
        """
        from edgeprune.graph.plan import make_plan

        return make_plan(self, kept, removed)

    def uniform(self, fraction: float, multiple: int = 1) -> Plan:
        """Remove this fraction of every group's units: the nearest legal width, ties keep more, at least one unit.

        Units go by the smallest L1 norm of the weights that make them. `multiple` is the grid in channels; a size that
        the grid does not divide may stay whole.
        """
        from edgeprune.graph.plan import uniform_plan

        return uniform_plan(self, fraction, multiple)

    def prove(self, model: nn.Module, plan: Plan) -> Proof:
        """Show that the pruned network computes what the original would without the removed channels."""
        from edgeprune.graph.prove import prove

        return prove(self, model, plan)

    def describe(self) -> str:
        """A text table: each group with its layers and sizes, the removable blocks, and what is frozen and why."""
        from edgeprune.graph.describe import describe

        return describe(self)

    def to_dict(self) -> dict[str, Any]:
        """The same facts for JSON."""
        from edgeprune.graph.describe import to_dict

        return to_dict(self)
