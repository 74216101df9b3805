"""samples.npz, read within limits: what a header or a directory claims is checked before a byte is unpacked."""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgeprune.errors import BundleError, DataError
from edgeprune.release.archive import DAMAGED, Archive
from edgeprune.validate import Answers

MEMBER, ANSWERS = "samples.npz", "answers.npz"
MAX_PACKED = 128 << 20  # bytes of the file
MAX_BYTES = 256 << 20  # of its arrays together, unpacked
MAX_ARRAYS = 64
MAX_DIMENSIONS = 8
UNREADABLE = (  # all that zipfile and numpy raise for files that are none
    ValueError, KeyError, OSError, EOFError, RuntimeError, NotImplementedError, OverflowError, MemoryError,
    zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, RecursionError, TypeError,
)  # fmt: skip
NAME = re.compile(r"(input|output)(_[1-9][0-9]{0,3})?")


def read(found: Archive) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """The inputs [N, ...] and the outputs that they gave, each in order; raises BundleError."""
    try:
        arrays = arrays_of(found.read(MEMBER, MAX_PACKED))
    except UNREADABLE as cause:
        raise BundleError(f"{found.path}: '{MEMBER}' cannot be read ({str(cause)[:200]}).", DAMAGED) from None
    odd = [name for name in arrays if not NAME.fullmatch(name)]
    if odd:
        raise BundleError(f"{found.path}: '{MEMBER}' has an array '{odd[0][:80]}': neither input nor output.", DAMAGED)
    first = arrays.get("input")
    if first is None or first.ndim < 1 or not len(first) or "output" not in arrays:
        raise BundleError(f"{found.path}: '{MEMBER}' has no input, or no output.", DAMAGED)
    for name, array in arrays.items():
        if array.ndim < 1 or len(array) != len(first) or not array.size:
            raise BundleError(f"{found.path}: '{MEMBER}' has no '{name}' for each of its inputs.", DAMAGED)
        if not np.isfinite(array).all():
            raise BundleError(f"{found.path}: '{MEMBER}' has '{name}' with values that are not finite.", DAMAGED)
    inputs, outputs = ([name for name in arrays if name.startswith(kind)] for kind in ("input", "output"))
    for names in (inputs, outputs):
        names.sort(key=_number)
        if [_number(name) for name in names] != list(range(len(names))):
            raise BundleError(
                f"{found.path}: '{MEMBER}' lacks an array between '{names[0]}' and '{names[-1]}'.", DAMAGED
            )
    return [arrays[name] for name in inputs], [arrays[name] for name in outputs]


def answers(found: Archive) -> Answers | None:
    """What each test example left; None in a bundle of a version before. Raises BundleError."""
    if ANSWERS not in found.members:
        return None
    try:
        return Answers.read(arrays_of(found.read(ANSWERS, MAX_PACKED)))
    except (*UNREADABLE, DataError) as cause:
        raise BundleError(f"{found.path}: '{ANSWERS}' cannot be read ({str(cause)[:200]}).", DAMAGED) from None


def _number(name: str) -> int:
    return int(name.partition("_")[2] or 0)


def arrays_of(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; ValueError and the errors of zipfile where it is odd or too large."""
    with zipfile.ZipFile(io.BytesIO(data)) as stored:
        entries = stored.infolist()
        names = [entry.filename for entry in entries]
        if len(entries) > MAX_ARRAYS or len(set(names)) < len(names):
            raise ValueError("too many arrays, or one name twice")
        if sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes when unpacked")
        found = {}
        for entry in entries:
            if not entry.filename.endswith(".npy") or entry.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise ValueError(f"{entry.filename[:80]} is no array")
            with stored.open(entry) as stream:
                found[entry.filename.removesuffix(".npy")] = _array(stream, entry.file_size)
    return found


def _array(stream: IO[bytes], size: int) -> NDArray[Any]:
    """One array, whose header must fit the size that the directory gives."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError("another version of .npy")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "fiub" or dtype.itemsize > 8 or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"an array of {str(dtype)[:40]} with {len(shape)} dimensions")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise ValueError("its header says more than is there")
    data = stream.read(size)
    if len(data) != count * dtype.itemsize:
        raise ValueError("its header says another size than is there")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
