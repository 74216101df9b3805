"""Whole-network sampling: profile and time narrowed networks on the device, interleaved with an anchor.

The protocol, against a device whose speed drifts and that others may be using:

- The network with half of every width is the anchor: it is timed with every batch of variants, in the same interleaved
  short rounds. The dense network would be a bad clock: where its weights do not fit the core's own cache, neighbours
  move it by tens of percent and spare everything else.
- End to end, a variant is recorded as a *ratio* to the anchor of the same rounds, times the anchor's own ratio to the
  dense network, which is measured again after each pass: so drift cancels.
- A device that is shared or throttled has several paces; rounds at the fastest one count (`rounds.py`), and what was
  timed at a slower one is timed again later.
- A noisy batch is timed again. A network whose latency still cannot be told within `Effort.max_spread` is refused and
  said so. While that happens to half of all, they are timed again after the others, and every round counts; in the
  end MeasurementError.

One whole network gives as many cells as it has kernels, each with its true neighbours, layout and cache state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from edgeprune.devices.types import Device
from edgeprune.errors import MeasurementError
from edgeprune.latency.build import Built, Maker
from edgeprune.latency.rounds import Measured, Pace
from edgeprune.latency.sites import find_sites
from edgeprune.latency.table import Record, Run, Table
from edgeprune.latency.timing import Effort, attribute, cells, measure_quietly, profiler_cost, raw, record, today
from edgeprune.latency.variants import DENSE, Variant, floor, half

log = logging.getLogger(__name__)

ATTEMPTS = 3  # at networks that were too noisy, while they are more than half

T = TypeVar("T")
Progress = Callable[[int, int, str], None]  # done, of how many, what


@contextlib.contextmanager
def kept_open(device: Device, anchor: Built) -> Iterator[None]:
    """The anchor stays loaded between measurements: opening it again takes as long as timing it."""
    loaded = device.load(anchor.artifact)
    try:
        yield
    finally:
        device.unload(loaded)


def start(table: Table, device: Device, maker: Maker, effort: Effort, pace: Pace | None = None) -> tuple[Table, Built]:
    """Build the anchor. The first time, profile and time the dense network, and record its sites and its latency.

    Returns the table and the anchor; `pace` then knows what the anchor takes of the dense network's latency.
    """
    pace = Pace() if pace is None else pace
    anchor = maker.build(half(maker.structure, maker.target.channels), "anchor")
    if maker.network not in table.networks:
        table = _first(table, device, maker, anchor, effort, pace)
    known = {run.key: run.ratio for run in table.networks[maker.network].runs}
    if (key := _key(anchor.variant)) not in known:  # a table of a version whose anchor was the dense network
        known[key] = pace.weigh(_dense(device, maker, anchor, effort, pace))
        table = table.with_runs(maker.network, [Run(dict(anchor.variant.widths), (), known[key], 0.01, today())])
    pace.share = known[key]
    if pace.dense is None and pace.earlier is None:
        pace.earlier = pace.share
    return table, anchor


def _first(table: Table, device: Device, maker: Maker, anchor: Built, effort: Effort, pace: Pace) -> Table:
    """The table with the dense network and the anchor."""
    dense = maker.build(DENSE, "dense") if anchor.variant != DENSE else anchor
    narrowest = maker.build(floor(maker.structure, maker.target.channels, blocks=False), "narrowest")
    together = [anchor, *([dense] if dense is not anchor else []), narrowest]
    more = dataclasses.replace(effort, passes=max(4, effort.passes), rounds=2 * effort.rounds)
    try:
        found = measure_quietly(device, together, maker.target.protocol, more, pace)
    finally:
        for one in together[1:]:
            maker.forget(one)
    whole, least_of_all = found[-2:]
    cost = profiler_cost(raw(least_of_all, table, maker), least_of_all.latency)
    joined = attribute(raw(whole, table, maker), whole.latency, cost)
    sites = find_sites(joined, dense.network, maker.structure)
    runs = [Run({}, (), 1.0, 0.01, today())]
    if dense is not anchor:
        runs.append(Run(dict(anchor.variant.widths), (), pace.weigh(whole), 0.01, today()))
    table = table.with_cells(cells([joined]))
    return table.with_network(maker.network, Record(whole.latency, cost, sites, tuple(runs)))


def _dense(device: Device, maker: Maker, anchor: Built, effort: Effort, pace: Pace) -> Measured:
    """The dense network beside the anchor."""
    more = dataclasses.replace(effort, rounds=2 * effort.rounds)
    dense = maker.build(DENSE, "dense")
    try:
        return measure_quietly(device, [anchor, dense], maker.target.protocol, more, pace, profile=False)[1]
    finally:
        maker.forget(dense)


def _weighed(table: Table, device: Device, maker: Maker, anchor: Built, effort: Effort, pace: Pace) -> Table:
    """The dense network once more, at another time, and every ratio to it mended."""
    if anchor.variant == DENSE or table.unit == "instructions":
        return table
    before = pace.share
    by = pace.weigh(_dense(device, maker, anchor, effort, pace)) / before
    runs = [run for run in table.networks[maker.network].runs if run.widths or run.removed]
    return table.with_runs(maker.network, [dataclasses.replace(run, ratio=run.ratio * by) for run in runs])


def extend(
    table: Table,
    device: Device,
    maker: Maker,
    variants: Sequence[Variant],
    effort: Effort | None = None,
    progress: Progress | None = None,
    keep: Callable[[Table], None] | None = None,
    pace: Pace | None = None,
) -> Table:
    """Measure variants and add their cells and runs to the table.

    Args:
        table: networks that it has runs of already are not measured again, so an interrupted call resumes.
        effort: default by the dense network's latency.
        progress: called after each batch.
        keep: called with the table after each batch, to save it.
        pace: the device's, as measurements before this one have seen it.

    Raises:
        MeasurementError: half of the networks stayed too noisy, three times over.
        DeviceError: the device's own trouble.
    """
    pace = pace or Pace()
    table, anchor = start(table, device, maker, effort or Effort(), pace)
    effort = (effort or Effort()).for_latency(table.networks[maker.network].dense, table.unit)
    known = {run.key for run in table.networks[maker.network].runs}
    wanted = {_key(variant): variant for variant in variants if _key(variant) not in known}
    waiting, every, reason = list(wanted), dict[str, Measured](), ""
    for attempt in range(ATTEMPTS):
        with kept_open(device, anchor):
            for keys in _batches(waiting, effort.batch):
                with _built(maker, [wanted[key] for key in keys]) as built:
                    found = measure_quietly(device, [anchor, *built], maker.target.protocol, effort, pace)
                for i, key in enumerate(keys, 1):
                    found[i] = every[key] = every[key].and_again(found[i]) if key in every else found[i]
                table = record(table, maker, found, effort.max_spread)
                noisy = [one for one in found[1:] if one.spread > effort.max_spread]
                reason = _reason(noisy, effort) or reason
                if noisy:
                    log.info("%s", reason)
                if progress:
                    measured = {run.key for run in table.networks[maker.network].runs}
                    progress(sum(key in measured for key in wanted), len(wanted), reason if noisy else "")
                if keep:
                    keep(table)
        if waiting:
            table = _weighed(table, device, maker, anchor, effort, pace)
        known_now = {key: pace.known(one) for key, one in every.items()}
        refused = [key for key, one in known_now.items() if one.spread > effort.max_spread]
        slow = [key for key, one in known_now.items() if not one.at_pace]
        unquiet = len(refused) * 2 > max(2, len(wanted))
        again = list(dict.fromkeys([*(refused if unquiet else ()), *slow]))
        if slow:
            log.info("%d networks were timed while the device was slower than at other times", len(slow))
        if not again or (attempt and not unquiet and len(again) == len(waiting)):  # what stays slow is waited for once
            return table
        waiting = again
    if not unquiet:
        return table
    raise MeasurementError(
        f"{len(refused)} of {len(wanted)} networks could not be timed: {reason}.",
        "Close what else runs on the device, or lock its clocks, and profile again; what was good is kept.",
    )


def settle(
    table: Table,
    device: Device,
    maker: Maker,
    variants: Sequence[Variant],
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
        run.key: [run.ratio] for run in table.networks[maker.network].runs if run.key in {_key(v) for v in variants}
    }
    table, anchor = start(table, device, maker, effort, pace)
    with kept_open(device, anchor):
        for _ in range(2):
            for batch in _batches(variants, effort.batch):
                with _built(maker, batch) as built:
                    found = measure_quietly(device, [anchor, *built], maker.target.protocol, once, pace)
                for again in found[1:]:
                    ratios.setdefault(_key(again.built.variant), []).append(again.ratio)
                table = record(table, maker, found, effort.max_spread)
    runs = [run for run in table.networks[maker.network].runs if run.key in ratios]
    middle = [dataclasses.replace(run, ratio=float(np.median(ratios[run.key]))) for run in runs]
    return table.with_runs(maker.network, middle)


@contextlib.contextmanager
def _built(maker: Maker, variants: Sequence[Variant]) -> Iterator[list[Built]]:
    """Their artifacts, deleted afterwards."""
    built: list[Built] = []
    try:
        for i, variant in enumerate(variants):
            built.append(maker.build(variant, f"variant-{i}"))
        yield built
    finally:
        for one in built:
            maker.forget(one)


def _reason(noisy: Sequence[Measured], effort: Effort) -> str:
    if not noisy:
        return ""
    widest = max(one.spread for one in noisy)
    return f"the two halves of a measurement differ by {widest:.0%}, allowed are {effort.max_spread:.0%}"


def _key(variant: Variant) -> str:
    return Run(variant.widths, tuple(variant.removed), 0.0, 0.0, "").key


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
