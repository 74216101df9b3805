"""Plans: which units stay, as cuts of parameters and settings of attributes. `plan.json` needs no pickle, no trace."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from edgeprune import files
from edgeprune.errors import PlanError, did_you_mean
from edgeprune.graph.analysis import Findings
from edgeprune.graph.configuration import Configuration
from edgeprune.graph.options import apply_options, option_of
from edgeprune.graph.parts import Block, Group
from edgeprune.graph.surgery import Attribute, Cut, narrow

VERSION = 1
WITH_OPTIONS = 2  # of a plan that has options: an edgeprune that knows none must not read it as one without
WITH_STAND_INS = 3  # of a plan that removes terms of sums: likewise


@dataclass(frozen=True)
class Plan:
    """What to keep.

    Attributes:
        structure: fingerprint of the traced structure that it was made for.
        cuts: kept positions by parameter (every name of a tied one) and axis.
        attributes: sizes to set.
        removed: blocks replaced by an identity.
        kept: kept units by group; groups that stay whole are left out.
        options: layer -> what it becomes beside narrower, such as "low-rank:16".
        stand_ins: module of a removed term -> what takes its place: "first", "nothing" (see `graph.terms`).
    """

    structure: str
    cuts: tuple[Cut, ...]
    attributes: tuple[Attribute, ...]
    removed: tuple[str, ...] = ()
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    @property
    def configuration(self) -> Configuration:
        """The network in a few words: how many units, which blocks, which options."""
        return Configuration({name: len(units) for name, units in self.kept.items()}, self.removed, self.options)

    @property
    def narrowing(self) -> Plan:
        """The same plan without its options."""
        return replace(self, options={}) if self.options else self

    def apply(self, model: nn.Module) -> nn.Module:
        """A new, narrowed module; the given one is left as it was.

        Raises:
            PlanError: the plan is for another model, or illegal.
        """
        return apply_options(
            narrow(model, self.cuts, self.attributes, self.removed, stand_ins=self.stand_ins), self.options
        )

    def to_dict(self) -> dict[str, object]:
        """What plan.json holds."""
        return {
            "version": WITH_STAND_INS if self.stand_ins else WITH_OPTIONS if self.options else VERSION,
            "structure": self.structure,
            "cuts": [{"parameter": c.parameter, "axis": c.axis, "kept": list(c.kept)} for c in self.cuts],
            "attributes": [
                {"module": a.module, "name": a.name, "value": a.value if isinstance(a.value, int) else list(a.value)}
                for a in self.attributes
            ],
            "removed": list(self.removed),
            "kept": {name: list(units) for name, units in self.kept.items()},
            **({"options": dict(self.options)} if self.options else {}),
            **({"stand_ins": dict(self.stand_ins)} if self.stand_ins else {}),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write plan.json at `path`, whole or not at all."""
        where = Path(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(where, self.to_dict(), indent=None)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan.

        Raises:
            PlanError: the file is missing, damaged or of another version.
        """
        return read_plan(Path(path))


def read_plan(path: Path) -> Plan:
    """Parse plan.json and check every field's type."""
    data = files.read_json(path, PlanError, "It is damaged; make it again.", missing="Give the path of a plan.json.")
    try:
        if data["version"] not in (VERSION, WITH_OPTIONS, WITH_STAND_INS):
            raise PlanError(
                f"The plan '{path}' has version {data['version']!r}; versions {VERSION} to {WITH_STAND_INS} are read.",
                "Make it again.",
            )
        return Plan(
            _text(data["structure"]),
            tuple(Cut(_text(c["parameter"]), _int(c["axis"]), _ints(c["kept"])) for c in data["cuts"]),
            tuple(Attribute(_text(a["module"]), _text(a["name"]), _value(a["value"])) for a in data["attributes"]),
            tuple(_text(r) for r in data["removed"]),
            {_text(k): _ints(v) for k, v in data.get("kept", {}).items()},
            {_text(k): _text(v) for k, v in data.get("options", {}).items()},
            {_text(k): _text(v) for k, v in data.get("stand_ins", {}).items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"The plan '{path}' is damaged: {type(error).__name__}: {error}.", "Make it again.") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not an integer")
    return value


def _ints(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list of integers")
    return tuple(_int(v) for v in value)


def _value(value: Any) -> int | tuple[int, ...]:
    return _ints(value) if isinstance(value, list) else _int(value)


def make_plan(
    structure: Findings,
    kept: Mapping[str, Sequence[int]],
    removed: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
) -> Plan:
    """Check the choice of units and spell it out as cuts and attributes. See Structure.plan."""
    names = {g.name: g for g in structure.groups}
    whole = {b.module for b in structure.blocks}
    for block in removed:
        if block not in whole:
            raise PlanError(f"'{block}' is not a removable block.", did_you_mean(block, whole))
    chosen = {name: units for name, raw in kept.items() if len(units := _units(names, name, raw)) < names[name].size}
    cuts, attributes = structure.analysis.spell(chosen, tuple(removed))
    gone = tuple(sorted(set(removed)))
    blocks = [b for b in structure.blocks if b.module in gone]
    places = {module: text for block in blocks for module, text in block.stand_ins}
    given = _options(structure, blocks, options or {})
    return Plan(structure.fingerprint, cuts, attributes, gone, chosen, given, places)


def _options(structure: Findings, removed: Sequence[Block], options: Mapping[str, str]) -> dict[str, str]:
    layers = {layer.name: layer for layer in structure.layers}
    for name, text in options.items():
        option, _ = option_of(text)
        if name not in layers:
            raise PlanError(f"There is no layer '{name}' in this network.", did_you_mean(name, layers))
        if not option.settings(layers[name]):
            raise PlanError(f"Layer '{name}' ({layers[name].kind}) cannot be {option.name}.", "Leave the option out.")
        if any(block.holds(name) for block in removed):
            raise PlanError(f"Layer '{name}' goes with its block, so that it cannot be {text}.", "Leave one out.")
    return dict(options)


def _units(names: Mapping[str, Group], name: str, raw: Sequence[int]) -> tuple[int, ...]:
    group = names.get(name)
    if group is None:
        raise PlanError(f"There is no group '{name}' in this network.", did_you_mean(name, names))
    units = tuple(sorted(int(u) for u in raw))
    if not units or len(set(units)) != len(units) or units[0] < 0 or units[-1] >= group.size:
        raise PlanError(
            f"Group '{name}' must keep at least one of its {group.size} units, each once, from 0 to {group.size - 1}.",
            "Change the units kept for this group.",
        )
    if len(units) % group.divisor and len(units) != group.size:
        raise PlanError(f"Group '{name}' would keep {len(units)} units.", f"Keep a multiple of {group.divisor}.")
    return units


def channels_per_unit(group: Group) -> int:
    """Channels that one unit takes in the layers that produce it."""
    widths = [m.indices.shape[1] for m in group.members if m.role == "output"]
    return math.gcd(*widths) if widths else 1


def legal_count(group: Group, fraction: float, multiple: int = 1) -> int:
    """Units to keep: nearest to (1 - fraction) x size on the grid of `multiple` channels; ties keep more."""
    target = (1.0 - fraction) * group.size
    step = math.lcm(group.divisor, multiple // math.gcd(multiple, channels_per_unit(group)))
    choices = [*range(step, group.size + 1, step)]
    if group.size % step:
        choices.append(group.size)
    best = min(choices, key=lambda n: (abs(n - target), -n))
    return group.size if group.size == 2 and fraction < 0.5 else best


def uniform_plan(structure: Findings, fraction: float, multiple: int) -> Plan:
    """See Structure.uniform."""
    if not 0.0 <= fraction < 1.0:
        raise PlanError(f"The fraction {fraction} is not in [0, 1).", "Give the part to remove, such as 0.3.")
    if multiple < 1:
        raise PlanError(f"The multiple {multiple} is not positive.", "Give the channel step, such as 8.")
    kept: dict[str, Sequence[int]] = {}
    for group in structure.groups:
        count = legal_count(group, fraction, multiple)
        order = np.argsort(-structure.analysis.norms[group.name], kind="stable")
        kept[group.name] = np.sort(order[:count]).tolist()
    if fraction > 0 and not structure.groups:
        raise PlanError(
            f"Nothing of this network can be narrowed. {structure.obstacle()}".strip(),
            "structure.describe() lists what stays; cut a part that stops the rest out with opaque=['its.name'].",
        )
    return make_plan(structure, kept)
