"""A trainer on Hugging Face's `Trainer`: `[recover] trainer = "examples/training/hugging_face.py:fit"`.

`pip install transformers accelerate`; tried with transformers 5.24. It takes any network, not only those of
transformers: what the loss needs is the job's. The epoch that is nearest to the teacher on the selection split is kept,
by `Trainer`'s own `load_best_model_at_end`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from torch import nn

EPOCHS = "epoch"


class Distil(transformers.Trainer):
    """The student of a job, brought nearer to its teacher by the task's own distance."""

    job: Any = None

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """The mean distance of a batch."""
        with torch.no_grad():
            wanted = self.job.inputs.call(self.job.teacher.to(self.args.device), inputs["batch"])
        outputs = self.job.inputs.call(model, inputs["batch"])
        loss = self.job.task.distance(wanted, outputs).mean()
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
        """The loss alone: nothing is predicted."""
        with torch.no_grad():
            return self.compute_loss(model, inputs).detach(), None, None


def fit(job: Any) -> nn.Module:
    """AdamW under a cosine, in `Trainer`'s loop, with the recipe's own `lr` and `batch`."""

    def collate(items: Any) -> dict[str, Any]:
        return {"batch": job.inputs.batch([inputs for inputs, _ in items])}

    arguments = transformers.TrainingArguments(
        str(job.folder / "trainer"),
        num_train_epochs=max(1, math.ceil(job.epochs)),
        per_device_train_batch_size=job.options["batch"],
        per_device_eval_batch_size=job.options["batch"],
        learning_rate=job.options["lr"],
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        dataloader_drop_last=True,
        remove_unused_columns=False,
        use_cpu=torch.device(job.device).type == "cpu",
        eval_strategy=EPOCHS,
        save_strategy=EPOCHS,
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        prediction_loss_only=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=job.seed,
    )
    trainer = Distil(
        job.student,
        arguments,
        train_dataset=job.data.split("train"),
        eval_dataset=job.data.split("selection"),
        data_collator=collate,
    )
    trainer.job = job
    trainer.train()
    job.say(f"held-out distance to the dense network: {trainer.state.best_metric:.4g}")
    return job.student
