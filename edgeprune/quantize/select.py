"""Choosing a range for each tensor: one method for all, or, with "auto", the method that hurts the readers least.

"auto": each method proposes a range; every proposal is measured by rounding the tensor to it and comparing the outputs
of the nodes that read it with their float outputs (probe.py). The proposal with the best signal to noise ratio wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from edgeprune.quantize.grids import Grid, grid
from edgeprune.quantize.methods import METHODS, Method, choose
from edgeprune.quantize.observe import Images, Watched
from edgeprune.quantize.placement import Placement
from edgeprune.quantize.probe import Experiment, Outcome, probe, sqnr_db
from edgeprune.quantize.ranges import TensorRange, non_negative
from edgeprune.quantize.view import View
from edgeprune.recipe import LayerOverride, QuantizeSection
from edgeprune.runtimes.dialects import Dialect

PROBED = 32  # images that a comparison of methods sees


@dataclass(frozen=True)
class Proposal:
    """A range that a method proposes for one group of tensors."""

    method: str
    low: float
    high: float
    grid: Grid


def propose(
    view: View, placement: Placement, seen: Mapping[str, Watched], dialect: Dialect, options: QuantizeSection
) -> dict[str, list[Proposal]]:
    """For each group of tensors that share a range, by its representative: what the methods, or the user, propose."""
    overrides = _overrides(view, placement, options)
    found: dict[str, list[Proposal]] = {}
    for representative, members in placement.groups.items():
        override = overrides.get(representative, LayerOverride())
        positive = all(non_negative(view, member) for member in members)
        ranges: list[tuple[str, float, float]] = []
        if override.range is not None:
            ranges = [("user", *override.range)]
        else:
            method = override.method or options.method
            for name in METHODS if method == "auto" else (method,):
                ends = [choose(name, seen[member], dialect, options.percentile) for member in members]
                ranges.append((name, min(low for low, _ in ends), max(high for _, high in ends)))
        found[representative] = _distinct(
            [Proposal(name, low, high, grid(low, high, dialect, positive)) for name, low, high in ranges]
        )
    return found


def _overrides(view: View, placement: Placement, options: QuantizeSection) -> dict[str, LayerOverride]:
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
    model: onnx.ModelProto, placement: Placement, proposals: Mapping[str, list[Proposal]], images: Images, limit: int
) -> dict[str, tuple[Proposal, dict[str, float]]]:
    """The best proposal for each group, and the decibels that each method reached (empty where there was no choice)."""
    experiments: list[Experiment] = []
    owners: list[tuple[str, int]] = []
    for representative, choices in proposals.items():
        if len(choices) < 2:
            continue
        for position, choice in enumerate(choices):
            for (node, index), tensor in placement.edges.items():
                if placement.scale_of[tensor] == representative:
                    experiments.append(Experiment(node, {index: choice.grid}))
                    owners.append((representative, position))
    outcomes = probe(model, experiments, images, min(limit, PROBED))
    noise: dict[tuple[str, int], list[Outcome]] = {}
    for owner, outcome in zip(owners, outcomes, strict=True):
        noise.setdefault(owner, []).append(outcome)
    chosen = {}
    for representative, choices in proposals.items():
        scores = {
            choice.method: _joint(noise[representative, position])
            for position, choice in enumerate(choices)
            if (representative, position) in noise
        }
        best = max(choices, key=lambda choice: scores.get(choice.method, 0.0)) if scores else choices[0]
        chosen[representative] = best, {name: round(value, 3) for name, value in scores.items()}
    return chosen


def _joint(outcomes: list[Outcome]) -> float:
    """Decibels of several readers together: the mean of their noise-to-signal ratios."""
    ratios = [10 ** (-outcome.sqnr_db / 10) for outcome in outcomes]
    return sqnr_db(1.0, sum(ratios) / len(ratios))


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
