"""The latency of two artifacts, interleaved on the device, as often as it takes to tell them apart from noise.

Each measurement is the target's own protocol over both together, round by round, each time in the other order and
opened anew: the same file opened again takes up to a few percent more or less (benchmarks/gates.py), which no number
of rounds in one process shows. A measurement's figure is the median of its rounds' ratios. Their mean over all
measurements has Student's interval, with a deviation of at least what quiet measurements of one artifact differ by.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgeprune import target as targets
from edgeprune.compare.aspects import WORDS, Aspect, Tolerance, word
from edgeprune.devices import Device, Loaded, Timing, connect, judge, reached
from edgeprune.errors import DeviceError, EdgepruneError, MissingDependency, TargetError
from edgeprune.release import Contents
from edgeprune.target import Target

RUN_TO_RUN = {"ms": 0.005, "instructions": 0.0005}  # of one ratio, as the latency gate has it
LEAST = 3  # measurements below which no interval is stated
Listener = Callable[[int, int], None]


def latency(
    old: Contents,
    new: Contents,
    given: Tolerance,
    device: str = "",
    repeats: int = 5,
    progress: Listener = lambda done, total: None,
) -> Aspect:
    """Measure both here, or on `device`; where that cannot be, what was recorded, and nothing is claimed.

    Raises:
        DeviceError, TargetError: of a device that was named.
    """
    try:
        profile = _known(old, new)
        with connect(profile, device) as here:
            claim = judge(profile, device, here.probe().fingerprint)
            if claim.verdict == "refused":
                raise DeviceError(claim.why, claim.remedy)
            here_profile = reached(profile, device)
            ratios, timings = _ratios(here, here_profile, old, new, repeats, progress)
            found = str(here.probe().fingerprint.get("runtime_version", ""))
    except (DeviceError, MissingDependency, TargetError) as cause:
        if device:
            raise
        return _recorded(old, new, cause)
    where = f"{profile.runtime} {found}"[:80] + (f", {claim.answer}" if claim.answer != "the target" else "")
    return judged(ratios, timings, here_profile.protocol.unit, given, where)


def judged(
    ratios: Sequence[float], medians: tuple[float, float], unit: str, given: Tolerance, where: str = ""
) -> Aspect:
    """What measurements say, of the newer artifact's latency over the older one's.

    Args:
        ratios: one a measurement.
        medians: of the older and the newer one, in `unit`, for showing.
    """
    before, after = medians
    if len(ratios) < LEAST:
        text = f"only {len(ratios)} measurements counted, too few to tell; quieten the device, or raise --repeats."
        return Aspect("latency", "unknown", text, before, after, unit)
    centre, reach = interval(ratios, unit, given.confidence)
    low, high = centre - reach - 1, centre + reach - 1
    said = word(low, high, given.max_slower)
    text = (
        f"{_spelled(after, unit)} against {_spelled(before, unit)}, {len(ratios)} measurements side by side ({where}): "
        f"{100 * abs(centre - 1):.2f} % {'slower' if centre >= 1 else 'faster'} "
        f"({100 * given.confidence:.0f} % limits {100 * low:+.2f} % to {100 * high:+.2f} %"
        f"{f'; {100 * given.max_slower:.1f} % allowed' if given.max_slower else ''}), {WORDS[said]}."
    )
    return Aspect("latency", said, text, before, after, unit, centre - 1, low, high, "share")


def interval(ratios: Sequence[float], unit: str, confidence: float) -> tuple[float, float]:
    """The mean ratio, and how far its one-sided limits lie from it."""
    from scipy.special import stdtrit

    centre = statistics.fmean(ratios)
    deviation = max(statistics.stdev(ratios), RUN_TO_RUN.get(unit, 0.0))
    return centre, float(stdtrit(len(ratios) - 1, confidence)) * deviation / math.sqrt(len(ratios))


def _spelled(value: float, unit: str) -> str:
    return f"{value / 1e6:.3f} million {unit}" if unit == "instructions" else f"{value:.4g} {unit}"


def _known(old: Contents, new: Contents) -> Target:
    """The target as this machine knows it, since a bundle may not say where to run; threads are the newer one's."""
    profile = targets.load(new.profile.name)
    if profile.runtime != new.manifest.artifact.runtime or profile.runtime != old.manifest.artifact.runtime:
        raise TargetError(f"they are for another runtime than {profile.name} has here ({profile.runtime}).")
    if profile.connection.transport == "local" and importlib.util.find_spec(profile.runtime) is None:
        raise MissingDependency(
            f"{profile.runtime} is not installed here.", f"Install: pip install 'edgeprune[{profile.runtime}]'"
        )
    return profile


def _ratios(
    device: Device, profile: Target, old: Contents, new: Contents, repeats: int, progress: Listener
) -> tuple[list[float], tuple[float, float]]:
    """One ratio a measurement that counts, and the medians of both over all."""
    ratios: list[float] = []
    medians: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="edgeprune-compare-") as folder:
        artifacts = [one.artifact(Path(folder) / name, name) for name, one in (("old", old), ("new", new))]
        for number in range(2 * repeats):
            progress(len(ratios), repeats)
            order = artifacts if number % 2 == 0 else artifacts[::-1]
            loaded: list[Loaded] = [device.load(one) for one in order]
            try:
                found = device.measure(loaded, profile.protocol)
            finally:
                for one in loaded:
                    device.unload(one)
            before, after = found if number % 2 == 0 else found[::-1]
            if before.valid and after.valid:
                ratios.append(_ratio(before, after))
                medians.append((before.median, after.median))
            if len(ratios) == repeats:
                break
    progress(len(ratios), repeats)
    shown = [statistics.median(column) for column in zip(*medians, strict=True)] or [math.nan, math.nan]
    return ratios, (shown[0], shown[1])


def _ratio(before: Timing, after: Timing) -> float:
    """Of the rounds, which were taken side by side."""
    if len(before.rounds) != len(after.rounds) or not before.rounds:
        return after.median / before.median
    return float(np.median(np.array(after.rounds) / np.array(before.rounds)))


def _recorded(old: Contents, new: Contents, cause: EdgepruneError) -> Aspect:
    figures = [one.result.network("pruned_int8").measured for one in (old, new)]
    before, after = (None if one is None else one.median for one in figures)
    unit = new.manifest.unit
    told = ""
    if before is not None and after is not None and old.manifest.unit == unit:
        told = f" Recorded, on different days: {_spelled(after, unit)} against {_spelled(before, unit)}."
    return Aspect("latency", "unknown", f"not measured here: {cause.message}{told}", before, after, unit)
