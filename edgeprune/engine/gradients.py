"""Let gradients reach parameters that were frozen, and put them back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def trainable(model: nn.Module, partly: bool = False) -> Iterator[None]:
    """Let gradients reach every parameter, also of a network with `requires_grad_(False)`; put back afterwards.

    Args:
        partly: where only some parameters are frozen, that was a choice: leave it.
    """
    parameters = [p for p in model.parameters() if p.is_floating_point() or p.is_complex()]
    frozen = [p for p in parameters if not p.requires_grad]
    if partly and len(frozen) < len(parameters):
        frozen = []
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None
