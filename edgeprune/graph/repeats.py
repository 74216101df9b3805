"""Repeats that may go: parts of a Sequential or a list that give what they read its own shape, without a sum.

`conv(64, 64), bn, relu` in a row, the unsummed bottlenecks of a C2f, the last blocks of a stage. Such a part becomes an
identity; its two ends are tied, so that what reads it finds the channels that it knows. Nothing says that the network
still works without: the search measures what it costs. They are offered where the user asks for them alone, as the tie
takes freedom from the widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.fx import Node

from edgeprune.graph.blocks import Span, modules_of
from edgeprune.graph.groups import Units
from edgeprune.graph.space import Axis
from edgeprune.graph.surgery import FIRST
from edgeprune.graph.walk import Shaped, Walk

_LAYERS = 2  # of a run of a Sequential's children: wide and narrow again
_BEHIND = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU,
    nn.Hardswish, nn.PReLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Dropout, nn.Dropout2d, nn.Identity,
)  # fmt: skip


def tie_repeats(view: nn.Module, walk: Walk, units: Units, spans: Mapping[str, Span]) -> dict[str, Span]:
    """The repeats that overlap no other block, their ends tied in `walk.space`."""
    inside: dict[str, list[Node]] = {}
    for node in walk.capture.module.graph.nodes:
        for path in modules_of(node):
            inside.setdefault(path, []).append(node)
    called = {call.node for call in walk.calls}
    taken = {n for path, s in spans.items() for n in (s.nodes or {n.name for n in inside.get(path, ())})}
    found: dict[str, Span] = {}
    for run in _runs(view, inside, called):
        nodes = [n for path in run for n in inside.get(path, ())]
        ends = _ends(walk, nodes)
        if ends is None or not taken.isdisjoint(n.name for n in nodes) or any(p + "@1" in inside for p in run):
            continue
        ties = _ties(units, walk.values[ends[0].name], walk.values[ends[1].name])
        if ties is None:
            continue
        walk.space.edges.extend(ties)
        names = frozenset(n.name for n in nodes)
        taken |= names
        name = next(p for p in run if any(n.name in called for n in inside.get(p, ())))
        modules = tuple((path, FIRST) for path in run)
        found[name] = Span(name, ends[0].name, ends[1].name, modules, names, kind="repeat")
    return found


def still_tied(walk: Walk, units: Units, repeats: Mapping[str, Span]) -> dict[str, Span]:
    """The repeats whose ends are of the same units in the end."""
    label = units.solution.label

    def same(span: Span) -> bool:
        ends = zip(walk.values[span.source].axes, walk.values[span.result].axes, strict=True)
        return all(np.array_equal(label[a], label[b]) for a, b in ends)

    return {name: span for name, span in repeats.items() if same(span)}


@dataclass(frozen=True)
class _Child:
    path: str
    module: nn.Module
    layers: int


def _runs(view: nn.Module, inside: Mapping[str, Sequence[Node]], called: set[str]) -> Iterator[tuple[str, ...]]:
    """Composite children of lists, the innermost first; then rows of a Sequential's children, shorter rows first."""
    lists: list[tuple[list[_Child], bool]] = []
    for path, module in view.named_modules():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            children = []
            for name, child in module.named_children():
                where = f"{path}.{name}" if path else name
                layers = len({n.name for n in inside.get(where, ())} & called)
                children.append(_Child(where, child, layers))
            lists.append((children, type(module).forward is nn.Sequential.forward))
    for children, _ in sorted(lists, key=lambda one: -one[0][0].path.count(".") if one[0] else 0):
        yield from ((c.path,) for c in children if c.layers and any(c.module.children()))
    for children, plain in lists:
        for start, first in enumerate(children):
            if plain and first.layers:
                yield from _rows(children, start)


def _rows(children: Sequence[_Child], start: int) -> Iterator[tuple[str, ...]]:
    """From one layer on: it and the norms and activations behind it, and the same of the next layer too."""
    stop = start
    for _ in range(_LAYERS):
        if stop == len(children) or not children[stop].layers:
            return
        stop = _behind(children, stop + 1)
        yield tuple(c.path for c in children[start:stop])


def _behind(children: Sequence[_Child], at: int) -> int:
    """Behind the norms and activations that follow."""
    while at < len(children) and isinstance(children[at].module, _BEHIND):
        at += 1
    return at


def _ends(walk: Walk, nodes: Sequence[Node]) -> tuple[Node, Node] | None:
    """The one value that a part reads and the one that it gives, of one shape; None where there are others."""
    mine, given = set(nodes), set(walk.capture.inputs)
    reads = {
        n for node in nodes for n in node.all_input_nodes
        if n not in mine and (n.op == "call_function" or n.name in given)
    }  # fmt: skip
    made = {n for n in nodes if any(user not in mine for user in n.users)}
    if len(reads) != 1 or len(made) != 1:
        return None
    source, result = next(iter(reads)), next(iter(made))
    before, after = walk.values.get(source.name), walk.values.get(result.name)
    if not isinstance(before, Shaped) or not isinstance(after, Shaped) or before.shape != after.shape:
        return None
    return None if any(user.op == "output" for user in result.users) else (source, result)


def _ties(units: Units, before: Shaped, after: Shaped) -> list[tuple[Axis, Axis]] | None:
    """What must be tied for an identity to fit; None where that would freeze what may be narrowed."""
    solution, ties = units.solution, []
    for a, b in zip(before.axes, after.axes, strict=True):
        x, y = solution.label[a], solution.label[b]
        if np.array_equal(x, y):
            continue
        if bool(solution.frozen[x].any()) or bool(solution.frozen[y].any()):
            return None
        ties.append((a, b))
    return ties
