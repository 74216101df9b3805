"""One batch of networks, profiled and timed together, and what a table learns from it.

The profiler says how a network's time divides among its kernels, the interleaved measurement how much it is: a kernel's
time is its share of the profile (less the profiler's own cost a kernel) times the end-to-end latency. Profiles are
taken at another moment than the rounds, often at another speed; shares do not depend on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import numpy as np

from edgeprune.devices import Device, KernelTime, Loaded
from edgeprune.latency.build import ArtifactBuilder, Built
from edgeprune.latency.kernels import Entry, Family, entries
from edgeprune.latency.rounds import Measured, Pace, least
from edgeprune.latency.sites import option_sites
from edgeprune.latency.table import Cell, Run, Site, Table
from edgeprune.target import Protocol

DISTURBED = 3.0  # a kernel that takes so many times what it takes in the dense network was disturbed
WAITS = 1  # measurements more of a batch, until the device is at its fastest pace again
TOO_WIDE = 1 / 3  # relative MAD of a kernel that is not recorded


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


def _protocol(protocol: Protocol, effort: Effort) -> Protocol:
    """The target's protocol with our number of runs; noise is judged here, on ratios."""
    return msgspec.structs.replace(
        protocol,
        runs=effort.runs,
        rounds=effort.rounds,
        processes=1,
        warmup_runs=min(protocol.warmup_runs, 5),
        min_seconds=0.0,
        max_spread=1.0,
    )


def record(table: Table, maker: ArtifactBuilder, found: Sequence[Measured], max_spread: float) -> Table:
    """The table with the cells of networks measured together (anchor first), and the runs that are quiet enough."""
    network = table.networks[maker.network]
    good = [one for one in found[1:] if one.spread <= max_spread]
    profiled = [(one, one.ratio) for one in [*good, *(found[:1] if good else ())]]
    joined = [
        attribute(raw(one, table, maker), ratio * network.dense, network.profiler_cost, network.sites)
        for one, ratio in profiled
        if one.kernels
    ]
    runs = [Run.of(one.built.variant, one.ratio, one.spread, today()) for one in good]
    with_kernels = [one for one, _ in profiled if one.kernels]
    optional = [
        site
        for one, kernels in zip(with_kernels, joined, strict=True)
        for site in option_sites(kernels, one.built.variant, network.sites)
    ]
    table = table.with_cells(cells(joined)).with_runs(maker.network, runs)
    return table.with_optional(maker.network, optional) if optional else table


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


def raw(one: Measured, table: Table, maker: ArtifactBuilder) -> list[Entry]:
    threads = maker.target.execution.threads
    return entries(one.kernels, one.built.network, one.built.precision, runtime_name(table), threads)


def cells(joined: Sequence[Sequence[Entry]]) -> Iterator[tuple[Family, int, int, Cell]]:
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


def runtime_name(table: Table) -> str:
    """The runtime and its version, as kernel keys name it."""
    fingerprint: Mapping[str, object] = table.fingerprint
    return f"{fingerprint.get('runtime', 'runtime')} {fingerprint.get('runtime_version', '')}".strip()


def today() -> str:
    """The date, UTC, ISO."""
    return datetime.now(UTC).date().isoformat()
