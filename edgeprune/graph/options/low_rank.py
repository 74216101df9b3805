"""A layer as two thinner ones: a convolution or linear layer to `rank` channels, and one of single points behind it.

Worth it where a kernel of k x k taps costs more than the detour: at c channels in and out and rank c / 2, a 3 x 3
convolution becomes 1.8 times cheaper in multiply-accumulates. The best one by the layer's outputs, not its weights, is
the projection onto the outputs' principal directions.

Source: Zhang et al., arXiv 1505.06798, section 2.1 (the linear case).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgeprune.graph.parts import Layer

SHARES = (0.25, 0.5)  # of the full rank
GRID = 8
LEAST = 16  # channels on both sides, below which it is not offered
WORTH = 0.9  # of the multiply-accumulates, at most
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LowRank:
    """Two layers in place of one; the setting is the rank."""

    name = "low-rank"

    def settings(self, layer: Layer) -> Sequence[int]:
        """Ranks on the grid that save something; of plain convolutions and linear layers."""
        plain = layer.kind in ("conv1d", "conv2d", "conv3d", "linear") and layer.groups == 1
        outputs, inputs = layer.weight_shape[0], math.prod(layer.weight_shape[1:])
        if not plain or min(layer.weight_shape[:2]) < LEAST:
            return ()
        ranks = {GRID * max(1, round(share * min(outputs, inputs) / GRID)) for share in SHARES}
        return sorted(r for r in ranks if r * (inputs + outputs) <= WORTH * inputs * outputs)

    def project(self, weight: Tensor, moments: Tensor, shape: Sequence[int], setting: int) -> Tensor:
        """Onto the principal directions of the outputs."""
        made = weight.transpose(1, 2) @ moments @ weight
        vectors: Tensor = torch.linalg.eigh((made + made.transpose(1, 2)) / 2).eigenvectors
        basis = vectors[:, :, -setting:]
        return weight @ basis @ basis.transpose(1, 2)

    def replace(self, module: nn.Module, setting: int) -> nn.Module:
        """The two layers, by a singular value decomposition of the weight; the first has no bias."""
        old: Any = module
        if type(module) not in (*CONVOLUTIONS, nn.Linear) or getattr(module, "groups", 1) != 1:
            raise TypeError(f"it is a {type(module).__name__}, not a convolution of one group or a linear layer")
        weight, biased = old.weight, old.bias is not None
        rank = min(setting, len(weight), weight[0].numel())
        left, values, right = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
        root = values[:rank].sqrt()
        first: Any
        second: Any
        if isinstance(module, nn.Linear):
            first, second = nn.Linear(module.in_features, rank, False), nn.Linear(rank, len(weight), biased)
        else:
            first, second = _like(old, rank, False), type(old)(rank, len(weight), 1, bias=biased)
        made = nn.Sequential(first, second).to(weight.device, weight.dtype)
        first.weight.data.copy_((root[:, None] * right[:rank]).reshape(first.weight.shape))
        second.weight.data.copy_((left[:, :rank] * root).reshape(second.weight.shape))
        if biased:
            second.bias.data.copy_(old.bias)
        return made.requires_grad_(weight.requires_grad)

    def merge(self, module: nn.Module) -> nn.Module:
        """One layer whose weight is the product."""
        first, second = cast(Any, module)
        biased = second.bias is not None
        outputs = len(second.weight)
        linear = isinstance(first, nn.Linear)
        one: Any = nn.Linear(first.in_features, outputs, biased) if linear else _like(first, outputs, biased)
        one.to(first.weight.device, first.weight.dtype)
        product = second.weight.flatten(1).double() @ first.weight.flatten(1).double()
        one.weight.data.copy_(product.reshape(one.weight.shape))
        if biased:
            one.bias.data.copy_(second.bias)
        return one.requires_grad_(first.weight.requires_grad)  # type: ignore[no-any-return]

    def parts(self, c_in: int, c_out: int, setting: int) -> Mapping[str, tuple[int, int]]:
        """The way to the rank, and the way back."""
        rank = min(setting, c_out)
        return {"0": (c_in, rank), "1": (rank, c_out)}

    def elements(self, shape: Sequence[int], setting: int) -> int:
        """Of both."""
        return setting * (shape[0] + math.prod(shape[1:]))


def _like(old: Any, outputs: int, biased: bool) -> nn.Module:
    """A convolution of the same geometry."""
    settings = (old.kernel_size, old.stride, old.padding, old.dilation, 1, biased, old.padding_mode)
    made: nn.Module = type(old)(old.in_channels, outputs, *settings)
    return made


OPTION = LowRank()
