"""Choosing a range for each tensor: one method for all, or, with "auto", the range that does least harm.

"auto": each method proposes a range, and so do parts of the full one; for every proposal the error that rounding the
tensor to it makes is carried to the leads of the first class by gradients (influence.py), and the one with the least
noise there wins. Where no gradient reaches a tensor, it is judged by the outputs of the nodes that read it (probe.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx

from edgeprune.errors import GraphError
from edgeprune.quantize.effort import Effort, affordable
from edgeprune.quantize.feeds import Images
from edgeprune.quantize.ranges.grids import QParams, qparams
from edgeprune.quantize.ranges.methods import METHODS, Method, choose
from edgeprune.quantize.ranges.observe import Watched
from edgeprune.quantize.ranges.probe import Experiment, probe, sqnr_db
from edgeprune.quantize.ranges.ranges import TensorRange, non_negative
from edgeprune.quantize.view import View
from edgeprune.quantize.write.placement import Placement, heads
from edgeprune.recipe import LayerOverride, QuantizeSection
from edgeprune.runtimes import Dialect

if TYPE_CHECKING:
    from edgeprune.quantize.ranges.outputs import Distance

PROBED = (24, 96)  # images that a comparison of methods sees, whatever they cost, and at most
SLOPES = (2, 4)  # gradients an image: where it costs much, and where all images that are wanted are looked at anyway
PASSES = 1 + 2 * SLOPES[0]  # runs of the network that an image costs
LIKE = 2.0  # times a range: what it is joined with may be so much larger and shares its own
PARTS = (0.85, 0.7, 0.6, 0.5, 0.4, 0.32, 0.25, 0.2)  # of the full range, which "auto" tries as well


@dataclass(frozen=True)
class Proposal:
    """A range that a method proposes for one group of tensors."""

    method: str
    low: float
    high: float
    grid: QParams


def alike(view: View, placement: Placement, seen: Mapping[str, Watched], dialect: Dialect) -> Placement:
    """`placement` with one range for what a Concat joins and what others read too, where both are of about one size.

    A Concat of ONNX Runtime takes a scale for each input; with the same one it copies bytes and looks up none.
    """
    if not dialect.outputs:
        return placement
    found = placement
    for node in view.nodes:
        if placement.nodes.get(node.name) != "join":
            continue
        joined = found.scale_of.get(view.settled(node.output[0]))
        for name in node.input:
            alone = found.scale_of.get(name)
            if joined is None or alone is None or alone == joined:
                continue
            kinds = {non_negative(view, one) for one in (*found.groups[joined], *found.groups[alone])}
            if len(kinds) == 1 and LIKE * _span(seen, found.groups[alone]) >= _span(seen, found.groups[joined]):
                found = _united(found, joined, alone)
    return found


def _span(seen: Mapping[str, Watched], members: Sequence[str]) -> float:
    """From the least to the largest of what was seen of a group, zero among it."""
    return max(0.0, *(seen[one].maximum for one in members)) - min(0.0, *(seen[one].minimum for one in members))


def _united(placement: Placement, one: str, other: str) -> Placement:
    """`placement` with the groups of two representatives made one."""
    groups = {name: members for name, members in placement.groups.items() if name != other}
    groups[one] = (*groups[one], *placement.groups[other])
    scale_of = {tensor: one if name == other else name for tensor, name in placement.scale_of.items()}
    return replace(placement, groups=groups, scale_of=scale_of)


def propose(
    view: View, placement: Placement, seen: Mapping[str, Watched], dialect: Dialect, options: QuantizeSection
) -> dict[str, list[Proposal]]:
    """For each group of tensors that share a range, by its representative: what the methods, or the user, propose."""
    overrides = user_overrides(view, placement, options)
    found: dict[str, list[Proposal]] = {}
    last = heads(view, placement.tensors)
    for representative, members in placement.groups.items():
        override = overrides.get(representative, LayerOverride())
        positive = all(non_negative(view, member) for member in members)
        ranges: list[tuple[str, float, float]] = []
        if override.range is not None:
            ranges = [("user", *override.range)]
        else:
            method = override.method or options.method
            if method == "auto" and last & set(members):
                method = "minmax"  # what is cut off there is missing in the output: a box, a bright spot
            for name in METHODS if method == "auto" else (method,):
                ends = [choose(name, seen[member], dialect, options.percentile) for member in members]
                ranges.append((name, min(low for low, _ in ends), max(high for _, high in ends)))
            if method == "auto":
                ranges += [(f"{part:.2f} of minmax", part * ranges[0][1], part * ranges[0][2]) for part in PARTS]
        even = representative in placement.even
        found[representative] = _distinct(
            [Proposal(name, low, high, qparams(low, high, dialect, positive, even)) for name, low, high in ranges]
        )
    return found


def user_overrides(view: View, placement: Placement, options: QuantizeSection) -> dict[str, LayerOverride]:
    """The user's overrides by the representative of what the layer reads."""
    by_name = {node.name: node for node in view.nodes}
    found = {}
    for name, override in options.layers.items():
        if override.range is None and override.method is None:
            continue
        for index in view.data_inputs(by_name[name]):
            tensor = placement.read_by(view, by_name[name], index)
            if tensor is not None:
                found[placement.scale_of[tensor]] = override
    return found


def _distinct(proposals: list[Proposal]) -> list[Proposal]:
    """Without those that round nearly as an earlier one does: steps and ends within 2 %."""
    kept: list[Proposal] = []
    for one in proposals:
        near = 0.02 * (one.high - one.low)
        if all(abs(one.low - other.low) > near or abs(one.high - other.high) > near for other in kept) or not kept:
            kept.append(one)
    return kept


def select(
    model: onnx.ModelProto,
    placement: Placement,
    proposals: Mapping[str, list[Proposal]],
    images: Images,
    limit: int,
    effort: Effort = "default",
    distance: Distance | None = None,
    warnings: list[str] | None = None,
) -> dict[str, tuple[Proposal, dict[str, float]]]:
    """The best proposal for each group, and the decibels that each reached (empty where there was no choice).

    Args:
        warnings: takes a line where gradients did not reach everything.
    """
    several = {name: choices for name, choices in proposals.items() if len(choices) > 1}
    noise = _noises(model, placement, several, images, limit, effort, distance, warnings) if several else {}
    chosen = {}
    for name, choices in proposals.items():
        scores = {c.method: sqnr_db(1.0, ratio) for c, ratio in zip(choices, noise.get(name, ()), strict=name in noise)}
        best = max(choices, key=lambda choice: scores.get(choice.method, 0.0)) if scores else choices[0]
        chosen[name] = best, {method: round(value, 3) for method, value in scores.items()}
    return chosen


def _noises(
    model: onnx.ModelProto,
    placement: Placement,
    several: Mapping[str, list[Proposal]],
    images: Images,
    limit: int,
    effort: Effort,
    distance: Distance | None,
    warnings: list[str] | None,
) -> dict[str, list[float]]:
    """Noise over signal that each proposal makes at the outputs; at the readers where no gradient reaches it."""
    from edgeprune.quantize.ranges.influence import Reach, costs  # imports torch

    view = View.of(model)
    groups = {name: (placement.groups[name], [c.grid for c in choices]) for name, choices in several.items()}
    reach = Reach()
    try:
        most, fewer = (affordable(view, limit, PROBED, 1 + 2 * slopes, effort) for slopes in reversed(SLOPES))
        every = most == affordable(view, limit, PROBED, 0, effort)
        seen, slopes = (most, SLOPES[1]) if every else (fewer, SLOPES[0])
        found = costs(model, groups, images, seen, slopes, distance, reach)
    except GraphError:
        found = {}
    left = {name: choices for name, choices in several.items() if name not in found}
    if left and warnings is not None:
        inside = [f"'{node.name}' ({node.op_type})" for node in view.nodes if node.name in reach.beyond]
        where = f" through {', '.join(inside[:3])}" if inside else ""
        warnings.append(f"no gradient passes{where}: {len(left)} ranges are chosen at the operators that read them.")
    if left:
        found |= _at_readers(model, placement, left, images, affordable(view, limit, PROBED, 4, effort))
    return found


def _at_readers(
    model: onnx.ModelProto, placement: Placement, several: Mapping[str, list[Proposal]], images: Images, limit: int
) -> dict[str, list[float]]:
    """Noise over signal at the outputs of the nodes that read the tensors, their mean."""
    view = View.of(model)
    by_name = {node.name: node for node in view.nodes}
    experiments: list[Experiment] = []
    owners: list[tuple[str, int]] = []
    for name, choices in several.items():
        readers = [
            edge
            for edge, tensor in placement.edges.items()
            if placement.scale_of[tensor] == name
            and tensor == by_name[edge[0]].input[edge[1]]
            and any(view.is_float(output) for output in by_name[edge[0]].output if output)
        ]
        for position, choice in enumerate(choices):
            found = [Experiment(node, {index: choice.grid}) for node, index in readers]
            # what only the outside, or a comparison, reads is judged by itself
            found = found or [Experiment("", {0: choice.grid}, tensor=tensor) for tensor in placement.groups[name]]
            experiments += found
            owners += [(name, position)] * len(found)
    noises: dict[tuple[str, int], list[float]] = {}
    for owner, outcome in zip(owners, probe(model, experiments, images, limit), strict=True):
        noises.setdefault(owner, []).append(10 ** (-outcome.sqnr_db / 10))
    return {name: [float(np.mean(noises[name, i])) for i in range(len(choices))] for name, choices in several.items()}


def tensor_range(seen: Watched, proposal: Proposal, scores: Mapping[str, float]) -> TensorRange:
    """The record of one tensor: its range, and the evidence for it."""
    histogram = seen.histogram
    return TensorRange(
        low=proposal.low,
        high=proposal.high,
        method=proposal.method,
        minimum=seen.minimum,
        maximum=seen.maximum,
        sqnr_db=scores.get(proposal.method),
        candidates=dict(scores),
        counts=tuple(int(count) for count in histogram.counts),
        start=histogram.start * histogram.width,
        width=histogram.width,
    )


__all__ = ["Method", "Proposal", "propose", "select", "tensor_range"]
