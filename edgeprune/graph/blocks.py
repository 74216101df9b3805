"""Residual blocks that may go: a module that adds something to its input and gives back the same axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.fx import Node

from edgeprune.graph.capture import Forward, owner_of
from edgeprune.graph.groups import Units
from edgeprune.graph.parts import Block, Layer, Segment, SumPlace
from edgeprune.graph.rules.pointwise import RULES as ELEMENTWISE
from edgeprune.graph.surgery import FIRST, stand_in_text
from edgeprune.graph.walk import Shaped, Walk, operator_name

_PASS = frozenset(
    [
        "add",
        "dropout",
        "layer_norm",
        "rms_norm",
        "batch_norm",
        "view",
        "reshape",
        "permute",
        "transpose",
        "flatten",
        "unflatten",
        "contiguous",
    ]
)


@dataclass(frozen=True)
class Span:
    """The graph values at the two ends of a block; of a term also its stand-ins, nodes and sum."""

    module: str
    source: str
    result: str
    stand_ins: tuple[tuple[str, str], ...] = ()
    nodes: frozenset[str] = frozenset()
    end: SumPlace | None = None
    kind: str = "module"

    def gone(self, name: str) -> bool:
        """Whether a module or a parameter goes with it."""
        modules = [module for module, _ in self.stand_ins] or [self.module]
        return any(name == module or name.startswith(module + ".") for module in modules)


def modules_of(node: Node) -> list[str]:
    """The modules that run a node, the outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [str(path) for path, _ in stack.values() if path]


def find_spans(walk: Walk, units: Units) -> dict[str, Span]:
    """Every innermost module that is a residual block, by its qualified name."""
    graph = walk.capture.module.graph
    inside: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for path in dict.fromkeys(modules_of(node)):
            inside.setdefault(path, []).append(node)
    busy = {call.module for call in walk.calls}
    found: dict[str, Span] = {}
    for path, nodes in inside.items():
        if not any(m == path or m.startswith(path + ".") for m in busy) or path + "@1" in inside or "@" in path:
            continue
        span = _span(walk, units, path, nodes)
        if span is not None:
            found[path] = span
    return {p: s for p, s in found.items() if not any(o.startswith(p + ".") for o in found)}


def _span(walk: Walk, units: Units, path: str, nodes: Sequence[Node]) -> Span | None:
    mine = set(nodes)
    results = [n for n in nodes if any(user not in mine for user in n.users)]
    if len(results) != 1:
        return None
    result = results[0]
    out = walk.values.get(result.name)
    if not isinstance(out, Shaped):
        return None
    sources = []
    for node in nodes:
        for source in node.all_input_nodes:
            value = walk.values.get(source.name)
            if source in mine or source in sources or not isinstance(value, Shaped) or value.shape != out.shape:
                continue
            if source.name not in walk.capture.parameters:
                sources.append(source)
    label = units.solution.label
    forward = walk.capture.forwards.get(path, Forward(out.shape, 1))
    if forward.given != out.shape or not forward.count:
        return None
    for source in sources[:1]:  # an identity of the first argument is none of another one
        value = walk.values[source.name]
        same = all(np.array_equal(label[a], label[b]) for a, b in zip(value.axes, out.axes, strict=True))
        if same and _residual(result, source, mine):
            stand_ins = ((path, stand_in_text(FIRST, forward.count)),) if forward.count > 1 else ()
            return Span(path, source.name, result.name, stand_ins)
    return None


def _residual(result: Node, source: Node, mine: set[Node]) -> bool:
    """Whether the input reaches the result through element-wise operators alone, one of them an addition."""
    stack, seen = [(result, False)], set()
    while stack:
        node, added = stack.pop()
        if node is source:
            if added:
                return True
            continue
        if node not in mine or (node, added) in seen:
            continue
        seen.add((node, added))
        name = operator_name(node).removesuffix("_")
        parents = node.all_input_nodes
        if name == "add" and len(parents) == 2:
            stack.extend((p, True) for p in parents)
        elif parents and (name in _PASS or (name in ELEMENTWISE and len(parents) == 1)):
            stack.append((parents[0], added))
    return False


def _slices(walk: Walk, units: Units, span: Span) -> tuple[tuple[str, tuple[Segment, ...]], ...]:
    """Ungrouped convolutions that read a concat of channels that has both ends of a block, and the slice's channels."""
    layers = {call.node: call for call in walk.calls}
    result = walk.values[span.result]
    found: dict[str, tuple[Segment, ...]] = {}
    for node in walk.nodes[span.result].users:
        parts = node.args[0] if operator_name(node) == "cat" else ()
        names = [n.name for n in parts if isinstance(n, Node)] if isinstance(parts, list | tuple) else []
        readers = [layers.get(user.name) for user in node.users]
        if span.source not in names or result.ndim < 3 or node.args[1:2] != (1,):
            continue
        for call in readers:
            if call is not None and call.kind.startswith("conv") and call.groups == 1 and None not in readers:
                found[call.module] = units.segments(result.axes[1])
    return tuple(found.items())


def make_blocks(walk: Walk, units: Units, spans: dict[str, Span], layers: Sequence[Layer]) -> tuple[Block, ...]:
    """The public description of each span."""
    blocks = []
    for path, span in spans.items():
        stream: list[str] = []
        for axis in walk.values[span.result].axes:
            stream.extend(s.group for s in units.segments(axis) if s.group is not None)
        mine = [la for la in layers if span.gone(la.name)]
        others = [la for la in layers if la not in mine]
        outside = {s.group for la in others for s in (*la.inputs, *la.outputs)}
        within = dict.fromkeys(s.group for la in mine for s in (*la.inputs, *la.outputs) if s.group)
        inner = tuple(g for g in within if g not in outside and g not in stream)
        names = tuple(dict.fromkeys(la.name for la in mine))
        blocks.append(
            Block(
                path,
                tuple(dict.fromkeys(stream)),
                inner,
                names,
                span.stand_ins,
                span.end,
                span.kind,
                _slices(walk, units, span),
            )
        )
    return tuple(blocks)


__all__ = ["Span", "find_spans", "make_blocks", "modules_of", "owner_of"]
