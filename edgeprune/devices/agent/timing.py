"""Measuring: warm up, rounds that interleave all candidates, no garbage collection, pinned; times in nanoseconds."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from typing import Any, Callable, Iterator

try:
    import resource
except ImportError:  # not Unix
    resource = None  # type: ignore[assignment]

FEWEST_ROUNDS = 5
READINGS = 200  # of the clocks alone
MOST_RUNS = 20000  # a round, however short the network and however many seconds were asked for
LONG = 5e7  # nanoseconds of runs, which are enough for a round,
LEAST_RUNS = 5  # if there are as many


def interleaved(
    candidates: list[Callable[[], Any]],
    warmup: int,
    runs: int,
    rounds: int,
    min_seconds: float,
    max_seconds: float,
    max_spread: float,
    own: bool = False,
) -> list[list[list[float]]]:
    """Time `candidates` in rounds A B C A B C ...; returns samples[candidate][round] in nanoseconds.

    Many rounds serve better than few: a machine's speed changes between them, and a short round sees all candidates at
    one speed. Too short a round (four runs of a network whose weights fill the cache) sees what its predecessor left in
    the caches; but where one run takes long, a round has fewer than `runs`, as more rounds tell more than more runs.
    When a candidate's round medians scatter more than `max_spread`, up to twice as many rounds again are taken. After
    `max_seconds` no further round begins, once there are `FEWEST_ROUNDS`.

    Args:
        own: the work is done by one thread of this process; then a run that another process interrupted is as long as
            the time that it had the CPU (`Turns`).
    """
    clock = Turns().run if own and resource is not None else _run
    samples = [[] for _ in candidates]  # type: list[list[list[float]]]
    for candidate in candidates:
        for _ in range(warmup):
            candidate()
    end = time.perf_counter() + max_seconds
    with collection_off():
        while len(samples[0]) < 3 * rounds:
            if len(samples[0]) >= min(rounds, FEWEST_ROUNDS) and time.perf_counter() > end:
                break
            for index, candidate in enumerate(candidates):
                for _ in range(min(2, warmup)):  # the others have used the caches
                    candidate()
                samples[index].append(_round(candidate, runs, min_seconds, clock))
            if len(samples[0]) >= rounds and all(_spread(_medians(one)) <= max_spread for one in samples):
                break
    return samples


def _round(
    candidate: Callable[[], Any], runs: int, min_seconds: float, run: Callable[[Callable[[], Any]], float]
) -> list[float]:
    """Nanoseconds of each run: `runs` of them, fewer where they are long, and more until `min_seconds` are over."""
    clock = time.perf_counter_ns
    taken = []  # type: list[float]
    end, total = clock() + int(min_seconds * 1e9), 0.0
    while (clock() < end and len(taken) < MOST_RUNS) or len(taken) < (runs if total < LONG else min(runs, LEAST_RUNS)):
        taken.append(run(candidate))
        total += taken[-1]
    return taken


def _run(candidate: Callable[[], Any]) -> float:
    """Nanoseconds of one run."""
    start = time.perf_counter_ns()
    candidate()
    return time.perf_counter_ns() - start


class Turns:
    """Times runs on a CPU that other processes want too.

    A run that was not interrupted takes what the clock says. One that was waited for its turn (some 4 ms each time,
    under Linux, whatever the network), and takes the CPU time of this process: on a quiet machine the two differ by
    about a microsecond, which is what reading them takes and is taken off. What a neighbour costs in memory and caches
    stays.
    """

    def __init__(self) -> None:
        self._reading = 0.0
        self._reading = float(statistics.median(self._cpu(_nothing)[0] for _ in range(READINGS)))

    def run(self, candidate: Callable[[], Any]) -> float:
        """Nanoseconds of one run, without the time that it waited for the CPU."""
        had, took, interrupted = self._cpu(candidate)
        return max(0.0, min(took, had)) if interrupted else took

    def _cpu(self, candidate: Callable[[], Any]) -> tuple[float, float, int]:
        """CPU time and time of one run, and how often the process lost the CPU though it had more to do."""
        switches = _switches()
        had = time.process_time_ns()
        start = time.perf_counter_ns()
        candidate()
        took = time.perf_counter_ns() - start
        had = time.process_time_ns() - had
        return had - self._reading, took, _switches() - switches


def _nothing() -> None:
    """What reading the clocks takes is measured with this."""


def _switches() -> int:
    assert resource is not None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def summary(rounds: list[list[float]]) -> dict[str, Any]:
    """Median of the rounds' medians, percentiles over all runs, spread and drift; times in nanoseconds."""
    medians, everything = _medians(rounds), sorted(value for one in rounds for value in one)
    half = max(1, len(medians) // 2)
    middle = statistics.median(medians)
    return {
        "median": middle,
        "p90": _percentile(everything, 0.90),
        "p99": _percentile(everything, 0.99),
        "minimum": everything[0],
        "mean": statistics.fmean(everything),
        "spread": _spread(medians),
        "count": len(everything),
        "rounds": medians,
        "drift": (statistics.median(medians[-half:]) - statistics.median(medians[:half])) / middle if middle else 0.0,
    }


def _medians(rounds: list[list[float]]) -> list[float]:
    return [statistics.median(one) for one in rounds]


def _spread(medians: list[float]) -> float:
    middle = statistics.median(medians)
    return statistics.median([abs(value - middle) for value in medians]) / middle if middle else 0.0


def _percentile(ordered: list[float], fraction: float) -> float:
    """Linear interpolation between the closest ranks, as numpy does."""
    position = fraction * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@contextlib.contextmanager
def collection_off() -> Iterator[None]:
    """No garbage collection meanwhile."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """Every thread of this process on the `threads` fastest and idlest CPUs; yields them, empty where it cannot be."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    chosen = choose_cpus(allowed, threads)
    if not chosen or len(chosen) == len(allowed):
        yield []
        return
    try:
        _affinity(chosen)
    except OSError:
        yield []
        return
    try:
        yield chosen
    finally:
        _affinity(allowed)


def choose_cpus(allowed: list[int], threads: int) -> list[int]:
    """The CPUs of the fastest cluster that were idlest over the last twentieth of a second."""
    if len(allowed) <= threads:
        return allowed
    before = _busy()
    time.sleep(0.05)
    after = _busy()
    load = {cpu: after.get(cpu, 0) - before.get(cpu, 0) for cpu in allowed}
    order = sorted(allowed, key=lambda cpu: (-_max_frequency(cpu), load[cpu], -cpu))
    return sorted(order[:threads])


def _busy() -> dict[int, int]:
    """Ticks each CPU spent working, from /proc/stat."""
    found = {}
    with contextlib.suppress(OSError, ValueError), open("/proc/stat") as stream:
        for line in stream:
            name, _, rest = line.partition(" ")
            if name.startswith("cpu") and name[3:].isdigit():
                ticks = [int(value) for value in rest.split()]
                found[int(name[3:])] = sum(ticks) - ticks[3] - ticks[4]
    return found


def _max_frequency(cpu: int) -> int:
    try:
        with open("/sys/devices/system/cpu/cpu%d/cpufreq/cpuinfo_max_freq" % cpu) as stream:
            return int(stream.read())
    except (OSError, ValueError):
        return 0


def _affinity(cpus: list[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cpus)
