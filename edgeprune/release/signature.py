"""Signing a bundle: ed25519 over its SHA256SUMS, which covers every file in it; or as OpenSSF has it (see oms.py).

The kind of key decides: ed25519, or an elliptic curve for OpenSSF Model Signing. A bundle may have both signatures.

Needs the extra `sign` (cryptography). Make a key pair with OpenSSL:

    openssl genpkey -algorithm ed25519 -out release.key
    openssl pkey -in release.key -pubout -out release.pub
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import files
from edgeprune.errors import BundleError, MissingDependency, UsageError
from edgeprune.release import archive, oms
from edgeprune.release.archive import DAMAGED, Archive
from edgeprune.release.trust import Revoked, blocks

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MEMBER = "SIGNATURE"
MEMBERS = frozenset({MEMBER, oms.MEMBER})  # what SHA256SUMS does not list
SUMS = "SHA256SUMS"
KINDS = "ed25519 (or P-256, P-384, P-521 for OpenSSF Model Signing)"
MAX_KEY = 1 << 16  # bytes
MAKE_KEY = "Make one with: openssl genpkey -algorithm ed25519 -out release.key"
MAKE_PUBLIC = "Make one with: openssl pkey -in release.key -pubout -out release.pub"


def installed() -> bool:
    """Can signatures be made and checked here?"""
    return find_spec("cryptography") is not None


def check_key(path: Path) -> None:
    """Refuse a private key that `sign` could not use, before any work is done."""
    _private(path)


def raw_keys(path: Path) -> list[str]:
    """The ed25519 keys of a file of public keys, raw, in hexadecimal: what a device can check by itself.

    Raises UsageError where there is none.
    """
    found = [key.public_bytes_raw().hex() for key in _public(path).ours]
    if not found:
        raise UsageError(f"{path}: no ed25519 key, and a device checks no other signature.", MAKE_KEY)
    return found


def sign(bundle: Path, key: Path) -> Path:
    """Sign a bundle in place (whole or not at all); an older signature of this kind is replaced."""
    private = _private(key)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not isinstance(private, Ed25519PrivateKey):
        return oms.sign(bundle, key)
    found = archive.read(bundle)
    return _signed(found, private.public_key().public_bytes_raw(), private.sign(found.read(SUMS)))


def attach(bundle: Path, public: Path, made: bytes) -> Path:
    """Put a signature that was made elsewhere into a bundle (whole or not at all).

    Raises UsageError where it is not by the one ed25519 key in `public` and of this bundle's SHA256SUMS.
    """
    from cryptography.exceptions import InvalidSignature

    found, keys = archive.read(bundle), _public(public).ours
    if len(keys) != 1:
        raise UsageError(f"{public}: {len(keys)} ed25519 keys; one is wanted.", MAKE_PUBLIC)
    try:
        keys[0].verify(made, found.read(SUMS))
    except InvalidSignature:
        raise UsageError(f"not a signature of {bundle} by {public}.", "Does the command sign with that key?") from None
    return _signed(found, keys[0].public_bytes_raw(), made)


def _signed(found: Archive, public_key: bytes, made: bytes) -> Path:
    encoded = {"public_key": base64.b64encode(public_key).decode(), "signature": base64.b64encode(made).decode()}
    members: dict[str, bytes | Path] = {name: found.read(name, archive.MAX_BYTES) for name in found.members}
    return archive.write(found.path, {**members, MEMBER: _canonical({"algorithm": "ed25519", **encoded})})


def check(bundle: Archive, key: Path | None, revoked: Revoked | None = None) -> tuple[bool, str]:
    """Check the signature of a bundle.

    Args:
        key: a file of public keys (PEM), one of which must have signed it; None: only that the signature is whole.
        revoked: what is not trusted any longer.

    Returns:
        whether something was proved, and what, in a sentence.

    Raises:
        BundleError: no signature where `key` asks for one, a wrong one, one by another key, or a revoked one.
    """
    wanted = _public(key) if key is not None else Keys()
    if revoked is not None:
        _refuse(bundle, revoked)
    signed = MEMBERS & set(bundle.members)
    if not signed:
        if key is not None:
            raise BundleError(f"{bundle.path}: it is not signed.", f"Sign it with the key that belongs to {key}.")
        return False, "not signed."
    fields = _fields(bundle) if MEMBER in signed else {}
    if not installed():
        return False, "signed, but not checked: cryptography is not installed. Install: pip install 'edgeprune[sign]'"
    signer = _signer(bundle, fields) if fields else None
    if signer is not None and signer.public_bytes_raw() in [one.public_bytes_raw() for one in wanted.ours]:
        return True, f"signed by {key} ({fingerprint(signer)})."
    if wanted.openssf and oms.MEMBER in signed:
        found = oms.digest(oms.signer(bundle, list(wanted.openssf)))
        if revoked is not None:
            revoked.refuse(bundle.path, "", found)
        return True, f"signed by {key} ({found[:16]}, OpenSSF Model Signing)."
    by = fingerprint(signer) if signer else f"{oms.stated(bundle)[:16] or 'one that it does not name'}, as it says"
    if key is None:
        return False, f"{'whole, ' if signer else 'there, '}by key {by}; whose key that is only --key can tell."
    raise BundleError(
        f"{bundle.path}: signed by another key ({by}), not by {key} ({', '.join(wanted.known[:3])}).",
        "Do not use it, unless you know that key.",
    )


def _refuse(bundle: Archive, revoked: Revoked) -> None:
    """Raises BundleError where the bundle or its key is revoked: by what stands in it, also without cryptography."""
    signers = [files.sha256(_fields(bundle)["public_key"])] if MEMBER in bundle.members else []
    signers += [oms.stated(bundle)] if oms.MEMBER in bundle.members else []
    for signer in signers or [""]:
        revoked.refuse(bundle.path, bundle.sha256(SUMS), signer)


def fingerprint(key: Ed25519PublicKey) -> str:
    """The first 16 hexadecimal digits of the sha256 of the raw public key."""
    return files.sha256(key.public_bytes_raw())[:16]


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
        fields: dict[str, Any] = files.parse_json(raw, BundleError, f"{bundle.path}: '{MEMBER}'", DAMAGED)
        decoded = {name: base64.b64decode(fields[name], validate=True) for name in ("public_key", "signature")}
        again = {name: base64.b64encode(value).decode() for name, value in decoded.items()}
        if fields["algorithm"] != "ed25519" or _canonical({"algorithm": "ed25519", **again}) != raw:
            raise ValueError("another spelling")
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError):
        raise BundleError(f"{bundle.path}: '{MEMBER}' is damaged or altered.", DAMAGED) from None
    return decoded


def _canonical(fields: dict[str, str]) -> bytes:
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()


def _private(path: Path) -> Ed25519PrivateKey | EllipticCurvePrivateKey:
    _need()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path, MAKE_KEY), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(f"{path}: not an unencrypted private key in PEM.", MAKE_KEY) from None
    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name in oms.CURVES:
        oms.need()
        return key
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: a private key of another kind; {KINDS} is wanted.", MAKE_KEY)
    return key


@dataclass(frozen=True)
class Keys:
    """Public keys of one file, by kind."""

    ours: tuple[Ed25519PublicKey, ...] = ()
    openssf: tuple[EllipticCurvePublicKey, ...] = ()

    @property
    def known(self) -> list[str]:
        """Their first 16 digits."""
        return [*map(fingerprint, self.ours), *(oms.digest(key)[:16] for key in self.openssf)]


def _public(path: Path) -> Keys:
    """All public keys of a file; raises UsageError."""
    _need()
    found = [_one_public(block, path) for block in blocks(_read(path, MAKE_PUBLIC), path, MAKE_PUBLIC)]
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    ours = tuple(key for key in found if isinstance(key, Ed25519PublicKey))
    return Keys(ours, tuple(key for key in found if not isinstance(key, Ed25519PublicKey)))


def _one_public(block: bytes, path: Path) -> Ed25519PublicKey | EllipticCurvePublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path}: not a public key in PEM.", MAKE_PUBLIC) from None
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in oms.CURVES:
        return key
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path}: a public key of another kind; {KINDS} is wanted.", MAKE_PUBLIC)
    return key


def _read(path: Path, remedy: str) -> bytes:
    return files.read(path, UsageError, remedy, MAX_KEY)


def _need() -> None:
    if not installed():
        raise MissingDependency("signatures need cryptography.", "Install: pip install 'edgeprune[sign]'")
