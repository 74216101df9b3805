"""Features of sound, stated and computed by numpy alone, so that a board computes the same: log-mel and MFCC.

A frame is `window` samples every `hop`, times a Hann window; power spectrum of `fft` points; `mels` triangles from
`low` to `high` Hz (HTK's scale: 2595 log10(1 + f / 700)); a logarithm; for MFCC an orthonormal DCT-II.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError


@dataclass(frozen=True)
class Features:
    """What a network hears of a clip; every number is stated, none is guessed.

    Attributes:
        rate: Hz.
        window, hop: samples.
        fft: points of the transform, `window` at least.
        mels, low, high: the triangles.
        coefficients: of the cosine transform (MFCC); 0: log-mel.
        floor: added before the logarithm.
        log: "e" or "2" or "10" (of the power).
        magnitude: triangles weigh the magnitude, not the power.
        centred: frames are centred on multiples of `hop`, the clip mirrored at its ends; else they lie within it.
        layout: of the result: [frames, bins] or [bins, frames], with an axis of one channel before it or without.
    """

    rate: int = 16000
    window: int = 480
    hop: int = 160
    fft: int = 512
    mels: int = 40
    low: float = 20.0
    high: float = 8000.0
    coefficients: int = 0
    floor: float = 1e-6
    log: Literal["e", "2", "10"] = "e"
    magnitude: bool = False
    centred: bool = False
    layout: Literal["TF", "FT", "1TF", "1FT"] = "1FT"

    def __post_init__(self) -> None:
        if not (
            self.hop > 0 and 0 < self.window <= self.fft and 0 <= self.coefficients <= self.mels and self.floor > 0
        ):
            raise DataError("features: 0 < hop, 0 < window <= fft, coefficients <= mels, and floor above 0.")
        if not 0 <= self.low < self.high <= self.rate / 2:
            raise DataError(f"features: 0 <= low < high <= {self.rate / 2:g} Hz, half the rate.")

    def __call__(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """[samples] in -1..1 -> features, float32; raises DataError for a clip shorter than a window."""
        clip = np.asarray(wave, np.float64).reshape(-1)
        if self.centred:
            if len(clip) <= self.fft // 2:
                raise DataError(f"features: a clip of {len(clip)} samples is shorter than a window.")
            clip = np.pad(clip, self.fft // 2, mode="reflect")
        span = self.fft if self.centred else self.window
        if len(clip) < span:
            raise DataError(f"features: a clip of {len(clip)} samples is shorter than a window of {span}.")
        frames = np.lib.stride_tricks.sliding_window_view(clip, span)[:: self.hop]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        before = (span - self.window) // 2
        spectrum = np.abs(np.fft.rfft(frames * np.pad(hann, (before, span - self.window - before)), self.fft))
        bands = (spectrum if self.magnitude else spectrum**2) @ self.triangles().T
        found = np.log(bands + self.floor) / {"e": 1.0, "2": np.log(2), "10": np.log(10)}[self.log]
        if self.coefficients:
            angle = np.pi / self.mels * (np.arange(self.mels) + 0.5)
            basis = np.cos(angle[None] * np.arange(self.coefficients)[:, None]) * np.sqrt(2 / self.mels)
            basis[0] /= np.sqrt(2)
            found = found @ basis.T
        if "FT" in self.layout:
            found = found.T
        return np.ascontiguousarray(found[None] if self.layout[0] == "1" else found, np.float32)

    def samples(self, shape: tuple[int, ...]) -> int:
        """Of a clip that gives features of this shape: what is longer is cut, what is shorter filled up."""
        sizes = shape[1:] if self.layout[0] == "1" else shape
        frames = sizes[self.layout.index("T") - len(self.layout)]
        return (frames - 1) * self.hop + (0 if self.centred else self.window)

    def triangles(self) -> NDArray[np.float64]:
        """[mels, fft / 2 + 1] weights."""
        low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (self.low, self.high))
        edges = 700 * (10 ** (np.linspace(low, high, self.mels + 2) / 2595) - 1)
        hertz = np.fft.rfftfreq(self.fft, 1 / self.rate)[None]
        left, top, right = (edges[k : self.mels + k, None] for k in range(3))
        return np.asarray(np.clip(np.minimum((hertz - left) / (top - left), (right - hertz) / (right - top)), 0, None))
