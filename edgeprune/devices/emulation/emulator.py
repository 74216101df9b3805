"""Emulated ARM: the real aarch64 ONNX Runtime under qemu, from the distribution's and PyPI's packages, without root.

`install()` builds one folder (EDGEPRUNE_EMULATOR, or `emulator` in the cache) in stages that each leave a stamp, so
that a second call does nothing and a broken one goes on where it stopped. apt gets a configuration of its own: no
architecture is added to the system, nothing is installed on it. Needs apt-get, dpkg-deb and pip on a Debian or Ubuntu
host with an x86-64 CPU.

Debian 12's own qemu 7.2 passes the host's /proc/cpuinfo on, which crashes onnxruntime's import; trixie's static
qemu-user is used instead, on any host.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgeprune import files
from edgeprune.devices.artifact import HOST_RUNTIME
from edgeprune.devices.package import cache
from edgeprune.errors import DeviceError, MissingDependency

log = logging.getLogger(__name__)

QEMU_SUITE, ROOT_SUITE, PYTHON = "trixie", "bookworm", "3.11"
ROOT_PACKAGES = (
    "libc6", "libgcc-s1", "libstdc++6", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib",
    "libssl3", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1", "libcrypt1",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CPUS = ("cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "neoverse-n1", "neoverse-n2")
Say = Callable[[str], None]


def folder() -> Path:
    """Where the emulation lies."""
    named = os.environ.get("EDGEPRUNE_EMULATOR")
    return Path(named).absolute() if named else cache() / "emulator"


def runtime_version() -> str:
    """The version of ONNX Runtime to emulate: the one that is installed here, so that outputs can be compared."""
    return importlib.metadata.version(HOST_RUNTIME)


def site(version: str = "") -> Path:
    """The folder that holds the aarch64 wheels of one version of ONNX Runtime."""
    return folder() / f"site-{version or runtime_version()}"


def installed(version: str = "") -> bool:
    """Whether user-mode emulation is ready."""
    stamps = folder() / "stamps"
    return all((stamps / name).is_file() for name in ("qemu", "root", f"site-{version or runtime_version()}"))


def install(say: Say = log.info, version: str = "") -> Path:
    """Set up user-mode emulation; returns its folder. About 20 s and 140 MB of downloads the first time, nothing after.

    Raises MissingDependency when the host lacks a tool, DeviceError when a download fails.
    """
    version = version or runtime_version()
    if installed(version):
        return folder()
    check_host()
    with locked():
        stage("apt", _configure_apt, say, "reading the distribution's package lists")
        stage("qemu", _unpack_qemu, say, "unpacking qemu-user")
        stage("root", _unpack_root, say, "unpacking Python for arm64")
        stage(f"site-{version}", lambda: _install_wheels(version), say, f"unpacking ONNX Runtime {version} for arm64")
    return folder()


def worker_command(cpu: str, archive: Path, version: str = "") -> list[str]:
    """The command that starts the agent's worker on the emulated core `cpu`.

    Raises DeviceError for an unknown core, and when the emulation is not set up.
    """
    if cpu not in CPUS:
        raise DeviceError(f"'{cpu}' is not a core that can be emulated.", f"Known: {', '.join(CPUS)}.")
    if not installed(version):
        raise DeviceError(
            "ARM emulation is not set up on this machine.", "edgeprune doctor raspberry-pi-5 --install-emulator"
        )
    base = folder()
    environment = ["-E", f"PYTHONPATH={site(version)}"]
    python = base / "root" / "usr" / "bin" / f"python{PYTHON}"
    emulated = [base / "bin" / "qemu-aarch64", "-cpu", cpu, *environment, "-L", base / "root", python]
    return [str(part) for part in (*emulated, archive, "worker")]


def check_host() -> None:
    """Raise MissingDependency unless this host can build the emulation."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise MissingDependency(f"ARM emulation is set up on Linux on x86-64, not on {platform.machine()}.")
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("tar", "tar")):
        if shutil.which(tool) is None:
            raise MissingDependency(
                f"{tool} is not on this machine; ARM emulation is set up on Debian and Ubuntu hosts.",
                f"Install {package}, or use a real board: --device ssh://NAME",
            )


def stage(name: str, work: Callable[[], None], say: Say, what: str) -> None:
    """Do `work` unless its stamp is there; the stamp comes last."""
    stamp = folder() / "stamps" / name
    if stamp.is_file():
        return
    say(what)
    work()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.touch()


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One installation at a time."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def call(command: Sequence[str | Path], cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a program; its output, or DeviceError with its last words."""
    found = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if found.returncode:
        words = [line for line in (found.stderr or found.stdout).splitlines() if line.strip()][-2:]
        raise DeviceError(f"{Path(command[0]).name} failed: {' '.join(words)}", "Check the network and try again.")
    return found.stdout


def fetch(packages: Sequence[str], architecture: str) -> list[Path]:
    """Download Debian packages without installing them; their files."""
    debs = folder() / "debs"
    debs.mkdir(exist_ok=True)
    apt(["download", *(f"{name}:{architecture}" for name in packages)], cwd=debs)
    found = []
    for name in packages:
        matches = sorted(debs.glob(f"{name}_*_{architecture}.deb"), key=lambda path: path.stat().st_mtime)
        if not matches:
            raise DeviceError(f"apt-get did not download {name}.", "Check the network and try again.")
        found.append(matches[-1])
    return found


def apt(arguments: Sequence[str], cwd: Path | None = None) -> str:
    """apt-get with our own configuration."""
    return call(["apt-get", *arguments], cwd, {"APT_CONFIG": str(folder() / "apt" / "apt.conf")})


def apt_cache(arguments: Sequence[str]) -> str:
    """apt-cache with our own configuration."""
    return call(["apt-cache", *arguments], None, {"APT_CONFIG": str(folder() / "apt" / "apt.conf")})


def _configure_apt() -> None:
    base = folder() / "apt"
    for part in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
        (base / part).mkdir(parents=True, exist_ok=True)
    sandbox = 'APT::Sandbox::User "root";\n' if os.geteuid() == 0 else ""
    (base / "apt.conf").write_text(
        f'Dir::Etc "{base}/etc";\nDir::Etc::sourcelist "{base}/etc/sources.list";\nDir::Etc::sourceparts "-";\n'
        f'Dir::State "{base}/state";\nDir::State::status "{base}/state/status";\nDir::Cache "{base}/cache";\n'
        'APT::Architecture "amd64";\nAPT::Architectures {"amd64";"arm64";};\nAcquire::Languages "none";\n' + sandbox
    )
    mirror, keyring = mirror_of_host(), _keyring()
    (base / "etc" / "sources.list").write_text(
        f"deb [arch=arm64 signed-by={keyring}] {mirror} {ROOT_SUITE} main\n"
        f"deb [arch=amd64 signed-by={keyring}] {mirror} {QEMU_SUITE} main\n"
    )
    (base / "state" / "status").touch()
    apt(["update", "-q"])
    if not list((base / "state" / "lists").glob("*Packages*")):
        raise DeviceError(f"{mirror}: no package lists came.", "Check the network and try again.")


def mirror_of_host() -> str:
    """The Debian mirror that this host uses, or Debian's own."""
    found = re.findall(r"^(?:URIs:|deb\b).*?(https?://\S+/debian)/?(?:\s|$)", _apt_sources(), re.M)
    return str(found[0]) if found else "http://deb.debian.org/debian"


def _apt_sources() -> str:
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    return "\n".join(path.read_text(errors="replace") for path in files if path.is_file())


def _keyring() -> Path:
    """Debian's keys; on Ubuntu they come from Ubuntu's own package of them, checked with Ubuntu's keys."""
    if KEYRING.is_file():
        return KEYRING
    place = folder() / "keyring"
    place.mkdir(exist_ok=True)
    call(["apt-get", "download", "debian-archive-keyring"], cwd=place)
    for package in place.glob("*.deb"):
        call(["dpkg-deb", "-x", package, place])
    found = place / KEYRING.relative_to("/")
    if not found.is_file():
        raise MissingDependency("Debian's archive keys are not here.", "apt-get install debian-archive-keyring")
    return found


def _unpack_qemu() -> None:
    (package,) = fetch(["qemu-user"], "amd64")
    place = folder() / "qemu.part"
    shutil.rmtree(place, ignore_errors=True)
    call(["dpkg-deb", "-x", package, place])
    (folder() / "bin").mkdir(exist_ok=True)
    shutil.copy2(place / "usr" / "bin" / "qemu-aarch64", folder() / "bin" / "qemu-aarch64")
    shutil.rmtree(place)
    package.unlink()


def _unpack_root() -> None:
    place = folder() / "root.part"
    shutil.rmtree(place, ignore_errors=True)
    for package in fetch(ROOT_PACKAGES, "arm64"):
        call(["dpkg-deb", "-x", package, place])
    for part in ("doc", "man", "lintian"):
        shutil.rmtree(place / "usr" / "share" / part, ignore_errors=True)
    files.settle_folder(place, folder() / "root")
    _precompile(folder() / "root" / "usr" / "lib" / f"python{PYTHON}")


def _install_wheels(version: str) -> None:
    place = folder() / f"site-{version}.part"
    shutil.rmtree(place, ignore_errors=True)
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    options = ["--no-deps", "--no-compile", "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--target",
        place,
    ]
    call([*pip, *platforms, *options, f"{HOST_RUNTIME}=={version}", "numpy"])
    for part in ("transformers", "tools", "quantization"):
        shutil.rmtree(place / HOST_RUNTIME / part, ignore_errors=True)
    _precompile(place)
    files.settle_folder(place, site(version))


def _precompile(place: Path) -> None:
    """Compile Python files ahead, for under emulation that takes long; bytecode does not depend on the CPU."""
    base = folder()
    python: list[str | Path] = [sys.executable]
    if sys.version_info[:2] != tuple(int(part) for part in PYTHON.split(".")):
        python = [base / "bin" / "qemu-aarch64", "-L", base / "root", base / "root" / "usr" / "bin" / f"python{PYTHON}"]
    call([*python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", place])
