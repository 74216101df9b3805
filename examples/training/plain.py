"""A trainer in plain PyTorch: `[recover] trainer = "examples/training/plain.py:fit"`.

It gets the pruned network, repaired, and the dense one as its teacher; it gives the network back. Nothing of edgeprune
is needed here but the job. Labels are not used: the task's own distance to the teacher's outputs is the loss.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

BATCH, RATE = 64, 1e-3


def fit(job: Any) -> nn.Module:
    """AdamW under a cosine; of the epochs the one that is nearest to the teacher on the selection split is kept."""
    student, teacher = job.student.to(job.device), job.teacher.to(job.device)
    generator = torch.Generator().manual_seed(job.seed)
    examples = job.data.split("train")
    loader = DataLoader(examples, BATCH, shuffle=True, generator=generator, collate_fn=list, drop_last=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.01)
    epochs = max(1, math.ceil(job.epochs))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * len(loader)))
    best, kept = distance(job, student, teacher, _held_out(job)), copy.deepcopy(student.state_dict())
    for epoch in range(epochs):
        student.train()
        losses = []
        for items in loader:
            batch = job.inputs.batch([inputs for inputs, _ in items])
            with torch.no_grad():
                wanted = job.inputs.call(teacher, batch)
            loss = job.task.distance(wanted, job.inputs.call(student, batch)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        score = distance(job, student, teacher, _held_out(job))
        job.log({"epoch": epoch + 1, "loss": sum(losses) / len(losses), "distance": score})
        if score < best:
            best, kept = score, copy.deepcopy(student.state_dict())
    student.load_state_dict(kept)
    job.say(f"held-out distance to the dense network: {best:.4g}")
    return student


@torch.no_grad()
def distance(job: Any, student: nn.Module, teacher: nn.Module, batches: Iterator[Any]) -> float:
    """How far the student is from the teacher, in the mean."""
    student.eval()
    found = [job.task.distance(job.inputs.call(teacher, b), job.inputs.call(student, b)).cpu() for b in batches]
    return float(torch.cat(found).mean())


def _held_out(job: Any) -> Iterator[Any]:
    return (batch for batch, _ in job.data.batches("selection", job.inputs, BATCH))
