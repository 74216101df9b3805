"""Read .npz files that anyone may have made: nothing is unpacked before its size is known, and no pickle is run."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError
from edgeprune.model.images import printable

_HEADER_BYTES = 10_000  # NumPy's own limit for a header that is parsed


def read_npz(path: Path, wanted: Collection[str]) -> dict[str, NDArray[Any]]:
    """The arrays of `path` that are named in `wanted`; others are left unread.

    Raises:
        DataError: not a whole .npz, encrypted, an array of objects, headers that lie, or more than this machine's
            memory holds.
    """
    name = printable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
            chosen = {key: members[key] for key in members if key in wanted}
            _check_sizes(chosen, name)
            return {key: _read(archive, info, key, name) for key, info in chosen.items()}
    except (DataError, MemoryError):
        raise
    except zipfile.BadZipFile as cause:
        told = "it is a single array (.npy), not a .npz" if _starts(path, b"\x93NUMPY") else printable(cause)
        raise DataError(
            f"[data] {name}: cannot be read as .npz: {told.rstrip('.')}.", "Make it with numpy.savez."
        ) from None
    except Exception as cause:  # zipfile, zlib and NumPy raise whatever damage makes them
        told = printable(cause)[:200].rstrip(".") or type(cause).__name__
        raise DataError(f"[data] {name}: cannot be read as .npz: {told}.", "Make it again with numpy.savez.") from None


def _starts(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _check_sizes(members: dict[str, zipfile.ZipInfo], name: str) -> None:
    for key, info in members.items():
        if info.flag_bits & 1:
            raise DataError(f"[data] {name}: cannot be read as .npz: '{key}' is encrypted.", "Save it without.")
    total, memory = sum(info.file_size for info in members.values()), _memory()
    if total > memory:
        raise DataError(
            f"[data] {name} unpacks to {total / 1e9:,.0f} GB; this machine has {memory / 1e9:,.0f} GB of memory.",
            "Give a folder of images instead: they are read when they are needed.",
        )


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, key: str, name: str) -> NDArray[Any]:
    """One array, its header checked against the size that the archive states before anything is reserved for it."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file, max_header_size=_HEADER_BYTES)
        size = dtype.itemsize
        for length in shape:
            size *= length
        if dtype.hasobject:
            raise DataError(
                f"[data] {name}: '{key}' holds Python objects, which are never unpickled.",
                "Save plain arrays: numbers, and names as text (numpy.array([...], dtype=str)).",
            )
        if size < 0 or size > info.file_size - file.tell():
            raise DataError(f"[data] {name}: '{key}' is damaged: its header says {list(shape)}, but less is there.")
    with archive.open(info) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False, max_header_size=_HEADER_BYTES)
        if file.read(1):  # also reads to the end, where the checksum is compared
            raise DataError(f"[data] {name}: '{key}' is damaged: there is more in it than its header says.")
    return array
