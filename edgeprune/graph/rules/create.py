"""Operators that make tensors: constants along every axis, so the axes are free until something ties them."""

from __future__ import annotations

from typing import Any

import torch

from edgeprune.graph.walk import Arguments, Rule, Shaped, Walk, frozen_like


def uniform(walk: Walk, a: Arguments) -> Shaped:
    """zeros, ones, full, ...: the same value everywhere; a size written in the call is a literal."""
    value = walk.node.meta["val"]
    axes = tuple(walk.space.fresh(int(n)) for n in value.shape)
    for size, axis in zip(a.get("size") or (), axes, strict=True):
        walk.literal(size, axis)
    return Shaped(axes)


def positions(walk: Walk, a: Arguments) -> Any:
    """arange, linspace, ...: the value tells the position, so it must stay."""
    value = walk.node.meta["val"]
    if not isinstance(value, torch.Tensor):
        raise ValueError("not a tensor")
    return frozen_like(value)


RULES: dict[str, Rule] = dict.fromkeys(
    ("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"), uniform
)
RULES |= dict.fromkeys(
    ("arange", "linspace", "eye", "scalar_tensor", "rand", "randn", "tensor", "tril_indices"), positions
)
