"""Checking a bundle, on any machine: every byte, the signature, the evidence, and the samples again.

In this order, so that nothing is opened by a runtime before it is known to be whole. Anything wrong is a BundleError
that names the file. What is left is one of four states, and only one of them is called good:

    good         signed by the key that was given, and its samples came out here as they did when it was made
    authentic    signed by that key; the samples were not run again (nor, where it is encrypted, its evidence checked)
    intact       nothing is wrong with it, but anybody may have made it: not signed, or no key was given
    unverified   intact, and it says itself that the device it is for has not measured it
"""

from __future__ import annotations

import importlib.util
import stat
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune import files
from edgeprune.errors import BundleError, DeviceUnreachable, JobFailed, MissingDependency, TargetError, UsageError
from edgeprune.release import archive, encryption, evidence, samples, signature
from edgeprune.release.archive import DAMAGED, Archive
from edgeprune.release.bundle import UNVERIFIED
from edgeprune.release.device import run as on_device
from edgeprune.release.evidence import Manifest
from edgeprune.release.signature import SUMS
from edgeprune.release.trust import Revoked
from edgeprune.target import Target

State = Literal["good", "authentic", "intact", "unverified"]
MAX_SUMS = 1 << 20


@dataclass(frozen=True)
class Check:
    """One thing that was checked; `passed` is False when it could not be done here (a failure raises instead)."""

    name: str
    passed: bool
    message: str


@dataclass(frozen=True)
class Verified:
    """A bundle in which nothing wrong was found.

    Attributes:
        state: "good", "authentic", "intact" or "unverified"; see the module.
        summary: the state in words, as the last line of `edgeprune verify` has it.
        checks: integrity, signature, evidence, samples.
    """

    bundle: Path
    state: State
    summary: str
    checks: tuple[Check, ...]
    manifest: dict[str, object]

    def to_dict(self) -> dict[str, object]:
        """As `edgeprune verify --json` prints it."""
        return {
            "bundle": str(self.bundle),
            "good": self.state == "good",
            "state": self.state,
            "summary": self.summary,
            "checks": [asdict(check) for check in self.checks],
            "manifest": self.manifest,
        }


def verify(
    bundle: Path,
    *,
    key: Path | None = None,
    device: str = "",
    rerun: bool = True,
    profile: Target | None = None,
    revoked: Revoked | None = None,
    identity: Path | None = None,
) -> Verified:
    """Check a bundle.

    Args:
        key: a file of public keys (PEM), one of which must have signed it.
        device: where to run the samples, instead of how the target's profile reaches its device.
        rerun: False: open nothing.
        profile: the target, from whoever knows it better than by the name that the bundle gives.
        revoked: what is not trusted any longer.
        identity: a device's private key (age), for a bundle whose artifact is encrypted; without it neither its
            evidence nor its samples are looked at.

    Raises:
        UsageError: there is no such bundle, or no such key.
        BundleError: damaged, altered, incomplete, without evidence, or its samples come out differently.
    """
    _there(bundle)
    found = archive.read(bundle)
    integrity = _integrity(found)
    signed = Check("signature", *signature.check(found, key, revoked))
    if not encryption.is_encrypted(found):
        return _inside(found, integrity, signed, device, rerun, profile)
    if identity is None:
        return _closed(found, integrity, signed)
    with tempfile.TemporaryDirectory(prefix="edgeprune-verify-") as folder:
        plain = archive.read(encryption.decrypt(bundle, identity, Path(folder) / bundle.name))
        return replace(_inside(plain, integrity, signed, device, rerun, profile), bundle=bundle)


def _inside(
    found: Archive, integrity: Check, signed: Check, device: str, rerun: bool, profile: Target | None
) -> Verified:
    """The evidence and the samples of a plain bundle."""
    manifest, raw, own = evidence.manifest(found)
    proved = Check("evidence", manifest.verdict != UNVERIFIED, evidence.check(found, manifest, raw, own))
    inputs, expected = samples.read(found)
    evidence.fits(found, manifest, inputs)
    if rerun:
        again = _samples(found, manifest, device, inputs, expected, profile)
    else:
        again = Check("samples", False, "not rerun: --no-rerun was given.")
    state, summary = _state(manifest, signed, again)
    return Verified(found.path, state, summary, (integrity, signed, proved, again), raw)


def _closed(found: Archive, integrity: Check, signed: Check) -> Verified:
    """What can be said of an encrypted bundle without its device's key."""
    keys = encryption.envelope(found).keys
    why = f"the artifact is encrypted for {keys} {'key' if keys == 1 else 'keys'}; --identity FILE opens it."
    raw = evidence.json_of(found, "manifest.json")
    if not isinstance(raw, dict):
        raise BundleError(f"{found.path}: 'manifest.json' is not a manifest.", DAMAGED)
    checks = (integrity, signed, Check("evidence", False, f"not checked: {why}"), Check("samples", False, "not rerun."))
    if raw.get("verdict") == UNVERIFIED:
        summary = "UNVERIFIED: its own device has not measured it (encrypted: evidence not checked)"
        return Verified(found.path, "unverified", summary, checks, raw)
    if not signed.passed:
        summary = "INTACT, NOT AUTHENTICATED (encrypted: evidence not checked)"
        return Verified(found.path, "intact", summary, checks, raw)
    who = signed.message.rstrip(".")
    return Verified(found.path, "authentic", f"AUTHENTIC, ENCRYPTED: EVIDENCE NOT CHECKED ({who})", checks, raw)


def _there(bundle: Path) -> None:
    """A bundle that is not there was not tampered with."""
    try:
        mode = bundle.stat().st_mode
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or str(cause)
        raise UsageError(
            f"{bundle}: no such bundle ({reason}).", "A run that passes leaves one in its release folder."
        ) from None
    if not stat.S_ISREG(mode):
        raise UsageError(f"{bundle}: not a bundle, which is a file.", "Give the .tar file, not the folder it is in.")


def _state(manifest: Manifest, signed: Check, again: Check) -> tuple[State, str]:
    """What all checks come to, in one word and in a line."""
    rerun = "samples rerun here" if again.passed else "samples not rerun"
    if manifest.verdict == UNVERIFIED:
        who = f", {signed.message.rstrip('.')}" if signed.passed else ", not authenticated"
        return "unverified", f"UNVERIFIED: its own device has not measured it (intact{who}, {rerun})"
    if not signed.passed:
        return "intact", f"INTACT, NOT AUTHENTICATED ({rerun})"
    who = signed.message.rstrip(".")
    return (
        ("good", f"GOOD ({who}, {rerun})") if again.passed else ("authentic", f"AUTHENTIC, SAMPLES NOT RERUN ({who})")
    )


def _integrity(found: Archive) -> Check:
    """Every file is the one that SHA256SUMS lists, and none is there that it does not list."""
    sums = found.read(SUMS, MAX_SUMS)
    listed: dict[str, str] = {}
    for line in sums.decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    spelled = "".join(f"{listed[name]}  {name}\n" for name in sorted(listed)).encode("utf-8", "replace")
    if spelled != sums:
        raise BundleError(f"{found.path}: '{SUMS}' is damaged or altered.", DAMAGED)
    present = set(found.members) - {SUMS} - signature.MEMBERS
    for name in sorted(present ^ set(listed)):
        state = "is not listed in SHA256SUMS" if name in present else "is missing, or SHA256SUMS was altered"
        raise BundleError(f"{found.path}: '{name[:200]}' {state}.", DAMAGED)
    for name, digest in listed.items():
        if found.sha256(name) != digest:
            raise BundleError(
                f"{found.path}: '{name}' is damaged or altered: its sha256 is not the listed one.", DAMAGED
            )
    known = files.sha256(sums)[:16]
    return Check("integrity", True, f"{len(listed)} files, each with the sha256 that it should have ({known}).")


def _samples(
    found: Archive,
    manifest: Manifest,
    device: str,
    inputs: list[NDArray[Any]],
    expected: list[NDArray[Any]],
    known: Target | None,
) -> Check:
    """Run the samples and hold them against the outputs that travel along."""
    try:
        profile = known or evidence.known_here(manifest)  # a bundle may not say where to run
    except TargetError:
        name = manifest.target["name"]
        return Check("samples", False, f"not rerun: target '{name}' is not known here; add its folder with --targets.")
    if profile.runtime != manifest.artifact.runtime:
        raise BundleError(f"{found.path}: it is for {manifest.artifact.runtime}; {profile.name} has {profile.runtime}.")
    from edgeprune.devices import HOST_RUNTIME, way

    try:
        scheme = way(profile, device).scheme
    except TargetError as cause:
        if device:
            raise
        return Check("samples", False, f"not rerun: {cause.message}")
    runtime = HOST_RUNTIME if scheme == "model" else profile.runtime
    if scheme in ("local", "model") and importlib.util.find_spec(runtime) is None:
        extra = f"Install: pip install 'edgeprune[{runtime}]'"
        return Check("samples", False, f"not rerun: runtime {runtime} is not installed. {extra}")
    try:
        outputs, version = _run(found, manifest, profile, device, inputs)
    except (DeviceUnreachable, MissingDependency, TargetError) as cause:
        if device:
            raise
        return Check("samples", False, f"not rerun: {cause.message}")
    except JobFailed as cause:
        raise BundleError(f"{found.path}: the artifact does not run: {cause.message}", cause.remedy) from None
    facts = _compare(found, outputs, expected, f"{runtime} {version}".strip(), manifest.classifies)
    if scheme == "model":
        return Check("samples", False, f"not rerun by {profile.runtime}; computed by the book they agree: {facts}")
    return Check("samples", True, facts)


def _run(
    found: Archive, manifest: Manifest, profile: Target, device: str, inputs: list[NDArray[Any]]
) -> tuple[list[NDArray[Any]], str]:
    from edgeprune import devices

    entry = manifest.artifact
    with tempfile.TemporaryDirectory(prefix="edgeprune-verify-") as folder:
        paths = found.extract([f"artifact/{name}" for name in entry.files], Path(folder))
        opened = {name: paths[f"artifact/{name}"] for name in entry.files}
        artifact = devices.Artifact("bundle", entry.runtime, "int8", opened, dict(entry.options))
        with devices.connect(profile, device) as connected:
            given: Any = inputs[0].astype(np.float32, copy=False) if not manifest.inputs else inputs[0]
            if len(inputs) > 1:
                given = {part.name: array for part, array in zip(manifest.inputs, inputs, strict=True)}
            outputs = connected.infer(connected.load(artifact), given)
            version = connected.probe().fingerprint.get("runtime_version", "")
    return outputs, str(version)[:64]


def _compare(
    found: Archive, outputs: list[NDArray[Any]], expected: list[NDArray[Any]], where: str, classifies: bool
) -> str:
    if len(outputs) != len(expected):
        raise BundleError(f"{found.path}: the artifact has {len(outputs)} outputs; 'samples.npz' has {len(expected)}.")
    worst, same = 0.0, None
    for output, wanted in zip(outputs, expected, strict=True):
        if output.shape != wanted.shape:
            raise BundleError(f"{found.path}: outputs have shape {output.shape}; 'samples.npz' has {wanted.shape}.")
        agreement, error = on_device.compare(output, wanted)
        worst = max(worst, error)
        if classifies and agreement is not None:
            same = agreement if same is None else min(same, agreement)
    equal = "" if same is None else f"the same class on {100 * same:.0f} %, "
    facts = f"{len(expected[0])} samples on {where}: {equal}mean error {100 * worst:.2f} % of full scale"
    if not (worst <= on_device.ERROR and (same is None or same >= on_device.AGREEMENT)):
        raise BundleError(f"{found.path}: {facts}.", "This artifact does not compute what it did when it was made.")
    return f"{facts}."
