"""Image files: how one becomes uint8 pixels, and what is refused before anything is measured.

What is done to a file, so that nothing is changed in silence: it is turned upright as its EXIF orientation says;
palettes, CMYK and YCbCr become RGB, and grey for a network of one channel (ITU-R 601 luma); alpha is dropped; 16-bit
grey is divided by 257; of several frames the first is read. Floating point and 32-bit integers have no range that
is known, and are refused.
"""

from __future__ import annotations

import os
import stat
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from edgeprune.errors import DataError
from edgeprune.model.preprocess import COLORS, Pixels, Preprocess

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
_EIGHT_BIT = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}
_ORIENTATION, _BITS = 0x0112, 258  # tags of EXIF and of TIFF
DECODE_S, HEADER_S = 5.0, 25.0  # seconds in which images are decoded, then their headers read, before a run begins
TOLD = 3  # images that one message names


def printable(path: object) -> str:
    """A path or a name for a message, also when it is no UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def read_image(path: Path, channels: int = 3) -> Pixels:
    """One file as uint8 [H, W, channels], channels 1 or 3; raises DataError."""
    return _open(path, channels, decode=True)[1]


def _open(path: Path, channels: int, decode: bool) -> tuple[tuple[int, int], Pixels]:
    """(height, width), and the pixels when they were decoded: on request, or where the file looks cut short."""
    name = printable(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without end
            raise DataError(f"[data] {name} cannot be read as an image: it is not a regular file.", "Remove it.")
        with Image.open(path) as image:
            _check_mode(image, name)
            if decode or not _looks_whole(path, image):
                pixels = _pixels(image, channels)
                return (pixels.shape[0], pixels.shape[1]), pixels
            width, height = image.size
            if image.format != "TIFF" and "exif" in image.info and image.getexif().get(_ORIENTATION, 1) >= 5:
                width, height = height, width
            return (height, width), np.empty((0, 0, channels), np.uint8)
    except (DataError, MemoryError):
        raise
    except Exception as cause:  # Pillow's readers raise whatever a damaged file makes them
        text = printable(cause).replace(name, "it")[:200].rstrip(".") or type(cause).__name__
        raise DataError(f"[data] {name} cannot be read as an image: {text}.", "Remove it or restore it.") from None


def _check_mode(image: Image.Image, name: str) -> None:
    """Refuse what has no known range of values."""
    bits = getattr(image, "tag_v2", {}).get(_BITS, (16,))
    if image.mode in _EIGHT_BIT or (image.mode in _SIXTEEN_BIT and tuple(np.atleast_1d(bits)) == (16,)):
        return
    if image.mode == "I" and image.format == "PPM":  # Pillow scales these to 16 bits itself
        return
    kinds = {"F": "floating-point", "I": "32-bit integer", "I;16": f"{bits[0]}-bit"}
    raise DataError(
        f"[data] {name} has {kinds.get(image.mode, image.mode)} pixels; their range is not known, so they would be "
        "clipped or scaled by guess.",
        "Save it with 8 or 16 bits a channel, scaled to the full range.",
    )


def _pixels(image: Image.Image, channels: int) -> Pixels:
    ImageOps.exif_transpose(image, in_place=True)
    image.load()
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        image = Image.fromarray(np.rint(np.asarray(image).astype(np.float32) / 257).astype(np.uint8))
    pixels = np.asarray(image.convert(COLORS[channels]))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _looks_whole(path: Path, image: Image.Image) -> bool:
    """Does the file end as its format ends? False where that is not known: then decoding tells."""
    with path.open("rb") as file:
        head = file.read(12)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 32))
        tail = file.read()
    if image.format == "PNG":
        return b"IEND" in tail
    if image.format == "JPEG":
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    if image.format == "WEBP":
        return size >= int.from_bytes(head[4:8], "little") + 8
    return False


@dataclass(frozen=True)
class Looked:
    """What a look at all files told: how many there are, were decoded, had their header read, and get black borders."""

    files: int
    decoded: int
    headers: int
    bordered: int

    def notes(self) -> list[str]:
        """What the user should know of it."""
        said = []
        seen = self.decoded + self.headers
        if seen < self.files:
            said.append(
                f"[data] {seen:,} of {self.files:,} images were looked at in {DECODE_S + HEADER_S:.0f} s, "
                "spread over the classes; the others are first read when they are needed"
            )
        if self.bordered:
            said.append(f"[data] {self.bordered:,} images are smaller than crop and get black borders")
        return said


def look(
    files: Sequence[Path], preprocess: Preprocess, decode_s: float = DECODE_S, header_s: float = HEADER_S
) -> Looked:
    """Look at every file before a run begins: decode as many as `decode_s` seconds allow, and read the others' headers.

    Args:
        files: in the order in which they matter; where time is up, the rest is left.

    Raises:
        DataError: some cannot be read, or are of a size that does not fit; names the first and says how many.
    """
    channels, wanted = preprocess.shape[0], tuple(preprocess.shape[1:])
    begin, decoded, headers, bordered = time.monotonic(), 0, 0, 0
    bad: list[DataError] = []
    for path in files:
        spent = time.monotonic() - begin
        if spent > decode_s + header_s:
            break
        decode = spent <= decode_s
        decoded, headers = decoded + decode, headers + (not decode)
        try:
            with warnings.catch_warnings():  # large images and odd metadata: what cannot be read raises
                warnings.simplefilter("ignore")
                height, width = _open(path, channels, decode)[0]
            got = preprocess.size(height, width)
            if got != wanted:
                raise DataError(
                    f"[data] {printable(path)} is {[channels, *got]} after preprocessing; [model] input is "
                    f"{list(preprocess.shape)}.",
                    "Set [data] resize and crop.",
                )
            inner = preprocess.resized(height, width)
            bordered += bool(preprocess.crop) and (inner[0] < got[0] or inner[1] < got[1])
        except DataError as cause:
            bad.append(cause)
    if bad:
        more = f" So it is with {len(bad):,} of {decoded + headers:,} images." if len(bad) > 1 else ""
        others = [one.message.removeprefix("[data] ") for one in bad[1:TOLD]]
        raise DataError(f"{bad[0].message}{more}" + "".join(f"\n  {other}" for other in others), bad[0].remedy)
    return Looked(len(files), decoded, headers, bordered)
