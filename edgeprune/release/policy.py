"""What a team asks of every release, in one file: `edgeprune verify BUNDLE --policy POLICY.toml`.

[signature]
keys = ["release.pub"]          # one of them must have signed it; relative to this file
revoked = "revoked.toml"        # keys and bundles that are not trusted any longer; relative to this file

[evidence]
level = "device"                # least: device, emulated (instructions of an emulated core), modelled
days = 90                       # since its last measurement, at most
samples = true                  # they must have been rerun here, or on --device

[gates]                         # limits beside those that it passed with; the gate must be there
accuracy = { max = 0.3 }
latency = { max = 2.0 }

[bundle]
targets = ["intel-cpu"]
edgeprune = ">=0.2"
runtime = ">=2026.0"
max_bytes = 4_000_000
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgeprune import claims
from edgeprune.config import read_toml
from edgeprune.errors import BundleError, PolicyError, UsageError, did_you_mean
from edgeprune.release import archive, signature
from edgeprune.release.contents import Contents
from edgeprune.release.trust import Revoked, load_revoked
from edgeprune.release.verify import Check

Level = Literal["device", "emulated", "modelled"]
LEVELS: tuple[Level, ...] = ("modelled", "emulated", "device")  # from the least on
Days = Annotated[float, Meta(gt=0, le=36_500)]
Bound = float | None
Specifier = Annotated[str, Meta(max_length=200)]


class _Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class SignatureRules(_Rules, frozen=True):
    """Who may have signed it."""

    keys: tuple[str, ...] = ()
    revoked: str = ""


class EvidenceRules(_Rules, frozen=True):
    """How well it must have been measured."""

    level: Level = "device"
    days: Days | None = None
    samples: bool = False


class GateRules(_Rules, frozen=True):
    """Of one gate's value, in the gate's own unit."""

    max: Bound = None
    min: Bound = None


class BundleRules(_Rules, frozen=True):
    """What it may be for, and made with."""

    targets: tuple[str, ...] = ()
    edgeprune: Specifier = ""
    runtime: Specifier = ""
    max_bytes: Annotated[int, Meta(ge=1, le=2**50)] | None = None


class Policy(_Rules, frozen=True):
    """A policy file, checked."""

    signature: SignatureRules = SignatureRules()
    evidence: EvidenceRules = EvidenceRules()
    gates: dict[str, GateRules] = {}
    bundle: BundleRules = BundleRules()
    path: str = ""  # the file it was read from; set by load()

    @property
    def keys(self) -> tuple[Path, ...]:
        """The public keys, relative to the policy's own folder."""
        return tuple(Path(self.path).parent / key for key in self.signature.keys)

    @property
    def revoked(self) -> Revoked | None:
        """What is not trusted any longer, where it names a list; raises UsageError."""
        name = self.signature.revoked
        return load_revoked(Path(self.path).parent / name) if name else None


def load(path: Path) -> Policy:
    """Read and check a policy; raises UsageError that names file and key."""
    policy = msgspec.structs.replace(read_toml(path, Policy, UsageError), path=str(path))
    for name, rule in policy.gates.items():
        if any(value is not None and not math.isfinite(value) for value in (rule.min, rule.max)):
            raise UsageError(f"{path}: [gates] {name[:80]} has a limit that is not finite.", "Give a number.")
    for key, text in (("edgeprune", policy.bundle.edgeprune), ("runtime", policy.bundle.runtime)):
        _check_specifier(text, f"{path}: [bundle] {key}")
    return policy


def _check_specifier(text: str, where: str) -> None:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        SpecifierSet(text)
    except (InvalidSpecifier, ValueError):
        raise UsageError(f"{where}: '{text[:80]}' is no version specifier.", 'Such as ">=1.20,<2".') from None


def hold(found: Contents, policy: Policy, today: datetime | None = None) -> tuple[Check, ...]:
    """Hold a verified bundle against a policy: every rule that it has, in its order.

    Raises:
        UsageError: a key of the policy cannot be read, or it names a gate that no run has.
    """
    checks: list[Check] = []
    if policy.signature.keys:
        checks.append(_signed(found, policy))
    checks += _evidence(found, policy.evidence, today or datetime.now(UTC))
    checks += [_gate(found, name, rule, policy.path) for name, rule in policy.gates.items()]
    return (*checks, *_made(found, policy.bundle))


def enforce(checks: tuple[Check, ...], found: Contents, policy: Policy) -> None:
    """Raise PolicyError where a rule does not hold."""
    broken = [check for check in checks if not check.passed]
    if broken:
        more = f" ({len(broken)} of {len(checks)} rules are broken)" if len(broken) > 1 else ""
        raise PolicyError(
            f"{found.path}: {policy.path}: {broken[0].name}: {broken[0].message}{more}",
            "Do not deploy it; or change the policy, where the policy is wrong.",
        )


def signer(bundle: Path, policy: Policy) -> Path | None:
    """The first of the policy's keys that has signed a bundle; None where none has. Raises BundleError, UsageError."""
    opened = archive.read(bundle)
    if signature.MEMBERS & set(opened.members):
        for key in policy.keys:
            with contextlib.suppress(BundleError):
                if signature.check(opened, key)[0]:
                    return key
    return None


def _signed(found: Contents, policy: Policy) -> Check:
    key = signer(found.path, policy)
    names = ", ".join(policy.signature.keys)
    message = f"signed by {key}." if key else f"none of the policy's keys has signed it ({names})."
    return Check("policy: signature", key is not None, message)


def level(found: Contents) -> Level:
    """The best that can be said of how it was measured."""
    if found.manifest.unit == "instructions":
        return "emulated"
    return "device" if found.manifest.unit == "ms" and found.manifest.verdict == "release" else "modelled"


def _evidence(found: Contents, rules: EvidenceRules, today: datetime) -> list[Check]:
    have = level(found)
    good = LEVELS.index(have) >= LEVELS.index(rules.level)
    checks = [Check("policy: evidence", good, f"{have}, where at least {rules.level} is wanted.")]
    if rules.days is not None:
        checks.append(_age(found, rules.days, today))
    if rules.samples:
        rerun = next(check for check in found.verified.checks if check.name == "samples")
        checks.append(Check("policy: samples", rerun.passed, rerun.message))
    return checks


def _age(found: Contents, days: float, today: datetime) -> Check:
    dates = [one.date for one in found.result.validations if one.date]
    try:
        last = max(map(datetime.fromisoformat, dates))
        age = (today - (last if last.tzinfo else last.replace(tzinfo=UTC))).total_seconds() / 86_400
    except (ValueError, TypeError):
        return Check("policy: age", False, "it does not say when it was measured.")
    message = f"measured {age:.1f} days ago, where at most {days:g} are allowed."
    if age < -1:
        return Check("policy: age", False, f"measured in the future, on {last:%Y-%m-%d}: check both clocks.")
    return Check("policy: age", age <= days, message)


def _gate(found: Contents, name: str, rule: GateRules, where: str) -> Check:
    gates = {gate.name: gate for gate in found.manifest.gates}
    if name not in gates:
        if name == "size":  # only a recipe with max_bytes has it
            return Check(f"policy: {name}", False, "its recipe sets no max_bytes, so no gate looked at its size.")
        raise UsageError(f"{where}: [gates] no gate is called '{name[:80]}'.", did_you_mean(name, gates))
    gate = gates[name]
    bounds = [f"at {word} {value:g}" for word, value in (("most", rule.max), ("least", rule.min)) if value is not None]
    wanted = " and ".join(bounds) or "passed"
    if gate.value is None:
        return Check(f"policy: {name}", gate.passed and not bounds, f"no figure, where {wanted} is wanted.")
    inside = (rule.max is None or gate.value <= rule.max) and (rule.min is None or gate.value >= rule.min)
    return Check(f"policy: {name}", gate.passed and inside, f"{gate.value:.6g} {gate.unit}, where {wanted} is wanted.")


def _made(found: Contents, rules: BundleRules) -> list[Check]:
    checks = []

    def add(name: str, passed: bool, message: str) -> None:
        checks.append(Check(f"policy: {name}", passed, message))

    target = found.profile.name
    if rules.targets:
        add("target", target in rules.targets, f"for {target}, where {', '.join(rules.targets)} is wanted.")
    fits: Callable[[str, str], bool] = claims.fits
    version, runtime = found.manifest.edgeprune, found.manifest.runtime
    if rules.edgeprune:
        good = fits(version, rules.edgeprune)
        add("edgeprune", good, f"made by edgeprune {version}, where {rules.edgeprune} is wanted.")
    if rules.runtime:
        good = fits(runtime.version, rules.runtime)
        add("runtime", good, f"{runtime.name} {runtime.version}, where {rules.runtime} is wanted.")
    if rules.max_bytes is not None:
        size = sum(found.manifest.files[f"artifact/{name}"].bytes for name in found.manifest.artifact.files)
        add("bytes", size <= rules.max_bytes, f"{size:,} bytes, where at most {rules.max_bytes:,} are wanted.")
    return checks
