"""Try a prune on shapes alone: the edited model must capture as the same graph, with every size as predicted.

If it does not, something in the network's Python repeats a size that no attribute holds. What is to blame is frozen, named
with its source line, and the trial is run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import GraphModule, Node

from edgeprune.graph.analysis import Analysis
from edgeprune.graph.capture import Capture, capture, frames_of, owner_of, place_of_error, source_of
from edgeprune.graph.space import Axis, Reason
from edgeprune.graph.surgery import narrow
from edgeprune.graph.walk import Shaped, operator_name, shaped_in

Blame = list[tuple[Axis, Reason]]


@dataclass(frozen=True)
class Failure:
    """Where a trial went wrong and why."""

    module: str
    source: str
    why: str
    node: str = ""


def probe(analysis: Analysis) -> dict[str, tuple[int, ...]]:
    """Keep another share of each group, so that no two sizes agree by accident: 0.45 ... 0.85, golden-ratio spaced."""
    kept = {}
    for i, (name, size) in enumerate(zip(analysis.units.names, analysis.units.sizes, strict=True)):
        share = 0.45 + 0.4 * (i * 0.618034 % 1.0)
        count = min(size - 1, max(1, round(size * share)))
        kept[name] = tuple(np.unique(np.linspace(0, size - 1, count).astype(int)).tolist())
    return kept


def try_plan(model: nn.Module, analysis: Analysis, kept: dict[str, tuple[int, ...]]) -> Failure | None:
    """Capture the narrowed model; None when every operator and size is as predicted."""
    cuts, attributes = analysis.spell(kept)
    edited = narrow(model, cuts, attributes, empty=True)
    try:
        again = capture(edited, analysis.inputs)
    except Exception as error:
        places = place_of_error(edited, error)
        place = places[0] if places else None
        why = f"narrowing it fails there: {str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__}"
        return Failure(place.module if place else "", place.source if place else "", why)
    return _compare(analysis, again, analysis.masks(kept))


def _flat(graph: GraphModule, path: str = "") -> Iterator[tuple[str, Node]]:
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            target: Any = graph
            for part in str(node.target).split("."):
                target = getattr(target, part)
            if isinstance(target, GraphModule):
                yield from _flat(target, f"{path}{node.name}/")
        elif node.op == "call_function":
            yield path + node.name, node


def _compare(analysis: Analysis, again: Capture, masks: dict[str, NDArray[np.bool_]]) -> Failure | None:
    walk, units = analysis.walk, analysis.units
    old = list(_flat(walk.capture.module))
    new = list(_flat(again.module))
    for (name, before), (_, after) in zip(old, new, strict=False):
        if operator_name(before) != operator_name(after):
            return Failure(
                owner_of(before), source_of(before), "the network takes another path when it is narrow", name
            )
        predicted = walk.values.get(name)
        for value, seen in zip(shaped_in(predicted), _tensors(after.meta.get("val")), strict=False):
            want = tuple(int(units.alive(a, masks).sum()) for a in value.axes)
            got = tuple(int(n) for n in seen.shape)
            if want != got:
                why = f"its size is {_text(got)} where {_text(want)} is needed; no attribute that holds it was found"
                return Failure(owner_of(before), source_of(before), why, name)
        if _numbers(before) != _numbers(after):
            return Failure(owner_of(before), source_of(before), "a number in the computation follows the width", name)
    if len(old) != len(new):
        return Failure("", "", "the network takes another path when it is narrow")
    return None


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from _tensors(v)


def _numbers(node: Node) -> list[float]:
    """The floating-point arguments: scales, eps, slopes."""
    return [v for v in (*node.args, *node.kwargs.values()) if isinstance(v, float)]


def blame(analysis: Analysis, failure: Failure) -> Blame:
    """The axes to freeze after a failure: those at the failing line, else those of the failing module, else all."""
    walk = analysis.walk
    at_line = _at_line(analysis, failure)
    in_module = [n for n, other in walk.nodes.items() if owner_of(other) == failure.module]
    sizes = {int(a.size) for n in at_line for v in shaped_in(walk.values[n]) for a in v.axes}
    found = _live(analysis, at_line, failure)
    if not found and failure.module:
        found = _live(analysis, in_module, failure, sizes)
    outer = failure.module
    while not found and outer:
        inside = [n for n, o in walk.nodes.items() if (owner_of(o) + ".").startswith(outer + ".")]
        found = _live(analysis, inside, failure)
        outer = outer.rpartition(".")[0]
    return found or _live(analysis, list(walk.nodes), failure)


def _at_line(analysis: Analysis, failure: Failure) -> list[str]:
    node = analysis.walk.nodes.get(failure.node)
    lines = {failure.source} if failure.source else set()
    if node is not None:
        lines |= set(frames_of(node)[-1:])
    return [n for n, other in analysis.walk.nodes.items() if lines & set(frames_of(other))]


def ties(analysis: Analysis, failure: Failure) -> list[tuple[Axis, Axis]]:
    """Axes to tie so that a size taken from another tensor fits: a view at the failing line made an axis as long as
    one that its module reads (`x.reshape(B, N, C)` on the heads, with C from the module's input)."""
    walk, units = analysis.walk, analysis.units
    found = []
    for name in _at_line(analysis, failure):
        node = walk.nodes[name]
        value = walk.values[name]
        if operator_name(node) not in ("view", "reshape", "flatten") or not isinstance(value, Shaped):
            continue
        owner = owner_of(node)
        read = [
            walk.values[n] for n, o in walk.nodes.items()
            if isinstance(walk.values[n], Shaped) and any(owner_of(u) == owner or owner_of(u).startswith(owner + ".") for u in o.users)
            and not owner_of(o).startswith(owner)
        ]  # fmt: skip
        for axis in value.axes:
            mine = units.solution.label[axis]
            if not (units.group[mine] >= 0).any():
                continue
            others = [
                a for v in read for a in v.axes[-1:] if a.size == axis.size
                and (units.group[units.solution.label[a]] >= 0).any() and not np.array_equal(units.solution.label[a], mine)
            ]  # fmt: skip
            if others:
                found.append((axis, others[0]))
    return found


def _live(analysis: Analysis, names: list[str], failure: Failure, sizes: set[int] | None = None) -> Blame:
    found: Blame = []
    for name in names:
        node = analysis.walk.nodes[name]
        reason = Reason(failure.why, operator_name(node), failure.source or source_of(node), failure.module)
        values = [analysis.walk.values[name]]
        values += [analysis.walk.values.get(_path(name) + n.name) for n in node.all_input_nodes]
        for value in shaped_in([v for v in values if isinstance(v, Shaped | list | tuple)]):
            for axis in value.axes:
                if sizes is not None and int(axis.size) not in sizes:
                    continue
                classes = analysis.units.solution.label[axis]
                live = axis[analysis.units.group[classes] >= 0]
                if live.size:
                    found.append((live, reason))
    return found


def _path(name: str) -> str:
    return name.rpartition("/")[0] + "/" if "/" in name else ""
