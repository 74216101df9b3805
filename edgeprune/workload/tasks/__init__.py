"""The tasks that are built in, and their names in a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeprune.errors import TaskError, did_you_mean
from edgeprune.workload import decoders
from edgeprune.workload.task import BaseTask, Difference, Score, Task
from edgeprune.workload.tasks.classification import Classification
from edgeprune.workload.tasks.custom import Custom
from edgeprune.workload.tasks.detection import Detection
from edgeprune.workload.tasks.embedding import Embedding
from edgeprune.workload.tasks.multilabel import Binary, MultiLabel
from edgeprune.workload.tasks.regression import Regression
from edgeprune.workload.tasks.restoration import Restoration
from edgeprune.workload.tasks.segmentation import Segmentation
from edgeprune.workload.tasks.sequence import SequenceLabels

KINDS: dict[str, Callable[..., Task]] = {
    "classification": Classification,
    "multilabel": MultiLabel,
    "binary": Binary,
    "segmentation": Segmentation,
    "detection": Detection,
    "restoration": Restoration,
    "regression": Regression,
    "embedding": Embedding,
    "sequence": SequenceLabels,
}

__all__ = [
    "KINDS",
    "BaseTask",
    "Binary",
    "Classification",
    "Custom",
    "Detection",
    "Difference",
    "Embedding",
    "MultiLabel",
    "Regression",
    "Restoration",
    "Score",
    "Segmentation",
    "SequenceLabels",
    "Task",
    "create_task",
    "decoders",
]


def create_task(kind: str, **arguments: Any) -> Task:
    """The built-in task that a recipe calls `kind`; raises TaskError."""
    if kind not in KINDS:
        raise TaskError(f"task '{kind}' is not built in.", did_you_mean(kind, KINDS))
    try:
        return KINDS[kind](**arguments)
    except TypeError as cause:
        raise TaskError(f"task {kind}: {str(cause).partition(') ')[2] or cause}.", "See tasks.md.") from None
