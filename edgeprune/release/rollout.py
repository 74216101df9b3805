"""Putting a bundle into use on a device: checked here, then verified, tested and switched to by the device itself."""

from __future__ import annotations

import contextlib
import glob
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune import files
from edgeprune.errors import BundleError, DeviceError, GateError, UsageError
from edgeprune.release import archive, encryption, evidence, signature
from edgeprune.release.trust import Revoked
from edgeprune.release.verify import verify
from edgeprune.result import Facts
from edgeprune.target import Target

if TYPE_CHECKING:
    from edgeprune.devices import AgentDevice, Releases

SLACK = 0.25  # share by which a release may be slower on the device than it claims


def install(
    bundle: Path,
    device: str = "",
    *,
    key: Path | None = None,
    revoked: Revoked | None = None,
    unsigned: bool = False,
    new_key: bool = False,
    name: str = "",
    folder: str = "",
    slack: float = SLACK,
    profile: Target | None = None,
) -> Releases:
    """Install a bundle on a device; the release in use there stays unless the new one passes all of it.

    Args:
        device: where; empty: how the profile of the bundle's target reaches its device.
        key: public keys (PEM), one of which must have signed it. The device remembers them.
        unsigned: take one that nobody signed, where the device knows no key yet.
        new_key: the given keys replace those that the device knows.
        name: what it is called there; empty: the name in the bundle.
        folder: where on the device; empty: ~/.local/share/edgeprune/releases.
        profile: the target, from whoever knows it better than by the name that the bundle gives.

    Raises:
        BundleError: damaged, altered, without evidence, revoked, signed by another key: seen here or there.
        NotAuthenticated: not signed by whom the device trusts.
        GateError: never measured on its device, or it fails its self-test there.
    """
    if new_key and key is None:
        raise UsageError("--new-key needs the key.", "Give it: --key release.pub")
    checked = verify(bundle, key=key, rerun=False, revoked=revoked)
    if checked.state == "unverified":
        raise GateError(
            f"{bundle}: marked unverified: the device it is for has not measured it.",
            "Its README.md has the commands that measure it on a device.",
        )
    found = archive.read(bundle)
    encryption.refuse(found, "`device install`")
    manifest, _, _ = evidence.manifest(found)
    known = profile or evidence.known_here(manifest)
    keys = signature.raw_keys(key) if key is not None else []
    more = {"keys": keys, "new_keys": new_key, "unsigned": unsigned, "slack": slack}
    with _reached(known, device) as there:
        return there.rollout("install", name or manifest.name, folder, bundle, **more)


def check(profile: Target, device: str, name: str, folder: str = "", slack: float = SLACK) -> Releases:
    """Test the release in use again; where it fails, the device goes back by itself, and GateError says so."""
    with _reached(profile, device) as there:
        return there.rollout("check", name, folder, slack=slack)


def rollback(profile: Target, device: str, name: str, folder: str = "") -> Releases:
    """Go back to the release before; raises UsageError where there is none, GateError where it fails its samples."""
    with _reached(profile, device) as there:
        return there.rollout("rollback", name, folder, slack=SLACK)


def installed(profile: Target, device: str, name: str = "", folder: str = "") -> list[Releases]:
    """What is installed on a device."""
    with _reached(profile, device) as there:
        return there.releases(name, folder)


def targets_here(name: str = "", folder: str = "") -> list[str]:
    """The targets that the releases on this very machine were made for, by their manifests."""
    from edgeprune import devices

    found: list[str] = []
    for manifest in sorted(devices.releases_folder(folder).glob(f"{glob.escape(name) or '*'}/current/manifest.json")):
        with contextlib.suppress(BundleError, TypeError):  # what is damaged, `installed` says
            found.append(Facts(files.read_json(manifest, BundleError)).part("target").text("name"))
    return list(dict.fromkeys(filter(None, found)))


def _reached(profile: Target, device: str) -> AgentDevice:
    from edgeprune import devices

    found = devices.connect(profile, device)
    if not isinstance(found, devices.AgentDevice):
        raise DeviceError(
            f"{profile.name} has no device here that a release could be put on.", "Name one: --device ssh://NAME"
        )
    return found
