"""Optimisers, schedules and the moving average by name: torch's own, with the settings of [recover]."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from edgeprune.errors import ModelError, RecipeError
from edgeprune.recipe import RecoverSection


def optimizers(model: nn.Module, options: RecoverSection) -> list[torch.optim.Optimizer]:
    """The optimiser of [recover], as a list: Muon moves matrices only, and AdamW the rest.

    Weight decay leaves out biases, norms and other parameters of one axis.

    Raises:
        RecipeError: this torch has no Muon. ModelError: the network has no matrix that it could move.
    """
    groups, decay = parameter_groups(model, options.weight_decay), options.weight_decay
    if options.optimizer == "sgd":
        nesterov = options.momentum > 0
        return [torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=nesterov)]
    if options.optimizer == "adamw":
        return [torch.optim.AdamW(groups, lr=options.lr)]
    if not hasattr(torch.optim, "Muon"):
        raise RecipeError(f"[recover] optimizer is 'muon', which torch {torch.__version__} has not.", "It came in 2.9.")
    matrices = [p for p in groups[0]["params"] if p.ndim == 2]
    if not matrices:
        raise ModelError("[recover] optimizer is 'muon', but the network has no matrices (linear layers) to train.")
    groups[0]["params"] = [p for p in groups[0]["params"] if p.ndim != 2]
    muon = torch.optim.Muon(
        matrices, lr=options.lr, weight_decay=decay, momentum=options.momentum, adjust_lr_fn="match_rms_adamw"
    )
    rest = [group for group in groups if group["params"]]
    return [muon, *([torch.optim.AdamW(rest, lr=options.lr)] if rest else [])]


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """No weight decay on biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def schedule(done: float, warmup: float, name: str = "cosine") -> float:
    """The share of the learning rate after the share `done` of training: a linear warm-up, then the named way down.

    Source: half a cosine to zero, arXiv:1608.03983.
    """
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    rest = (done - warmup) / (1 - warmup)
    if name == "constant":
        return 1.0
    return max(0.0, 1 - rest) if name == "linear" else 0.5 * (1 + math.cos(math.pi * rest))


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """torch's moving average of weights and buffers; the decay starts small, so that early steps are forgotten.

    Source: Polyak and Juditsky, 1992; the growing decay is that of tf.train.ExponentialMovingAverage.
    """

    def average(mine: Tensor, theirs: Tensor, count: Any) -> Tensor:
        if not mine.is_floating_point():
            return theirs
        step = int(count) - 1
        return mine.lerp(theirs.to(mine.dtype), 1 - min(decay, (1 + step) / (10 + step)))

    found = AveragedModel(model, avg_fn=average, use_buffers=True)
    found.n_averaged.fill_(1)  # or the first update would copy the weights as they are
    return found
