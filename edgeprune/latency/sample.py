"""Whole-network sampling: profile and time narrowed networks on the device, interleaved with an anchor.

The protocol, against a device whose speed drifts and that others may be using:

- The network with half of every width is the anchor: it is timed with every batch of variants, in the same interleaved
  short rounds. The dense network would be a bad clock: where its weights do not fit the core's own cache, neighbours
  move it by tens of percent and spare everything else.
- End to end, a variant is recorded as a *ratio* to the anchor of the same rounds, times the anchor's own ratio to the
  dense network, which is measured again after each pass: so drift cancels.
- A device that is shared or throttled has several paces; rounds at the fastest one count (`rounds.py`), and what was
  timed at a slower one is timed again later.
- A noisy batch is timed again. A network whose latency still cannot be told within `Effort.max_spread` is timed again
  after the others, at another time and with more rounds, and every round counts, for as long as there is `Patience`.
  What is still doubtful then goes into the table with its interval, and counts by it.

One whole network gives as many cells as it has kernels, each with its true neighbours, layout and cache state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from edgeprune.devices import Device
from edgeprune.graph import DENSE, Configuration
from edgeprune.latency.build import ArtifactBuilder, Built
from edgeprune.latency.noise import Patience
from edgeprune.latency.rounds import Measured, Pace
from edgeprune.latency.sites import find_sites
from edgeprune.latency.spread import measured, shares, side_by_side
from edgeprune.latency.table import NetworkRuns, Run, Table
from edgeprune.latency.timing import Effort, attribute, cells, profiler_cost, raw, record, today
from edgeprune.latency.variants import floor, half

log = logging.getLogger(__name__)

AGAIN = 2  # passes over networks that were too noisy, whatever the patience
MOST_ROUNDS = 96  # of one measurement
USELESS = 0.5  # half of a ratio's interval, relative: nothing is learnt from a run that is known no better

Progress = Callable[[int, int, str], None]  # done, of how many, what


def start(
    table: Table, device: Device, maker: ArtifactBuilder, effort: Effort, pace: Pace | None = None
) -> tuple[Table, Built]:
    """Build the anchor. The first time, profile and time the dense network, and record its sites and its latency.

    Returns the table and the anchor; `pace` then knows what the anchor takes of the dense network's latency.
    """
    pace = Pace() if pace is None else pace
    anchor = maker.build(half(maker.structure, maker.target.channels), "anchor")
    if maker.network not in table.networks:
        table = _first(table, device, maker, anchor, effort, pace)
    known = {run.key: run.ratio for run in table.networks[maker.network].runs}
    if (key := anchor.variant.key) not in known:  # a table of a version whose anchor was the dense network
        known[key] = pace.weigh(_dense(device, maker, anchor, effort, pace))
        table = table.with_runs(maker.network, [Run.of(anchor.variant, known[key], 0.01, today())])
    pace.share = known[key]
    if pace.dense is None and pace.earlier is None:
        pace.earlier = pace.share
    return table, anchor


def _first(table: Table, device: Device, maker: ArtifactBuilder, anchor: Built, effort: Effort, pace: Pace) -> Table:
    """The table with the dense network and the anchor."""
    dense = maker.build(DENSE, "dense") if anchor.variant != DENSE else anchor
    narrowest = maker.build(floor(maker.structure, maker.target.channels, blocks=False), "narrowest")
    together = [anchor, *([dense] if dense is not anchor else []), narrowest]
    more = dataclasses.replace(effort, passes=max(4, effort.passes), rounds=2 * effort.rounds)
    try:
        found = side_by_side(device, together, maker, more, pace)
    finally:
        for one in together[1:]:
            maker.forget(one)
    whole, least_of_all = found[-2:]
    cost = profiler_cost(raw(least_of_all, table, maker), least_of_all.latency)
    joined = attribute(raw(whole, table, maker), whole.latency, cost)
    sites = find_sites(joined, dense.network, maker.structure, maker.examples())
    runs = [Run.of(DENSE, 1.0, 0.01, today())]
    if dense is not anchor:
        runs.append(Run.of(anchor.variant, pace.weigh(whole), 0.01, today()))
    table = table.with_cells(cells([joined]))
    return table.with_network(maker.network, NetworkRuns(whole.latency, cost, sites, tuple(runs)))


def _dense(device: Device, maker: ArtifactBuilder, anchor: Built, effort: Effort, pace: Pace) -> Measured:
    """The dense network beside the anchor."""
    more = dataclasses.replace(effort, rounds=2 * effort.rounds)
    dense = maker.build(DENSE, "dense")
    try:
        return side_by_side(device, [anchor, dense], maker, more, pace, profile=False)[1]
    finally:
        maker.forget(dense)


def _weighed(table: Table, device: Device, maker: ArtifactBuilder, anchor: Built, effort: Effort, pace: Pace) -> Table:
    """The dense network once more, at another time, and every ratio to it mended."""
    if anchor.variant == DENSE or table.unit == "instructions":
        return table
    before = pace.share
    by = pace.weigh(_dense(device, maker, anchor, effort, pace)) / before
    runs = [run for run in table.networks[maker.network].runs if run.configuration != DENSE]
    return table.with_runs(maker.network, [dataclasses.replace(run, ratio=run.ratio * by) for run in runs])


def extend(
    table: Table,
    device: Device,
    maker: ArtifactBuilder,
    variants: Sequence[Configuration],
    effort: Effort | None = None,
    progress: Progress | None = None,
    keep: Callable[[Table], None] | None = None,
    pace: Pace | None = None,
    patience: Patience | None = None,
) -> Table:
    """Measure variants and add their cells and runs to the table.

    What stays noisy is measured again, with more rounds, while there is patience; then it is kept with its interval,
    which says how much it counts. So a noisy device gives a table that knows less, and no error.

    Args:
        table: networks that it has runs of already are not measured again, so an interrupted call resumes.
        effort: default by the dense network's latency.
        progress: called after each batch.
        keep: called with the table after each batch, to save it.
        pace: the device's, as measurements before this one have seen it.
        patience: how much longer than on a quiet device it may take; without it, AGAIN passes over what is noisy.

    Raises DeviceError for the device's own trouble.
    """
    pace, patience = pace or Pace(), patience or Patience()
    table, anchor = start(table, device, maker, effort or Effort(), pace)
    effort = (effort or Effort()).for_latency(table.networks[maker.network].dense, table.unit)
    known = {run.key for run in table.networks[maker.network].runs}
    wanted = {variant.key: variant for variant in variants if variant.key not in known}
    waiting, every = list(wanted), dict[str, tuple[str, Measured]]()
    for attempt in itertools.count():
        with contextlib.ExitStack() as stack:
            if attempt:
                stack.enter_context(patience.again())
            batches = shares(device, [wanted[key] for key in waiting], effort.batch)
            results = stack.enter_context(contextlib.closing(measured(device, maker, anchor, batches, effort, pace)))
            for board, found in results:
                for i, one in enumerate(found[1:], 1):
                    found[i] = _with_before(every, board, one)
                table = record(table, maker, found, effort.max_spread)
                _tell(table, maker, found, wanted, effort, progress, keep)
                if attempt >= AGAIN and not patience.left:
                    break
        if waiting:
            table = _weighed(table, device, maker, anchor, effort, pace)
        known_now = {key: pace.on(board).known(one) for key, (board, one) in every.items()}
        refused, again = _doubtful(known_now, effort)
        waited = attempt and not refused and len(again) == len(waiting)  # a slow pace is waited for once
        if not again or waited or (attempt >= AGAIN and not patience.left):
            break
        if refused and patience.left:
            widest = max(known_now[key].spread for key in refused)
            patience.tell(device, f"{len(refused)} of {len(wanted)} latencies are good to {100 * widest:.0f} % only")
        effort, waiting = dataclasses.replace(effort, rounds=min(2 * effort.rounds, MOST_ROUNDS)), again
    doubtful = [known_now[key] for key in refused]
    return record(table, maker, [found[0], *doubtful], USELESS) if doubtful else table


def _with_before(every: dict[str, tuple[str, Measured]], board: str, one: Measured) -> Measured:
    """Together with what the same board measured of this network; rounds of two boards do not mix."""
    key = one.built.variant.key
    if key in every and every[key][0] == board:
        one = every[key][1].and_again(one)
    every[key] = board, one
    return one


def _tell(
    table: Table,
    maker: ArtifactBuilder,
    found: Sequence[Measured],
    wanted: Collection[str],
    effort: Effort,
    progress: Progress | None,
    keep: Callable[[Table], None] | None,
) -> None:
    """Save the table after a batch, and say how far the sampling is and why some of it is noisy."""
    noisy = [one for one in found[1:] if one.spread > effort.max_spread]
    if noisy:
        log.info("%s", _reason(noisy, effort))
    if progress:
        measured = {run.key for run in table.networks[maker.network].runs}
        progress(sum(key in measured for key in wanted), len(wanted), _reason(noisy, effort))
    if keep:
        keep(table)


def _doubtful(found: Mapping[str, Measured], effort: Effort) -> tuple[list[str], list[str]]:
    """The networks that are too noisy, and all that should be measured again: those of a slow pace too."""
    refused = [key for key, one in found.items() if one.spread > effort.max_spread]
    slow = [key for key, one in found.items() if not one.at_pace]
    if slow:
        log.info("%d networks were timed while the device was slower than at other times", len(slow))
    return refused, list(dict.fromkeys([*refused, *slow]))


def settle(
    table: Table,
    device: Device,
    maker: ArtifactBuilder,
    variants: Sequence[Configuration],
    effort: Effort | None = None,
    pace: Pace | None = None,
) -> Table:
    """Measure networks that the table has already twice more, at other times; the median of the three counts.

    What else a machine does for a second or two can slow one network by a fifth and spare its anchor, and every round
    agrees: nothing within one measurement tells. Raises DeviceError.
    """
    effort, pace = (effort or Effort()).for_latency(table.networks[maker.network].dense, table.unit), pace or Pace()
    once = dataclasses.replace(effort, retries=0)
    ratios: dict[str, list[float]] = {
        run.key: [run.ratio] for run in table.networks[maker.network].runs if run.key in {v.key for v in variants}
    }
    table, anchor = start(table, device, maker, effort, pace)
    twice = shares(device, variants, effort.batch) * 2
    for _, found in measured(device, maker, anchor, twice, once, pace):
        for again in found[1:]:
            ratios.setdefault(again.built.variant.key, []).append(again.ratio)
        table = record(table, maker, found, effort.max_spread)
    runs = [run for run in table.networks[maker.network].runs if run.key in ratios]
    middle = [dataclasses.replace(run, ratio=float(np.median(ratios[run.key]))) for run in runs]
    return table.with_runs(maker.network, middle)


def _reason(noisy: Sequence[Measured], effort: Effort) -> str:
    if not noisy:
        return "networks timed"
    widest = max(one.spread for one in noisy)
    return f"latencies are good to {100 * widest:.0f} % so far, wanted are {100 * effort.max_spread:.0f} %"
