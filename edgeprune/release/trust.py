"""Whom to trust: public keys, several while one replaces another, and a list of what is revoked.

A file of public keys holds one PEM block or more. Rotation: add the new key to the file, sign with it from then on, and
take the old one out when no bundle of its time is used any longer. A key that has leaked goes on the list at once:

    [[key]]
    sha256 = "606f3fd208d19d68"        # as `verify` shows it, or all 64 digits of the sha256 of the raw public key
    reason = "the laptop that held it was stolen"

    [[bundle]]
    sha256 = "..."                     # of the bundle's SHA256SUMS, as `verify` shows it
    reason = "trained on data that was withdrawn"

What is on the list is bad whatever else is true of it. The list is believed as it lies there: like the public key, it
must come by a way that is trusted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edgeprune.config import read_toml
from edgeprune.errors import BundleError, UsageError

BLOCK = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
MAX_KEYS = 100

Digits = Annotated[str, Meta(pattern="^[0-9a-f]{16,64}$")]


class RevokedThing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key or a bundle, by the first digits of its sha256, and why."""

    sha256: Digits
    reason: Annotated[str, Meta(max_length=1000)] = ""


class Revoked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A revocation list, checked."""

    key: Annotated[tuple[RevokedThing, ...], Meta(max_length=100_000)] = ()
    bundle: Annotated[tuple[RevokedThing, ...], Meta(max_length=100_000)] = ()
    path: str = ""  # the file it was read from

    def and_of(self, other: Revoked | None) -> Revoked:
        """What either list holds."""
        if other is None:
            return self
        return Revoked(self.key + other.key, self.bundle + other.bundle, f"{self.path}, {other.path}")

    def refuse(self, bundle: Path, sums: str, signer: str) -> None:
        """Raise BundleError where a bundle, or who signed it, is on the list.

        Args:
            sums: sha256 of its SHA256SUMS.
            signer: sha256 of the raw public key that made its signature; empty where it is not signed.
        """
        for what, digest, listed in (("it", sums, self.bundle), ("the key that signed it", signer, self.key)):
            for one in listed if digest else ():
                if digest.startswith(one.sha256):
                    why = f": {one.reason}" if one.reason else ""
                    raise BundleError(
                        f"{bundle}: {what} ({digest[:16]}) is revoked by {self.path}{why}.", "Do not use it."
                    )


def load_revoked(path: Path) -> Revoked:
    """Read a revocation list; raises UsageError where it is missing or wrong: what cannot be read revokes nothing."""
    return msgspec.structs.replace(read_toml(path, Revoked, UsageError), path=str(path))


def blocks(data: bytes, path: Path, remedy: str) -> list[bytes]:
    """The public keys of a PEM file, one block each; raises UsageError."""
    found = BLOCK.findall(data)
    if not found or len(found) > MAX_KEYS:
        raise UsageError(f"{path}: not a public key in PEM.", remedy)
    return found
