"""Tasks by name: `edgeprune.tasks.Detection(decode=...)`, `edgeprune.tasks.Custom(metric, "my metric")`."""

from edgeprune.workload import (
    KINDS,
    BaseTask,
    Binary,
    Classification,
    Custom,
    Detection,
    Difference,
    Embedding,
    MultiLabel,
    Regression,
    Restoration,
    Score,
    Segmentation,
    SequenceLabels,
    Task,
    decoders,
)
from edgeprune.workload import (
    create_task as create,
)

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
    "create",
    "decoders",
]
