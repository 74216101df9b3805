"""One rule an operator family: how the axes of the results follow from those of the arguments."""

from __future__ import annotations

from edgeprune.graph.rules import contract, create, norm, pointwise, recurrent, shape, spatial
from edgeprune.graph.walk import Rule

RULES: dict[str, Rule] = {
    **pointwise.RULES,
    **shape.RULES,
    **create.RULES,
    **contract.RULES,
    **norm.RULES,
    **spatial.RULES,
    **recurrent.RULES,
}
