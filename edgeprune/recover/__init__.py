"""Win accuracy back: least-squares repair, then fine-tuning by distillation, or your own training."""

from __future__ import annotations

from edgeprune.recover.batches import evaluate, logits
from edgeprune.recover.place import device_kind, find_device, process_count, process_number
from edgeprune.recover.repair import kept_outputs, repair, repair_weights, same_steps
from edgeprune.recover.source import moved
from edgeprune.recover.sparsity import Penalty
from edgeprune.recover.train import Training, batch_source, check, train
from edgeprune.recover.trainer import REBUILD, Job, options_of, own_training, rebuild_script, take_weights

__all__ = [
    "REBUILD",
    "Job",
    "Penalty",
    "Training",
    "batch_source",
    "check",
    "device_kind",
    "evaluate",
    "find_device",
    "kept_outputs",
    "logits",
    "moved",
    "options_of",
    "own_training",
    "process_count",
    "process_number",
    "rebuild_script",
    "repair",
    "repair_weights",
    "same_steps",
    "take_weights",
    "train",
]
