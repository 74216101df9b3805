"""A contact sheet: small pictures in rows, each with a line of text below it. Pillow and numpy, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

COLUMNS, SIDE, LARGEST = 6, 144, 288  # pictures in a row, and pixels of a picture's longer side, at least and at most
LINE, GAP = 14, 6  # pixels of a line of text, and between pictures
INK, PAPER, GOOD, BAD = (32, 32, 32), (255, 255, 255), (0, 110, 40), (190, 20, 20)
LETTERS = 6  # pixels that a letter of the text is wide, about

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Tile:
    """One example.

    Attributes:
        pixels: [H, W, 3].
        caption: what it is; longer than the picture is wide, it is cut.
        right: does the network say so too? None: nothing to compare.
        boxes: [K, 4] x0, y0, x1, y1 in parts of the picture, each with its name.
    """

    pixels: Pixels
    caption: str
    right: bool | None = None
    boxes: tuple[tuple[tuple[float, float, float, float], str], ...] = ()


def colours(count: int) -> Pixels:
    """[count, 3]: far apart, the same each time, the first one black."""
    made = np.random.default_rng(1).integers(40, 256, (max(1, count), 3)).astype(np.uint8)
    made[0] = 0
    return made


def overlaid(pixels: Pixels, mask: NDArray[Any], classes: int, ignore: int | None) -> Pixels:
    """The picture and, to its right, its mask in colours over it; pixels that do not count are grey."""
    rows = (np.arange(pixels.shape[0]) * mask.shape[0]) // pixels.shape[0]
    columns = (np.arange(pixels.shape[1]) * mask.shape[1]) // pixels.shape[1]
    fitted = mask[np.ix_(rows, columns)].astype(np.int64)
    off = (fitted < 0) | (fitted >= classes) if ignore is None else fitted == ignore
    shown = colours(classes)[np.where(off, 0, fitted).clip(0, classes - 1)]
    shown[off] = 128
    return np.concatenate([pixels, (0.35 * pixels + 0.65 * shown).astype(np.uint8)], 1)


def draw(tiles: Sequence[Tile]) -> Image.Image:
    """All tiles on one page."""
    from PIL import Image, ImageDraw

    pictures = [_picture(tile) for tile in tiles]
    width, height = (max(one.size[axis] for one in pictures) for axis in (0, 1))
    across = min(COLUMNS, len(tiles))
    down = -(-len(tiles) // across)
    page = Image.new("RGB", (GAP + across * (width + GAP), GAP + down * (height + LINE + GAP)), PAPER)
    pen = ImageDraw.Draw(page)
    for number, (tile, picture) in enumerate(zip(tiles, pictures, strict=True)):
        left = GAP + (number % across) * (width + GAP)
        top = GAP + (number // across) * (height + LINE + GAP)
        page.paste(picture, (left, top))
        text = _cut(tile.caption, width)
        pen.text((left, top + height + 1), text, fill=INK if tile.right is None else GOOD if tile.right else BAD)
    return page


def _cut(text: str, width: int) -> str:
    """What fits, in letters that the font has."""
    plain = text.encode("latin-1", "replace").decode("latin-1")
    most = max(4, width // LETTERS)
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def _picture(tile: Tile) -> Image.Image:
    """Enlarged by a whole factor, or reduced; with its boxes."""
    from PIL import Image, ImageDraw

    height, width = tile.pixels.shape[:2]
    longer = max(height, width)
    size = (width, height)
    if longer < SIDE:
        size = (width * -(-SIDE // longer), height * -(-SIDE // longer))
    elif longer > LARGEST:
        size = (max(1, width * LARGEST // longer), max(1, height * LARGEST // longer))
    whole = max(size) >= longer
    how = Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR
    made = Image.fromarray(np.ascontiguousarray(tile.pixels)).resize(size, how)
    pen = ImageDraw.Draw(made)
    for (x0, y0, x1, y1), name in tile.boxes:
        corners = (x0 * (size[0] - 1), y0 * (size[1] - 1), x1 * (size[0] - 1), y1 * (size[1] - 1))
        pen.rectangle(corners, outline=(255, 220, 0))
        pen.text((corners[0] + 2, corners[1]), _cut(name, size[0]), fill=(255, 220, 0), stroke_width=1, stroke_fill=INK)
    return made
