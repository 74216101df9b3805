"""With several processes: `torchrun --nproc-per-node 2 -m edgeprune TARGET run RECIPE` and `trainer = "ddp.py:fit"`.

edgeprune calls the trainer in every process with the same job, and takes what process 0 gives. Started without
torchrun it trains in one process.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

BATCH, RATE = 64, 1e-3  # of all processes together


class Outputs(nn.Module):
    """The student as DistributedDataParallel wants it: a batch in, outputs out, through `forward` alone."""

    def __init__(self, student: nn.Module, job: Any) -> None:
        super().__init__()
        self.student, self.job = student, job

    def forward(self, *batch: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.job.inputs.call(self.student, batch)
        return outputs


def fit(job: Any) -> nn.Module:
    """AdamW under a cosine; each process takes its share of every batch."""
    together, device, gpu = job.processes > 1, job.device, job.device == "cuda"
    begun = together and not distributed.is_initialized()
    if begun:
        distributed.init_process_group("nccl" if gpu else "gloo")
    if together and gpu:
        device = f"cuda:{job.process % torch.cuda.device_count()}"
    try:
        student, teacher = job.student.to(device), job.teacher.to(device)
        model: nn.Module = Outputs(student, job)
        if together:
            model = DistributedDataParallel(model)
        examples = job.data.split("train")
        sampler = DistributedSampler(examples, job.processes, job.process, seed=job.seed, drop_last=True)
        loader = DataLoader(examples, max(1, BATCH // job.processes), sampler=sampler, collate_fn=list, drop_last=True)
        optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.01)
        epochs = max(1, math.ceil(job.epochs))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * len(loader)))
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            model.train()
            for items in loader:
                batch = [torch.as_tensor(column) for column in job.inputs.batch([inputs for inputs, _ in items])]
                with torch.no_grad():
                    wanted = job.inputs.call(teacher, batch)
                loss = job.task.distance(wanted, model(*batch)).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            if job.process == 0:
                job.log({"epoch": epoch + 1, "loss": float(loss.detach())})
        return student
    finally:
        if begun:
            distributed.destroy_process_group()
