"""Batches of networks measured beside the anchor: one after the other on a device, one on each board of a fleet.

Every board is timed beside its own anchor, so how fast a board is cancels; its pace is its own too. A board whose
anchor is far from the leading board's is of another speed grade, or throttled: it is set aside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from collections.abc import Generator, Iterator, Sequence

from edgeprune.devices import Device, Fleet, Loaded
from edgeprune.errors import DeviceBusy, DeviceUnreachable
from edgeprune.graph import Configuration
from edgeprune.latency.build import ArtifactBuilder, Built
from edgeprune.latency.rounds import Measured, Pace, quiet
from edgeprune.latency.store import GRADE
from edgeprune.latency.timing import Effort, measure_quietly

LEAST = 2  # rounds of a board
BUILDING = threading.Lock()  # the host makes one artifact at a time


def shares(device: Device, variants: Sequence[Configuration], size: int) -> list[Sequence[Configuration]]:
    """Batches of `size` at most; on a fleet as many as keep every board busy to the end."""
    boards = len(device.boards) if isinstance(device, Fleet) else 1
    if boards > 1 and variants:
        size = max(1, -(-len(variants) // (boards * -(-len(variants) // (boards * size)))))
    return [variants[begin : begin + size] for begin in range(0, len(variants), size)]


def measured(
    device: Device,
    maker: ArtifactBuilder,
    anchor: Built,
    batches: Sequence[Sequence[Configuration]],
    effort: Effort,
    pace: Pace,
) -> Generator[tuple[str, list[Measured]], None, None]:
    """The board ("" where there is one device) and what it measured, anchor first, as it comes.

    Raises DeviceError.
    """
    if isinstance(device, Fleet):
        yield from _on_fleet(device, maker, anchor, batches, effort, pace)
        return
    with kept_open(device, anchor):
        for batch in batches:
            with _built(maker, batch) as built:
                found = measure_quietly(device, [anchor, *built], maker.target.protocol, effort, pace)
            yield "", found


@contextlib.contextmanager
def kept_open(device: Device, anchor: Built) -> Iterator[None]:
    """The anchor stays loaded between measurements: opening it again takes as long as timing it."""
    loaded = device.load(anchor.artifact)
    try:
        yield
    finally:
        device.unload(loaded)


def _on_fleet(
    fleet: Fleet,
    maker: ArtifactBuilder,
    anchor: Built,
    batches: Sequence[Sequence[Configuration]],
    effort: Effort,
    pace: Pace,
) -> Generator[tuple[str, list[Measured]], None, None]:
    kept: dict[str, Loaded] = {}

    def work(name: str, board: Device, batch: Sequence[Configuration]) -> list[Measured]:
        if name not in kept:
            kept[name] = board.load(anchor.artifact)
        with contextlib.ExitStack() as stack:
            with BUILDING:
                built = stack.enter_context(_built(maker, batch, f"{re.sub(r'[^0-9A-Za-z]+', '-', name)}-"))
            return measure_quietly(board, [anchor, *built], maker.target.protocol, effort, pace.on(name))

    try:
        with contextlib.closing(fleet.share(batches, work)) as results:
            for name, found in results:
                _set_aside(fleet, pace)
                yield name, found
    finally:
        for name, board in fleet.boards.items():
            if name in kept:
                with contextlib.suppress(DeviceUnreachable, DeviceBusy):  # whoever needs it next will hear of it
                    board.unload(kept[name])


def side_by_side(
    device: Device, networks: Sequence[Built], maker: ArtifactBuilder, effort: Effort, pace: Pace, profile: bool = True
) -> list[Measured]:
    """The same networks, anchor first, measured on every board of a fleet with its share of the rounds, as one.

    Every board's figures are brought to the pace of the first one's anchor. Raises DeviceError.
    """
    if not isinstance(device, Fleet) or len(device.boards) == 1:
        return measure_quietly(device, networks, maker.target.protocol, effort, pace, profile)
    count = len(device.boards)
    share = dataclasses.replace(
        effort, rounds=max(LEAST, -(-effort.rounds // count)), passes=max(1, -(-effort.passes // count))
    )
    found = device.each(
        lambda name, board: measure_quietly(board, networks, maker.target.protocol, share, pace.on(name), profile)
    )
    lead, *others = found.values()
    whole = lead
    for one in others:
        factor = quiet(lead[0].anchor) / quiet(one[0].anchor)
        whole = [mine.and_again(its.times(factor)) for mine, its in zip(whole, one, strict=True)]
    return pace.mark(whole)


def _set_aside(fleet: Fleet, pace: Pace) -> None:
    """Boards of another speed than the leading one."""
    lead = fleet.lead
    first = pace.on(lead).fastest
    for name in fleet.boards:
        own = pace.on(name).fastest
        if first and own and abs(own / first - 1) > GRADE:
            how = f"{100 * abs(own / first - 1):.0f} % {'slower' if own > first else 'faster'}"
            fleet.drop(name, f"it is {how} than {lead}: another speed grade, or throttled.")


@contextlib.contextmanager
def _built(maker: ArtifactBuilder, variants: Sequence[Configuration], prefix: str = "") -> Iterator[list[Built]]:
    """Their artifacts, deleted afterwards."""
    built: list[Built] = []
    try:
        for i, variant in enumerate(variants):
            built.append(maker.build(variant, f"{prefix}variant-{i}"))
        yield built
    finally:
        for one in built:
            maker.forget(one)
