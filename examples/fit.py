"""What the training scripts of the examples share: one loop, small and on the processor."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Batch = tuple[Tensor, object]


def fit(
    network: nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    loss: Callable[[object, object], Tensor],
    *,
    epochs: int,
    steps: int,
    rate: float,
    decay: float = 0.02,
    average: float = 0.995,
    minutes: float = 1e9,
) -> nn.Module:
    """Train by AdamW under one cosine with a warm start; the moving average of the weights comes back.

    Args:
        batches: epoch -> (inputs, targets) of each step.
        loss: (outputs, targets) -> scalar.
        epochs, steps: how many passes, and steps in each.
        rate, decay: of AdamW.
        average: of the moving average, in each step.
        minutes: the schedule is shortened so that it ends about then, however busy the machine is.
    """
    network = network.to(memory_format=torch.channels_last)  # convolutions of few channels are faster so
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    averaged = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(average), use_buffers=True
    )
    started, total, step = time.monotonic(), epochs * steps, 0
    network.train()
    for epoch in range(epochs):
        seen: list[float] = []
        for inputs, targets in batches(epoch):
            done = max(step / total, (time.monotonic() - started) / (60 * minutes))
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * done))
            value = loss(network(inputs), targets)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            averaged.update_parameters(network)
            seen.append(float(value.detach()))
            step += 1
        if seen:
            spent = time.monotonic() - started
            print(f"epoch {epoch + 1:3d}  loss {np.mean(seen):.4f}  {step} steps  {spent:5.0f} s", flush=True)
    return copy.deepcopy(averaged.module).eval()


def save(network: nn.Module, path: Path) -> None:
    """The network's tensors as safetensors, whole or not at all."""
    partial = path.with_suffix(".part")
    save_file({name: value.detach().clone().contiguous() for name, value in network.state_dict().items()}, partial)
    partial.rename(path)
    print(f"{path.name}: {sum(p.numel() for p in network.parameters())} parameters, {path.stat().st_size} bytes")


def outputs(network: nn.Module, dataset: object, count: int, size: int = 50) -> tuple[tuple[np.ndarray, ...], list]:
    """(the network's outputs, targets) of the first `count` examples."""
    found, targets = [], []
    with torch.inference_mode():
        for start in range(0, count, size):
            some = [dataset[i] for i in range(start, min(start + size, count))]
            found.append(network(torch.from_numpy(np.stack([inputs for inputs, _ in some]))).numpy())
            targets += [target for _, target in some]
    return (np.concatenate(found),), targets
