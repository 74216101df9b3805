"""`Structure`: what a trace found, and what can be done with it. Plans, proofs and descriptions are made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from edgeprune.graph.analysis import Findings
from edgeprune.graph.describe import describe, to_dict
from edgeprune.graph.options import choices
from edgeprune.graph.parts import Block
from edgeprune.graph.plan import Plan, make_plan, uniform_plan
from edgeprune.graph.prove import Proof, prove


class Structure(Findings):
    """Which units of a network may go, what stays and why. Made by `edgeprune.trace`."""

    def plan(
        self,
        kept: Mapping[str, Sequence[int]],
        removed: Sequence[str] = (),
        options: Mapping[str, str] | None = None,
    ) -> Plan:
        """Make a plan that keeps these units of each group (groups not named stay whole) and removes these blocks.

        Args:
            options: layer -> what it becomes beside narrower, such as "low-rank:16".

        Raises:
            PlanError: an unknown group, block, layer or option, a unit out of range or twice, an empty group, an
                illegal count, an option for a layer that it is not for.
        """
        return make_plan(self, kept, removed, options)

    def options(self, model: nn.Module, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Layer -> what it may become beside narrower ("low-rank:16", ...), by these options.

        Raises:
            PlanError: there is no such option.
        """
        return choices(model, self.layers, self.analysis.inputs, names)

    def uniform(self, fraction: float, multiple: int = 1) -> Plan:
        """Remove this fraction of every group's units: the nearest legal width, ties keep more, at least one unit.

        Units go by the smallest L1 norm of the weights that make them. `multiple` is the grid in channels; a size that
        the grid does not divide may stay whole.

        Raises:
            PlanError: a fraction outside [0, 1), or nothing of the network can be narrowed: says what keeps most whole.
        """
        return uniform_plan(self, fraction, multiple)

    def prove(self, model: nn.Module, plan: Plan) -> Proof:
        """Show that the pruned network computes what the original would without the removed channels.

        Of a plan that removes nothing, `vacuous` is set and `detail` says what keeps most whole.
        """
        return prove(self, model, plan)

    def gone(self, plan: Plan) -> tuple[Block, ...]:
        """The blocks that a plan removes."""
        return tuple(block for block in self.blocks if block.module in plan.removed)

    def describe(self) -> str:
        """A text table: each group with its layers and sizes, the removable blocks, and what is frozen and why."""
        return describe(self)

    def to_dict(self) -> dict[str, object]:
        """The same facts for JSON."""
        return to_dict(self)
