"""The only way to run an artifact: `connect(target)` gives a `Device`, whatever lies between here and there."""

from edgeprune.devices.connect import connect, emulated_core, reached
from edgeprune.devices.types import Artifact, Device, KernelTime, Loaded, Probe, Timing, Unit

__all__ = [
    "Artifact",
    "Device",
    "KernelTime",
    "Loaded",
    "Probe",
    "Timing",
    "Unit",
    "connect",
    "emulated_core",
    "reached",
]
