"""User-mode emulation: the device's runtime and core, this machine's kernel. True outputs, no meaningful latency."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import IO

from edgeprune.devices.emulation import emulator
from edgeprune.devices.package import agent, cache
from edgeprune.devices.transport import Emulation, Local, spawn


class QemuUser(Local):
    """The agent's supervisor runs here, its worker on the emulated core."""

    name = "qemu-user"
    emulation: Emulation = "qemu-user"

    def __init__(self, cpu: str) -> None:
        super().__init__()
        self._cpu = cpu
        self.where = f"{cpu} under qemu-user"
        self._home: Path = cache() / f"agent-{cpu}"

    def start(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start the agent."""
        archive, _ = agent()
        worker = json.dumps(emulator.worker_command(self._cpu, archive))
        return spawn([sys.executable, str(archive), "serve", "--home", str(self._home), "--worker", worker], errors)
