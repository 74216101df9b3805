"""Pictures out of pictures: super-resolution, denoising, colour. PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import DataError, ModelError, TaskError
from edgeprune.workload import distances
from edgeprune.workload.arrays import Outputs, examples, to_array
from edgeprune.workload.statistics import Statistics, Sums, Values
from edgeprune.workload.task import BaseTask

if TYPE_CHECKING:
    from torch import Tensor

Picture = NDArray[np.float64]
TOP = 100.0  # dB of a picture without any error: so that a mean stays finite


def mean(sums: Values) -> Values:
    """[B, 2] sums of a figure and of examples -> its mean."""
    return np.asarray(sums[:, 0] / sums[:, 1])


def luma(picture: Picture) -> Picture:
    """RGB [3, H, W] of 0..255 -> Y [1, H, W] of 16..235 (ITU-R BT.601, as super-resolution papers do)."""
    red, green, blue = picture
    return np.asarray(16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255)[None]


def psnr(first: Picture, second: Picture, peak: float) -> float:
    """Peak signal-to-noise ratio in dB, at most 100."""
    error = float(np.mean((first - second) ** 2))
    return min(TOP, 10 * np.log10(peak**2 / error)) if error > 0 else TOP


def ssim(first: Picture, second: Picture, peak: float) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 x 11, deviation 1.5; mean over channels."""
    from numpy.lib.stride_tricks import sliding_window_view

    if min(first.shape[1:]) < 11:
        raise DataError(f"SSIM needs pictures of 11 x 11 at least; these are {list(first.shape[1:])}.")
    ramp = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    ramp /= ramp.sum()

    def smooth(picture: Picture) -> Picture:
        rows = sliding_window_view(picture, 11, axis=1) @ ramp
        return np.asarray(sliding_window_view(rows, 11, axis=2) @ ramp)

    low, high = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    one, two = smooth(first), smooth(second)
    spread = smooth(first**2) - one**2, smooth(second**2) - two**2
    shared = smooth(first * second) - one * two
    each = (2 * one * two + low) * (2 * shared + high) / ((one**2 + two**2 + low) * (spread[0] + spread[1] + high))
    return float(each.mean())


@dataclass(frozen=True)
class Restoration(BaseTask):
    """A picture [C, H, W] against the right one, C the same; sizes may vary from example to example.

    Attributes:
        metric: "PSNR" or "SSIM".
        peak: the white of outputs and targets: 255 or 1.
        on: "RGB" for all channels as they are, or "Y" for the luma of RGB.
        crop: pixels left out at each edge; for super-resolution, papers take the factor.
        round: outputs are clipped to 0..peak and, with peak 255, rounded, as a saved picture is.
        output: the network's output that holds the picture.
    """

    metric: Literal["PSNR", "SSIM"] = "PSNR"
    peak: float = 1.0
    on: Literal["RGB", "Y"] = "RGB"
    crop: int = 0
    round: bool = True
    output: int = 0

    varying = True

    @property
    def unit(self) -> str:  # type: ignore[override]
        return "dB" if self.metric == "PSNR" else ""

    def __post_init__(self) -> None:
        if self.metric not in ("PSNR", "SSIM") or self.on not in ("RGB", "Y"):
            raise TaskError('restoration has the metrics "PSNR" and "SSIM", on "RGB" or "Y".')
        if not self.peak > 0 or self.crop < 0:
            raise TaskError("restoration: peak is above 0, and crop not below 0.")

    def _measure(self, outputs: Outputs, targets: list[Any]) -> Statistics:
        if self.output >= len(outputs):
            raise ModelError(f"the task looks at output {self.output}, but the network has {len(outputs)}.")
        rows = np.ones((len(targets), 2))
        failed = np.ones((len(targets), 2))
        for place, (output, target) in enumerate(zip(examples(outputs[self.output]), targets, strict=True)):
            true = to_array(target).astype(np.float64)
            if output.ndim != 3 or output.shape != true.shape:
                raise DataError(
                    f"the target of example {place} is {list(true.shape)}; the output is {list(output.shape)}.",
                    "Both must be [channels, H, W] of one size.",
                )
            if true.size and (true.min() < -1e-3 * self.peak or true.max() > 1.001 * self.peak):
                raise DataError(
                    f"the target of example {place} reaches from {true.min():.4g} to {true.max():.4g}; "
                    f"peak is {self.peak:g}.",
                    "Set [task] peak to the white of the pictures.",
                )
            failed[place, 0] = self._one(np.zeros_like(true), true)
            whole = bool(np.isfinite(output).all())
            rows[place, 0] = self._one(output.astype(np.float64), true) if whole else failed[place, 0]
        return Sums(rows, failed, mean)

    def _one(self, output: Picture, target: Picture) -> float:
        pair, peak = (self._seen(output, self.round), self._seen(target, False)), 255.0 if self.on == "Y" else self.peak
        return psnr(*pair, peak) if self.metric == "PSNR" else ssim(*pair, peak)

    def _seen(self, picture: Picture, saved: bool) -> Picture:
        if saved:
            picture = np.clip(picture, 0, self.peak)
            picture = np.round(picture) if self.peak == 255 else picture
        if self.crop:
            if min(picture.shape[1:]) <= 2 * self.crop:
                raise DataError(f"crop {self.crop} leaves nothing of a picture of {list(picture.shape[1:])}.")
            picture = picture[:, self.crop : -self.crop, self.crop : -self.crop]
        if self.on == "Y":
            if picture.shape[0] != 3:
                raise DataError(
                    f"Y is of RGB, but the picture has {picture.shape[0]} channels.", 'Set [task] on = "RGB".'
                )
            picture = luma(picture * (255 / self.peak))
        return picture

    def distance(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """Squared error over the variance per channel."""

        def each(dense: Tensor, other: Tensor) -> Tensor:
            return distances.scaled_error((dense,), (other,))

        return distances.on_output(reference, outputs, self.output, each)

    def loss(self, outputs: Sequence[Tensor], targets: Any) -> Tensor | None:
        """Mean absolute error in parts of the peak: what the field trains with."""
        import torch

        picture = outputs[self.output]
        truth = torch.as_tensor(np.stack([to_array(t) for t in targets]), device=picture.device).to(picture.dtype)
        return (picture - truth).abs().mean() / self.peak

    def chance(self, targets: Sequence[Any]) -> float | None:
        """The mean of all targets, everywhere."""
        pictures = [to_array(target).astype(np.float64) for target in targets]
        level = sum(p.sum() for p in pictures) / sum(p.size for p in pictures)
        return float(np.mean([self._one(np.full_like(p, level), p) for p in pictures]))
