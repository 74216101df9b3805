"""The attributes that repeat a size: which of a module's integers must follow when an axis is narrowed.

A layer of torch.nn names them (`in_channels`, `num_features`, ...). For a user's own module they are the integers equal
to a size that is written in the graph at a call of that module, or to a side of one of its own parameters.
A choice of attributes is only a proposal until the edited model captures with every size as predicted (see trial).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from edgeprune.graph.capture import owner_of
from edgeprune.graph.groups import Units
from edgeprune.graph.parts import Segment, width
from edgeprune.graph.space import Axis
from edgeprune.graph.walk import Literal, Shaped, Walk

_NAMED = frozenset(
    [
        "in_channels",
        "out_channels",
        "groups",
        "in_features",
        "out_features",
        "num_features",
        "num_channels",
        "num_groups",
        "normalized_shape",
        "embedding_dim",
        "num_embeddings",
        "num_parameters",
        "input_size",
        "hidden_size",
        "proj_size",
    ]
)


@dataclass(frozen=True)
class AttributeRule:
    """`module.name` (or its element `part`) is the width of `segments`; `by_value`: known by nothing but its value."""

    module: str
    name: str
    part: int | None
    value: int
    segments: tuple[Segment, ...]
    by_value: bool = False

    def at(self, units: Mapping[str, int]) -> int:
        """The value when group g keeps `units[g]` units."""
        return width(self.segments, units)


@dataclass(frozen=True, eq=False)
class Dispute:
    """Two axes of one width that `module` seems to hold in one attribute: it can follow both only if they are tied."""

    module: str
    axes: tuple[Axis, Axis]


Coincidence = tuple[str, str]  # (pattern of the module's name, attribute): it holds a width by accident


@dataclass(frozen=True)
class Hints:
    """What failed trials have taught, by patterns of modules' names.

    Attributes:
        coincidences: attributes that hold the value of a width by accident (a shift of 3 places beside 3 heads).
        checks: modules that hold the width of what they read without writing it in a call (`if c != self.width`).
    """

    coincidences: frozenset[Coincidence] = frozenset()
    checks: frozenset[str] = frozenset()


def pattern(module: str) -> str:
    """A module's name without its numbers: look-alikes of a repeated block."""
    return re.sub(r"\d+", "*", module)


def find_attributes(
    model: nn.Module, walk: Walk, units: Units, hints: Hints
) -> tuple[tuple[AttributeRule, ...], tuple[Dispute, ...]]:
    """Every attribute that follows a group, and the disputes over those on which two axes disagree."""
    every = dict(model.named_modules(remove_duplicate=False))  # a shared module is called by any of its names
    first = {id(module): name for name, module in model.named_modules()}
    found = _Found(every, {name: first[id(module)] for name, module in every.items()}, hints.coincidences)
    literals = [*walk.literals, *(walk.training.literals if walk.training else ())]
    literals = [x for x in literals if x.module in every]
    literals = [*literals, *_parameter_sides(walk, every), *_checked(walk, every, hints.checks)]
    for literal in literals:
        found.shapes.setdefault(_holding_module(literal, found), set()).add(literal.sizes)
    for soft in (False, True):
        _collect([x for x in literals if x.soft == soft], units, found)
    return tuple(rule for rule in found.rules.values() if rule is not None), tuple(found.disputes)


@dataclass
class _Found:
    """What has been found so far; a rule that is None is disputed. `shapes` are the sizes that calls write at once."""

    modules: Mapping[str, nn.Module]
    names: Mapping[str, str]
    coincidences: frozenset[Coincidence]
    shapes: dict[str, set[tuple[int, ...]]] = field(default_factory=dict)
    rules: dict[tuple[str, str, int | None], AttributeRule | None] = field(default_factory=dict)
    axes: dict[tuple[str, str, int | None], Axis] = field(default_factory=dict)
    disputes: list[Dispute] = field(default_factory=list)


def _collect(literals: Iterable[Literal], units: Units, found: _Found) -> None:
    """Add the rules of these literals to those found before, which keep their attributes."""
    settled = set(found.rules)
    for literal in literals:
        segments = units.segments(literal.axis)
        if all(s.group is None for s in segments):
            continue
        module = _holding_module(literal, found)
        for name, part in _holders(found.modules[module], literal):
            key = (module, name, part)
            if key in settled or (part is not None and _another_shape(found, literal, module, name)):
                continue
            if not literal.name and (pattern(module), name) in found.coincidences:
                continue
            rule = AttributeRule(module, name, part, literal.value, _sorted(segments), not literal.name)
            known = found.rules.setdefault(key, rule)
            axis = found.axes.setdefault(key, literal.axis)
            if known is None or known.segments != rule.segments:
                found.rules[key] = None
                if axis.size == literal.axis.size:
                    found.disputes.append(Dispute(module, (axis, literal.axis)))


def _holding_module(literal: Literal, found: _Found) -> str:
    """The literal's module if it holds the size; else the next that does, up from what made what the call reads.

    A method that is no forward runs under its caller's name: there, the size is held further in. A size that the
    operator's own layer would call by name (`in_channels`) is looked for in the literal's module alone.
    """
    if literal.name:
        return found.names[literal.module]
    inside = literal.module + "." if literal.module else ""
    near, chain = literal.near, [literal.module]
    while near.startswith(inside) and near not in ("", literal.module):
        chain.append(near)
        near = near.rpartition(".")[0]
    named = (found.names[m] for m in chain if m in found.modules)
    return next((m for m in named if any(_holders(found.modules[m], literal))), found.names[literal.module])


def _another_shape(found: _Found, literal: Literal, module: str, name: str) -> bool:
    """Whether a tuple is the whole shape that some other call writes: its elements then belong to that call."""
    value = tuple(getattr(found.modules[module], name))
    return value != literal.sizes and value in found.shapes.get(module, ())


def _sorted(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    return tuple(sorted(segments, key=lambda s: (s.group or "", s.size)))


def _checked(walk: Walk, modules: Iterable[str], checks: Iterable[str]) -> Iterable[Literal]:
    """The widths of what the modules of these patterns read."""
    chosen = set(checks)
    for module in modules if chosen else ():
        if pattern(module) in chosen:
            for value in read_by(walk, module, made=True):
                for axis in value.axes:
                    if axis.any():
                        yield Literal(module, axis.size, axis, "", soft=True)


def read_by(walk: Walk, module: str, *, made: bool = False) -> list[Shaped]:
    """The tensors that come into a module from outside, or only those made there; for the network itself, all."""
    values = walk.all_values()
    nodes = {n: o for n, o in walk.all_nodes().items() if not made or o.op != "placeholder"}
    if not module:
        return [values[n] for n in nodes if isinstance(values[n], Shaped)]
    inside = (module, module + ".")
    return [
        values[n] for n, o in nodes.items()
        if isinstance(values[n], Shaped) and not owner_of(o).startswith(inside)
        and any(owner_of(user).startswith(inside) for user in o.users)
    ]  # fmt: skip


def _parameter_sides(walk: Walk, modules: Mapping[str, nn.Module]) -> Iterable[Literal]:
    """Sides of parameters: by name for the layers of torch.nn, by value for a user's own modules."""
    for name, value in walk.tensors.items():
        owner, _, leaf = name.partition(".parametrizations.")[0].rpartition(".")
        if ".parametrizations." in name:
            owner, leaf = name.partition(".parametrizations.")[0], name.split(".parametrizations.")[1].split(".")[0]
        module = modules.get(owner)
        for d, axis in enumerate(value.axes):
            if not axis.any() or module is None:
                continue
            side = _side(module, leaf, d)
            if side is not None:
                yield Literal(owner, axis.size, axis, "", *side)
            elif not _layer(module) and not (isinstance(module, nn.MultiheadAttention) and d == 0):  # its heads
                yield Literal(owner, axis.size, axis, "")


def _side(module: nn.Module, leaf: str, axis: int) -> tuple[str, int | None] | None:
    """The attribute of a torch.nn layer that says the size of this side of its parameter `leaf`."""
    match module:
        case nn.Linear():
            return ("out_features" if axis == 0 else "in_features", None)
        case nn.modules.conv._ConvTransposeNd() if module.groups == 1 and axis < 2 and leaf == "weight":
            return (("in_channels", "out_channels")[axis], None)
        case nn.modules.conv._ConvNd() if module.groups == 1 and axis < 2 and leaf == "weight":
            return (("out_channels", "in_channels")[axis], None)
        case nn.modules.batchnorm._NormBase():
            return ("num_features", None)
        case nn.LayerNorm() | nn.RMSNorm():
            return ("normalized_shape", axis)
        case nn.GroupNorm():
            return ("num_channels", None)
        case nn.Embedding():
            return (("num_embeddings", "embedding_dim")[axis], None)
        case _:
            return None


def _holders(module: nn.Module, literal: Literal) -> Iterable[tuple[str, int | None]]:
    """The attributes of `module` that hold this literal."""
    if literal.name:
        value = getattr(module, literal.name, None)
        if _is_int(value) and value == literal.value:
            yield literal.name, None
        elif isinstance(value, tuple | list) and literal.value in value[literal.part : (literal.part or 0) + 1]:
            yield literal.name, literal.part
        return
    for name, value in vars(module).items():
        if name.startswith("_") or (name in _NAMED and _layer(module)):
            continue
        if name == "head_dim" and isinstance(module, nn.MultiheadAttention):  # whole heads go; their width stays
            continue
        if _is_int(value) and value == literal.value:
            yield name, None
        elif isinstance(value, tuple | list):
            whole = tuple(value) == literal.sizes
            for part, element in enumerate(value):
                if _is_int(element) and element == literal.value and part == (literal.part if whole else part):
                    yield name, part


_LAYERS = (
    nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.Embedding, nn.RNNBase, nn.RNNCellBase, nn.PReLU,
)  # fmt: skip


def _layer(module: nn.Module) -> bool:
    """Whether the attributes of this module that have a known name are set by that name alone."""
    return isinstance(module, _LAYERS) or type(module).__module__.startswith("torch.nn")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
