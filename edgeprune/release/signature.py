"""Signing a bundle: ed25519 over its SHA256SUMS, which covers every file in it.

Needs the extra `sign` (cryptography). Make a key pair with OpenSSL:

    openssl genpkey -algorithm ed25519 -out release.key
    openssl pkey -in release.key -pubout -out release.pub
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import BundleError, MissingDependency, UsageError
from edgeprune.release import archive
from edgeprune.release.archive import DAMAGED, Archive

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MEMBER = "SIGNATURE"
SUMS = "SHA256SUMS"
MAKE_KEY = "Make one with: openssl genpkey -algorithm ed25519 -out release.key"
MAKE_PUBLIC = "Make one with: openssl pkey -in release.key -pubout -out release.pub"


def installed() -> bool:
    """Can signatures be made and checked here?"""
    return find_spec("cryptography") is not None


def check_key(path: Path) -> None:
    """Refuse a private key that `sign` could not use, before any work is done."""
    _private(path)


def sign(bundle: Path, key: Path) -> Path:
    """Sign a bundle in place (whole or not at all); an older signature is replaced."""
    private = _private(key)
    found = archive.read(bundle)
    sums = found.read(SUMS)
    fields = {
        "algorithm": "ed25519",
        "public_key": base64.b64encode(private.public_key().public_bytes_raw()).decode(),
        "signature": base64.b64encode(private.sign(sums)).decode(),
    }
    members: dict[str, bytes | Path] = {name: found.read(name, archive.MAX_BYTES) for name in found.members}
    return archive.write(bundle, {**members, MEMBER: _canonical(fields)})


def check(bundle: Archive, key: Path | None) -> tuple[bool, str]:
    """Check the signature of a bundle.

    Args:
        key: the public key (PEM) that must have signed it; None: only that the signature is whole.

    Returns:
        whether something was proved, and what, in a sentence.

    Raises:
        BundleError: no signature where `key` asks for one, a wrong one, or one by another key.
    """
    wanted = _public(key) if key is not None else None
    if MEMBER not in bundle.members:
        if key is not None:
            raise BundleError(f"{bundle.path}: it is not signed.", f"Sign it with the key that belongs to {key}.")
        return False, "not signed."
    fields = _fields(bundle)
    if not installed():
        return False, "signed, but not checked: cryptography is not installed. Install: pip install 'edgeprune[sign]'"
    signer = _signer(bundle, fields)
    if wanted is None:
        return False, f"whole, by key {fingerprint(signer)}; whose key that is only --key can tell."
    if signer.public_bytes_raw() != wanted.public_bytes_raw():
        raise BundleError(
            f"{bundle.path}: signed by another key ({fingerprint(signer)}), not by {key} ({fingerprint(wanted)}).",
            "Do not use it, unless you know that key.",
        )
    return True, f"signed by {key} ({fingerprint(wanted)})."


def fingerprint(key: Ed25519PublicKey) -> str:
    """The first 16 hexadecimal digits of the sha256 of the raw public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _signer(bundle: Archive, fields: dict[str, bytes]) -> Ed25519PublicKey:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        signer = Ed25519PublicKey.from_public_bytes(fields["public_key"])
        signer.verify(fields["signature"], bundle.read(SUMS))
    except (InvalidSignature, ValueError):
        raise BundleError(f"{bundle.path}: '{MEMBER}' is not a signature of these files.", DAMAGED) from None
    return signer


def _fields(bundle: Archive) -> dict[str, bytes]:
    """The signature's fields, decoded; only the spelling that `sign` writes is accepted."""
    raw = bundle.read(MEMBER, limit=4096)
    try:
        fields: dict[str, Any] = json.loads(raw)
        decoded = {name: base64.b64decode(fields[name], validate=True) for name in ("public_key", "signature")}
        again = {name: base64.b64encode(value).decode() for name, value in decoded.items()}
        if fields["algorithm"] != "ed25519" or _canonical({"algorithm": "ed25519", **again}) != raw:
            raise ValueError("another spelling")
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise BundleError(f"{bundle.path}: '{MEMBER}' is damaged or altered.", DAMAGED) from None
    return decoded


def _canonical(fields: dict[str, str]) -> bytes:
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()


def _private(path: Path) -> Ed25519PrivateKey:
    _need()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path, MAKE_KEY), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(f"{path}: not an unencrypted private key in PEM.", MAKE_KEY) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: a private key of another kind; ed25519 is wanted.", MAKE_KEY)
    return key


def _public(path: Path) -> Ed25519PublicKey:
    _need()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path, MAKE_PUBLIC))
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path}: not a public key in PEM.", MAKE_PUBLIC) from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path}: a public key of another kind; ed25519 is wanted.", MAKE_PUBLIC)
    return key


def _read(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as cause:
        raise UsageError(f"{path}: the key cannot be read ({cause.strerror}).", remedy) from None


def _need() -> None:
    if not installed():
        raise MissingDependency("signatures need cryptography.", "Install: pip install 'edgeprune[sign]'")
