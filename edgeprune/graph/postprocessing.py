"""What lies behind the last weights: decoding, top-k, argmax, suppression. It may stay in float, on the host or not."""

from __future__ import annotations

from collections.abc import Collection

from torch.fx import Node

from edgeprune.graph.capture import owner_of, source_of
from edgeprune.graph.parts import Operation
from edgeprune.graph.walk import Walk, operator_name


def postprocessing(walk: Walk, trained: Collection[str]) -> tuple[Operation, ...]:
    """The operations, in graph order, that read what trained weights gave and that lead to no other trained weights.

    Args:
        trained: names of the parameters that training changes; fixed ones (the bins of a box) count as decoding.
    """
    capture = walk.capture
    nodes = list(capture.module.graph.nodes)
    weights = {n for n in nodes if n.op == "placeholder" and capture.parameters.get(n.name) in trained}
    behind: set[Node] = set(weights)  # reads weights, directly or not
    for node in nodes:
        if any(source in behind for source in node.all_input_nodes):
            behind.add(node)
    before: set[Node] = set()  # is a layer, or leads to one
    for node in reversed(nodes):
        if any(source in weights for source in node.all_input_nodes) or any(user in before for user in node.users):
            before.add(node)
    return tuple(
        Operation(operator_name(n), owner_of(n), source_of(n))
        for n in nodes
        if n.op == "call_function" and n in behind and n not in before and operator_name(n) != "getitem"
    )
