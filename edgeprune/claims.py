"""What may be claimed of a target, given the way to a device and what answers there: one table, `ROWS`.

What the device reports of itself decides (its architecture, its cores, the runtime that is really there), not what the
user called it. A figure of another machine is no figure of the target: no latency in milliseconds, no release.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from edgeprune.target import Family, Target

Way = Literal["local", "ssh", "qemu-board", "qemu-board?clock=none", "qemu-user", "model"]
Unit = Literal["ms", "instructions", "modelled ms", ""]  # "": no latency at all, outputs only
Verdict = Literal["release", "unverified", "refused"]
Answer = Literal[
    "the target", "another core", "another architecture", "an emulator", "another runtime", "this x86 machine", "nobody"
]
FAMILIES: tuple[Family, ...] = get_args(Family)
WAYS: tuple[Way, ...] = get_args(Way)
ANSWERS: tuple[Answer, ...] = get_args(Answer)
X86: tuple[Family, ...] = ("intel", "x86")
ARCHITECTURES: dict[Family, str] = {"intel": "x86-64", "x86": "x86-64", "arm": "arm64", "nvidia": "arm64"}
MACHINES = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "arm64", "arm64": "arm64"}  # as uname says
ANY = "any"  # in a profile's `cpus`: every core of the architecture
# Names of processors that only an emulator has; "QEMU Virtual CPU" may be virtualised too, but is nobody's processor.
EMULATORS = re.compile(r"QEMU (TCG|Virtual) CPU|VirtualApple|Bochs", re.IGNORECASE)
ARM_CORE = re.compile(r"(cortex|neoverse)-|0x[0-9a-f]+$", re.IGNORECASE)
VIRTUAL_BOARD = "dummy-virt"  # the device tree's model of qemu's board


@dataclass(frozen=True)
class Row:
    """One row of the table: who asks, by which ways, who answers there, and what may then be said.

    Attributes:
        unit: of a latency; "" where there must be none, and only outputs count.
        verdict: the best that a run may end with; "refused": it ends before anything is measured.
        because: the reason, where the verdict is not "release".
    """

    families: tuple[Family, ...]
    ways: tuple[Way, ...]
    answer: Answer
    unit: Unit
    verdict: Verdict
    because: str = ""


HARDWARE: tuple[Way, ...] = ("local", "ssh")
ROWS = (
    Row(FAMILIES, HARDWARE, "the target", "ms", "release"),
    Row(FAMILIES, HARDWARE, "another core", "ms", "unverified", "the milliseconds are another device's"),
    Row(FAMILIES, HARDWARE, "another architecture", "", "refused", "its outputs and times are another machine's"),
    Row(FAMILIES, HARDWARE, "an emulator", "", "refused", "emulation has no meaningful latency"),
    Row(("arm",), ("local",), "this x86 machine", "modelled ms", "unverified",
        "outputs are pre-checked here, latency is a model, not measured"),
    Row(("arm",), ("qemu-board",), "the target", "instructions", "release"),
    Row(("arm",), ("qemu-board",), "another core", "instructions", "unverified", "the instructions are another core's"),
    Row(("arm",), ("qemu-board?clock=none", "qemu-user"), "the target", "", "refused",
        "emulation has no meaningful latency"),
    Row(("arm",), ("qemu-board?clock=none", "qemu-user"), "another core", "", "refused",
        "emulation has no meaningful latency"),
    Row(FAMILIES, ("model",), "nobody", "modelled ms", "unverified", "latency is a model, not measured"),
    Row(FAMILIES, WAYS, "another runtime", "", "refused", "another runtime computes and times otherwise"),
)  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """What may be said of a target by a device that answered.

    Attributes:
        answer: who answers, in the table's words.
        found: who answers, in the device's own words.
        why: in one sentence, why not more may be claimed; empty for a release.
        remedy: what to do; empty for a release.
    """

    unit: Unit
    verdict: Verdict
    answer: Answer
    found: str
    why: str = ""
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """As in result.json."""
        return asdict(self)


def cell(family: Family, way: Way, answer: Answer) -> tuple[Unit, Verdict, str]:
    """One cell of the table: unit, verdict, reason. What no row names may not be claimed at all."""
    for row in ROWS:
        if family in row.families and way in row.ways and answer == row.answer:
            return row.unit, row.verdict, row.because
    return "", "refused", "nothing that answers this way stands for the target"


def in_words(row: Row) -> tuple[str, str, str, str, str]:
    """A row for people: targets, ways, who answers, unit of a latency, the best verdict and why not a better one."""
    families = "all" if row.families == FAMILIES else ", ".join(row.families)
    ways = "any" if row.ways == WAYS else ", ".join(row.ways)
    verdict = row.verdict if not row.because else f"{row.verdict}: {row.because}"
    return families, ways, row.answer, row.unit or "outputs only", verdict


def judge(target: Target, way: Way, fingerprint: Mapping[str, object]) -> Claim:
    """What may be claimed of `target`, by the fingerprint that the device reported (`Device.probe`)."""
    who, found = answering(target, way, fingerprint)
    unit, verdict, because = cell(target.family, way, who)
    if verdict == "release":
        return Claim(unit, verdict, who, found)
    subject = {
        "nobody": f"{target.name}: no device has run this",
        "this x86 machine": f"{target.name} is {wanted(target)}; this machine is {found}, so no device has run this",
    }.get(who, f"{target.name} is {wanted(target)}; what answered is {found}")
    return Claim(unit, verdict, who, found, f"{subject}: {because}.", _remedy(target, who))


def answering(target: Target, way: Way, fingerprint: Mapping[str, object]) -> tuple[Answer, str]:
    """Who answers, by its own report: in the table's words, and in its own."""
    if way == "model" or fingerprint.get("emulation") == "model":
        # The one model beside a machine: an ARM target on x86, whose outputs are pre-checked there.
        host = str(fingerprint.get("host", ""))
        return ("this x86 machine", host) if way == "local" and host else ("nobody", "no device")
    version, cores = str(fingerprint.get("runtime_version", "")), _words(fingerprint.get("cpus"))
    machine = str(fingerprint.get("machine", ""))
    shown = ", ".join(dict.fromkeys(cores)) or "no core that it names"
    board = str(fingerprint.get("model", ""))
    found = f"{machine or 'no architecture that it names'} ({', '.join(filter(None, (board, shown)))})"
    if fingerprint.get("runtime", target.runtime) != target.runtime or not fits(version, target.requires):
        return "another runtime", f"{fingerprint.get('runtime', '')} {version}".strip()
    architecture = MACHINES.get(machine.lower(), machine)
    if architecture != ARCHITECTURES[target.family]:
        return "another architecture", found
    if not way.startswith("qemu") and _emulated(architecture, cores, board, fingerprint):
        return "an emulator", found
    return ("the target" if _is_it(target, cores, board, fingerprint, way) else "another core"), found


def fits(version: str, requires: str) -> bool:
    """Whether a runtime's version such as "1.31.1" fits a specifier such as ">=1.20,<2"; an empty one fits all."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    if not requires:
        return True
    try:
        return SpecifierSet(requires).contains(Version(version), prereleases=True)
    except (InvalidVersion, InvalidSpecifier, ValueError):  # ValueError: more digits than Python reads
        return False


def wanted(target: Target) -> str:
    """What the profile asks a device to be, in words."""
    parts = [" or ".join(expected_cores(target)), " or ".join(target.boards), ARCHITECTURES[target.family]]
    return ", ".join(filter(None, parts))


def expected_cores(target: Target) -> tuple[str, ...]:
    """The cores that the profile says the device has; none where any of the architecture will do."""
    named = target.cpus or ((target.connection.cpu,) if target.connection.cpu else ())
    return () if ANY in named else named


def _is_it(target: Target, cores: list[str], board: str, fingerprint: Mapping[str, object], way: Way) -> bool:
    expected = expected_cores(target)
    if expected and not (cores and set(cores) <= set(expected)):
        return False
    if way.startswith("qemu"):  # an emulated board has the core and no more
        return True
    if target.family == "nvidia" and not fingerprint.get("l4t"):
        return False
    return not target.boards or any(word.lower() in board.lower() for word in target.boards)


def _emulated(architecture: str, cores: list[str], board: str, fingerprint: Mapping[str, object]) -> bool:
    kernel = str(fingerprint.get("kernel_machine", ""))  # the agent names it where it is not the process's own
    if kernel and MACHINES.get(kernel.lower(), kernel) != architecture:
        return True
    foreign = any(ARM_CORE.match(core) for core in cores) if architecture == "x86-64" else any(map(_x86, cores))
    return foreign or VIRTUAL_BOARD in board or any(EMULATORS.search(core) for core in cores)


def _x86(core: str) -> bool:
    return bool(re.search(r"\b(Intel|AMD|Xeon|EPYC|Ryzen)\b", core))


def _words(found: Any) -> list[str]:
    return [str(one) for one in found] if isinstance(found, list | tuple) else []


def _remedy(target: Target, who: Answer) -> str:
    if who == "another runtime":
        return f"Install it there: python3 -m pip install '{target.runtime}{target.requires}'"
    if who == "another core":
        return "Give the target's own device (--device ssh://NAME), or write a profile of this one: docs/devices.md."
    if target.family in X86:
        return "Run it on an x86 machine, or give one: --device ssh://NAME"
    return "Run it on the device: --device ssh://NAME"
