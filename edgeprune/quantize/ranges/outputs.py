"""What counts at the outputs: vectors v such that the mean of (v . e)^2 is what an error e there costs.

One output [N, classes], the logits of a classifier: v is the lead of the first class over the second, the third, ...;
what moves all logits alike is not counted. Any other output: v is random, each element over the channel's standard
deviation, so that (v . e)^2 is the squared error over the variance (Hutchinson's estimator); several outputs count
alike. With a task's own distance, v is the distance's curvature at the output times a random vector, over the root of
the channel's mean curvature. Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor

from edgeprune.quantize.feeds import Images, feeds
from edgeprune.quantize.ranges.observe import inference_session, with_outputs
from edgeprune.quantize.view import View

Distance = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]  # (reference, outputs) -> [batch], 0 where equal

SEEN = 8  # images that variances come from
PROBES = 4  # random vectors that the curvature of a distance comes from


def is_logits(shape: Sequence[int]) -> bool:
    """Whether an output looks like [N, classes]."""
    return len(shape) == 2 and shape[1] > 1


def default_distance(reference: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Tensor:
    """What stands for a task's distance where there is none: [batch], the mean over outputs.

    KL divergence for logits [N, classes], else the squared error over the variance of the reference's channel (axis 1).
    """
    parts = []
    for wanted, found in zip(reference, outputs, strict=True):
        if not wanted.is_floating_point():
            continue
        if is_logits(wanted.shape):
            target, got = torch.log_softmax(wanted, 1), torch.log_softmax(found, 1)
            parts.append((target.exp() * (target - got)).sum(1))
        else:
            variance = _by_channel(wanted, lambda x, axes: x.var(axes, correction=0, keepdim=True))
            parts.append(((found - wanted).square() / variance.clamp_min(1e-8)).flatten(1).mean(1))
    return torch.stack(parts).mean(0)


def _by_channel(x: Tensor, function: Callable[[Tensor, list[int]], Tensor]) -> Tensor:
    return function(x, [axis for axis in range(x.ndim) if axis != 1 or x.ndim < 3])


class Vectors:
    """Makes vectors for the outputs of one graph, the same ones each time."""

    def __init__(
        self, model: onnx.ModelProto, outputs: Sequence[str], images: Images, distance: Distance | None = None
    ) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.distance = distance
        self.spread: list[Tensor] = []  # of each output: the standard deviation a channel, or the usual lead
        self.plain = distance is None and len(outputs) == 1
        self.plain = self.plain and is_logits(View.of(model).shape(outputs[0]) or ())
        if not self.plain:
            self.spread = _spreads(model, outputs, images)

    def __call__(self, outputs: Sequence[Tensor], turn: int) -> tuple[Tensor, float]:
        """v . y, to take gradients of, and the sum of squares that errors are a share of."""
        if self.plain:
            leads: Tensor = (outputs[0] * _lead(outputs[0].detach(), turn)).flatten(1).sum(1)
            return leads.sum(), float(leads.detach().square().sum())
        batch = len(outputs[0])
        vectors = self._curved(outputs) if self.distance is not None else None
        if vectors is None:
            vectors = [self._vector(y.detach(), one, turn) for y, one in zip(outputs, self.spread, strict=True)]
        target = torch.stack([(y * v).sum() for y, v in zip(outputs, vectors, strict=True)]).sum()
        return target, float(batch * len(outputs))

    def _vector(self, y: Tensor, spread: Tensor, turn: int) -> Tensor:
        if is_logits(y.shape):
            signs = torch.randint(0, 2, (len(y), 1), generator=self.generator) * 2.0 - 1.0
            return _lead(y, turn) * signs / spread
        scale: Tensor = spread * (y[0].numel() ** 0.5)
        return torch.randn(y.shape, generator=self.generator) / scale

    def _curved(self, outputs: Sequence[Tensor]) -> list[Tensor] | None:
        """From the curvature of the task's distance; None where it has none, as one of absolute values."""
        assert self.distance is not None
        reference = tuple(y.detach() for y in outputs)
        moved = tuple(y.clone().requires_grad_() for y in reference)
        with torch.enable_grad():
            total = self.distance(reference, moved).sum()
            slopes = torch.autograd.grad(total, moved, create_graph=True, allow_unused=True)
        found: list[Tensor] = []
        for y, slope in zip(moved, slopes, strict=True):
            if slope is None or not slope.requires_grad:
                found.append(torch.zeros_like(y))
                continue
            size, last = torch.zeros_like(y), torch.zeros_like(y)
            for _ in range(PROBES):
                z = torch.randint(0, 2, y.shape, generator=self.generator) * 2.0 - 1.0
                (last,) = torch.autograd.grad(slope, y, z, retain_graph=True)
                size = size + z * last / PROBES
            mean = _by_channel(size.abs(), lambda x, axes: x.mean(axes, keepdim=True))
            found.append(last / mean.sqrt().clamp_min(1e-12))
        good = all(bool(torch.isfinite(v).all()) for v in found) and any(bool(v.any()) for v in found)
        return found if good else None


def _lead(logits: Tensor, turn: int) -> Tensor:
    """What logits are multiplied with to give the lead of the first class over the second, the third, ..."""
    order = logits.argsort(1, descending=True)
    rival = 1 + turn % (logits.shape[1] - 1)
    vector = torch.zeros_like(logits).scatter_(1, order[:, :1], 1.0)
    return vector.scatter_(1, order[:, rival : rival + 1], -1.0)


def _spreads(model: onnx.ModelProto, outputs: Sequence[str], images: Images) -> list[Tensor]:
    """Of each output the standard deviation of its channels, [1, C, 1, ...]; of logits the usual lead, [1, 1]."""
    runner = inference_session(with_outputs(model, list(outputs)))
    rows = [runner.run(None, feed) for feed, _ in feeds(View.of(model), images, SEEN)]
    found = []
    for column in zip(*rows, strict=True):
        y = torch.from_numpy(np.concatenate(column)) if column[0].ndim else torch.from_numpy(np.stack(column))
        if is_logits(y.shape):
            best = y.topk(2, 1).values
            spread = (best[:, 0] - best[:, 1]).square().mean().sqrt().reshape(1, 1)
        else:
            spread = _by_channel(y, lambda x, axes: x.std(axes, correction=0, keepdim=True))
        found.append(spread.clamp_min(max(1e-3 * float(spread.max()), 1e-12)))
    return found
