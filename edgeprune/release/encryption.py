"""Encrypting the artifact of a bundle for a device's key, with age (https://age-encryption.org/v1) through pyrage.

An encrypted bundle is the plain one with `artifact/FILE.age` in the place of each `artifact/FILE`, `encrypted.json`,
and a SHA256SUMS of its own, which a signature is over. All else stays as it was and readable: the manifest has the
sha256 of the plain files, so whoever holds the key gets back the plain bundle, byte for byte but for its signature.

Needs the extra `encrypt` (pyrage). A key pair for a device, of which the public half is for `encrypt`:

    age-keygen -o device.key        or: python3 -c "import pyrage; print(pyrage.x25519.Identity.generate())"
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from edgeprune import files, runtimes
from edgeprune.errors import BundleError, MissingDependency, UsageError
from edgeprune.release import archive, evidence, signature
from edgeprune.release.archive import DAMAGED, Archive
from edgeprune.release.bundle import digest, dump

if TYPE_CHECKING:
    from pyrage import x25519

MEMBER, SUFFIX, FORMAT = "encrypted.json", ".age", "age-encryption.org/v1"
MAX_KEY = 1 << 16  # bytes of a file of keys
MAKE_KEY = "Make one on the device with: age-keygen -o device.key; it prints the public key."
ENCRYPTED = "Its artifact is encrypted. Who has the device's key makes it plain: edgeprune decrypt BUNDLE --identity"


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """encrypted.json: how, for how many keys, and which files."""

    version: Literal[1]
    format: Literal["age-encryption.org/v1"]
    keys: Annotated[int, Meta(ge=1, le=1000)]
    files: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(min_length=1, max_length=100)]


def is_encrypted(found: Archive) -> bool:
    """Does the bundle say that its artifact is encrypted?"""
    return MEMBER in found.members


def refuse(found: Archive, what: str) -> None:
    """Raise UsageError where a bundle is encrypted and `what` needs the artifact."""
    if is_encrypted(found):
        raise UsageError(f"{found.path}: {what} needs the artifact, which is encrypted.", f"{ENCRYPTED} device.key")


def encrypt(bundle: Path, recipients: Sequence[str], out: Path) -> Path:
    """Write a bundle at `out` whose artifact only the keys of `recipients` (age1...) open; it is not signed.

    Raises:
        UsageError: no public key of age, or a runtime that would leave the network in the clear all the same.
        BundleError: damaged, or encrypted already.
    """
    found, keys = archive.read(bundle), [_recipient(text) for text in recipients]
    import pyrage

    if is_encrypted(found):
        raise BundleError(f"{bundle}: it is encrypted already.", "Encrypt the plain bundle, for all keys at once.")
    runtime = runtimes.load(evidence.manifest(found)[0].artifact.runtime)
    if not runtime.from_memory:
        raise UsageError(
            f"{bundle}: {runtime.title} keeps what it makes of the artifact on the device, in the clear.",
            "Encrypt the device's disk instead.",
        )
    secret = sorted(name for name in found.members if name.startswith("artifact/"))
    members: dict[str, bytes | Path] = {
        name: found.read(name, archive.MAX_BYTES)
        for name in found.members
        if name not in {*secret, signature.SUMS, *signature.MEMBERS}
    }
    for name in secret:
        members[f"{name}{SUFFIX}"] = pyrage.encrypt(found.read(name, archive.MAX_BYTES), keys)
    members[MEMBER] = dump({"version": 1, "format": FORMAT, "keys": len(keys), "files": secret})
    return archive.write(out, _summed(members))


def decrypt(bundle: Path, identity: Path, out: Path) -> Path:
    """Write the plain bundle at `out`; raises UsageError where `identity` is no key, or not one that it is for."""
    found, keys = archive.read(bundle), identities(identity)
    if not is_encrypted(found):
        raise UsageError(f"{bundle}: it is not encrypted.")
    import pyrage

    secret = envelope(found).files
    own = {MEMBER, signature.SUMS, *signature.MEMBERS, *(f"{name}{SUFFIX}" for name in secret)}
    members: dict[str, bytes | Path] = {
        name: found.read(name, archive.MAX_BYTES) for name in found.members if name not in own
    }
    for name in secret:
        try:
            members[name] = pyrage.decrypt(found.read(f"{name}{SUFFIX}", archive.MAX_BYTES), keys)
        except pyrage.DecryptError as cause:
            if "key" in str(cause).lower():
                raise UsageError(f"{bundle}: it is not encrypted for the key in {identity}.") from None
            raise BundleError(f"{bundle}: '{name}{SUFFIX}' cannot be decrypted ({cause}).", DAMAGED) from None
    return archive.write(out, _summed(members))


def envelope(found: Archive) -> Envelope:
    """encrypted.json, held against the archive: each file is there encrypted, and none in the clear."""
    where = f"{found.path}: '{MEMBER}'"
    read = found.struct(MEMBER, Envelope, MAX_KEY, "envelope")
    held = {name for name in found.members if name.startswith("artifact/")}
    if held != {f"{name}{SUFFIX}" for name in read.files} or len(set(read.files)) != len(read.files):
        raise BundleError(f"{where} lists other files than are there.", DAMAGED)
    return read


def identities(path: Path) -> list[x25519.Identity]:
    """The private keys of a file as age-keygen writes it; raises UsageError."""
    _need()
    from pyrage import IdentityError, x25519

    text = files.read(path, UsageError, MAKE_KEY, limit=MAX_KEY).decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        found = [x25519.Identity.from_str(line) for line in lines]
    except IdentityError:
        found = []
    if not found:
        raise UsageError(f"{path}: no private key of age (AGE-SECRET-KEY-...).", MAKE_KEY)
    return found


def _recipient(text: str) -> x25519.Recipient:
    _need()
    from pyrage import RecipientError, x25519

    try:
        return x25519.Recipient.from_str(text)
    except RecipientError:
        raise UsageError(f"--for {text[:80]!r} is no public key of age (age1...).", MAKE_KEY) from None


def _need() -> None:
    if find_spec("pyrage") is None:
        raise MissingDependency("pyrage is not installed.", "Install: pip install 'edgeprune[encrypt]'")


def _summed(members: dict[str, bytes | Path]) -> dict[str, bytes | Path]:
    sums = "".join(f"{digest(members[name])}  {name}\n" for name in sorted(members))
    return {**members, signature.SUMS: sums.encode()}
