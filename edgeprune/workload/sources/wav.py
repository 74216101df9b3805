"""Sounds by class folder: CLASS/NAME.wav, and the features that the network was trained on."""

from __future__ import annotations

import wave
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError
from edgeprune.workload.sources.examples import Examples, SourceKind, files


def wav_folders(
    folder: Path, rate: int, samples: int, features: Callable[[NDArray[np.float32]], Any], classes: tuple[str, ...] = ()
) -> Examples:
    """Clips of one rate, cut or padded with silence at the end to `samples`.

    Args:
        folder: holds one folder a class; those with "." or "_" in front are left out unless `classes` names them.
        rate: in Hz; another one is an error, since features would be of other frequencies.
        samples: of a clip.
        features: [samples] float32 in -1..1 -> the network's input.
        classes: their order; empty: the folders, sorted.

    Raises:
        DataError: no such folder, a wav of another rate or form, an empty class.
    """
    left_out: Counter[str] = Counter()
    if not folder.is_dir():
        raise DataError(f"[data] {folder}: no such folder.", "Lay it out as CLASS/NAME.wav.")
    there = sorted(path.name for path in folder.iterdir() if path.is_dir())
    names = classes or tuple(name for name in there if name[0] not in "._")
    lacking = [name for name in names if name not in there]
    if lacking or not names:
        raise DataError(f"[data] {folder} has no folder {lacking[0] if lacking else 'of a class'}.")
    if len(there) > len(names):
        left_out["other folders"] += len(there) - len(names)
    paths = [(path, n) for n, name in enumerate(names) for path in files(folder / name, {".wav"}, left_out)]
    for path, _ in paths:
        _open(path, rate, decode=False)
    return Examples(
        tuple(f"{p.parent.name}/{p.name}" for p, _ in paths),
        lambda n: (features(_clip(paths[n][0], rate, samples)), paths[n][1]),
        names,
        left_out,
    )


def _open(path: Path, rate: int, decode: bool) -> tuple[int, int, bytes]:
    """(channels, bytes a sample, frames where they are asked for) of a file of the right rate; raises DataError."""
    try:
        with wave.open(str(path), "rb") as file:
            found, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            data = file.readframes(file.getnframes()) if decode else b""
    except MemoryError:
        raise
    except Exception as cause:  # the reader raises whatever a damaged chunk makes it, RuntimeError too
        told = str(cause) or type(cause).__name__
        raise DataError(f"[data] {path} cannot be read as wav: {told}.", "PCM of 8, 16 or 32 bits is read.") from None
    if found != rate:
        raise DataError(f"[data] {path} has {found} Hz; the network's features are of {rate} Hz.", "Resample it first.")
    if width not in (1, 2, 4):
        raise DataError(f"[data] {path} has {8 * width} bits a sample; 8, 16 or 32 are read.", "Convert it to 16.")
    return channels, width, data


def read_wav(path: Path, rate: int) -> NDArray[np.float32]:
    """The mean of all channels as [N] float32 in -1..1; raises DataError."""
    channels, width, data = _open(path, rate, decode=True)
    data = data[: len(data) - len(data) % (width * channels)]
    kind = {1: "u1", 2: "<i2", 4: "<i4"}[width]
    values = np.frombuffer(data, kind).astype(np.float32)
    scaled = (values - 128) / 128 if width == 1 else values / 2 ** (8 * width - 1)
    return np.asarray(scaled.reshape(-1, channels).mean(1), np.float32)


def _clip(path: Path, rate: int, samples: int) -> NDArray[np.float32]:
    wave_ = read_wav(path, rate)[:samples]
    return np.pad(wave_, (0, samples - len(wave_)))


SOURCE = SourceKind("wav", wav_folders, ("folder",), "features", classes=True)
