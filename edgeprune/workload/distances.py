"""How far a network's outputs are from the dense network's: [batch], 0 where they are equal, differentiable.

Search, repair's verdict, distillation, QAT and the fallback all minimise one of these; labels are not needed. An
output that is not finite is infinitely far. torch is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgeprune.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 0.01  # of the mean variance: a channel that hardly moves is not weighted without end


def paired(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(reference, output) of each output, both float; raises ModelError where they do not fit."""
    if len(reference) != len(outputs):
        raise ModelError(f"the network has {len(outputs)} outputs, the dense one {len(reference)}.")
    for number, (wanted, found) in enumerate(zip(reference, outputs, strict=True)):
        if wanted.shape != found.shape:
            raise ModelError(
                f"output {number} is {list(found.shape)}; that of the dense network is {list(wanted.shape)}."
            )
    return [(wanted.detach().float(), found.float()) for wanted, found in zip(reference, outputs, strict=True)]


def per_example(values: Tensor) -> Tensor:
    """[batch, ...] -> [batch]: the mean of each example; infinity for NaN; never below 0."""
    import torch

    mean = values.flatten(1).mean(1) if values.ndim > 1 else values
    return torch.where(mean.isnan(), torch.full_like(mean, float("inf")), mean.clamp_min(0.0))


def divergence(reference: Tensor, output: Tensor, axis: int = 1, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of class distributions along `axis`, mean over what else an example has: [batch].

    Logits become distributions by softmax; where the reference is one already (none negative, 1 in all), both are
    taken as they are.
    """
    import torch

    if looks_normalised(reference, axis):
        log_p, log_q = (_log_of_probabilities(value, axis) for value in (reference, output))
    else:
        log_p = torch.log_softmax(reference / temperature, axis)
        log_q = torch.log_softmax(output / temperature, axis)
    return per_example((log_p.exp() * (log_p - log_q)).sum(axis) * temperature**2)


def _log_of_probabilities(values: Tensor, axis: int) -> Tensor:
    held = values.clamp_min(1e-12)
    return held.log() - held.sum(axis, keepdim=True).log()


def binary_divergence(reference: Tensor, output: Tensor) -> Tensor:
    """The same of independent yes-or-no logits (or probabilities, where all of the reference are in 0..1): [batch]."""
    import torch
    from torch.nn import functional

    finite = reference[reference.isfinite()]
    if finite.numel() and bool(((finite >= 0) & (finite <= 1)).all()):
        reference, output = (torch.logit(value, eps=1e-6) for value in (reference, output))
    p = reference.sigmoid()
    own = functional.binary_cross_entropy_with_logits(reference, p, reduction="none")
    return per_example(functional.binary_cross_entropy_with_logits(output, p, reduction="none") - own)


def looks_normalised(scores: Tensor, axis: int) -> bool:
    """Are these probabilities: none negative, 1 in all along `axis`?"""
    if scores.shape[axis] < 2 or bool((scores < 0).any()):
        return False
    return bool(((scores.sum(axis) - 1).abs() < 2e-2).all())


def variances(reference: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The variance of each channel (axis 1) of each output, shaped to divide it by; over examples and places."""
    found = []
    for output in reference:
        values = output.detach().float()
        axes = [axis for axis in range(values.ndim) if axis != 1]
        places = values.numel() // max(values.shape[1], 1) if values.ndim > 1 else values.numel()
        if values.ndim < 2 or places < 8:  # too few numbers a channel: one variance for all of them
            spread = values.var(unbiased=False).reshape([1] * values.ndim)
        else:
            spread = values.var(axes, unbiased=False, keepdim=True)
        found.append(spread.clamp_min(float(FLOOR * spread.mean()) + 1e-12))
    return tuple(found)


def scaled_error(
    reference: Sequence[Tensor], outputs: Sequence[Tensor], scales: Sequence[Tensor] | None = None
) -> Tensor:
    """Mean over outputs of the squared error over the dense output's variance per channel: [batch].

    Args:
        reference, outputs: tuples of [batch, channels, ...] (or [batch]).
        scales: of `variances`, from more examples than one batch; None: from the reference.
    """
    divide = variances(reference) if scales is None else scales
    parts = [
        per_example((found - wanted).square() / scale)
        for (wanted, found), scale in zip(paired(reference, outputs), divide, strict=True)
    ]
    return sum(parts[1:], parts[0]) / len(parts)


def cosine(reference: Tensor, output: Tensor) -> Tensor:
    """1 - cosine of the angle between embeddings [batch, ...]: [batch]."""
    import torch
    from torch.nn import functional

    one, two = (functional.normalize(value.flatten(1), eps=1e-12) for value in (reference, output))
    half_square = 0.5 * (one - two).square().sum(1)  # equal to 1 - cosine of unit vectors, and 0 where they are equal
    return per_example(torch.where(reference.flatten(1).eq(output.flatten(1)).all(1), 0.0 * half_square, half_square))


def on_output(
    reference: Sequence[Tensor], outputs: Sequence[Tensor], number: int, distance: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """`distance` on the output that the metric looks at: [batch]; the others, such as auxiliary heads, do not count."""
    pairs = paired(reference, outputs)
    if number >= len(pairs):
        raise ModelError(f"the task looks at output {number}, but the network has {len(pairs)}.", "They count from 0.")
    return distance(*pairs[number])
