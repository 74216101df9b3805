"""From an agent's answers, already checked, to what the door promises: timings, kernels, outputs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.devices import answers
from edgeprune.devices.types import KernelTime, Timing, Unit
from edgeprune.errors import DeviceError
from edgeprune.target import Protocol


def scaled(nanoseconds: float, unit: Unit) -> float:
    """The agent counts nanoseconds; the instruction clock advances one an instruction."""
    return nanoseconds if unit == "instructions" else nanoseconds / 1e6


def timing(found: answers.Summary, job: answers.MeasureAnswer, protocol: Protocol, unit: Unit) -> Timing:
    """One artifact's latency; not valid where the device was disturbed, or where its rounds scatter too much."""
    reasons = list(job.reasons)
    if found.spread > protocol.max_spread:
        reasons.append(f"rounds scatter by {100 * found.spread:.1f} %, allowed are {100 * protocol.max_spread:.1f} %")
    return Timing(
        median=scaled(found.median, unit),
        p90=scaled(found.p90, unit),
        p99=scaled(found.p99, unit),
        minimum=scaled(found.minimum, unit),
        mean=scaled(found.mean, unit),
        spread=found.spread,
        count=found.count,
        rounds=tuple(scaled(value, unit) for value in found.rounds),
        unit=unit,
        valid=not reasons,
        reasons=tuple(reasons),
        drift=found.drift,
        notes=tuple(job.notes),
        others=job.others if unit == "ms" else 0.0,  # counts do not depend on who else works
    )


def kernel(row: answers.KernelRow, layers: tuple[str, ...], unit: Unit) -> KernelTime:
    """One kernel of a profile, with the layers that are in it."""
    return KernelTime(
        name=row.name,
        kind=row.kind,
        layers=layers,
        median=scaled(row.median, unit),
        mad=scaled(row.mad, unit),
        count=row.count,
        unit=unit,
        implementation=row.implementation,
    )


def arrays(path: Path, where: str) -> list[NDArray[Any]]:
    """The arrays o0, o1, ... of an .npz file that an agent wrote; raises DeviceError for any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(one.compress_type != zipfile.ZIP_STORED for one in members):  # the agent compresses nothing
                raise ValueError("compressed")
            if sum(one.file_size for one in members) > answers.FILE_BYTES:
                raise ValueError("too large")
            if sorted(one.filename for one in members) != sorted(f"o{index}.npy" for index in range(len(members))):
                raise ValueError("other arrays than outputs")
            for one in members:
                _header(archive, one)
        with np.load(path, allow_pickle=False) as found:
            return [np.asarray(found[f"o{index}"]) for index in range(len(members))]
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as cause:  # zipfile, numpy and zlib raise many kinds; a damaged file is all that they mean
        raise DeviceError(
            f"{where}: its outputs cannot be read ({answers.plain(str(cause), 200)}).", answers.UNTRUE
        ) from None


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """An array must not claim to be larger than its file is."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = reader(stream)
        size = int(np.prod([int(one) for one in shape], dtype=object)) * kind.itemsize
        if kind.hasobject or size > member.file_size:
            raise ValueError(f"an array of {size:,} bytes in {member.file_size:,}")
