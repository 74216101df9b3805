"""An emulated ARM board: a real arm64 Linux kernel with an ssh server, under qemu-system-aarch64, without root.

With the instruction clock (`-icount shift=0`) the board's clock advances one nanosecond an executed instruction, so
that a duration measured there is a count of instructions: repeatable, and no time at all. It says nothing about caches,
memory or threads; compare counts of one core with counts of the same core, and never call them milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from edgeprune import files
from edgeprune.devices.emulation import cpio, emulator
from edgeprune.devices.emulation.emulator import Say, log
from edgeprune.devices.ssh import Ssh
from edgeprune.devices.transport import Emulation
from edgeprune.errors import DeviceUnreachable, MissingDependency

CPUS = ("cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1")
BOARD_PACKAGES = ("busybox-static", "dropbear-bin", "libtomcrypt1", "libtommath1", "libgmp10")
MODULES = (
    "virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
    "failover", "net_failover", "virtio_net",
)  # fmt: skip
APPLETS = (
    "sh", "ls", "cat", "cp", "mv", "rm", "mkdir", "mount", "insmod", "ip", "uname", "sleep", "free", "df", "dmesg",
    "poweroff", "hostname", "env", "head", "tail", "ps", "kill", "mknod",
)  # fmt: skip
BOOT_S = 240.0
MEMORY_MIB = 1536
_INIT = """#!/bin/busybox sh
export PATH=/bin:/usr/bin:/usr/sbin:/sbin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts; mount -t devpts pts /dev/pts
for module in {modules}; do insmod /modules/$module.ko; done
sleep 1
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
hostname edgeprune-board
exec /usr/sbin/dropbear -F -E -R -s -p 22
"""
_PYTHON = '#!/bin/sh\nPYTHONPATH=/site exec /usr/bin/python3.11 "$@"\n'


def installed() -> bool:
    """Whether the board is ready to boot."""
    stamps = emulator.folder() / "stamps"
    return emulator.installed() and all((stamps / name).is_file() for name in ("qemu-system", _board_stamp()))


def install_emulator(say: Say = log.info) -> Path:
    """Set up the board, and user-mode emulation with it. About 70 MB of downloads; the system stays as it is."""
    if shutil.which("ssh-keygen") is None:
        raise MissingDependency("ssh-keygen is not on this machine.", "apt-get install openssh-client")
    emulator.install(say)
    with emulator.locked():
        emulator.stage("qemu-system", _unpack_qemu_system, say, "unpacking qemu-system-aarch64")
        emulator.stage(_board_stamp(), _make_board, say, "making the board's kernel and disk")
    return emulator.folder()


class QemuBoard(Ssh):
    """A board that boots when it is needed, and again when it died, reached over ssh."""

    name = "qemu-board"
    patience: tuple[float, ...] = (1.0, 5.0)

    def __init__(self, cpu: str, counted: bool = True) -> None:
        if cpu not in CPUS:
            raise DeviceUnreachable(f"'{cpu}' is not a core that can be emulated.", f"Known: {', '.join(CPUS)}.")
        if not installed():
            raise DeviceUnreachable(
                "The emulated board is not set up on this machine.",
                "edgeprune doctor raspberry-pi-5 --install-emulator",
            )
        self._cpu, self._counted = cpu, counted
        self._process: subprocess.Popen[bytes] | None = None
        self._console: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._forward = _free_port()
        options = [
            "-F", "none", "-i", str(_folder() / "id"), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
            "-o", "ServerAliveCountMax=12",
        ]  # fmt: skip
        super().__init__(f"root@127.0.0.1:{self._forward}", options=options)
        self.silence_s = 900.0  # a second of the board takes many of ours
        self.where = f"emulated {cpu} board" + (" with an instruction clock" if counted else "")
        self.emulation: Emulation = "qemu-board-icount" if counted else "qemu-board"

    def start(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        """Boot the board unless it is up, then go on as with any board."""
        if self._process is None or self._process.poll() is not None:
            self._boot()
        return super().start(errors)

    def close(self) -> None:
        """Switch the board off."""
        super().close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._console.close()

    def _boot(self) -> None:
        clock = ["-smp", "1", "-icount", "shift=0,sleep=on,align=off"] if self._counted else ["-smp", "2"]
        forward = f"user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{self._forward}-:22"
        command = [
            *qemu(), "-M", "virt", "-cpu", self._cpu, *clock, "-m", str(MEMORY_MIB), "-nographic",
            "-kernel", str(_folder() / "vmlinuz"), "-initrd", str(_folder() / f"{_board_stamp()}.cpio"),
            "-append", "console=ttyAMA0 quiet rdinit=/init", "-netdev", forward,
            "-device", "virtio-net-pci,netdev=n0,romfile=", "-no-reboot",
        ]  # fmt: skip
        self._console.seek(0)
        self._console.truncate()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=self._console,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        deadline = time.monotonic() + BOOT_S
        while not _greets(self._forward):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DeviceUnreachable(f"{self.where}: did not boot: {self._last_words()}.")
            time.sleep(0.5)

    def _last_words(self) -> str:
        self._console.seek(0)
        lines = self._console.read().decode(errors="replace").split("\n")
        return " / ".join(line.strip() for line in lines[-4:] if line.strip()) or "no output"


def qemu() -> list[str]:
    """The command that starts qemu-system-aarch64: ours, with the libraries that it was built with."""
    libraries = emulator.folder() / "qemu-system" / "usr" / "lib" / "x86_64-linux-gnu"
    program = emulator.folder() / "qemu-system" / "usr" / "bin" / "qemu-system-aarch64"
    return [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(program)]


def _folder() -> Path:
    return emulator.folder() / "board"


def _board_stamp() -> str:
    return f"board-{emulator.runtime_version()}"


def _unpack_qemu_system() -> None:
    """qemu and the libraries below it, down to libc, so that the host's own do not matter."""
    simulated = emulator.apt(["install", "-s", "--no-install-recommends", "qemu-system-arm:amd64"])
    names = [line.split()[1] for line in simulated.splitlines() if line.startswith("Inst ")]
    wanted = [name for name in names if name.startswith(("lib", "zlib1g", "qemu-system-arm")) and "-data" not in name]
    place = emulator.folder() / "qemu-system.part"
    shutil.rmtree(place, ignore_errors=True)
    for package in _fetch_any(wanted):
        emulator.call(["dpkg-deb", "-x", package, place])
        package.unlink()
    shutil.rmtree(place / "usr" / "share", ignore_errors=True)
    files.settle_folder(place, emulator.folder() / "qemu-system")


def _fetch_any(names: list[str]) -> list[Path]:
    """Download packages of this machine's architecture, or of all."""
    debs = emulator.folder() / "debs-qemu"
    shutil.rmtree(debs, ignore_errors=True)
    debs.mkdir()
    emulator.apt(["download", *(f"{name.split(':')[0]}:amd64" for name in names)], cwd=debs)
    return sorted(debs.glob("*.deb"))


def _make_board() -> None:
    depends = emulator.apt_cache(["depends", "linux-image-cloud-arm64:arm64"])
    kernel = next(line.split()[-1].split(":")[0] for line in depends.splitlines() if "Depends: linux-image" in line)
    kernel_package, *packages = emulator.fetch([kernel, *BOARD_PACKAGES], "arm64")
    with tempfile.TemporaryDirectory(dir=emulator.folder()) as temporary:
        boot, disk = Path(temporary) / "boot", Path(temporary) / "disk"
        emulator.call(["dpkg-deb", "-x", kernel_package, boot])
        shutil.copytree(emulator.folder() / "root", disk, symlinks=True)
        for package in packages:
            emulator.call(["dpkg-deb", "-x", package, disk])
        _furnish(disk, boot)
        _folder().mkdir(exist_ok=True)
        if not (_folder() / "id").is_file():
            emulator.call(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "edgeprune-board", "-f", _folder() / "id"]
            )
        keys = disk / "root" / ".ssh" / "authorized_keys"
        shutil.copyfile(_folder() / "id.pub", keys)
        keys.chmod(0o600)
        with files.replacing(_folder() / f"{_board_stamp()}.cpio") as part:
            with part.open("wb") as stream:
                cpio.write(stream, disk)
            shutil.copyfile(next(boot.glob("boot/vmlinuz-*")), _folder() / "vmlinuz")
    kernel_package.unlink()


def _furnish(disk: Path, boot: Path) -> None:
    """Turn an unpacked Python into the disk of a board: tools, kernel modules, accounts, the init script."""
    shutil.copytree(emulator.site(), disk / "site")
    for part in ("usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/initramfs-tools"):
        shutil.rmtree(disk / part, ignore_errors=True)
    for part in ("modules", "proc", "sys", "dev", "tmp", "run", "root/.ssh", "etc/dropbear", "bin"):
        (disk / part).mkdir(parents=True, exist_ok=True)
    for part in ("root", "root/.ssh"):
        (disk / part).chmod(0o700)
    for source in _modules(boot):
        shutil.copyfile(source, disk / "modules" / source.name)
    (disk / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (disk / "etc" / "group").write_text("root:x:0:\n")
    (disk / "etc" / "shells").write_text("/bin/sh\n")
    for applet in APPLETS:
        if not os.path.lexists(disk / "bin" / applet):
            (disk / "bin" / applet).symlink_to("busybox")
    for path, text in ((disk / "usr/bin/python3", _PYTHON), (disk / "init", _INIT.format(modules=" ".join(MODULES)))):
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)


def _modules(boot: Path) -> Iterator[Path]:
    for name in MODULES:
        yield next(boot.rglob(f"{name}.ko"))


def _end_with_parent() -> None:
    """A board must not outlive edgeprune, however that ends: prctl(PR_SET_PDEATHSIG, SIGKILL)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _greets(port: int) -> bool:
    """Whether an ssh server says its name there; qemu itself accepts connections long before."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
