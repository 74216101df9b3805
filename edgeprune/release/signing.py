"""Signing by a key that is in no file: a command holds it (a PKCS#11 token, an agent, a key service), and signs for us.

The command gets SHA256SUMS as a file, and prints the ed25519 signature: its 64 bytes, or those in base64. What it
printed is checked with the public key before it is put into the bundle.
"""

from __future__ import annotations

import base64
import binascii
import shlex
import subprocess
import tempfile
from pathlib import Path

from edgeprune import files
from edgeprune.errors import UsageError
from edgeprune.release import archive, signature

SECONDS = 300.0  # somebody may have to touch the token
BYTES = 64
EXAMPLE = "Such as: pkcs11-tool --sign --mechanism EDDSA --id 01 --input-file {file} --output-file /dev/stdout"


def sign_by(bundle: Path, public: Path, command: str) -> Path:
    """Sign a bundle in place (whole or not at all) by a command; `{file}` in it stands for the file to sign.

    Raises UsageError where the command fails, prints no signature, or one that is not by the key in `public`.
    """
    sums = archive.read(bundle).read(signature.SUMS)
    return signature.attach(bundle, public, _asked(command, sums))


def _asked(command: str, content: bytes) -> bytes:
    try:
        words = shlex.split(command)
    except ValueError as cause:
        raise UsageError(f"--command {command[:80]!r} is no command ({cause}).", EXAMPLE) from None
    if not words or not any("{file}" in word for word in words):
        raise UsageError("--command does not say where the file goes: {file}.", EXAMPLE)
    with tempfile.TemporaryDirectory(prefix="edgeprune-sign-") as folder:
        path = Path(folder) / signature.SUMS
        files.write_bytes(path, content)
        try:
            found = subprocess.run(
                [word.replace("{file}", str(path)) for word in words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as cause:
            raise UsageError(f"--command cannot sign ({cause}).", EXAMPLE) from None
    if found.returncode:
        said = found.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(f"--command failed ({said[-1][:200] if said else f'exit code {found.returncode}'}).", EXAMPLE)
    return _signature(found.stdout)


def _signature(printed: bytes) -> bytes:
    if len(printed) == BYTES:
        return printed
    try:
        made = base64.b64decode(b"".join(printed.split()), validate=True)
    except (ValueError, binascii.Error):
        made = b""
    if len(made) != BYTES:
        raise UsageError(
            f"--command printed {len(printed):,} bytes, which are no ed25519 signature ({BYTES} bytes).", EXAMPLE
        )
    return made
