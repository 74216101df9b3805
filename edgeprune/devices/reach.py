"""`connect`: from a target and perhaps a device's address to a `Device`."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import msgspec

from edgeprune import claims
from edgeprune.devices import book
from edgeprune.devices.agent import options
from edgeprune.devices.artifact import HOST_RUNTIME
from edgeprune.devices.device import COUNTED_RUNS, AgentDevice
from edgeprune.devices.emulation.board import QemuBoard
from edgeprune.devices.emulation.qemu_user import QemuUser
from edgeprune.devices.fleet import Fleet
from edgeprune.devices.modelled import ModelDevice
from edgeprune.devices.precheck import PreCheck
from edgeprune.devices.ssh import Ssh
from edgeprune.devices.transport import Local, Transport
from edgeprune.devices.types import Unit
from edgeprune.errors import TargetError
from edgeprune.target import Protocol, Target

COUNTED = Protocol(unit="instructions", warmup_runs=1, runs=COUNTED_RUNS, rounds=COUNTED_RUNS, max_spread=0.02)
MODELLED = Protocol(unit="modelled ms", warmup_runs=1, runs=1, rounds=1)


@dataclass(frozen=True)
class Way:
    """Where a target's device is.

    Attributes:
        scheme: "local", "ssh", "qemu-user", "qemu-board", or "model" when there is no device.
        where: the host, or the emulated core.
        python: the interpreter there; empty: python3.
        counted: an emulated board with the instruction clock.
        precheck: this machine is x86 and stands in for an ARM device, whose outputs it computes; it has no latency.
    """

    scheme: str
    where: str
    python: str
    counted: bool
    precheck: bool = False

    @property
    def claimed(self) -> claims.Way:
        """The way, as the table of claims calls it."""
        uncounted = self.scheme == "qemu-board" and not self.counted
        return cast(claims.Way, "qemu-board?clock=none" if uncounted else self.scheme)

    @property
    def unit(self) -> Unit:
        """What latencies are given in."""
        if self.scheme == "model" or self.precheck:
            return "modelled ms"
        return "instructions" if self.counted else "ms"


def connect(target: Target, device: str = "") -> AgentDevice | ModelDevice | Fleet:
    """A device to use in a `with` statement.

    Args:
        target: its profile says which runtime, and how to connect.
        device: overrides the profile's connection: a board's name in the user's device file, "local", "ssh://HOST",
            "qemu-user://CPU", "qemu-board://CPU" (counts instructions), "qemu-board://CPU?clock=none"; several boards
            of one kind with commas between them, or the name of such a fleet, are one device.

    Raises TargetError for an address that makes no sense; DeviceUnreachable, MissingDependency and others on entering.
    """
    check_options(target)
    found = way(target, device)
    members = book.members(device)
    if len(members) > 1:
        return Fleet({name: _agent(target, one) for name, one in zip(_names(members), members, strict=True)})
    if found.precheck:
        return ModelDevice(target, PreCheck(target, Local(target.connection.python)), platform.machine())
    if found.scheme == "model":
        return ModelDevice(target, _agent(simulated(target), "local"))
    return _agent(target, device)


def _agent(target: Target, device: str) -> AgentDevice:
    return AgentDevice(reached(target, device), transport(target, device))


def _names(members: Sequence[str]) -> list[str]:
    """Emulated boards of one core are told apart by a number."""
    counts = [members[: place + 1].count(one) for place, one in enumerate(members)]
    return [f"{one} #{count}" if members.count(one) > 1 else one for one, count in zip(members, counts, strict=True)]


def check_options(target: Target) -> None:
    """Raise TargetError for a runtime option that is not in the list, before anything is opened with it."""
    wrong = options.wrong(target.runtime, target.execution.options)
    if wrong:
        where = f"{target.folder}/profile.toml" if target.folder else f"target {target.name}"
        raise TargetError(f"{where}: [execution.options]: {wrong}", "An option never names a file or a folder.")


def judge(target: Target, device: str, fingerprint: Mapping[str, object]) -> claims.Claim:
    """What may be claimed of a target by the device that was reached this way and reports `fingerprint`."""
    return claims.judge(target, way(target, device).claimed, fingerprint)


def stands_for_arm(target: Target) -> bool:
    """Whether this machine, which is x86, can compute an ARM target's outputs as ARM does; it has none of its times."""
    return platform.machine() in ("x86_64", "AMD64") and target.family == "arm" and target.runtime == HOST_RUNTIME


def way(target: Target, device: str = "") -> Way:
    """Which way leads to the device, or to each board of a fleet; raises TargetError, connects to nothing."""
    found = [_way(target, one) for one in book.members(device)]
    return found[0] if len(found) == 1 else _alike(found, device)


def _alike(found: Sequence[Way], device: str) -> Way:
    """The way to a fleet; raises TargetError for what cannot be one."""
    for one in found:
        if one.scheme not in ("ssh", "qemu-board"):
            raise TargetError(f"'{device}': {one.scheme} is no board of a fleet.", "A fleet is of boards, over ssh.")
        if (one.scheme, one.unit, one.claimed) != (found[0].scheme, found[0].unit, found[0].claimed):
            raise TargetError(f"'{device}': {one.scheme} and {found[0].scheme} are no fleet.", "One kind in a fleet.")
        if one.scheme == "ssh" and [other.where for other in found].count(one.where) > 1:
            raise TargetError(f"'{device}': {one.where} is in the fleet twice.", "Name each board once.")
    return found[0]


def _way(target: Target, device: str) -> Way:
    profile = target.connection
    entry = book.find(device) if device else book.BoardEntry(f"{profile.transport}://{profile.address}", profile.python)
    scheme, _, where = entry.address.partition("://")
    where, _, option = where.partition("?")
    emulated = scheme in ("qemu-user", "qemu-board")
    known = emulated or scheme in ("local", "ssh", "model")
    if not known or option not in ("", "clock=none"):
        raise TargetError(
            f"'{device}' is not a way to a device.", "Use local, ssh://HOST, qemu-user://CPU or qemu-board://CPU."
        )
    if scheme == "ssh" and not where:
        raise TargetError(
            f"{target.name} has no device yet.", "Give yours: --device ssh://NAME. See: edgeprune devices"
        )
    place = (where or profile.cpu) if emulated else where
    counted, precheck = scheme == "qemu-board" and not option, scheme == "local" and stands_for_arm(target)
    return Way(scheme, place, entry.python or profile.python, counted, precheck)


def transport(target: Target, device: str = "") -> Transport:
    """The transport to a device that is there."""
    found = way(target, device)
    if found.scheme == "ssh":
        return Ssh(found.where, found.python)
    if found.scheme == "qemu-user":
        return QemuUser(found.where)
    if found.scheme == "qemu-board":
        return QemuBoard(found.where, found.counted)
    return Local(target.connection.python)


def reached(target: Target, device: str = "") -> Target:
    """The target with the protocol that holds on this way: the profile's own is for a real device, in milliseconds."""
    unit = way(target, device).unit
    protocol = {"instructions": COUNTED, "modelled ms": MODELLED}.get(unit)
    return msgspec.structs.replace(target, protocol=protocol or msgspec.structs.replace(target.protocol, unit="ms"))


def emulated_core(target: Target, device: str = "") -> str:
    """The core that is emulated in place of the device; empty for a real one, and for this machine."""
    found = way(target, device)
    return found.where if found.scheme.startswith("qemu") else ""


def simulated(target: Target) -> Target:
    """The target as ONNX Runtime on this machine computes it: every Q/DQ node as it is written, nothing optimised."""
    execution = msgspec.structs.replace(target.execution, options={"graph_optimization_level": "disable"})
    return msgspec.structs.replace(target, family="x86", runtime=HOST_RUNTIME, requires="", execution=execution)
