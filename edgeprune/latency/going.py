"""Which nodes of a float graph go with a block, and what takes the place of its result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from edgeprune.graph import Block
from edgeprune.latency.network import FloatGraph

# Zeros in, zeros out: what may stand between the modules of a removed term and its sum (`graph.terms.KEEPS_ZERO`).
_KEEPS_ZERO = frozenset(
    [
        "Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Identity", "Cast", "Expand", "Flatten",
        "Mul", "Gather", "Pad", "Relu", "Gelu", "Tanh", "Neg",
    ]
)  # fmt: skip


@dataclass(frozen=True)
class NodeCall:
    """A node: the tensors that it reads (no constants) and makes."""

    name: str
    op: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]

    @property
    def module(self) -> str:
        """The module that runs it."""
        return self.name.partition("#")[0].partition("/")[0]


@dataclass(frozen=True)
class Going:
    """What goes with a block: nodes by name, and the tensor `result`, whose readers read `source` from then on."""

    nodes: frozenset[str]
    source: str
    result: str


def calls_of(graph: onnx.GraphProto) -> list[NodeCall]:
    """The nodes of an ONNX graph."""
    constants = {tensor.name for tensor in graph.initializer}
    return [
        NodeCall(n.name, n.op_type, tuple(x for x in n.input if x and x not in constants), tuple(n.output))
        for n in graph.node
    ]


def calls_in(network: FloatGraph) -> list[NodeCall]:
    """The nodes of a graph as the tables know it."""
    made: dict[str, list[str]] = {}
    for tensor, node in network.producer.items():
        made.setdefault(node, []).append(tensor)
    return [NodeCall(n.name, n.op, n.inputs, tuple(made.get(n.name, (n.output,)))) for n in network.nodes.values()]


def going(calls: Sequence[NodeCall], block: Block) -> Going | None:
    """What goes with a block; None where it has not one entry and one exit."""
    return _module(calls, block) if block.end is None else _term(calls, block)


def homes(network: FloatGraph, blocks: Iterable[Block]) -> dict[str, str]:
    """Node -> the removable block that it vanishes with, the outermost one; nodes that stay are not listed."""
    calls = calls_in(network)
    found: dict[str, str] = {}
    for block in sorted(blocks, key=lambda one: len(one.module)):
        nodes: Iterable[str] = [call.name for call in calls if block.holds(call.module)]
        if block.end is not None and (gone := going(calls, block)) is not None:
            nodes = gone.nodes
        for node in nodes:
            found.setdefault(node, block.module)
    return found


def _module(calls: Sequence[NodeCall], block: Block) -> Going | None:
    inside = [call for call in calls if block.holds(call.module)]
    made = {name for call in inside for name in call.makes}
    entries = {name for call in inside for name in call.reads if name not in made}
    names = frozenset(call.name for call in inside)
    exits = made & {name for call in calls if call.name not in names for name in call.reads}
    if len(entries) != 1 or len(exits) != 1:
        return None
    return Going(names, next(iter(entries)), next(iter(exits)))


def _term(calls: Sequence[NodeCall], block: Block) -> Going | None:
    """Zeros in place of the term's last modules, followed to the sum."""
    last = {module for module, text in block.stand_ins if text.startswith("nothing")}
    zeros: set[str] = set()
    sums: list[tuple[NodeCall, str]] = []
    for call in calls:
        if any(call.module == module or call.module.startswith(module + ".") for module in last):
            zeros.update(call.makes)
        elif not block.holds(call.module) and zeros.intersection(call.reads):
            others = [name for name in call.reads if name not in zeros]
            if call.op == "Add" and len(others) == 1:
                sums.append((call, others[0]))
            elif not others or call.op in _KEEPS_ZERO:
                zeros.update(call.makes)
            else:
                return None
    if len(sums) != 1:
        return None
    end, stays = sums[0]
    return Going(_served(calls, end, stays), stays, end.makes[0])


def _served(calls: Sequence[NodeCall], end: NodeCall, stays: str) -> frozenset[str]:
    """The nodes that serve nothing but the sum `end`, itself among them; `stays` is read by others from then on."""
    readers: dict[str, list[str]] = {stays: [""]}
    for call in calls:
        for name in call.reads:
            readers.setdefault(name, []).append(call.name)
    gone = {end.name}
    for call in reversed(calls):
        if all(name in readers and gone.issuperset(readers[name]) for name in call.makes):
            gone.add(call.name)
    return frozenset(gone)
