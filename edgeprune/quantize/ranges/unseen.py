"""Widening ranges that unseen examples exceed: each example is held out in turn, against the ranges of all the others.

Only the one that reaches furthest in a tensor lies beyond the others' range there, and an example that nobody has seen
does so one time in as many as there are, by about as much. Where activations follow the size of the input, as in
super-resolution and other networks of regression, that may be far; behind a Clip or a Sigmoid it is nothing. What
cutting it off costs is carried to the outputs by gradients (influence.py) and weighed, one time in as many as there are
examples, against the wider steps that all of them would pay for. Imports torch when there is something to weigh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import onnx

from edgeprune.errors import GraphError
from edgeprune.quantize.effort import Effort, affordable
from edgeprune.quantize.feeds import Counted, Feed, Images, feeds
from edgeprune.quantize.ranges.grids import QParams, qparams
from edgeprune.quantize.ranges.observe import Watched
from edgeprune.quantize.ranges.ranges import non_negative
from edgeprune.quantize.ranges.select import Proposal, user_overrides
from edgeprune.quantize.view import View
from edgeprune.quantize.write.placement import Placement
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import Dialect

if TYPE_CHECKING:
    from edgeprune.quantize.ranges.outputs import Distance

WIDER = (1.0, 1.1, 1.25, 1.5, 2.0)  # times the full range
FULL = 0.95  # of what was seen: a range that covers less was chosen to cut values off
BEYOND = 0.02  # of the others' range; what exceeds it by less costs a step or two
JUDGED = (4, 8)  # examples that are held out and looked at, those that reach furthest
SLOPES = 4  # gradients an example: one example decides, where select.py takes the mean of many
FURTHEST = 10.0  # times the others' range: what is said of those that were silent
GAIN = 0.9  # of the expected noise must be left at most, or the range stays
FEWEST = 4  # examples: held against fewer, one says nothing
Chosen = dict[str, tuple[Proposal, dict[str, float]]]


@dataclass(frozen=True)
class HeldOut:
    """One example that exceeds the range which all others give a group of tensors.

    Attributes:
        example: its number.
        low, high: the range of the others.
        beyond: how far it reaches past that, as a share of it.
    """

    example: int
    low: float
    high: float
    beyond: float


def widened(
    model: onnx.ModelProto,
    placement: Placement,
    chosen: Chosen,
    seen: Mapping[str, Watched],
    images: Images,
    count: int,
    dialect: Dialect,
    options: QuantizeSection,
    distance: Distance | None = None,
    warnings: list[str] | None = None,
) -> Chosen:
    """`chosen` with wider ranges where an example that was not seen costs less so; for method "auto" alone.

    Args:
        count: examples that were seen.
        warnings: takes a line on what was widened.
    """
    view = View.of(model)
    found = _exceeded(view, placement, chosen, seen, options) if count >= FEWEST else {}
    factors = _factors(model, placement, chosen, found, images, count, dialect, options.effort, distance)
    result = dict(chosen)
    for name, factor in factors.items():
        before, scores = chosen[name]
        low, high = factor * before.low, factor * before.high
        grid = _grid(view, placement, name, low, high, dialect)
        result[name] = Proposal(f"{factor:.2f} of {before.method}", low, high, grid), scores
    if factors and warnings is not None:
        furthest = max(factors, key=lambda name: max(one.beyond for one in found[name]))
        warnings.append(
            f"unseen inputs are expected beyond {len(factors)} of the ranges: of the {count} calibration examples one "
            f"reaches {max(one.beyond for one in found[furthest]):.0%} past all others in '{furthest}'. They are "
            f"widened, by a factor of up to {max(factors.values()):g}; more examples let them be narrower."
        )
    return result


def _exceeded(
    view: View, placement: Placement, chosen: Chosen, seen: Mapping[str, Watched], options: QuantizeSection
) -> dict[str, list[HeldOut]]:
    """The groups whose full range is used and given by one example alone, with these examples."""
    if options.method != "auto":
        return {}
    by_user = user_overrides(view, placement, options)
    found = {}
    for name, members in placement.groups.items():
        low, high = _range([seen[member] for member in members])
        proposal = chosen[name][0]
        if name in by_user or proposal.low > FULL * low or proposal.high < FULL * high:
            continue
        furthest = {ends[0][1] for m in members for ends in (seen[m].tops, seen[m].bottoms) if ends}
        events = [_held_out(example, [seen[member] for member in members]) for example in sorted(furthest)]
        if events := [event for event in events if event.beyond > BEYOND]:
            found[name] = events
    return found


def _held_out(example: int, members: Sequence[Watched]) -> HeldOut:
    (low, high), (least, most) = _range(members, example), _range(members)
    span = max(high - low, 1e-30)
    return HeldOut(example, low, high, min(max(low - least, most - high) / span, FURTHEST))


def _range(members: Sequence[Watched], without: int = -1) -> tuple[float, float]:
    """What all examples but one reach, zero among it."""
    lows = [value for one in members for value, example in one.bottoms if example != without]
    highs = [value for one in members for value, example in one.tops if example != without]
    return min([0.0, *lows]), max([0.0, *highs])


def _factors(
    model: onnx.ModelProto,
    placement: Placement,
    chosen: Chosen,
    found: Mapping[str, Sequence[HeldOut]],
    images: Images,
    count: int,
    dialect: Dialect,
    effort: Effort,
    distance: Distance | None,
) -> dict[str, float]:
    """The groups that are better wider, and by how much."""
    view = View.of(model)
    far: dict[int, float] = {}
    for event in (event for events in found.values() for event in events):
        far[event.example] = far.get(event.example, 0.0) + event.beyond
    most = affordable(view, count, JUDGED, 1 + 2 * SLOPES, effort)
    judged = _examples(view, images, sorted(far, key=lambda example: (-far[example], example))[:most], count)
    cut = {name: np.zeros(len(WIDER)) for name in found}
    rounding: dict[str, list[float]] = {name: [] for name in found}
    wide = np.array(WIDER)
    for example, feed in judged.items():
        held = {name: one for name, events in found.items() for one in events if one.example == example}
        grids = {
            name: [
                chosen[name][0].grid,
                *(_grid(view, placement, name, f * one.low, f * one.high, dialect) for f in WIDER),
            ]
            for name, one in held.items()
        }
        others = [feed, *(other for number, other in judged.items() if number != example)]
        for name, (exact, *noises) in _noises(model, placement, grids, others, distance).items():
            cut[name] += np.maximum(np.array(noises) - wide**2 * exact, 0.0) / count
            rounding[name].append(exact)
    factors = {}
    for name, exacts in rounding.items():
        if exacts:
            costs = wide**2 * float(np.mean(exacts)) + cut[name]
            best = int(costs.argmin())
            if costs[best] < GAIN * costs[0]:
                factors[name] = WIDER[best]
    return factors


def _examples(view: View, images: Images, wanted: Sequence[int], count: int) -> dict[int, Feed]:
    """The examples of these numbers, as the graph reads them."""
    if not wanted:
        return {}
    source = images.source if isinstance(images, Counted) else images
    found = {}
    done = 0
    for feed, real in islice(feeds(view, source, count), max(wanted) + 1):
        found.update({number: feed for number in wanted if done <= number < done + real})
        done += real
    return found


def _grid(view: View, placement: Placement, name: str, low: float, high: float, dialect: Dialect) -> QParams:
    """The grid of a group of tensors with this range."""
    positive = all(non_negative(view, member) for member in placement.groups[name])
    return qparams(low, high, dialect, positive, name in placement.even)


def _noises(
    model: onnx.ModelProto,
    placement: Placement,
    grids: Mapping[str, list[QParams]],
    examples: Sequence[Feed],
    distance: Distance | None,
) -> dict[str, list[float]]:
    """Noise over signal at the outputs that each grid makes of the first example; nothing where no gradient passes."""
    from edgeprune.quantize.ranges.influence import costs  # imports torch

    groups = {name: (placement.groups[name], choices) for name, choices in grids.items()}
    try:
        return costs(model, groups, examples, len(next(iter(examples[0].values()))), SLOPES, distance)
    except GraphError:
        return {}
