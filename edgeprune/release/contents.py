"""A bundle that passed `verify`, opened: its manifest and result, typed, its answers, and its artifact for a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune import result as results
from edgeprune.release import archive, encryption, evidence, samples
from edgeprune.release.evidence import Manifest
from edgeprune.release.trust import Revoked
from edgeprune.release.verify import Verified, verify
from edgeprune.result import Facts, Result
from edgeprune.target import Target
from edgeprune.validate import Answers

if TYPE_CHECKING:
    from edgeprune.devices import Artifact


@dataclass(frozen=True)
class Contents:
    """What a bundle says.

    Attributes:
        verified: what was checked, and what that came to.
        profile: the target as it was when the bundle was made.
        answers: None in a bundle of an older version.
        raw: result.json, with what only the report and `reproduce` read.
    """

    path: Path
    verified: Verified
    manifest: Manifest
    profile: Target
    result: Result
    answers: Answers | None
    raw: Facts

    def read(self, member: str) -> bytes:
        """A member that `verify` has checked; b"" for one that is not there."""
        found = archive.read(self.path)
        return found.read(member, found.member(member).size) if member in found.members else b""

    def artifact(self, folder: Path, name: str) -> Artifact:
        """The artifact's files in `folder`, as a device takes them."""
        from edgeprune.devices import Artifact

        entry = self.manifest.artifact
        paths = archive.read(self.path).extract([f"artifact/{file}" for file in entry.files], folder)
        listed = {file: paths[f"artifact/{file}"] for file in entry.files}
        return Artifact(name, entry.runtime, "int8", listed, dict(entry.options))


def contents(
    bundle: Path, *, key: Path | None = None, device: str = "", rerun: bool = True, revoked: Revoked | None = None
) -> Contents:
    """Verify a bundle and open it; raises as `verify`."""
    verified = verify(bundle, key=key, device=device, rerun=rerun, revoked=revoked)
    found = archive.read(bundle)
    encryption.refuse(found, "this")
    manifest, _, profile = evidence.manifest(found)
    raw = evidence.json_of(found, "result.json")
    return Contents(bundle, verified, manifest, profile, results.read(raw), samples.answers(found), Facts(raw))
