"""trace: capture, walk, solve, try, and describe a network."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune import files
from edgeprune.errors import CaptureError
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.attention import free_heads
from edgeprune.graph.attributes import AttributeRule, Hints, find_attributes, pattern
from edgeprune.graph.blocks import Span, find_spans, make_blocks
from edgeprune.graph.capture import (
    Capture,
    Inputs,
    as_inputs,
    capture_error,
    capture_steady,
    check_model,
    shadow,
    tensors_of,
)
from edgeprune.graph.groups import Units, find_units, make_groups, make_layers
from edgeprune.graph.opaque import cut_out, record
from edgeprune.graph.parts import Block, Frozen, Group, Layer, Member
from edgeprune.graph.postprocessing import postprocessing
from edgeprune.graph.repeats import still_tied, tie_repeats
from edgeprune.graph.rules import RULES
from edgeprune.graph.space import Axis, Reason
from edgeprune.graph.structure import Structure
from edgeprune.graph.terms import find_terms
from edgeprune.graph.training import named, training_branches
from edgeprune.graph.trial import (
    TRAINING_TRIALS,
    Failure,
    blame,
    coincidences,
    everything,
    further,
    hold_widths,
    probe,
    settle_disputes,
    ties,
    try_plan,
)
from edgeprune.graph.walk import Walk, operator_name

_ROUNDS = 40
_TRIES = 24  # hints tried in one trace; each is a capture
_LOG = logging.getLogger(__name__)


def trace(model: nn.Module, example_inputs: Any, *, opaque: Sequence[str] = (), repeats: bool = False) -> Structure:
    """Find which units of `model` may be removed.

    Args:
        model: any nn.Module; it is not changed, whatever mode it is in. It is analysed as in eval mode.
        example_inputs: a tensor, a tuple of tensors, or a dict of keyword arguments.
        opaque: qualified names of submodules that cannot be captured; what they read and give stays whole.
        repeats: offer parts of a Sequential or list that keep their input's shape, without a sum, as blocks too; the
            widths at both ends of each become one group (see `graph.repeats`).

    Raises:
        ModelError: not a module that can be analysed (scripted, on meta, cannot be copied), or its own forward fails.
        CaptureError: the forward depends on data, or torch cannot capture it; names the line and the remedy.
    """
    check_model(model)
    inputs = as_inputs(example_inputs)
    view = shadow(model).eval()
    given = record(view, inputs, opaque) if opaque else {}
    cut_out(view, given)
    freed = free_heads(view, every=True)
    names, aliases = _ties(model)
    try:
        steady, captured = capture_steady(view, inputs)
    except Exception as error:
        raise capture_error(view, inputs, error) from error
    as_given = not (given or freed) and steady is view
    view = steady
    walk = Walk(named(captured, names), RULES)
    walk.run()
    training = training_branches(view, walk, inputs, names, opaque)
    tied = _repeats(view, walk) if repeats else {}
    analysis, members = _settle(view, walk, training, inputs, aliases, given)
    spans = find_terms(walk, find_spans(walk, analysis.units)) | still_tied(walk, analysis.units, tied)
    return _structure(model, replace(analysis, spans=spans), members, captured if as_given else None)


def _repeats(view: nn.Module, walk: Walk) -> dict[str, Span]:
    units, _ = find_units(walk, walk.space.solve())
    return tie_repeats(view, walk, units, find_terms(walk, find_spans(walk, units)))


def _ties(model: nn.Module) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Name -> canonical name, and canonical name -> every name, of each parameter and buffer."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    aliases: dict[str, tuple[str, ...]] = {}
    for name, tensor in tensors_of(model).items():
        canonical = first.setdefault(id(tensor), name)
        names[name] = canonical
        aliases[canonical] = (*aliases.get(canonical, ()), name)
    return names, aliases


def _settle(
    view: nn.Module,
    walk: Walk,
    training: str,
    inputs: Inputs,
    aliases: dict[str, tuple[str, ...]],
    opaque: dict[str, list[Any]],
) -> tuple[Analysis, list[list[Member]]]:
    """Solve, try half of everything on shapes, tie or freeze what is to blame, until the trial passes."""
    trials = _Trials(view, walk, training, inputs, aliases, opaque)
    for turn in range(_ROUNDS):
        units, members = find_units(walk, walk.space.solve())
        analysis = trials.analyse(units, trials.hints)
        failure = trials.attempt(analysis)
        if failure is None:
            return analysis, members
        if held := hold_widths(analysis, failure):
            for axis, reason in held:
                walk.space.freeze(axis, reason)
            continue
        found = trials.remedy(analysis, failure)
        _LOG.debug("trial: %s; %s", failure, found if isinstance(found, Hints) else f"{len(found or ())} axes tied")
        if isinstance(found, Hints):
            trials.hints = found
        elif found:
            walk.space.edges.extend(found)
        else:
            guilty = blame(analysis, failure) if turn < _ROUNDS - 2 else everything(analysis, failure)
            for axis, reason in guilty:
                walk.space.freeze(axis, reason)
    raise CaptureError(
        "The network could not be narrowed in any way that captures.", "Please report it with the model."
    )


class _Trials:
    """Trials of one network, and what they taught: `hints`. Arguments as `_settle` has them."""

    def __init__(
        self,
        view: nn.Module,
        walk: Walk,
        training: str,
        inputs: Inputs,
        aliases: dict[str, tuple[str, ...]],
        opaque: dict[str, list[Any]],
    ) -> None:
        self.view, self.walk, self.training = view, walk, training
        self.inputs, self.aliases, self.opaque = inputs, aliases, opaque
        self.hints = Hints()
        self.tried: set[tuple[str, str]] = set()
        self.tries: list[Hints] = []
        self.known: dict[tuple[tuple[AttributeRule, ...], int, int], Failure | None] = {}

    def analyse(self, units: Units, hints: Hints) -> Analysis:
        rules, disputes = find_attributes(self.view, self.walk, units, hints)
        tuples = _tuples(self.view, rules)
        return Analysis(self.walk, units, rules, disputes, tuples, self.aliases, {}, {}, self.inputs, self.opaque)

    def attempt(self, analysis: Analysis) -> Failure | None:
        """What fails when half of everything goes; None where nothing does. No trial is made twice.

        It is known by the attributes that follow widths and by how much is tied and frozen.
        """
        key = (analysis.rules, len(self.walk.space.edges), len(self.walk.space.freezes))
        if key not in self.known:
            self.known[key] = self._attempt(analysis)
        return self.known[key]

    def _attempt(self, analysis: Analysis) -> Failure | None:
        choice = probe(analysis)
        if not choice:
            return None
        return try_plan(self.view, analysis, choice) or TRAINING_TRIALS[self.training](self.view, analysis, choice)

    def remedy(self, analysis: Analysis, failure: Failure) -> list[tuple[Axis, Axis]] | Hints | None:
        """Axes to tie, or a hint to analyse with; each way to find one is tried once a line of the user's code."""
        remedies: list[Callable[[Analysis, Failure], list[tuple[Axis, Axis]] | Hints | None]]
        first, last = [ties, settle_disputes], [self._check, self._accident]
        remedies = [self._accident, *first] if failure.still else [*first, *last]
        found: list[tuple[Axis, Axis]] | Hints | None = None
        for find in remedies:
            if not found and (find.__name__, failure.source) not in self.tried:
                found = find(analysis, failure)
                if not isinstance(found, Hints):  # a hint makes the next one at the same line possible
                    self.tried.add((find.__name__, failure.source))
        return found

    def _accident(self, analysis: Analysis, failure: Failure) -> Hints | None:
        names, own = coincidences(analysis, failure), self.hints
        return self._learn(analysis, failure, (replace(own, coincidences=own.coincidences | n) for n in names))

    def _check(self, analysis: Analysis, failure: Failure) -> Hints | None:
        hint = replace(self.hints, checks=self.hints.checks | {pattern(failure.module)})
        return self._learn(analysis, failure, [hint])

    def _learn(self, analysis: Analysis, failure: Failure, choices: Iterable[Hints]) -> Hints | None:
        """The first hint with which the trial comes further."""
        for hint in choices:
            if hint == self.hints or len(self.tries) == _TRIES:
                continue
            self.tries.append(hint)
            if further(analysis, failure, self.attempt(self.analyse(analysis.units, hint))):
                return hint
        return None


def _tuples(model: nn.Module, rules: Sequence[AttributeRule]) -> dict[tuple[str, str], tuple[int, ...]]:
    modules = dict(model.named_modules())
    return {(r.module, r.name): tuple(getattr(modules[r.module], r.name)) for r in rules if r.part is not None}


def _norms(model: nn.Module, units: Units, members: Sequence[Sequence[Member]]) -> dict[str, NDArray[np.float64]]:
    """L1 norm of the weights that make each unit."""
    tensors = tensors_of(model)
    norms = {}
    for name, size, found in zip(units.names, units.sizes, members, strict=True):
        total = np.zeros(size)
        for member in found:
            tensor = tensors[member.parameter].detach()
            if member.role != "output" or not tensor.is_floating_point():
                continue
            others = [d for d in range(tensor.ndim) if d != member.axis]
            per = tensor.abs().sum(dim=others) if others else tensor.abs()
            total += per.to(torch.float64).cpu().numpy()[member.indices].sum(axis=1)
        norms[name] = total
    return norms


def _structure(model: nn.Module, analysis: Analysis, members: list[list[Member]], capture: Capture | None) -> Structure:
    walk, units = analysis.walk, analysis.units
    analysis = replace(analysis, norms=_norms(model, units, members))
    layers = make_layers(walk, units)
    groups = make_groups(walk, units, members, layers)
    blocks = make_blocks(walk, units, analysis.spans, layers)
    return Structure(
        groups=tuple(groups),
        frozen=_frozen(walk, units, layers),
        layers=layers,
        blocks=blocks,
        fingerprint=_fingerprint(walk, groups, layers, blocks),
        parameters=sum(p.numel() for p in model.parameters()),
        analysis=analysis,
        postprocessing=postprocessing(walk, _trained(model)),
        capture=capture,
    )


def _trained(model: nn.Module) -> set[str]:
    """The parameters that training changes; all where none is marked so."""
    every = {name: parameter.requires_grad for name, parameter in model.named_parameters(remove_duplicate=False)}
    return {name for name, marked in every.items() if marked} or set(every)


def _frozen(walk: Walk, units: Units, layers: Sequence[Layer]) -> tuple[Frozen, ...]:
    """Frozen output axes of layers, and parameters of operators without a rule, by reason."""
    solution = units.solution
    alone = Reason("all its channels go together or not at all, so there is nothing to choose")
    found: dict[tuple[str, str, str], list[str]] = {}

    def reason(axis: Axis) -> Reason | None:
        return next((solution.reasons[c] for c in solution.label[axis].tolist() if c in solution.reasons), None)

    def add(why: Reason, module: str) -> None:
        found.setdefault((why.why, why.operator, why.source), []).append(module)

    for call in walk.calls:
        classes = solution.label[call.outputs]
        stuck = call.outputs[solution.frozen[classes]]
        if stuck.size:
            add(reason(stuck) or Reason("it is not made by a layer"), call.module)
        elif (units.group[classes] < 0).any():
            add(alone, call.module)
    known = {call.module for call in walk.calls}
    for name, value in walk.tensors.items():
        module = name.rpartition(".")[0]
        why = next((r for axis in value.axes if (r := reason(axis)) is not None), None)
        if why is not None and why.module == module and module not in known and walk.unruled(why):
            add(why, module)
    weights = {layer.name: (layer.weight, math.prod(layer.weight_shape)) for layer in layers}
    macs: dict[str, int] = {}
    for layer in layers:
        macs[layer.name] = macs.get(layer.name, 0) + layer.macs

    def entry(why: Reason, blocked: tuple[str, ...]) -> Frozen:
        sizes = dict(weights[n] for n in blocked if n in weights)  # a tied weight counts once
        size = sum(sizes.values()), sum(macs.get(n, 0) for n in blocked)
        return Frozen(_what(blocked), why.why, why.operator, why.source, blocked, *size)

    return tuple(entry(Reason(*key), tuple(dict.fromkeys(names))) for key, names in found.items())


def _what(layers: Sequence[str]) -> str:
    more = len(set(layers)) - 1
    return f"outputs of {layers[0]}" + (f" and {more} more" if more else "")


def _fingerprint(walk: Walk, groups: Sequence[Group], layers: Sequence[Layer], blocks: Sequence[Block]) -> str:
    """A hash of the operators, the sizes and the groups; not of the weights.

    Blocks that earlier versions had otherwise, or not at all, are in it: a table made then does not know them.
    """
    facts: dict[str, object] = {
        "operators": [operator_name(n) for n in walk.nodes.values() if n.op == "call_function"],
        "tensors": {name: value.shape for name, value in walk.tensors.items()},
        "groups": [[g.name, g.size, [[m.parameter, m.axis, m.indices.shape[1]] for m in g.members]] for g in groups],
        "layers": [la.name for la in layers],
    }
    news = [[b.module, b.kind, [name for name, _ in b.slices]] for b in blocks if b.kind != "module" or b.slices]
    facts |= {"blocks": news} if news else {}
    return "sha256:" + files.sha256(json.dumps(facts, sort_keys=True).encode())
