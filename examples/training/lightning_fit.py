"""A trainer on Lightning: `[recover] trainer = "examples/training/lightning_fit.py:fit"`; `pip install lightning`.

Tried with Lightning 2.6. The teacher is kept out of the module's own parts, so that it is neither trained nor saved.
Lightning's sanity check comes before the first step, so that the repaired network is among those that may be kept.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

BATCH, RATE = 64, 1e-3


class Distil(lightning.LightningModule):
    """The student of a job, brought nearer to its teacher by the task's own distance."""

    def __init__(self, job: Any) -> None:
        super().__init__()
        self.student = job.student
        self.__dict__.update(job=job, teacher=job.teacher)
        self.best, self.kept = math.inf, copy.deepcopy(job.student.state_dict())
        self.far: list[torch.Tensor] = []

    def distance(self, items: Any) -> torch.Tensor:
        """[N], of a batch."""
        batch = self.job.inputs.batch([inputs for inputs, _ in items])
        with torch.no_grad():
            wanted = self.job.inputs.call(self.teacher.to(self.device), batch)
        return self.job.task.distance(wanted, self.job.inputs.call(self.student, batch))

    def training_step(self, items: Any, _: int) -> torch.Tensor:
        loss = self.distance(items).mean()
        self.log("loss", loss, on_epoch=True, batch_size=len(items))
        return loss

    def validation_step(self, items: Any, _: int) -> None:
        self.far.append(self.distance(items).detach().cpu())

    def on_validation_epoch_end(self) -> None:
        score, self.far = float(torch.cat(self.far).mean()), []
        self.job.log({"step": self.global_step, "distance": score})
        if score < self.best:
            self.best, self.kept = score, copy.deepcopy(self.student.state_dict())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.student.parameters(), lr=RATE, weight_decay=0.01)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(job: Any) -> nn.Module:
    """Lightning's own loop on the device that the job names; the epoch nearest to the teacher is kept."""
    lightning.seed_everything(job.seed, verbose=False)
    module = Distil(job)
    module.train()  # Lightning leaves the modes of modules as they are given
    train = DataLoader(job.data.split("train"), BATCH, shuffle=True, collate_fn=list, drop_last=True)
    held_out = DataLoader(job.data.split("selection"), BATCH, collate_fn=list)
    trainer = lightning.Trainer(
        max_epochs=max(1, math.ceil(job.epochs)),
        accelerator={"cuda": "gpu"}.get(torch.device(job.device).type, torch.device(job.device).type),
        devices=1,
        default_root_dir=job.folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=-1,
    )
    trainer.fit(module, train, held_out)
    job.student.load_state_dict(module.kept)
    job.say(f"held-out distance to the dense network: {module.best:.4g}")
    return job.student
