"""Where a run measures: the target, and the device that stands for it, connected when it is first asked for."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from edgeprune import runtimes
from edgeprune.errors import DeviceError
from edgeprune.result import Facts
from edgeprune.target import Target

if TYPE_CHECKING:
    from edgeprune.claims import Claim
    from edgeprune.devices import Device, Probe
    from edgeprune.runtimes import Dialect


class Bench:
    """A target and its device.

    Args:
        name: of the device, as the user gave it; empty: this machine.
        say: is told what its figures cannot claim.
        stack: closes the connection at the end of the run.
    """

    def __init__(self, target: Target, name: str, say: Callable[[str, str], None], stack: contextlib.ExitStack) -> None:
        from edgeprune.devices import reached

        runtimes.check_schemes(target)  # not first when it is looked for: that is after training
        self.target, self.name, self._say, self._stack = reached(target, name), name, say, stack

    @cached_property
    def device(self) -> Device:
        """The connected device, closed at the end of the run; DeviceError when it cannot stand for the target."""
        from edgeprune.devices import connect

        connected: Device = connect(self.target, self.name)
        device = self._stack.enter_context(connected)
        claim = self.claim(device.probe().fingerprint)
        if claim.verdict == "refused" or claim.unit != self.target.protocol.unit:
            raise DeviceError(claim.why or f"{self.target.name}: {claim.found} has no {claim.unit}.", claim.remedy)
        if claim.verdict != "release":
            self._say("plan", f"nothing here will be released: {claim.why}")
        return device

    def claim(self, fingerprint: Mapping[str, object]) -> Claim:
        """What may be claimed of the target by a device that reports this of itself."""
        from edgeprune.devices import judge

        return judge(self.target, self.name, fingerprint)

    @cached_property
    def probe(self) -> Probe:
        """The device as it was when the run first looked."""
        return self.device.probe()

    @cached_property
    def dialect(self) -> Dialect:
        """The target's Q/DQ scheme; on a CPU that sums products in 16 bits its twin of fewer weight steps."""
        features = Facts(self.probe.fingerprint).listed("features")
        return runtimes.for_cpu(self.target.dialect, [str(one) for one in features])


def environment() -> dict[str, object]:
    """Versions of what computed on this host."""
    from importlib import metadata

    own = [package for name in runtimes.names() if (package := runtimes.load(name).package)]
    packages = ("edgeprune", "torch", "onnx", *own, "numpy", "scipy")
    versions = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"python": platform.python_version(), "system": platform.platform(terse=True), "packages": versions}
