"""Batch-norm statistics of a changed network, from images alone.

Source: EagleEye's adaptive batch normalisation (arXiv 2007.02491).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def reestimate(model: nn.Module, images: Tensor, batch: int = 64) -> nn.Module:
    """Set every batch norm's running mean and variance to those of `images`, in place. Returns `model`.

    All layers see the statistics of the batch while it is measured, and the running ones become the average over
    batches. Weights, modes and momenta are left as they are. Networks without batch norms come back unchanged.
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    if not norms or len(images) == 0:
        return model
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    seen = {norm: norm.num_batches_tracked.clone() for norm in norms if norm.num_batches_tracked is not None}
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()
        with torch.no_grad():
            for part in torch.split(images, batch):
                if len(part) > 1 or len(images) == 1:
                    model(part)
    finally:
        for norm in norms:
            norm.momentum = momenta[norm]
            if norm in seen and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(seen[norm])
        for module, mode in modes.items():
            module.training = mode
    return model
