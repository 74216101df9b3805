"""A stand-in for a device's disk while releases are installed: what was not brought to it is lost at the cut.

Two kinds of file systems: names as they were last synced; or all names, also new ones, with the content that was synced
(delayed allocation). A link holds where it leads in its name's place, as ext4 and others have it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from edgeprune.devices.agent.rollout import Releases
from edgeprune.devices.agent.unpack import Bundle

CHANGES = ("fsync", "mkdir", "rename", "replace", "symlink", "remove")
Tree = dict[str, Any]  # name -> bytes, a link's target, or a tree


class Cut(BaseException):
    """The power is gone."""


class Disk:
    """What is durable below `root`; `found` is how both kinds of file system have it after the cut."""

    def __init__(self, root: Path, calls: int) -> None:
        self.root, self.left = root, calls
        self.kept = (
            root.parent / "kept"
        )  # synced files stay here, so that no other one gets the number of a deleted one
        self.kept.mkdir(exist_ok=True)
        self.content: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self.kinds: dict[int, str] = {}  # inode -> "" for a file, "/" for a folder, or where a link leads
        self.found: dict[bool, Tree] = {}
        for folder in (root, *root.rglob("*")):
            self.sync(folder)

    def sync(self, path: Path) -> None:
        """A file's content, or a folder's names, are durable from now on."""
        inode = path.lstat().st_ino
        self.kinds[inode] = _kind(path)
        if self.kinds[inode] == "/":
            self.names[inode] = {one.name: one.lstat().st_ino for one in path.iterdir()}
            self.kinds.update((one.lstat().st_ino, _kind(one)) for one in path.iterdir())
        elif not self.kinds[inode]:
            self.content[inode] = path.read_bytes()
            (self.kept / str(inode)).unlink(missing_ok=True)
            os.link(path, self.kept / str(inode))

    def tick(self) -> None:
        self.left -= 1
        if self.left == -1:
            inode = self.root.stat().st_ino
            self.found = {False: self._synced(inode), True: self._ahead(self.root)}
            raise Cut

    def _synced(self, inode: int) -> Tree:
        found: Tree = {}
        for name, child in self.names.get(inode, {}).items():
            kind = self.kinds[child]
            if kind == "/":
                found[name] = self._synced(child)
            else:
                found[name] = kind or self.content.get(child, b"")
        return found

    def _ahead(self, folder: Path) -> Tree:
        found: Tree = {}
        for path in folder.iterdir():
            if path.is_symlink():
                found[path.name] = str(path.readlink())
            else:
                found[path.name] = self._ahead(path) if path.is_dir() else self.content.get(path.stat().st_ino, b"")
        return found


def _kind(path: Path) -> str:
    return str(path.readlink()) if path.is_symlink() else "/" if path.is_dir() else ""


def grow(tree: Tree, to: Path) -> None:
    """Write a tree."""
    to.mkdir()
    for name, content in tree.items():
        if isinstance(content, dict):
            grow(content, to / name)
        elif isinstance(content, str):
            (to / name).symlink_to(content)
        else:
            (to / name).write_bytes(content)


def install(bundle: Path, folder: Path) -> None:
    """As the device does it, with a self-test that passes."""
    releases = Releases(str(folder), "tiny")
    with releases.locked(1):
        releases.install(Bundle(str(bundle)), {"unsigned": True}, lambda place, manifest: {})


def back(_: Path, folder: Path) -> None:
    """Go back to the release before."""
    releases = Releases(str(folder), "tiny")
    with releases.locked(1):
        releases.rollback(lambda place, manifest: {})


def cut(change: Any, bundle: Path, folder: Path, calls: int) -> dict[bool, Tree]:
    """Do `change` to `folder` and cut the power before the `calls`-th change of the disk; empty: it was done before."""
    disk = Disk(folder, calls)
    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, _ticking(disk, name, getattr(os, name)))
        try:
            change(bundle, folder)
        except Cut:
            return disk.found
    return {}


def changes(change: Any, bundle: Path, folder: Path) -> int:
    """How many changes of the disk it takes."""
    disk = Disk(folder, 10**9)
    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, _ticking(disk, name, getattr(os, name)))
        change(bundle, folder)
    return 10**9 - disk.left


def _ticking(disk: Disk, name: str, change: Any) -> Any:
    def ticking(*arguments: Any, **named: Any) -> Any:
        if name == "fsync":
            path = Path(f"/proc/self/fd/{arguments[0]}").readlink()
            disk.tick()
            if disk.left >= 0:
                disk.sync(path)
            return None
        disk.tick()
        made = change(*arguments, **named)
        if name == "mkdir" and "dir_fd" not in named:
            disk.names.pop(os.lstat(arguments[0]).st_ino, None)
        return made

    return ticking
