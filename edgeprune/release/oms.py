"""OpenSSF Model Signing over a bundle's files: what other tools of the field check, beside the ed25519 signature.

The signature is made and checked by the library `model-signing` (https://github.com/sigstore/model-transparency), with
a key on the curve P-256, P-384 or P-521, and travels as `model.sig`: a Sigstore bundle with an in-toto statement of
every file's sha256. Without edgeprune, in the unpacked bundle:

    model_signing verify key . --signature model.sig --ignore-paths SIGNATURE --public_key release.pub

Needs the extra `oms`. Its import takes seconds, so it is imported only where such a key or signature is met.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import files
from edgeprune.errors import BundleError, MissingDependency
from edgeprune.release import archive
from edgeprune.release.archive import DAMAGED, Archive

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

MEMBER = "model.sig"
UNSIGNED = ("SIGNATURE", MEMBER)  # what the signature does not cover
CURVES = ("secp256r1", "secp384r1", "secp521r1")
MAX_BYTES = 4 << 20


def installed() -> bool:
    """Is the library here, with pyOpenSSL, which it imports and does not ask for?"""
    return all(find_spec(name) is not None for name in ("model_signing", "OpenSSL"))


def need() -> None:
    """Raise MissingDependency where the library is not here."""
    if not installed():
        raise MissingDependency("OpenSSF signatures need model-signing.", "Install: pip install 'edgeprune[oms]'")


def sign(bundle: Path, key: Path) -> Path:
    """Sign a bundle in place (whole or not at all); an older OpenSSF signature is replaced, an ed25519 one is kept."""
    need()
    from model_signing import signing

    found = archive.read(bundle)
    with tempfile.TemporaryDirectory(prefix="edgeprune-sign-") as name:
        folder, made = Path(name) / "bundle", Path(name) / MEMBER
        found.extract(_covered(found), folder)
        config = signing.Config().set_hashing_config(_hashing())  # type: ignore[no-untyped-call]
        config.use_elliptic_key_signer(private_key=key).sign(folder, made)
        signature = made.read_bytes()
    members: dict[str, bytes | Path] = {name: found.read(name, archive.MAX_BYTES) for name in found.members}
    return archive.write(bundle, {**members, MEMBER: signature})


def signer(bundle: Archive, keys: list[EllipticCurvePublicKey]) -> EllipticCurvePublicKey:
    """The first of the keys that has signed all of the bundle's files; raises BundleError where none has."""
    need()
    from model_signing import verifying

    raw = bundle.read(MEMBER, MAX_BYTES)
    files.parse_json(raw, BundleError, f"{bundle.path}: '{MEMBER}'", DAMAGED)
    why = ""
    with tempfile.TemporaryDirectory(prefix="edgeprune-verify-") as name:
        folder, made, pem = Path(name) / "bundle", Path(name) / MEMBER, Path(name) / "key.pub"
        bundle.extract(_covered(bundle), folder)
        made.write_bytes(raw)
        for key in keys:
            pem.write_bytes(_pem(key))
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # the library prints of older forms
                    config = verifying.Config().set_hashing_config(_hashing())  # type: ignore[no-untyped-call]
                    config.use_elliptic_key_verifier(public_key=pem).verify(folder, made)
            except Exception as cause:  # the library, protobuf and cryptography raise many kinds
                why = str(cause).splitlines()[0][:200] if str(cause) else type(cause).__name__
                continue
            return key
    raise BundleError(
        f"{bundle.path}: '{MEMBER}' is not a signature of these files by a key that was given ({why}).",
        "Do not use it, unless you know that key.",
    )


def digest(key: EllipticCurvePublicKey) -> str:
    """The sha256 of the key in PEM, as the field's tools give it."""
    return files.sha256(_pem(key))


def stated(bundle: Archive) -> str:
    """The sha256 of the key that `model.sig` says it is by, which proves nothing; empty where it says none."""
    raw = files.parse_json(bundle.read(MEMBER, MAX_BYTES), BundleError, f"{bundle.path}: '{MEMBER}'", DAMAGED)
    found: Any = raw
    for part in ("verificationMaterial", "publicKey", "hint"):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, str) else ""


def _covered(bundle: Archive) -> list[str]:
    return [name for name in bundle.members if name not in UNSIGNED]


def _hashing() -> Any:
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)  # type: ignore[no-untyped-call]


def _pem(key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
