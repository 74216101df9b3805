"""What the user brings: a network, its inputs, data, and the task that it is for."""

from edgeprune.workload.arrays import Outputs, as_outputs, broken, chosen, count, joined, to_array
from edgeprune.workload.data import SPLITS, Data, Subset, item
from edgeprune.workload.features import Features
from edgeprune.workload.inputs import Input, Inputs
from edgeprune.workload.statistics import Proportion, Sums, agresti_min, bootstrap, wilson
from edgeprune.workload.streams import Streamed
from edgeprune.workload.task import BaseTask, Difference, Score, Tally, Task, check_metric, score_batches, shuffled
from edgeprune.workload.tasks import (
    KINDS,
    Binary,
    Classification,
    Custom,
    Detection,
    Embedding,
    MultiLabel,
    Regression,
    Restoration,
    Segmentation,
    SequenceLabels,
    create_task,
    decoders,
)
from edgeprune.workload.workload import Budget, Workload, argument_names, described, settings

__all__ = [
    "KINDS",
    "SPLITS",
    "BaseTask",
    "Binary",
    "Budget",
    "Classification",
    "Custom",
    "Data",
    "Detection",
    "Difference",
    "Embedding",
    "Features",
    "Input",
    "Inputs",
    "MultiLabel",
    "Outputs",
    "Proportion",
    "Regression",
    "Restoration",
    "Score",
    "Segmentation",
    "SequenceLabels",
    "Streamed",
    "Subset",
    "Sums",
    "Tally",
    "Task",
    "Workload",
    "agresti_min",
    "argument_names",
    "as_outputs",
    "bootstrap",
    "broken",
    "check_metric",
    "chosen",
    "count",
    "create_task",
    "decoders",
    "described",
    "item",
    "joined",
    "score_batches",
    "settings",
    "shuffled",
    "to_array",
    "wilson",
]
