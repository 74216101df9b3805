"""How far another network's outputs are from the dense network's, an example at a time.

A task may bring its own; these are what holds without one. Every distance is 0 where the outputs are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edgeprune.engine.examples import Outputs
from edgeprune.errors import ModelError

SURE = 0.75  # mean probability of the top answer above which KL is softened


class Distance(Protocol):
    """[batch] distances, at least 0, of some outputs to the dense network's."""

    @property
    def title(self) -> str:
        """As in "KL to the dense network"."""
        ...

    def __call__(self, reference: Outputs, outputs: Outputs) -> Tensor:
        """Both are tuples of tensors [batch, ...]."""
        ...


Fitted = Callable[[Sequence[Outputs]], Distance]  # made for one dense network, from its outputs batch by batch


@dataclass(frozen=True)
class SoftenedKL:
    """temperature^2 KL(dense || other) in nats of the first output's scores, softened by it.

    Source: Hinton et al., arXiv 1503.02531.
    Sequences and maps of scores [batch, ..., classes] are summed over their positions.
    """

    temperature: float = 1.0
    title: str = "KL"

    def __call__(self, reference: Outputs, outputs: Outputs) -> Tensor:
        """[batch]; outputs that are not finite are infinitely far."""
        # In float32 what is nearly equal is noise.
        one = torch.log_softmax(reference[0].double() / self.temperature, -1)
        two = torch.log_softmax(outputs[0].double() / self.temperature, -1)
        value = (one.exp() * (one - two)).flatten(1).sum(1) * self.temperature**2
        return torch.where(value.isnan(), torch.inf, value.clamp_min(0)).float()


@dataclass(frozen=True, eq=False)
class ScaledError:
    """Squared error of each output over the dense output's variance per channel, averaged over all numbers and outputs.

    Attributes:
        variances: per output, broadcastable to it; None for outputs that are not floating.
    """

    variances: tuple[Tensor | None, ...]
    title: str = "scaled error"

    def __call__(self, reference: Outputs, outputs: Outputs) -> Tensor:
        """[batch]; outputs that are not finite are infinitely far."""
        total, known = None, 0
        for one, two, variance in zip(reference, outputs, self.variances, strict=True):
            if variance is None:
                continue
            part = ((one.float() - two.float()).square() / variance).flatten(1).mean(1)
            total, known = part if total is None else total + part, known + 1
        assert total is not None
        value = total / known
        return torch.where(value.isnan(), torch.inf, value)


@dataclass(frozen=True)
class Given:
    """A task's own distance, with a name for messages."""

    function: Callable[[Outputs, Outputs], Tensor]
    title: str = "distance"

    def __call__(self, reference: Outputs, outputs: Outputs) -> Tensor:
        """[batch] float; raises ModelError where the function returns another shape."""
        found = self.function(reference, outputs)
        if found.shape != (len(reference[0]),):
            raise ModelError(
                f"the task's distance returns {list(found.shape)} for {len(reference[0])} examples.",
                "Return one number an example, at least 0, and 0 where the outputs are equal.",
            )
        return torch.where(found.isnan(), torch.inf, found.float())


def default(dense: Sequence[Outputs]) -> Distance:
    """KL where the network has one output of class scores [batch, classes >= 2], else the scaled error.

    Raises:
        ModelError: no output is floating.
    """
    first = dense[0]
    if len(first) == 1 and first[0].is_floating_point() and first[0].dim() == 2 and first[0].shape[1] >= 2:
        return SoftenedKL(temperature([outputs[0] for outputs in dense]))
    return scaled_error(dense)


def scaled_error(dense: Sequence[Outputs]) -> ScaledError:
    """The scaled error about these outputs of the dense network; raises ModelError where none is floating."""
    found: list[Tensor | None] = []
    for position in range(len(dense[0])):
        value = torch.cat([outputs[position] for outputs in dense])
        if not value.is_floating_point():
            found.append(None)
            continue
        value = value.float()
        axes = [axis for axis in range(value.dim()) if axis != channel_axis(value)]
        variance = value.var(axes, unbiased=False, keepdim=True)
        found.append(variance.clamp_min(1e-4 * max(float(value.var(unbiased=False)), 1e-12)))
    if all(item is None for item in found):
        raise ModelError("no output of the network is floating: there is nothing to be near to.")
    return ScaledError(tuple(found))


def channel_axis(value: Tensor) -> int:
    """Axis 1 of maps, volumes and vectors; of [batch, a, b] the smaller one (84 x 8,400 boxes, 98 x 40 steps)."""
    if value.dim() == 3:
        return 1 if value.shape[1] <= value.shape[2] else 2
    return min(1, value.dim() - 1)


def temperature(dense: Sequence[Tensor]) -> float:
    """The least temperature (1 or more) at which the dense network's top probability averages at most `SURE`.

    On images that it was trained on a network is nearly certain, KL is blind, and repairs that it learnt by heart look
    good: measured on ResNet-56, KL on training images was half of that on test images; softened, the two agree.
    """
    logits = torch.cat([part.reshape(-1, part.shape[-1]) for part in dense])
    low, high = 1.0, 64.0
    if float(torch.softmax(logits, -1).amax(-1).mean()) <= SURE:
        return 1.0
    for _ in range(20):
        middle = (low + high) / 2
        sure = float(torch.softmax(logits / middle, -1).amax(-1).mean()) > SURE
        low, high = (middle, high) if sure else (low, middle)
    return high
