"""Ten words, spoken by espeak-ng in many voices, with noise: the data of the keyword example.

    python examples/keywords/words.py          # speak: .cache/examples/words.npz, and a few clips as wav

The synthesizer is the Debian package espeak-ng (`apt-get install espeak-ng`; a program of its own that makes the
sounds, nothing is linked with it). A voice is an accent of English and a way of speaking; the test speakers are ways of
speaking that training never heard. Each clip is one second at 16 kHz, the word anywhere in it, in noise of 0 to 20 dB.
What the network gets is the log-mel picture that `edgeprune.workload.features` computes, by numpy alone.
"""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
import sys
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import packages

import edgeprune
from edgeprune.errors import DataError
from edgeprune.workload.features import Features

RATE = 16_000
CLASSES = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
WAYS = {
    "train": ("m1", "m2", "m3", "m5", "m8", "f1", "f2", "f3"),
    "selection": ("m6", "f4"),
    "test": ("m4", "m7", "f5"),
}
TAKES = {"train": 4, "selection": 3, "test": 4}  # of each word and voice: other speed, pitch and noise
FEATURES = Features(rate=RATE, window=640, hop=320, fft=1024, mels=40, low=60.0, high=7600.0, layout="1TF")
FILE = packages.CACHE / "words.npz"


@dataclass(frozen=True)
class Clip:
    """One thing to say."""

    label: int
    voice: str
    speed: int
    pitch: int


def clips(split: str) -> list[Clip]:
    """What is said in a split, in order; the same on every machine."""
    draw = np.random.default_rng(list(WAYS).index(split))
    found = []
    for label in range(len(CLASSES)):
        for accent in ACCENTS:
            for way in WAYS[split]:
                for _ in range(TAKES[split]):
                    speed, pitch = int(draw.integers(110, 230)), int(draw.integers(25, 76))
                    found.append(Clip(label, f"{accent}+{way}", speed, pitch))
    return found


def speak(clip: Clip) -> np.ndarray:
    """The clip as espeak-ng says it: [samples] int16 at 16 kHz, without the silence around it, one second at most."""
    from scipy.signal import resample_poly

    command = ["espeak-ng", "-v", clip.voice, "-s", str(clip.speed), "-p", str(clip.pitch), "--stdout"]
    done = subprocess.run([*command, CLASSES[clip.label]], capture_output=True, check=True)
    with wave.open(io.BytesIO(done.stdout)) as file:
        rate = file.getframerate()
        sound = np.frombuffer(done.stdout[44:], np.int16)  # a stream's header does not know its length
    made = resample_poly(sound.astype(np.float64), RATE // 50, rate // 50)
    loud = np.flatnonzero(np.abs(made) > 300)
    made = made[loud[0] : loud[-1] + 1][:RATE] if len(loud) else made[:RATE]
    return np.clip(np.round(made), -32768, 32767).astype(np.int16)


def fetch() -> Path:
    """Speak every clip, once; returns the file of them all."""
    if FILE.exists():
        return FILE
    if shutil.which("espeak-ng") is None:
        raise DataError("espeak-ng is not installed.", "apt-get install espeak-ng")
    arrays: dict[str, np.ndarray] = {}
    for split in WAYS:
        said = [speak(clip) for clip in clips(split)]
        arrays[f"{split}_ends"] = np.cumsum([len(one) for one in said])
        arrays[f"{split}_sound"] = np.concatenate(said)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    partial = FILE.with_suffix(".part.npz")
    np.savez_compressed(partial, **arrays)
    partial.rename(FILE)
    return FILE


@functools.cache
def _spoken(split: str) -> list[np.ndarray]:
    with np.load(fetch()) as file:
        return np.split(file[f"{split}_sound"], file[f"{split}_ends"][:-1])


def heard(split: str, number: int) -> np.ndarray:
    """Clip `number` as a microphone has it: [16000] float32 in -1..1, with noise, from a seed of its own."""
    draw = np.random.default_rng((list(WAYS).index(split), number))
    word = _spoken(split)[number].astype(np.float64) / 32768
    sound = np.zeros(RATE)
    at = int(draw.integers(0, RATE - len(word) + 1))
    sound[at : at + len(word)] = word
    spectrum = np.fft.rfft(draw.standard_normal(RATE))
    spectrum *= np.maximum(np.arange(len(spectrum)), 20.0) ** -draw.uniform(0, 1)  # from white to pink
    noise = np.fft.irfft(spectrum, RATE)
    level = 10 ** (-draw.uniform(0, 20) / 20)
    sound += noise * level * np.sqrt(np.mean(word**2) / np.mean(noise**2))
    return (sound * draw.uniform(0.1, 0.6) / np.abs(sound).max()).astype(np.float32)


@functools.lru_cache(maxsize=8000)
def _features(split: str, number: int) -> np.ndarray:
    return FEATURES(heard(split, number))


@dataclass(frozen=True)
class Words:
    """A split as a map-style dataset: (log-mel [1, 49, 40], number of the word)."""

    split: str
    classes: tuple[str, ...] = CLASSES

    def __len__(self) -> int:
        return len(CLASSES) * len(ACCENTS) * len(WAYS[self.split]) * TAKES[self.split]

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return _features(self.split, index), index * len(CLASSES) // len(self)


def data() -> edgeprune.Data:
    """The splits, by speaker."""
    splits = {split: Words(split) for split in WAYS}
    return edgeprune.Data(**splits, prepare=FEATURES)


def main() -> None:
    """Speak, and write a few clips to listen to."""
    fetch()
    for number in range(0, len(Words("test")), 84):
        path = packages.CACHE / "words" / f"{CLASSES[Words('test')[number][1]]}.wav"
        path.parent.mkdir(exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((heard("test", number) * 32767).astype(np.int16).tobytes())
    print(f"{FILE}: {', '.join(f'{len(Words(split))} {split}' for split in WAYS)}")


if __name__ == "__main__":
    main()
