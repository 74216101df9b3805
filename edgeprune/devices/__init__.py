"""The only way to run an artifact: `connect(target)` gives a `Device`, whatever lies between here and there.

Names are imported on first use: what a runtime is called and takes must be known without numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "AgentDevice": "edgeprune.devices.device",
    "Artifact": "edgeprune.devices.artifact",
    "Fleet": "edgeprune.devices.fleet",
    "HOST_RUNTIME": "edgeprune.devices.artifact",
    "BoardStatus": "edgeprune.devices.status",
    "Device": "edgeprune.devices.types",
    "Installed": "edgeprune.devices.answers",
    "KernelTime": "edgeprune.devices.types",
    "Loaded": "edgeprune.devices.types",
    "Probe": "edgeprune.devices.types",
    "Releases": "edgeprune.devices.answers",
    "Timing": "edgeprune.devices.types",
    "Unit": "edgeprune.devices.types",
    "connect": "edgeprune.devices.reach",
    "emulated_core": "edgeprune.devices.reach",
    "install_emulator": "edgeprune.devices.emulation.board",
    "judge": "edgeprune.devices.reach",
    "members": "edgeprune.devices.book",
    "reached": "edgeprune.devices.reach",
    "releases_folder": "edgeprune.devices.device",
    "way": "edgeprune.devices.reach",
    "wrong_options": "edgeprune.devices.artifact",
}

if TYPE_CHECKING:
    from edgeprune.devices.answers import Installed as Installed
    from edgeprune.devices.answers import Releases as Releases
    from edgeprune.devices.artifact import HOST_RUNTIME as HOST_RUNTIME
    from edgeprune.devices.artifact import Artifact as Artifact
    from edgeprune.devices.artifact import wrong_options as wrong_options
    from edgeprune.devices.book import members as members
    from edgeprune.devices.device import AgentDevice as AgentDevice
    from edgeprune.devices.device import releases_folder as releases_folder
    from edgeprune.devices.emulation.board import install_emulator as install_emulator
    from edgeprune.devices.fleet import Fleet as Fleet
    from edgeprune.devices.reach import connect as connect
    from edgeprune.devices.reach import emulated_core as emulated_core
    from edgeprune.devices.reach import judge as judge
    from edgeprune.devices.reach import reached as reached
    from edgeprune.devices.reach import way as way
    from edgeprune.devices.status import BoardStatus as BoardStatus
    from edgeprune.devices.types import Device as Device
    from edgeprune.devices.types import KernelTime as KernelTime
    from edgeprune.devices.types import Loaded as Loaded
    from edgeprune.devices.types import Probe as Probe
    from edgeprune.devices.types import Timing as Timing
    from edgeprune.devices.types import Unit as Unit


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'edgeprune.devices' has no attribute '{name}'")
