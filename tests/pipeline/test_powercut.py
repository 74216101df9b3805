"""A power cut at any moment: what was not brought to the disk is lost, and the run directory is whole or is made again.

A stand-in for a file system: it notes what each fsync makes durable. At the cut the tree is built again from that
alone, in the two ways that real file systems do it: names as they were last synced; or all names, also new ones, with
the content that was synced, which is nothing where it was not (delayed allocation).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path

import pytest

from edgeprune.errors import RunError
from edgeprune.pipeline.rundir import RunDirectory

STAGES = ("graph", "latency", "search", "recover")


class Cut(BaseException):
    """The power is gone."""


class Disk:
    """What is durable of a tree: inode -> content of a file, or names of a folder."""

    def __init__(self, root: Path, calls: int) -> None:
        self.root, self.left = root, calls
        self.content: dict[int, bytes] = {}
        self.names: dict[int, dict[str, tuple[int, bool]]] = {}

    def tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Cut

    def sync(self, handle: int) -> None:
        """fsync: a file's content, or a folder's names, are durable from now on."""
        path, inode = Path(f"/proc/self/fd/{handle}").readlink(), os.fstat(handle).st_ino
        if path.is_dir():
            self.names[inode] = listing(path)
        else:
            self.content[inode] = path.read_bytes()

    def after(self, to: Path, ahead: bool) -> None:
        """The tree as it is found when the power is back."""
        to.mkdir()
        self._build(self.root, self.root.stat().st_ino, to, ahead)

    def _build(self, now: Path | None, inode: int, to: Path, ahead: bool) -> None:
        names = listing(now) if ahead and now is not None else self.names.get(inode, {})
        for name, (child, is_folder) in names.items():
            if is_folder:
                (to / name).mkdir()
                self._build(now / name if ahead and now is not None else None, child, to / name, ahead)
            else:
                (to / name).write_bytes(self.content.get(child, b""))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The true disk need not wait: the stand-in is asked instead."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def listing(folder: Path) -> dict[str, tuple[int, bool]]:
    return {path.name: (path.lstat().st_ino, path.is_dir()) for path in folder.iterdir()}


def work(folder: Path, name: str, version: str, done: list[str]) -> None:
    done.append(name)
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "checkpoint.pt").write_text("half")
    (folder / "a.json").write_text(f"{name} {version}")
    (folder / "deep" / "b.bin").write_text(f"{name} {version}" * 100)


def go(folder: Path, version: str) -> list[str]:
    """All stages; the names of those that were made."""
    done: list[str] = []
    with RunDirectory(folder) as run:
        for name in STAGES:
            run.stage(name, version, lambda part, name=name: work(part, name, version, done))  # type: ignore[misc]
    return done


def cut_at(calls: int, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Disk, bool]:
    """A run of version 1, whole and durable; then one of version 2, cut at the `calls`-th change of the disk."""
    go(folder, "1")
    disk = Disk(folder, calls)
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            disk.names[path.stat().st_ino] = listing(path)
        else:
            disk.content[path.stat().st_ino] = path.read_bytes()

    def sync(handle: int) -> None:
        disk.tick()
        disk.sync(handle)

    patch.setattr(os, "fsync", sync)
    for name in ("replace", "rename", "unlink", "mkdir"):
        change = getattr(Path, name)

        def ticking(path: Path, *arguments: object, change=change, **named: object) -> object:  # type: ignore[no-untyped-def]
            disk.tick()
            return change(path, *arguments, **named)

        patch.setattr(Path, name, ticking)
    with contextlib.suppress(Cut):
        go(folder, "2")
        return disk, False
    return disk, True


@pytest.mark.parametrize("ahead", [False, True], ids=["names as synced", "names ahead of content"])
@pytest.mark.parametrize("moments", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_after_a_power_cut_every_stage_is_whole_or_made_again(tmp_path: Path, ahead: bool, moments: int) -> None:
    """Moments for each of two file systems; never a file of another version, nor half of one."""
    cuts, remade = 0, set()
    for calls in sorted(random.Random(5).sample(range(170), moments)):
        before, after = tmp_path / "before", tmp_path / "after"
        with pytest.MonkeyPatch.context() as patch:
            disk, was_cut = cut_at(calls, before, patch)
        cuts += was_cut
        disk.after(after, ahead)
        with RunDirectory(after) as run:
            for name in STAGES:
                if run.is_whole(name, "2"):
                    assert (after / name / "a.json").read_text() == f"{name} 2"
        remade.add(len(go(after, "2")))
        for name in STAGES:
            assert (after / name / "a.json").read_text() == f"{name} 2"
            assert (after / name / "deep" / "b.bin").read_text() == f"{name} 2" * 100
            assert not (after / name / "checkpoint.pt").exists()
        assert go(after, "2") == []
        shutil.rmtree(before)
        shutil.rmtree(after)
    assert cuts >= moments / 2
    assert len(remade) > 1


def test_the_stand_in_loses_what_was_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fsync the very same test finds broken stages: it can fail."""
    monkeypatch.setattr("edgeprune.files.sync", lambda path: None)
    with pytest.MonkeyPatch.context() as patch:
        disk, _ = cut_at(10_000, tmp_path / "before", patch)
    disk.after(tmp_path / "after", ahead=True)
    with RunDirectory(tmp_path / "after") as run:
        assert not any(run.is_whole(name, "2") for name in STAGES)
        with pytest.raises(RunError, match=r"stage\.json"):
            run.hashes("graph")
