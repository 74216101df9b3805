"""`connect`: from a target and perhaps a device's address to a `Device`."""

from __future__ import annotations

from edgeprune.devices import book
from edgeprune.devices.board import QemuBoard
from edgeprune.devices.device import AgentDevice
from edgeprune.devices.qemu_user import QemuUser
from edgeprune.devices.ssh import Ssh
from edgeprune.devices.transport import Local, Transport
from edgeprune.errors import TargetError
from edgeprune.target import Target


def connect(target: Target, device: str = "") -> AgentDevice:
    """A device to use in a `with` statement.

    Args:
        target: its profile says which runtime, and how to connect.
        device: overrides the profile's connection: a board's name in the user's device file, "local", "ssh://HOST",
            "qemu-user://CPU", "qemu-board://CPU" (counts instructions), "qemu-board://CPU?clock=none".

    Raises TargetError for an address that makes no sense; DeviceUnreachable, MissingDependency and others on entering.
    """
    return AgentDevice(target, transport(target, device))


def transport(target: Target, device: str = "") -> Transport:
    """The way to the device."""
    profile = target.connection
    entry = book.find(device) if device else book.Entry(f"{profile.transport}://{profile.address}", profile.python)
    name, _, where = entry.address.partition("://")
    where, _, option = where.partition("?")
    if name == "local":
        return Local(profile.python)
    if name == "ssh" and not where:
        raise TargetError(
            f"{target.name} has no device yet.", "Give yours: --device ssh://NAME. See: edgeprune devices"
        )
    if name == "ssh":
        return Ssh(where, entry.python or profile.python)
    if name == "qemu-user":
        return QemuUser(where or profile.cpu)
    if name == "qemu-board" and option in ("", "clock=none"):
        return QemuBoard(where or profile.cpu, counted=not option)
    raise TargetError(
        f"'{device}' is not a way to a device.", "Use local, ssh://HOST, qemu-user://CPU or qemu-board://CPU."
    )
