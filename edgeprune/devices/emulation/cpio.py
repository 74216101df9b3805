"""Writing a folder as a cpio archive in the "newc" format, which the Linux kernel unpacks as its first disk.

Source of the format: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel. All files belong
to root.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO


def write(stream: IO[bytes], folder: Path) -> None:
    """Write all that is below `folder`, and /dev/console, which the kernel needs before anything runs."""
    number = 0
    for path in sorted(folder.rglob("*")):
        number += 1
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            data = os.fsencode(path.readlink())
        elif stat.S_ISREG(mode):
            data = path.read_bytes()
        elif stat.S_ISDIR(mode):
            data = b""
        else:
            continue
        _entry(stream, number, str(path.relative_to(folder)), mode, data)
    _entry(stream, number + 1, "dev/console", stat.S_IFCHR | 0o600, b"", device=(5, 1))
    _entry(stream, 0, "TRAILER!!!", 0, b"")


def _entry(stream: IO[bytes], number: int, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
    encoded = os.fsencode(name) + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device of the file (2), device it stands for (2), length of name, check
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    stream.write(header + b"\0" * (-len(header) % 4))
    stream.write(data + b"\0" * (-len(data) % 4))
