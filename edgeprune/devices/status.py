"""All boards of the user's file at once: which answer, what they are and how they are doing, which are of one kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from edgeprune import target as targets
from edgeprune.devices.answers import plain
from edgeprune.devices.book import FLEET, BoardEntry
from edgeprune.devices.reach import connect, judge
from edgeprune.errors import DeviceBusy, DeviceUnreachable, EdgepruneError
from edgeprune.result import Facts

State = Literal["answers", "busy", "away", "unusable"]
AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class BoardStatus:
    """A board as it is now.

    Attributes:
        state: "away": it does not answer; "unusable": it answers, but not as its target (no runtime, another one).
        kind: boards of one letter can be a fleet.
        message: why it cannot be used, or what may be claimed of it at best.
        notes: what is odd about how it is doing.
    """

    name: str
    state: State
    message: str = ""
    kind: str = ""
    target: str = ""
    runtime: str = ""
    load: str = ""
    hottest: str = ""
    notes: tuple[str, ...] = ()
    fingerprint: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return dataclasses.asdict(self)


def look(known: Mapping[str, BoardEntry], otherwise: str = "") -> list[BoardStatus]:
    """Every board, looked at in parallel; a fleet is its boards.

    Args:
        otherwise: the target of boards that have none written down.
    """
    boards = {name: entry for name, entry in known.items() if not entry.address.startswith(FLEET)}
    with ThreadPoolExecutor(min(AT_ONCE, max(1, len(boards)))) as pool:
        found = list(pool.map(lambda item: _look(item[0], item[1].target or otherwise), boards.items()))
    kinds: list[Mapping[str, object]] = []
    told = []
    for one in found:
        if one.fingerprint and one.fingerprint not in kinds:
            kinds.append(one.fingerprint)
        told.append(dataclasses.replace(one, kind=_letter(kinds.index(one.fingerprint))) if one.fingerprint else one)
    return told


def _look(name: str, target: str) -> BoardStatus:
    if not target:
        return BoardStatus(name, "unusable", "what it is was not written down: --target TARGET.")
    try:
        profile = targets.load(target)
        with connect(profile, name) as device:
            probe = device.probe()
        claim = judge(profile, name, probe.fingerprint)
    except DeviceBusy as cause:
        return BoardStatus(name, "busy", cause.message, target=target)
    except DeviceUnreachable as cause:
        return BoardStatus(name, "away", cause.message, target=target)
    except EdgepruneError as cause:
        return BoardStatus(name, "unusable", cause.message, target=target)
    prints = probe.fingerprint
    temperatures = probe.state.get("temperatures_c") or {}
    return BoardStatus(
        name,
        "unusable" if claim.verdict == "refused" else "answers",
        claim.why,
        target=target,
        runtime=plain(f"{prints.get('runtime', '')} {prints.get('runtime_version', '')}".strip(), 60),
        load=plain(f"{probe.state.get('load', '')} of {probe.state.get('cpus', '')}", 20),
        hottest=f"{max(temperatures.values()):.0f}" if temperatures else "",
        notes=tuple(_notes(Facts(probe.state))),
        fingerprint=prints,
    )


def _notes(state: Facts) -> list[str]:
    bits, events = (int(state.number(key) or 0) for key in ("throttled", "throttle_events"))
    found = [f"throttled ({bits:#x})"] if bits else []
    return [*found, f"the CPU was throttled {events} times"] if events else found


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"A{place}"
