"""Checking a bundle, on any machine: every byte, the signature, the evidence, and the samples again.

In this order, so that nothing is opened by a runtime before it is known to be whole. Anything wrong is a BundleError
that names the file; what could not be checked here (a runtime that is not installed) is said, never passed over.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune import target as targets
from edgeprune.errors import BundleError, DeviceUnreachable, JobFailed, MissingDependency, TargetError
from edgeprune.release import archive, signature
from edgeprune.release.archive import DAMAGED, Archive
from edgeprune.release.bundle import MANIFEST, UNVERIFIED
from edgeprune.release.device import run as on_device
from edgeprune.release.signature import SUMS

GATES = ("measurement", "proof", "accuracy", "latency", "faster")  # each must be there, and passed
AT_MOST = ("measurement", "accuracy", "latency", "size")  # value <= limit; "faster" must be below its limit
ROUNDING = 1e-6


@dataclass(frozen=True)
class Check:
    """One thing that was checked; `passed` is False when it could not be done here (a failure raises instead)."""

    name: str
    passed: bool
    message: str


@dataclass(frozen=True)
class Verified:
    """A bundle in which nothing wrong was found."""

    bundle: Path
    checks: tuple[Check, ...]
    manifest: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As `edgeprune verify --json` prints it."""
        return {
            "bundle": str(self.bundle),
            "good": True,
            "checks": [asdict(check) for check in self.checks],
            "manifest": self.manifest,
        }


def verify(bundle: Path, *, key: Path | None = None, device: str = "", rerun: bool = True) -> Verified:
    """Check a bundle.

    Args:
        key: the public key (PEM) that must have signed it.
        device: where to run the samples, instead of how the target's profile reaches its device.
        rerun: False: open nothing.

    Raises:
        BundleError: damaged, altered, incomplete, without evidence, or its samples come out differently.
    """
    found = archive.read(bundle)
    checks = [_integrity(found)]
    manifest = _manifest(found)
    checks.append(Check("signature", *signature.check(found, key)))
    checks.append(_evidence(found, manifest))
    if rerun:
        checks.append(_samples(found, manifest, device))
    else:
        checks.append(Check("samples", False, "not rerun: --no-rerun was given."))
    return Verified(bundle, tuple(checks), manifest)


def _integrity(found: Archive) -> Check:
    """Every file is the one that SHA256SUMS lists, and none is there that it does not list."""
    listed: dict[str, str] = {}
    for line in found.read(SUMS).decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    spelled = "".join(f"{listed[name]}  {name}\n" for name in sorted(listed)).encode("utf-8", "replace")
    if spelled != found.read(SUMS):
        raise BundleError(f"{found.path}: '{SUMS}' is damaged or altered.", DAMAGED)
    present = set(found.members) - {SUMS, signature.MEMBER}
    for name in sorted(present ^ set(listed)):
        state = "is not listed in SHA256SUMS" if name in present else "is missing, or SHA256SUMS was altered"
        raise BundleError(f"{found.path}: '{name}' {state}.", DAMAGED)
    for name, digest in listed.items():
        if found.sha256(name) != digest:
            raise BundleError(
                f"{found.path}: '{name}' is damaged or altered: its sha256 is not the listed one.", DAMAGED
            )
    return Check("integrity", True, f"{len(listed)} files, each with the sha256 that it should have.")


def _manifest(found: Archive) -> dict[str, Any]:
    """The manifest, whose own list of hashes must agree with the archive."""
    try:
        manifest: dict[str, Any] = json.loads(found.read(MANIFEST))
        version, files = manifest["version"], manifest["files"]
        hashes = {name: entry["sha256"] for name, entry in files.items()}
        artifact = manifest["artifact"]
        wanted = [f"artifact/{name}" for name in artifact["files"]]
        str(manifest["target"]["name"]), str(artifact["runtime"]), dict(artifact["options"])
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise BundleError(f"{found.path}: '{MANIFEST}' is not a manifest ({cause}).", DAMAGED) from None
    if version != 1:
        raise BundleError(f"{found.path}: '{MANIFEST}' has version {version}; only 1 is known.", "Update edgeprune.")
    for name, digest in hashes.items():
        if found.sha256(name) != digest:
            raise BundleError(f"{found.path}: '{name}' is not the file of the manifest.", DAMAGED)
    for name in wanted:
        if name not in hashes:
            raise BundleError(f"{found.path}: '{name}' is missing.", DAMAGED)
    return manifest


def _evidence(found: Archive, manifest: Mapping[str, Any]) -> Check:
    """All gates are there, passed, and say what their own figures say; the proof is there."""
    gates = {str(gate.get("name")): gate for gate in manifest.get("gates", ())}
    if manifest.get("verdict") == UNVERIFIED:
        raise BundleError(
            f"{found.path}: whole, but marked unverified: no device has measured it.",
            "Its README.md has the commands that measure it on a device.",
        )
    for name in GATES:
        if name not in gates:
            raise BundleError(f"{found.path}: its manifest has no '{name}' gate.", "It was not made by a passing run.")
    for name, gate in gates.items():
        if gate.get("passed") is not True or not _consistent(name, gate):
            raise BundleError(f"{found.path}: the '{name}' gate did not pass.", "It was not made by a passing run.")
    proof = manifest.get("proof", {})
    if manifest.get("verdict") != "release" or proof.get("passed") is not True:
        raise BundleError(f"{found.path}: no proof, or no verdict to release.", "It was not made by a passing run.")
    runtime = manifest.get("runtime", {})
    where = f"{manifest['target']['name']}, {runtime.get('name', '')} {runtime.get('version', '')}"
    return Check("evidence", True, f"{len(gates)} gates passed and the proof is there ({where}).")


def _consistent(name: str, gate: Mapping[str, Any]) -> bool:
    value, limit = gate.get("value"), gate.get("limit")
    if name not in (*AT_MOST, "faster"):
        return True
    if not isinstance(value, int | float) or not isinstance(limit, int | float):
        return False
    return value < limit if name == "faster" else value <= limit + abs(limit) * ROUNDING


def _samples(found: Archive, manifest: Mapping[str, Any], device: str) -> Check:
    """Run the samples and hold them against the outputs that travel along."""
    try:
        profile = targets.load(str(manifest["target"]["name"]))  # the one known here: a bundle may not say where to run
    except TargetError:
        name = manifest["target"]["name"]
        return Check("samples", False, f"not rerun: target '{name}' is not known here; add its folder with --targets.")
    inputs, expected = _arrays(found)
    local = (device or profile.connection.transport) == "local"
    if local and importlib.util.find_spec(profile.runtime) is None:
        extra = f"Install: pip install 'edgeprune[{profile.runtime}]'"
        return Check("samples", False, f"not rerun: runtime {profile.runtime} is not installed. {extra}")
    try:
        outputs, version = _run(found, manifest, profile, device, inputs)
    except (DeviceUnreachable, MissingDependency) as cause:
        if device:
            raise
        return Check("samples", False, f"not rerun: {cause.message}")
    except JobFailed as cause:
        raise BundleError(f"{found.path}: the artifact does not run: {cause.message}", cause.remedy) from None
    return _compare(found, outputs, expected, f"{profile.runtime} {version}".strip())


def _arrays(found: Archive) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
    try:
        with np.load(io.BytesIO(found.read("samples.npz", 1 << 30)), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        inputs = arrays.pop("input")
    except (ValueError, KeyError, OSError, EOFError) as cause:
        raise BundleError(f"{found.path}: 'samples.npz' cannot be read ({cause}).", DAMAGED) from None
    if not arrays or any(len(output) != len(inputs) for output in arrays.values()) or not len(inputs):
        raise BundleError(f"{found.path}: 'samples.npz' has no outputs for its inputs.", DAMAGED)
    return inputs, [arrays[name] for name in on_device.ordered(arrays)]


def _run(
    found: Archive, manifest: Mapping[str, Any], profile: targets.Target, device: str, inputs: NDArray[np.float32]
) -> tuple[list[NDArray[Any]], str]:
    from edgeprune import devices

    entry = manifest["artifact"]
    with tempfile.TemporaryDirectory(prefix="edgeprune-verify-") as folder:
        paths = found.extract([f"artifact/{name}" for name in entry["files"]], Path(folder))
        files = {name: paths[f"artifact/{name}"] for name in entry["files"]}
        artifact = devices.Artifact("bundle", str(entry["runtime"]), "int8", files, dict(entry["options"]))
        with devices.connect(profile, device) as connected:
            outputs = connected.infer(connected.load(artifact), inputs)
            version = connected.probe().fingerprint.get("runtime_version", "")
    return outputs, str(version)


def _compare(found: Archive, outputs: list[NDArray[Any]], expected: list[NDArray[Any]], where: str) -> Check:
    if len(outputs) != len(expected):
        raise BundleError(f"{found.path}: the artifact has {len(outputs)} outputs; 'samples.npz' has {len(expected)}.")
    worst, same = 0.0, 1.0
    for output, wanted in zip(outputs, expected, strict=True):
        if output.shape != wanted.shape:
            raise BundleError(f"{found.path}: outputs have shape {output.shape}; 'samples.npz' has {wanted.shape}.")
        agreement, error = on_device.compare(output, wanted)
        worst, same = max(worst, error), min(same, 1.0 if agreement is None else agreement)
    facts = f"{len(expected[0])} samples on {where}: the same class on {same:.0%}, mean error {worst:.2%} of full scale"
    if worst > on_device.ERROR or same < on_device.AGREEMENT:
        raise BundleError(f"{found.path}: {facts}.", "This artifact does not compute what it did when it was made.")
    return Check("samples", True, f"{facts}.")
