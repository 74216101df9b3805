"""Win accuracy back: least-squares repair, statistics, then fine-tuning by distillation."""

from __future__ import annotations

from edgeprune.recover.batches import evaluate, logits
from edgeprune.recover.repair import repair
from edgeprune.recover.train import Training, train

__all__ = ["Training", "evaluate", "logits", "repair", "train"]
