"""Whole-network sampling: profile and time narrowed networks on the device, interleaved with the dense anchor.

The protocol, against a device whose speed drifts and that others may be using:

- The dense artifact is the anchor: it is timed with every batch of variants, in the same interleaved short rounds.
- End to end, a variant is recorded as a *ratio* to the anchor of the same rounds, so that drift cancels.
- The profiler says how a network's time divides among its kernels, the interleaved measurement how much it is: a
  kernel's time is its share of the profile (less the profiler's own cost a kernel) times the end-to-end latency.
  Profiles are taken at another moment than the rounds, often at another speed; shares do not depend on it.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np

from edgeprune.devices.types import Device, KernelTime, Loaded
from edgeprune.errors import MeasurementError
from edgeprune.latency.build import Built, Maker
from edgeprune.latency.kernels import Entry, Family, entries
from edgeprune.latency.rounds import Measured, Pace, least
from edgeprune.latency.sites import find_sites
from edgeprune.latency.table import Cell, Record, Run, Site, Table
from edgeprune.latency.variants import DENSE, Variant, floor
from edgeprune.target import Protocol

log = logging.getLogger(__name__)

DISTURBED = 3.0  # a kernel that takes so many times what it takes in the dense network was disturbed
ATTEMPTS = 3  # at networks that were too noisy, while they are more than half
WAITS = 1  # measurements more of a batch, until the device is at its fastest pace again
TOO_WIDE = 1 / 3  # relative MAD of a kernel that is not recorded
T = TypeVar("T")
Progress = Callable[[int, int, str], None]  # done, of how many, what


@dataclass(frozen=True)
class Effort:
    """How much is measured; the defaults suit networks of about a millisecond.

    Attributes:
        batch: variants that are loaded and interleaved together.
        passes: profiles of each network.
        profile_runs: executions in one profile.
        rounds, runs: of the end-to-end measurement: many rounds, so that a quiet moment of each network is caught; each
            long enough to warm the caches that the other networks have just used.
        good_spread: a batch whose rounds' halves differ by more is timed again, `retries` times.
        max_spread: where they still differ by more than this, a network's latency is not recorded.
    """

    batch: int = 4
    passes: int = 1
    profile_runs: int = 24
    rounds: int = 24
    runs: int = 10
    good_spread: float = 0.03
    max_spread: float = 0.12
    retries: int = 2

    def for_latency(self, dense: float, unit: str) -> Effort:
        """Fewer runs where one takes long, and on an instruction clock, which repeats within 0.2 %."""
        if unit == "instructions":
            return dataclasses.replace(self, passes=1, profile_runs=3, rounds=2, runs=2)
        share = min(1.0, max(0.3, 2.0 / dense))
        return dataclasses.replace(
            self, profile_runs=max(4, round(self.profile_runs * share)), rounds=max(8, round(self.rounds * share))
        )


QUICK = Effort(profile_runs=12, rounds=16, retries=1)


def measure_together(
    device: Device, networks: Sequence[Built], protocol: Protocol, effort: Effort, profile: bool = True
) -> list[Measured]:
    """Profile and time networks together; the first is the anchor. Raises DeviceError."""
    loaded: list[Loaded] = []
    try:
        for built in networks:
            loaded.append(device.load(built.artifact))
        profiles: list[list[Sequence[KernelTime]]] = [[] for _ in loaded]
        for _ in range(effort.passes if profile else 0):
            for found, one in zip(profiles, loaded, strict=True):
                found.append(device.profile(one, effort.profile_runs))
        timings = device.measure(loaded, _protocol(protocol, effort))
    finally:
        for one in loaded:
            device.unload(one)
    anchor = timings[0].rounds
    return [
        Measured(built, least(found), timing.rounds, anchor)
        for built, found, timing in zip(networks, profiles, timings, strict=True)
    ]


def _protocol(protocol: Protocol, effort: Effort) -> Protocol:
    """The target's protocol with our number of runs; noise is judged here, on ratios."""
    import msgspec

    return msgspec.structs.replace(
        protocol,
        runs=effort.runs,
        rounds=effort.rounds,
        processes=1,
        warmup_runs=min(protocol.warmup_runs, 5),
        min_seconds=0.0,
        max_spread=1.0,
    )


def profiler_cost(raw: Sequence[Entry], latency: float) -> float:
    """What the profiler adds to each kernel: what a network's kernels have over its latency, a kernel.

    `raw` is of the narrowest network, where that is most of the difference; at most 0.6 of its typical kernel.
    """
    times = [entry.time for entry in raw]
    return float(np.clip((sum(times) - latency) / len(times), 0.0, 0.6 * np.median(times)))


def attribute(raw: Sequence[Entry], latency: float, cost: float, usual: Sequence[Site] = ()) -> list[Entry]:
    """Entries whose times add up to `latency`.

    The profile saw speed * (time + cost) for each kernel, `speed` being that of its moment, which follows from the sum.
    A kernel that takes over three times what it takes in the dense network was disturbed (narrower is rarely slower,
    and never by so much) and would take from all others: it is put back, and its MAD marks it as unreliable.
    """
    known = {(site.node, site.family.kind): site.time + cost for site in usual}
    calm = list(raw)
    for _ in range(2):
        speed = sum(entry.time for entry in calm) / (latency + len(calm) * cost)
        calm = [_calmed(entry, speed * known.get((entry.node, entry.family.kind), np.inf)) for entry in calm]
    speed = sum(entry.time for entry in calm) / (latency + len(calm) * cost)
    bare = [max(entry.time / speed - cost, 0.1 * entry.time / speed) for entry in calm]
    scale = latency / sum(bare)
    return [
        dataclasses.replace(entry, time=time * scale, mad=entry.mad / speed)
        for entry, time in zip(calm, bare, strict=True)
    ]


def _calmed(entry: Entry, dense: float) -> Entry:
    return dataclasses.replace(entry, time=dense, mad=entry.time) if entry.time > DISTURBED * dense else entry


@contextlib.contextmanager
def kept_open(device: Device, anchor: Built) -> Iterator[None]:
    """The anchor stays loaded between measurements: opening it again takes as long as timing it."""
    loaded = device.load(anchor.artifact)
    try:
        yield
    finally:
        device.unload(loaded)


def start(table: Table, device: Device, maker: Maker, effort: Effort, pace: Pace | None = None) -> tuple[Table, Built]:
    """Build the dense artifact; the first time, profile and time it, and record its sites and its latency."""
    dense = maker.build(DENSE, "dense")
    if maker.network in table.networks:
        return table, dense
    more = dataclasses.replace(effort, passes=max(4, effort.passes), rounds=2 * effort.rounds)
    narrowest = maker.build(floor(maker.structure, maker.target.channels, blocks=False), "narrowest")
    try:
        found, least_of_all = measure_quietly(device, [dense, narrowest], maker.target.protocol, more, pace or Pace())
    finally:
        maker.forget(narrowest)
    cost = profiler_cost(_raw(least_of_all, table, maker), least_of_all.latency)
    joined = attribute(_raw(found, table, maker), found.latency, cost)
    sites = find_sites(joined, dense.network, maker.structure)
    run = Run({}, (), 1.0, 0.01, today())
    table = table.with_cells(_cells([joined]))
    return table.with_network(maker.network, Record(found.latency, cost, sites, (run,))), dense


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
    table, dense = start(table, device, maker, effort or Effort(), pace)
    effort = (effort or Effort()).for_latency(table.networks[maker.network].dense, table.unit)
    known = {run.key for run in table.networks[maker.network].runs}
    wanted = {_key(variant): variant for variant in variants if _key(variant) not in known}
    waiting, every, reason = list(wanted), dict[str, Measured](), ""
    for attempt in range(ATTEMPTS):
        with kept_open(device, dense):
            for keys in _batches(waiting, effort.batch):
                with _built(maker, [wanted[key] for key in keys]) as built:
                    found = measure_quietly(device, [dense, *built], maker.target.protocol, effort, pace)
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
        known_now = {key: pace.known(one) for key, one in every.items()}
        refused = [key for key, one in known_now.items() if one.spread > effort.max_spread]
        slow = [key for key, one in known_now.items() if not one.at_pace]
        unquiet = len(refused) * 2 > max(2, len(wanted))
        again = list(dict.fromkeys([*(refused if unquiet else ()), *slow]))
        if slow:
            log.info("%d networks were timed while the device was slower than at other times", len(slow))
        if not unquiet and (attempt or not again):  # what stays slow is waited for once
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
    dense = maker.build(DENSE, "dense")
    with kept_open(device, dense):
        for _ in range(2):
            for batch in _batches(variants, effort.batch):
                with _built(maker, batch) as built:
                    found = measure_quietly(device, [dense, *built], maker.target.protocol, once, pace)
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


def measure_quietly(
    device: Device, networks: Sequence[Built], protocol: Protocol, effort: Effort, pace: Pace, profile: bool = True
) -> list[Measured]:
    """Measure together, and again (all rounds count) while half of the networks are noisier than wished for.

    Where the device is not at the fastest pace that `pace` knows, a little longer.
    """
    found = pace.mark(measure_together(device, networks, protocol, effort, profile))
    for attempt in range(effort.retries + WAITS):
        noisy = float(np.median([one.spread for one in found[1:] or found])) > effort.good_spread
        if found[0].at_pace and not (noisy and attempt < effort.retries):
            break
        again = measure_together(device, networks, protocol, effort, profile=False)
        found = pace.mark([old.and_again(new) for old, new in zip(found, again, strict=True)])
    return found


def record(table: Table, maker: Maker, found: Sequence[Measured], max_spread: float) -> Table:
    """The table with the cells of networks measured together (anchor first), and the runs that are quiet enough."""
    network = table.networks[maker.network]
    good = [one for one in found[1:] if one.spread <= max_spread]
    profiled = [(one, one.ratio) for one in good] + [(found[0], 1.0)] * bool(good)
    joined = [
        attribute(_raw(one, table, maker), ratio * network.dense, network.profiler_cost, network.sites)
        for one, ratio in profiled
        if one.kernels
    ]
    runs = [
        Run(dict(one.built.variant.widths), tuple(one.built.variant.removed), one.ratio, one.spread, today())
        for one in good
    ]
    return table.with_cells(_cells(joined)).with_runs(maker.network, runs)


def _raw(one: Measured, table: Table, maker: Maker) -> list[Entry]:
    threads = maker.target.execution.threads
    return entries(one.kernels, one.built.network, one.built.precision, runtime_name(table), threads)


def _cells(joined: Sequence[Sequence[Entry]]) -> Iterator[tuple[Family, int, int, Cell]]:
    """One cell a kernel; within one network, kernels of equal cells are one sample: their median.

    A kernel whose MAD is over a third of its time is not recorded.
    """
    for network in joined:
        same: dict[tuple[Family, int, int], list[Entry]] = {}
        for entry in network:
            if entry.mad > entry.time * TOO_WIDE:
                continue
            same.setdefault((entry.family, entry.c_in, entry.c_out), []).append(entry)
        for (family, c_in, c_out), group in same.items():
            time = float(np.median([entry.time for entry in group]))
            mad = float(np.median([entry.mad for entry in group]))
            yield family, c_in, c_out, Cell((time,), mad, sum(e.count for e in group), today(), group[0].implementation)


def _distinct(variants: Sequence[Variant]) -> list[Variant]:
    return list({_key(variant): variant for variant in variants}.values())


def _key(variant: Variant) -> str:
    return Run(variant.widths, tuple(variant.removed), 0.0, 0.0, "").key


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def runtime_name(table: Table) -> str:
    """The runtime and its version, as kernel keys name it."""
    fingerprint: Mapping[str, object] = table.fingerprint
    return f"{fingerprint.get('runtime', 'runtime')} {fingerprint.get('runtime_version', '')}".strip()


def today() -> str:
    """The date, UTC, ISO."""
    return datetime.now(UTC).date().isoformat()
