"""Pixels to network input: said once, and done the same way for training, calibration and on the device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Size = int | tuple[int, int]  # pixels: one side, or (height, width); 0: leave
COLORS = {1: "L", 3: "RGB"}  # what an image file is turned into for a network of so many channels

GREY = 114  # around a letterboxed image


@dataclass(frozen=True)
class Preprocess:
    """Pixels to network input: resize, crop the centre, scale, subtract the mean, divide by std.

    `resize` as one number is the length of the shorter side, and the aspect is kept; as (height, width) it is the size,
    whatever the aspect was: squashed, or, with `fit` "letterbox", as large as it fits, in the middle of grey. `crop` as
    one number is a square. `order` is the network's: with "BGR" mean and std are blue's first.
    """

    resize: Size
    crop: Size
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, ...]
    fit: Literal["squash", "letterbox"] = "squash"
    order: Literal["RGB", "BGR"] = "RGB"

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        """[H, W, C] or [H, W] uint8 -> [C, H', W'] float32."""
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if self.resize or self.crop:
            pixels = self._fit(pixels)
        if self.order == "BGR":
            pixels = pixels[:, :, ::-1]
        scaled = pixels.astype(np.float32) * np.float32(self.scale)
        normal = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after `resize`, before `crop`."""
        if not self.resize:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        ratio = self.resize / min(height, width)
        return max(self.resize, round(height * ratio)), max(self.resize, round(width * ratio))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what comes out for an image of `height` x `width`."""
        if not self.crop:
            return self.resized(height, width)
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop

    def place(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of an image in what comes out of `resize`, in pixels."""
        outer = self.resized(height, width)
        if self.fit == "squash" or not isinstance(self.resize, tuple):
            return 0, 0, *outer
        ratio = min(outer[0] / height, outer[1] / width)
        inner = [max(1, min(whole, round(side * ratio))) for side, whole in zip((height, width), outer, strict=True)]
        return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2, inner[0], inner[1]

    def moved(self, boxes: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
        """Boxes (x0, y0, x1, y1 in parts of an image) in parts of what comes out of `resize`."""
        top, left, inner_height, inner_width = self.place(height, width)
        outer = self.resized(height, width)
        size, corner = np.array([inner_width, inner_height] * 2), np.array([left, top] * 2)
        return np.asarray((boxes * size + corner) / np.array([outer[1], outer[0]] * 2))

    def _fit(self, pixels: Pixels) -> Pixels:
        if pixels.shape[2] not in COLORS:  # Pillow would take a fourth channel for alpha, and has no name for a fifth
            return np.concatenate([self._fit(pixels[:, :, n : n + 1]) for n in range(pixels.shape[2])], axis=2)
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        if self.resize:
            outer = self.resized(image.height, image.width)
            top, left, height, width = self.place(image.height, image.width)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            if (height, width) != outer:
                canvas = Image.new(image.mode, (outer[1], outer[0]), GREY if image.mode == "L" else (GREY,) * 3)
                canvas.paste(image, (left, top))
                image = canvas
        if self.crop:
            height, width = self.size(image.height, image.width)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        fitted = np.asarray(image)
        return fitted[:, :, None] if fitted.ndim == 2 else fitted

    def to_dict(self) -> dict[str, object]:
        """As shipped in the bundle."""
        return {**asdict(self), "layout": "NCHW", "color": COLORS.get(self.shape[0], "RGB")}
