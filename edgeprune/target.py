"""What the device is: `targets/NAME/profile.toml` -> a frozen `Target`.

A profile holds the runtime, its INT8 dialect, the channel steps, how to run and measure there, how to connect, and the
evidence: on what it was verified, when and how. A user adds a target by adding a folder: `--targets DIR` or the
environment variable `EDGEPRUNE_TARGETS` (several folders, separated as in PATH); later folders win over shipped ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgeprune.config import read_toml
from edgeprune.errors import TargetError, did_you_mean

Family = Literal["intel", "x86", "arm", "nvidia"]
Positive = Annotated[int, Meta(ge=1)]

EVIDENCE_LEVELS = {
    "device": "measured on the device",
    "emulated": "true binary, emulated",
    "compiler": "compiler only",
    "none": "not verified",
}


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Channels(_Section, frozen=True):
    """Widths that the runtime's INT8 kernels are made for."""

    step: Positive = 8  # output channels of a convolution or linear layer come in blocks of this
    input_step: Positive = 4  # input channels likewise
    depthwise_step: Positive = 8  # channels of a depthwise convolution
    minimum: Positive = 8  # narrower layers are not worth a kernel


class Execution(_Section, frozen=True):
    """How the artifact runs on the device."""

    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    batch: Annotated[int, Meta(ge=1, le=65536)] = 1
    options: dict[str, str | int | float | bool] = {}  # handed to the runtime as they are


class Protocol(_Section, frozen=True):
    """How latency is measured: warm up, then rounds that interleave all candidates."""

    unit: Literal["ms", "instructions", "modelled ms"] = "ms"  # set by the way the device is reached
    warmup_runs: Positive = 10
    runs: Positive = 50  # a round, a candidate
    rounds: Positive = 5
    min_seconds: Annotated[float, Meta(ge=0)] = 0.0  # a round, a candidate: at least this long
    max_seconds: Annotated[float, Meta(gt=0)] = 60.0  # then no further round begins, once there are five
    max_spread: Annotated[float, Meta(gt=0)] = 0.15  # MAD of the round medians / their median; wider is refused
    processes: Positive = 1  # the rounds are spread over so many fresh processes: where a file lands in memory matters


class Connection(_Section, frozen=True):
    """How the host reaches the device."""

    transport: Literal["local", "ssh", "qemu-user", "qemu-board", "model"] = "local"  # model: no device yet
    address: str = ""  # ssh: user@host[:port], or a name in ~/.ssh/config
    cpu: str = ""  # emulation: the core to emulate, such as cortex-a76
    python: str = ""  # the device's interpreter; empty: python3 there, this interpreter here


class Evidence(_Section, frozen=True):
    """One thing that was verified, and how."""

    level: Literal["device", "emulated", "compiler", "none"]
    date: str
    on: str  # the hardware or emulator, as it names itself
    runtime: str  # name and version
    what: str


class Target(_Section, frozen=True):
    """A device and its runtime, as its profile describes them."""

    name: str
    title: str
    family: Family
    runtime: str  # a file of edgeprune/runtimes
    dialect: str  # the Q/DQ scheme: a name in edgeprune.runtimes.DIALECTS
    requires: str = ""  # the runtime's version specifier, such as ">=2025.0"
    cpus: tuple[str, ...] = ()  # cores as the device reports them, or "any"; empty: [connection] cpu, where it is given
    boards: tuple[str, ...] = ()  # words of which one stands in the device tree's model; empty: any board
    channels: Channels = Channels()
    execution: Execution = Execution()
    protocol: Protocol = Protocol()
    connection: Connection = Connection()
    evidence: tuple[Evidence, ...] = ()
    folder: str = ""  # where the profile was read from; set by load()
    notes: str = ""
    extra: dict[str, Any] = {}  # what only this family needs (JetPack versions, compute capability, CPU flags)

    @property
    def level(self) -> str:
        """The best evidence that the profile has: device, emulated, compiler or none."""
        levels = [item.level for item in self.evidence]
        return next((level for level in EVIDENCE_LEVELS if level in levels), "none")

    def to_dict(self) -> dict[str, object]:
        """The profile as plain data, without the folder it came from."""
        data: dict[str, object] = msgspec.to_builtins(self)
        del data["folder"]
        return data


def _check_requires(target: Target, path: Path) -> None:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        SpecifierSet(target.requires)
    except (InvalidSpecifier, ValueError):  # ValueError: more digits than Python reads
        raise TargetError(
            f"{path}: requires: '{target.requires[:80]}' is no version specifier.", 'Such as ">=1.20,<2".'
        ) from None


def runtimes() -> list[str]:
    """The runtimes that an agent can open: those with a file `devices/agent/run_NAME.py`."""
    halves = (Path(__file__).resolve().parent / "devices" / "agent").glob("run_*.py")
    return sorted(path.stem.removeprefix("run_") for path in halves)


def latency_key(unit: str, what: str = "latency") -> str:
    """The key of a latency in result.json: latency_ms, latency_instructions, latency_modelled_ms."""
    return f"{what}_{unit.replace(' ', '_')}"


def folders(extra: Sequence[Path] = ()) -> list[Path]:
    """The folders that hold targets, the shipped one first."""
    package = Path(__file__).resolve().parent
    shipped = next((p for p in (package / "_data" / "targets", package.parent / "targets") if p.is_dir()), None)
    environment = [Path(part) for part in os.environ.get("EDGEPRUNE_TARGETS", "").split(os.pathsep) if part]
    missing = [folder for folder in (*environment, *extra) if not folder.is_dir()]
    if missing:
        raise TargetError(f"{missing[0]}: no such folder of targets.", "Check --targets and EDGEPRUNE_TARGETS.")
    return [*([shipped] if shipped else []), *environment, *extra]


def names(extra: Sequence[Path] = ()) -> dict[str, Path]:
    """Every known target's name and profile, sorted by name; reads no profile."""
    found = {profile.parent.name: profile for folder in folders(extra) for profile in folder.glob("*/profile.toml")}
    return dict(sorted(found.items()))


def load(name: str, extra: Sequence[Path] = ()) -> Target:
    """Read the profile of target `name`; raises TargetError when it is unknown or wrong."""
    known = names(extra)
    if name not in known:
        raise TargetError(f"no target is called '{name}'.", did_you_mean(name, known) + " See: edgeprune targets")
    target = read_toml(known[name], Target, TargetError)
    if target.name != name:
        raise TargetError(f"{known[name]}: 'name' is '{target.name}', but its folder is '{name}'.", "Make them equal.")
    if target.runtime not in (halves := runtimes()):
        raise TargetError(
            f"{known[name]}: 'runtime' is '{target.runtime}', which edgeprune does not know.",
            did_you_mean(target.runtime, halves) or f"Known: {', '.join(halves)}.",
        )
    _check_requires(target, known[name])
    return msgspec.structs.replace(target, folder=str(known[name].parent))
