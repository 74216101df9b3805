"""Kills while a release is installed on a device: afterwards there is one whole release, the old one or the new one.

    python benchmarks/campaigns/rollout.py local --tries 100
    python benchmarks/campaigns/rollout.py board --tries 100

local: the command and the agent that it started are killed (SIGKILL) at a random moment of an installation. board: the
emulated board loses its power (qemu is killed): what its kernel had not written to its disk, an ext4 file system that
outlives it, is lost. It boots from the state in which it once was after booting, before it saw its disk. Two bundles
take turns. Before the kills a release is installed, one that computes something else fails its self-test, and the board
goes back and forth once. The board needs `edgeprune doctor raspberry-pi-5 --install-emulator`, mke2fs and, the first
time, the network: the kernel's modules for a disk are fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "release"))
import bundles
import trying
from commands import below

from edgeprune import release, target
from edgeprune.devices.agent.rollout import Releases
from edgeprune.errors import DeviceUnreachable, EdgepruneError, GateError
from edgeprune.release import archive

ANY = 1e6  # slack: what is tried here is not the speed of a busy machine
DISK_MODULES = ("virtio_blk", "crc16", "crc32c_generic", "libcrc32c", "mbcache", "jbd2", "ext4")
DISK_MIB, BOOTS = 256, 5
HOME = "/data"


def two_bundles(folder: Path) -> tuple[Path, Path, Path]:
    """Two releases of one name, and one whose network computes something else; all hashes are right."""
    from finished_run import make

    (folder / "run").mkdir()
    first = release.bundle(*make(folder / "run", target.load("x86-onnxruntime")), folder)
    held = archive.read(first)
    whole = {name: held.read(name) for name in held.members}
    second = {**whole, "README.md": whole["README.md"] + b"\nSecond.\n"}
    other = dict(whole)
    bundles.other_weights(other, random.Random(0))
    return (
        first,
        archive.write(folder / "second.tar", bundles.reseal(second)),
        archive.write(folder / "other.tar", bundles.reseal(other)),
    )


def digest(bundle: Path) -> str:
    """What the device calls it."""
    return hashlib.sha256(archive.read(bundle).read("SHA256SUMS")).hexdigest()


class Here:
    """This machine as the device."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._log = folder / "releases", folder / "log"

    def install(self, bundle: Path) -> None:
        """Install it, in this process; raises."""
        release.install(bundle, "local", unsigned=True, folder=str(self.folder), slack=ANY)

    def killed(self, bundle: Path, wait_s: float) -> bool:
        """Begin to install it and kill all of it after `wait_s`; False where it had ended before."""
        with self._log.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgeprune", "device", "install", bundle, "--device", "local", "--unsigned",
                 "--folder", self.folder, "--slack", "100"],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            try:
                process.wait(wait_s)
            except subprocess.TimeoutExpired:
                for one in (process.pid, *below(process.pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one, 9)
                process.wait()
                return True
        return False

    def state(self) -> tuple[str, str]:
        """(what is in use, what is wrong with it)."""
        found = Releases(str(self.folder), "tiny")
        used = found.current()
        return str(found.accepted(used).get("bundle", "")), found.damage(used) if used else "no release is in use"

    def back(self) -> None:
        """Roll back."""
        release.rollback(target.load("x86-onnxruntime"), "local", "tiny", str(self.folder))

    def close(self) -> None:
        """Nothing is held."""


class Board:
    """The emulated board with a disk that outlives it.

    It boots once: what it is then, its disk not yet seen, is kept, and every further boot starts there.
    """

    def __init__(self, folder: Path, warm: Path) -> None:
        self._disk = folder / "disk.img"
        with self._disk.open("wb") as stream:
            stream.truncate(DISK_MIB << 20)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", self._disk], check=True, capture_output=True)
        self._initrd, self._booted = _initrd(folder), folder / "booted"
        self._profile = target.load("x86-onnxruntime")
        self._device: Any = None
        self.booted_again = 0
        self._keep_booted(folder / "monitor", warm)

    def _keep_booted(self, monitor: Path, warm: Path) -> None:
        """Boot it, let it install something in its memory, and keep its state; then switch it off."""
        board = self._up(monitor)
        board.rollout("install", "warm", "/warm", warm, keys=[], new_keys=False, unsigned=True, slack=ANY)
        with socket.socket(socket.AF_UNIX) as talk:
            talk.connect(str(monitor))
            talk.sendall(f'migrate "exec:cat > {self._booted}.part"\ninfo migrate\n'.encode())
            told = b""
            while b"Migration status: completed" not in told:
                if not (piece := talk.recv(1 << 16)):
                    raise SystemExit(f"the board's state was not kept: {told[-500:]!r}")
                told += piece
        self.off()
        self._booted.with_suffix(".part").rename(self._booted)

    def _up(self, monitor: Path | None = None) -> Any:
        """The board, booted."""
        if self._device is None:
            from edgeprune import devices
            from edgeprune.devices.emulation.board import QemuBoard

            for left in reversed(range(BOOTS)):
                more = ["-monitor", f"unix:{monitor},server=on,wait=off"] if monitor else ["-monitor", "none"]
                more += [] if monitor else ["-incoming", f"exec:cat {self._booted}"]
                board = _with_disk(QemuBoard)("cortex-a76", self._disk, self._initrd, more, mounted=monitor is None)
                board.patience = ()
                try:
                    self._device = devices.AgentDevice(self._profile, board).__enter__()
                    break
                except DeviceUnreachable:  # too slow to answer on a busy machine: switched off and on again
                    self.booted_again += 1
                    if not left:
                        raise
        return self._device

    def off(self) -> None:
        """Pull the plug."""
        device, self._device = self._device, None
        if device is not None:
            device._transport._process.kill()
            device._transport._process.wait()
            with contextlib.suppress(EdgepruneError):
                device.__exit__()

    def install(self, bundle: Path) -> None:
        """Install it; raises."""
        self._up().rollout("install", "tiny", HOME, bundle, keys=[], new_keys=False, unsigned=True, slack=ANY)

    def killed(self, bundle: Path, wait_s: float) -> bool:
        """Begin to install it and pull the plug after `wait_s`."""
        import threading

        device, ended = self._up(), []

        def begin() -> None:
            with contextlib.suppress(EdgepruneError):
                self.install(bundle)
                ended.append(True)

        thread = threading.Thread(target=begin, daemon=True)
        thread.start()
        thread.join(wait_s)
        was_cut = not ended
        device._transport._process.kill()
        thread.join(60)
        self.off()
        return was_cut

    def state(self) -> tuple[str, str]:
        """(what is in use, what is wrong with it), as the board finds it."""
        found = self._up().releases("tiny", HOME)[0].current
        return (found.bundle, found.damage) if found else ("", "no release is in use")

    def back(self) -> None:
        """Roll back."""
        self._up().rollout("rollback", "tiny", HOME, slack=ANY)

    def close(self) -> None:
        """Switch it off."""
        self.off()


def _with_disk(kind: Any) -> Any:
    """The board's class, which starts qemu with a disk and our initrd besides, and mounts the disk."""
    from edgeprune.devices.emulation import board as boards

    class WithDisk(kind):  # type: ignore[misc]
        def __init__(self, cpu: str, disk: Path, initrd: Path, more: list[str], mounted: bool) -> None:
            super().__init__(cpu, counted=False)
            self._files, self._extra, self._mounted = (disk, initrd), more, mounted

        def _boot(self) -> None:
            disk, initrd = self._files
            popen = subprocess.Popen

            def with_disk(command: list[str], **options: Any) -> Any:
                more = list(command)
                more[more.index("-initrd") + 1] = str(initrd)
                more += ["-drive", f"file={disk},format=raw,if=none,id=d0,cache=writeback"]
                more += ["-device", "virtio-blk-pci,drive=d0,romfile="]
                return popen([*more, *self._extra], **options)

            boards.subprocess.Popen = with_disk  # type: ignore[misc,assignment]
            try:
                super()._boot()
            finally:
                boards.subprocess.Popen = popen  # type: ignore[misc]
            if self._mounted:
                self._call("sh /mount-disk")

    return WithDisk


def _initrd(folder: Path) -> Path:
    """The board's own, and behind it modules for a disk and what mounts it: the kernel unpacks both."""
    from edgeprune.devices.emulation import board, cpio, emulator

    base, made = emulator.folder() / "board", folder / "more"
    (made / "modules").mkdir(parents=True)
    for path in _modules(folder):
        shutil.copyfile(path, made / "modules" / path.name)
    modules = " ".join(DISK_MODULES)
    (made / "mount-disk").write_text(
        f"for module in {modules}; do insmod /modules/$module.ko; done\nmkdir -p {HOME}\n"
        f"for second in 0 1 2 3 4 5 6 7 8 9; do [ -b /dev/vda ] && break; sleep 1; done\n"
        f"mount -t ext4 /dev/vda {HOME}\n"
    )
    both = folder / "initrd"
    with both.open("wb") as stream:
        stream.write((base / f"{board._board_stamp()}.cpio").read_bytes())
        cpio.write(stream, made)
    return both


def _modules(folder: Path) -> Iterator[Path]:
    from edgeprune.devices.emulation import emulator

    kept = emulator.folder() / "board" / "disk-modules"
    if not kept.is_dir():
        depends = emulator.apt_cache(["depends", "linux-image-cloud-arm64:arm64"])
        kernel = next(line.split()[-1].split(":")[0] for line in depends.splitlines() if "Depends: linux-image" in line)
        (package,) = emulator.fetch([kernel], "arm64")
        emulator.call(["dpkg-deb", "-x", package, folder / "kernel"])
        package.unlink()
        part = kept.with_name("disk-modules.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name in DISK_MODULES:
            for path in (folder / "kernel").rglob(f"{name}.ko"):
                shutil.copyfile(path, part / path.name)
        part.rename(kept)
        shutil.rmtree(folder / "kernel")
    yield from sorted(kept.iterdir())


def campaign(where: str, folder: Path, tries: int, seed: int, minutes: float) -> dict[str, Any]:
    """Installations that are killed, and what is there afterwards."""
    book, chance, clock = trying.Book(f"rollout-{where}", seed), random.Random(seed), trying.Clock(minutes)
    first, second, other = two_bundles(folder)
    device: Any = Here(folder) if where == "local" else Board(folder, first)
    known = {digest(first): "first", digest(second): "second"}
    killed = finished = 0
    unreachable: list[str] = []
    after = {"old": 0, "new": 0}
    try:
        whole_s = _walk(device, (first, second, other), book)
        while killed < tries and clock:
            try:
                used, wrong = device.state()
                if wrong:
                    book.fail(f"after kill {killed}: {wrong}")
                bundle = second if used == digest(first) else first
                start = time.monotonic()
                was_killed = device.killed(bundle, chance.uniform(0.0, 1.1) * whole_s)
                if not was_killed:  # a machine that is less busy than it was installs faster
                    whole_s = time.monotonic() - start
                found, wrong = device.state()
            except DeviceUnreachable as error:  # what it holds was not seen: not counted
                unreachable.append(error.message)
                if len(unreachable) > 5:
                    break
                continue
            killed, finished = killed + was_killed, finished + (not was_killed)
            book.ends["killed" if was_killed else "ended before"] += 1
            if wrong or found not in known:
                book.fail(f"kill {killed}: {wrong or 'another release'}")
            after["new" if found == digest(bundle) else "old"] += 1
        with contextlib.suppress(DeviceUnreachable):  # and after all of it one more is taken
            device.install(first)
            if device.state() != (digest(first), ""):
                book.fail("the installation after all kills")
    finally:
        device.close()
    return book.facts(
        killed=killed, finished_before=finished, in_use_afterwards=after, install_s=round(whole_s, 1),
        unreachable=unreachable, booted_again=getattr(device, "booted_again", 0),
    )  # fmt: skip


def _walk(device: Any, made: tuple[Path, Path, Path], book: trying.Book) -> float:
    """Install, a failed self-test, another one, back, forth; how long one takes, in seconds."""
    first, second, other = made
    device.install(first)
    steps: list[tuple[str, Callable[[], None], Path]] = [
        ("self-test", lambda: _refused(device, other), first),
        ("install", lambda: device.killed(second, 600.0), second),  # not killed: how long it takes
        ("rollback", device.back, first),
    ]
    began = 0.0
    for name, step, wanted in steps:
        start = time.monotonic()
        step()
        began = time.monotonic() - start if name == "install" else began
        if device.state() != (digest(wanted), ""):
            book.fail(f"{name}: {device.state()}")
    return began


def _refused(device: Any, bundle: Path) -> None:
    try:
        device.install(bundle)
    except GateError:
        return
    raise SystemExit("a network that computes something else was installed")


def main() -> None:
    """The command line."""
    parser = trying.arguments(__doc__, "rollout", 100)
    parser.add_argument("where", choices=("local", "board"))
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="campaign-rollout-"))
    from edgeprune.devices.emulation import emulator

    os.environ.setdefault("EDGEPRUNE_EMULATOR", str(emulator.folder()))
    os.environ["EDGEPRUNE_CACHE"] = str(folder / "cache")
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    began = time.monotonic()
    try:
        facts = campaign(given.where, folder, given.tries, given.seed, given.minutes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts["took_s"] = round(time.monotonic() - began, 1)
    trying.write(facts, given.out.with_name(f"rollout-{given.where}.json"))
    trying.ended(facts)


if __name__ == "__main__":
    main()
