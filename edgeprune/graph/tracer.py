"""trace: capture, walk, solve, try, and describe a network."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.errors import CaptureError
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.attention import free_heads
from edgeprune.graph.attributes import AttributeRule, Hints, find_attributes, pattern
from edgeprune.graph.blocks import find_spans, make_blocks
from edgeprune.graph.capture import (
    Capture,
    Inputs,
    as_inputs,
    capture,
    capture_error,
    check_model,
    doubled,
    shadow,
    tensors_of,
)
from edgeprune.graph.groups import Units, find_units, make_groups, make_layers
from edgeprune.graph.opaque import cut_out, record
from edgeprune.graph.rules import RULES
from edgeprune.graph.space import Axis, Reason
from edgeprune.graph.structure import Frozen, Group, Layer, Member, Structure
from edgeprune.graph.trial import (
    Failure,
    blame,
    coincidences,
    everything,
    further,
    probe,
    settle_disputes,
    ties,
    try_plan,
    try_training,
)
from edgeprune.graph.walk import Walk, operator_name

_ROUNDS = 40
_TRIES = 24  # hints tried in one trace; each is a capture
_LOG = logging.getLogger(__name__)


def trace(model: nn.Module, example_inputs: Any, *, opaque: Sequence[str] = ()) -> Structure:
    """Find which units of `model` may be removed.

    Args:
        model: any nn.Module; it is not changed, whatever mode it is in. It is analysed as in eval mode.
        example_inputs: a tensor, a tuple of tensors, or a dict of keyword arguments.
        opaque: qualified names of submodules that cannot be captured; what they read and give stays whole.

    Raises:
        ModelError: not a module that can be analysed (scripted, on meta, cannot be copied), or its own forward fails.
        CaptureError: the forward depends on data, or torch cannot capture it; names the line and the remedy.
    """
    check_model(model)
    inputs = as_inputs(example_inputs)
    view = shadow(model).eval()
    given = record(view, inputs, opaque) if opaque else {}
    cut_out(view, given)
    free_heads(view, every=True)
    names, aliases = _ties(model)
    try:
        graph = _named(capture(view, inputs), names)
    except Exception as error:
        raise capture_error(view, inputs, error) from error
    walk = Walk(graph, RULES)
    walk.run()
    training = _training_branches(view, walk, inputs, names)
    analysis, members = _settle(view, walk, training, inputs, aliases, given)
    return _structure(model, analysis, members)


def _named(graph: Capture, names: dict[str, str]) -> Capture:
    """The capture with canonical names of tied parameters."""
    return replace(graph, parameters={k: names.get(v, v) for k, v in graph.parameters.items()})


def _training_branches(view: nn.Module, walk: Walk, inputs: Inputs, names: dict[str, str]) -> bool:
    """Walk the training graph too where eval leaves parameters unused (auxiliary heads); whether it was walked.

    The two graphs share their parameters, so what a training-only layer reads is narrowed with the rest.
    """
    nodes = walk.capture.module.graph.nodes
    used = {walk.capture.parameters.get(n.name) for n in nodes if n.op == "placeholder" and n.users}
    unused = sorted({names[n] for n, p in view.named_parameters() if p.ndim and names.get(n, n) not in used})
    if not unused:
        return False
    twice = doubled(inputs)
    try:
        graph = _named(capture(shadow(view).train(), twice), names)
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        why = f"'{unused[0]}' is used in training only, and the training graph cannot be captured ({first[0][:120]})"
        for value in walk.tensors.values():
            for axis in value.axes:
                walk.space.freeze(axis, Reason(why))
        return False
    other = Walk(graph, RULES, space=walk.space, tensors=walk.tensors, path="train:")
    other.run()
    walk.training = other
    return True


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
    training: bool,
    inputs: Inputs,
    aliases: dict[str, tuple[str, ...]],
    opaque: dict[str, list[Any]],
) -> tuple[Analysis, list[list[Member]]]:
    """Solve, try half of everything on shapes, tie or freeze what is to blame, until the trial passes."""
    tried: set[tuple[object, str]] = set()
    hints = Hints()
    tries: list[Hints] = []

    def analyse(units: Units, hints: Hints) -> Analysis:
        rules, disputes = find_attributes(view, walk, units, hints)
        return Analysis(
            walk, units, rules, disputes, _tuples(view, rules), aliases, find_spans(walk, units), {}, inputs, opaque
        )

    def attempt(analysis: Analysis) -> Failure | None:
        choice = probe(analysis)
        if not choice:
            return None
        return try_plan(view, analysis, choice) or (try_training(view, analysis, choice) if training else None)

    def learn(analysis: Analysis, failure: Failure, choices: Iterable[Hints]) -> Hints | None:
        """The first hint with which the trial comes further."""
        for hint in choices:
            if hint == hints or len(tries) == _TRIES:
                continue
            tries.append(hint)
            if further(analysis, failure, attempt(analyse(analysis.units, hint))):
                return hint
        return None

    def accident(analysis: Analysis, failure: Failure) -> Hints | None:
        names = coincidences(analysis, failure)
        return learn(analysis, failure, (replace(hints, coincidences=hints.coincidences | n) for n in names))

    def check(analysis: Analysis, failure: Failure) -> Hints | None:
        return learn(analysis, failure, [replace(hints, checks=hints.checks | {pattern(failure.module)})])

    for turn in range(_ROUNDS):
        units, members = find_units(walk, walk.space.solve())
        analysis = analyse(units, hints)
        failure = attempt(analysis)
        if failure is None:
            return analysis, members
        remedies: list[Callable[[Analysis, Failure], list[tuple[Axis, Axis]] | Hints | None]]
        remedies = [accident, ties, settle_disputes] if failure.still else [ties, settle_disputes, check, accident]
        found: list[tuple[Axis, Axis]] | Hints | None = None
        for find in remedies:
            if not found and (find, failure.source) not in tried:
                found = find(analysis, failure)
                if not isinstance(found, Hints):  # a hint makes the next one at the same line possible
                    tried.add((find, failure.source))
        _LOG.debug("trial: %s; %s", failure, found if isinstance(found, Hints) else f"{len(found or ())} axes tied")
        if isinstance(found, Hints):
            hints = found
        elif found:
            walk.space.edges.extend(found)
        else:
            guilty = blame(analysis, failure) if turn < _ROUNDS - 2 else everything(analysis, failure)
            for axis, reason in guilty:
                walk.space.freeze(axis, reason)
    raise CaptureError(
        "The network could not be narrowed in any way that captures.", "Please report it with the model."
    )


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


def _structure(model: nn.Module, analysis: Analysis, members: list[list[Member]]) -> Structure:
    walk, units = analysis.walk, analysis.units
    analysis = replace(analysis, norms=_norms(model, units, members))
    layers = make_layers(walk, units)
    groups = make_groups(walk, units, members, layers)
    return Structure(
        groups=tuple(groups),
        frozen=_frozen(walk, units),
        layers=layers,
        blocks=make_blocks(walk, units, analysis.spans, layers),
        fingerprint=_fingerprint(walk, groups, layers),
        parameters=sum(p.numel() for p in model.parameters()),
        analysis=analysis,
    )


def _frozen(walk: Walk, units: Units) -> tuple[Frozen, ...]:
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
    return tuple(
        Frozen(_what(layers), why, operator, source, tuple(dict.fromkeys(layers)))
        for (why, operator, source), layers in found.items()
    )


def _what(layers: Sequence[str]) -> str:
    more = len(set(layers)) - 1
    return f"outputs of {layers[0]}" + (f" and {more} more" if more else "")


def _fingerprint(walk: Walk, groups: Sequence[Group], layers: Sequence[Layer]) -> str:
    """A hash of the operators, the sizes and the groups; not of the weights."""
    facts = {
        "operators": [operator_name(n) for n in walk.nodes.values() if n.op == "call_function"],
        "tensors": {name: value.shape for name, value in walk.tensors.items()},
        "groups": [[g.name, g.size, [[m.parameter, m.axis, m.indices.shape[1]] for m in g.members]] for g in groups],
        "layers": [la.name for la in layers],
    }
    return "sha256:" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
