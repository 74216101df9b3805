"""`connect`: from a target and perhaps a device's address to a `Device`."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import msgspec

from edgeprune.devices import book
from edgeprune.devices.board import QemuBoard
from edgeprune.devices.device import COUNTED_RUNS, AgentDevice
from edgeprune.devices.modelled import ModelDevice
from edgeprune.devices.precheck import PreCheck
from edgeprune.devices.qemu_user import QemuUser
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
    """

    scheme: str
    where: str
    python: str
    counted: bool

    @property
    def unit(self) -> Unit:
        """What latencies are given in."""
        if self.scheme == "model":
            return "modelled ms"
        return "instructions" if self.counted else "ms"


def connect(target: Target, device: str = "") -> AgentDevice | ModelDevice:
    """A device to use in a `with` statement.

    Args:
        target: its profile says which runtime, and how to connect.
        device: overrides the profile's connection: a board's name in the user's device file, "local", "ssh://HOST",
            "qemu-user://CPU", "qemu-board://CPU" (counts instructions), "qemu-board://CPU?clock=none".

    Raises TargetError for an address that makes no sense; DeviceUnreachable, MissingDependency and others on entering.
    """
    if way(target, device).scheme == "model":
        return ModelDevice(target, connect(simulated(target), "local"))
    kind = PreCheck if stands_for_arm(target, device) else AgentDevice
    return kind(reached(target, device), transport(target, device))


def stands_for_arm(target: Target, device: str = "") -> bool:
    """Whether an ARM target is run on this machine, which is none: outputs are then computed as ARM's are."""
    here = way(target, device).scheme == "local" and platform.machine() in ("x86_64", "AMD64")
    return here and target.family == "arm" and target.runtime == "onnxruntime"


def way(target: Target, device: str = "") -> Way:
    """Which way leads to the device; raises TargetError, connects to nothing."""
    profile = target.connection
    entry = book.find(device) if device else book.Entry(f"{profile.transport}://{profile.address}", profile.python)
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
    return Way(scheme, place, entry.python or profile.python, scheme == "qemu-board" and not option)


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
    return msgspec.structs.replace(target, runtime="onnxruntime", requires="", execution=execution)
