"""What `edgeprune doctor` looks at: this machine, and a target's device; each with the command that mends it."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from edgeprune.devices import book
from edgeprune.devices.agent.options import runtime_half
from edgeprune.devices.artifact import HOST_RUNTIME
from edgeprune.devices.emulation import board, emulator
from edgeprune.devices.link import AgentError
from edgeprune.devices.reach import connect, judge, transport
from edgeprune.devices.reach import way as where
from edgeprune.devices.roofline import LABEL
from edgeprune.devices.ssh import parse
from edgeprune.errors import EdgepruneError, MissingDependency
from edgeprune.target import Target

INSTALL = "edgeprune doctor raspberry-pi-5 --install-emulator"


@dataclass(frozen=True)
class DeviceCheck:
    """One thing that was looked at.

    Attributes:
        state: "ok"; "missing" when the target needs it; "optional" when only something else does.
        remedy: the command, or what to do; empty when all is well.
    """

    what: str
    state: Literal["ok", "missing", "optional"]
    found: str
    remedy: str = ""


def host(target: Target | None, address: str = "", extras: Mapping[str, str] | None = None) -> Iterator[DeviceCheck]:
    """This machine.

    Args:
        address: the target's device, where it is not the profile's own; a board needs no emulator.
        extras: runtime -> the extra of edgeprune that installs it here.
    """
    extras = {name: extra for name, extra in (extras or {}).items() if name != HOST_RUNTIME}
    scheme = where(target, address).scheme if target is not None else ""
    yield DeviceCheck("Python", "ok", sys.version.split()[0])
    for name in ("torch", "onnx", HOST_RUNTIME):
        yield _package(name, "missing", "pip install --upgrade edgeprune")
    for runtime, extra in extras.items():
        needed = target is not None and target.runtime == runtime and scheme == "local"
        yield _package(runtime, "missing" if needed else "optional", f'pip install "edgeprune[{extra}]"')
    if target is None or target.family == "nvidia":
        yield _package("tensorrt-rtx", "optional", 'pip install "edgeprune[tensorrt-lint]"')
    if target is None or scheme in ("ssh", "qemu-board", "model"):
        ssh = shutil.which("ssh")
        state: Literal["missing", "optional"] = "optional" if target is None else "missing"
        yield (
            DeviceCheck("ssh", "ok", ssh) if ssh else DeviceCheck("ssh", state, "no", "apt-get install openssh-client")
        )
    if target is None or target.family == "arm":
        yield from _emulation(scheme.startswith("qemu"))


def _package(name: str, otherwise: Literal["missing", "optional"], remedy: str) -> DeviceCheck:
    try:
        return DeviceCheck(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return DeviceCheck(name, otherwise, "not installed", remedy)


def _emulation(needed: bool) -> Iterator[DeviceCheck]:
    for what, ready in (("ARM emulation", emulator.installed()), ("emulated ARM board", board.installed())):
        if ready:
            yield DeviceCheck(what, "ok", f"ONNX Runtime {emulator.runtime_version()}, {emulator.folder()}")
        else:
            yield DeviceCheck(what, "missing" if needed else "optional", "not set up", _why_not() or INSTALL)


def _why_not() -> str:
    try:
        emulator.check_host()
    except MissingDependency as error:
        return f"{error.message} {error.remedy}".strip()
    return ""


def device(target: Target, address: str) -> DeviceCheck:
    """The target's device: can it be reached, does its runtime start, is it of a version that fits?"""
    if where(target, address).scheme == "model":
        remedy = f"edgeprune devices add mine ssh://USER@HOST --target {target.name}"
        return DeviceCheck("device", "optional", f"none yet: latency is a {LABEL}", remedy)
    try:
        way = transport(target, address)
        way.close()
        with connect(target, address) as connected:
            claim = judge(target, address, connected.probe().fingerprint)
            runtime = f"{target.runtime} {connected.runtime_version}".strip()
            if claim.verdict == "refused":
                return DeviceCheck(way.where, "missing", claim.why, claim.remedy)
            return DeviceCheck(way.where, "ok", f"{runtime}. {claim.why}" if claim.why else runtime, claim.remedy)
    except AgentError as error:
        remedy = (
            install_command(target, address) if error.kind in ("missing-runtime", "wrong-runtime") else error.remedy
        )
        return DeviceCheck("device", "missing", error.message, remedy)
    except EdgepruneError as error:
        return DeviceCheck("device", "missing", error.message, error.remedy)


def install_command(target: Target, address: str) -> str:
    """What puts the runtime on a device, for its owner to copy; `address` as in --device, a written-down name too."""
    host, port = parse(where(target, address).where)
    login = f"ssh -p {port} {host}" if port else f"ssh {host}"
    if install := getattr(runtime_half(target.runtime), "INSTALL", ""):
        return f"{login} {install}"
    wanted = f"'{target.runtime}{target.requires}'"
    name = address if address in book.read() else re.sub(r"[^\w-]", "-", host.split("@")[-1])
    return (
        f'{login} "python3 -m venv edgeprune && edgeprune/bin/pip install numpy {wanted}" && '
        f"edgeprune devices add {name} ssh://{host}{f':{port}' if port else ''} "
        f"--python edgeprune/bin/python --target {target.name}"
    )
