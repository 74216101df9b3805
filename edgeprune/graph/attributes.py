"""The attributes that repeat a size: which of a module's integers must follow when an axis is narrowed.

A layer of torch.nn names them (`in_channels`, `num_features`, ...). For a user's own module they are the integers equal
to a size that is written in the graph at a call of that module, or to a side of one of its own parameters.
A choice of attributes is only a proposal until the edited model captures with every size as predicted (see trial).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgeprune.graph.groups import Units
from edgeprune.graph.structure import Segment, width
from edgeprune.graph.walk import Literal, Walk

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
    """`module.name` (or its element `part`) is the width of `segments`."""

    module: str
    name: str
    part: int | None
    value: int
    segments: tuple[Segment, ...]

    def at(self, units: Mapping[str, int]) -> int:
        """The value when group g keeps `units[g]` units."""
        return width(self.segments, units)


def find_attributes(model: nn.Module, walk: Walk, units: Units) -> tuple[AttributeRule, ...]:
    """Every attribute that follows a group, without those on which two axes disagree."""
    modules = dict(model.named_modules())
    found: _Found = {}
    literals = [*walk.literals, *(walk.training.literals if walk.training else ())]
    literals = [*literals, *_parameter_sides(walk, modules)]
    for soft in (False, True):
        _collect([x for x in literals if x.soft == soft], modules, units, found)
    return tuple(rule for rule in found.values() if rule is not None)


_Found = dict[tuple[str, str, int | None], AttributeRule | None]


def _collect(literals: Iterable[Literal], modules: Mapping[str, nn.Module], units: Units, found: _Found) -> None:
    """Add the rules of these literals to those found before, which keep their attributes."""
    settled = set(found)
    for literal in literals:
        segments = units.segments(literal.axis)
        if all(s.group is None for s in segments) or literal.module not in modules:
            continue
        for name, part in _holders(modules[literal.module], literal):
            key = (literal.module, name, part)
            if key in settled:
                continue
            rule = AttributeRule(literal.module, name, part, literal.value, _sorted(segments))
            known = found.get(key, rule)
            same = known is not None and known.segments == rule.segments
            found[key] = rule if same else None


def _sorted(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    return tuple(sorted(segments, key=lambda s: (s.group or "", s.size)))


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
            elif not _layer(module):
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
        if _is_int(value) and value == literal.value:
            yield name, None
        elif isinstance(value, tuple | list):
            for part, element in enumerate(value):
                if _is_int(element) and element == literal.value:
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
