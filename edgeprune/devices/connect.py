"""`connect`: from a target and perhaps a device's address to a `Device`."""

from __future__ import annotations

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
        device: overrides the profile's connection: "local", "ssh://HOST", "qemu-user://CPU", "qemu-board://CPU".

    Raises TargetError for an address that makes no sense; DeviceUnreachable, MissingDependency and others on entering.
    """
    return AgentDevice(target, transport(target, device))


def transport(target: Target, device: str = "") -> Transport:
    """The way to the device."""
    scheme, _, where = device.partition("://")
    name = scheme or target.connection.transport
    if name == "local":
        return Local(target.connection.python)
    if name == "ssh":
        return Ssh(where or target.connection.address, target.connection.python)
    if name == "qemu-user":
        return QemuUser(where or target.connection.cpu)
    if name == "qemu-board":
        cpu, _, option = (where or target.connection.cpu).partition("?")
        return QemuBoard(cpu or target.connection.cpu, counted=option != "clock=none")
    raise TargetError(
        f"'{device or name}' is not a way to a device that edgeprune knows.",
        "Use local, ssh://HOST, qemu-user://CPU or qemu-board://CPU.",
    )
