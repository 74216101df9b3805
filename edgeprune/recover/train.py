"""Fine-tuning by distillation from the dense network: any inputs, any task, any device; exact resume."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune.engine import Examples, trainable
from edgeprune.errors import DataError, ModelError, RecipeError
from edgeprune.model import Split
from edgeprune.recipe import RecoverSection
from edgeprune.recover import checkpoint
from edgeprune.recover.batches import Batches
from edgeprune.recover.distill import terms
from edgeprune.recover.judge import HeldOutScorer
from edgeprune.recover.learner import Learner
from edgeprune.recover.loop import Diverged, Log, Progress, Training, TrainingRun
from edgeprune.recover.place import device_kind, device_of, placed, process_count
from edgeprune.recover.source import BatchSource, Loader
from edgeprune.recover.sparsity import Penalty
from edgeprune.recover.steps import optimizers
from edgeprune.workload import Classification, Inputs, Task, item

__all__ = ["Training", "batch_source", "check", "train"]


def train(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module],
    examples: Any,
    selection: Any,
    options: RecoverSection,
    folder: Path,
    *,
    task: Task | None = None,
    inputs: Inputs | None = None,
    augment: tuple[str, ...] = (),
    workers: int = 0,
    progress: Progress | None = None,
    log: Log | None = None,
    penalty: Penalty | None = None,
) -> Training:
    """Train `student` in place; afterwards it holds the weights that did best on `selection`, in eval mode, on the CPU
    or wherever it was.

    The student before training is a candidate too. Dropout is off while it learns from the teacher (see `Learner`).

    Args:
        teacher: the dense network, or several with the same outputs; features are taken from the first.
        examples, selection: what to learn from and to choose by: Splits of images, or datasets of (inputs, target).
        folder: holds `checkpoint.pt`, from which an interrupted run goes on. It stays when training ends:
            `checkpoint.forget(folder)` when what was trained is safe elsewhere.
        task: its metric chooses and its loss weighs labels; None: classes.
        inputs: of a dataset's example; None: as its first example has them.
        augment, workers: of a Split as `Batches` has them, of a dataset as `Loader`.
        penalty: grows on what will be cut; then the last weights are kept.

    Raises:
        ModelError: the loss is not finite, in spite of a restart at a tenth of the learning rate; a teacher has other
            outputs; a single example does not fit the device's memory.
        DataError: there is nothing to learn from; an example cannot be read.
        RecipeError: what does not fit the network, or is not there.
        RunError: a checkpoint cannot be written; another process of this training has ended.
    """
    task = task or Classification()
    teachers = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
    if inputs is None and not isinstance(examples, Split):
        inputs = Inputs.of(item(examples, 0, "train")[0])
    judge = HeldOutScorer(selection, task, inputs)
    if options.epochs == 0:
        return _untrained(judge, judge(student))
    if not terms(options, task) and options.label_weight == 0:
        raise DataError(
            "[recover] distill is 'none' and label_weight is 0: there is nothing to learn from.", "Set one."
        )
    with contextlib.ExitStack() as stack:
        accelerator = stack.enter_context(placed(options))
        for network in (student, *teachers):
            stack.enter_context(_lent(network, device_of(accelerator)))
        stack.enter_context(trainable(student, partly=True))
        rank, world = accelerator.process_index, accelerator.num_processes
        source = batch_source(examples, inputs, options, augment, workers, (rank, world))
        besides = augment if penalty is None else (*augment, penalty.key)
        key = checkpoint.key_of(options, besides, len(source), student.state_dict())
        run = TrainingRun(student, teachers, source, judge, options, folder, accelerator, key, progress, log, penalty)
        return _restarted_once(run, options.lr / 10)


def batch_source(
    examples: Any,
    inputs: Inputs | None,
    options: RecoverSection,
    augment: tuple[str, ...],
    workers: int,
    process: tuple[int, int] = (0, 1),
) -> BatchSource:
    """Batches of a split of images, or of a dataset with its inputs; `process`: its number, and how many there are."""
    if isinstance(examples, Split):
        return Batches(examples, options.batch, options.seed, augment, workers, *process)
    assert inputs is not None
    return Loader(examples, inputs, options.batch, options.seed, workers, *process, augment)


def _restarted_once(run: TrainingRun, lr: float) -> Training:
    """Train; where that diverges, once more from the start at this learning rate."""
    try:
        return run.go()
    except Diverged:
        run.restart(lr)
    try:
        return run.go()
    except Diverged as cause:
        raise ModelError(f"[recover] training diverged at step {cause.args[0]}.", "Lower [recover] lr.") from None


def _untrained(judge: HeldOutScorer, score: float) -> Training:
    images = isinstance(judge.split, Split)
    points, accuracy = (100 * score, score) if images else (score, None)
    return Training(
        0, 0.0, 0.0, (), 0.0, accuracy, "fp32", 0, best_score=points, metric=judge.task.metric, unit=judge.task.unit
    )


@contextlib.contextmanager
def _lent(network: nn.Module, device: torch.device) -> Any:
    """A network on a device, and back where it was."""
    home = next((value.device for value in network.state_dict().values()), device)
    try:
        yield network.to(device)
    finally:
        network.to(home)


def check(
    options: RecoverSection,
    dense: nn.Module,
    teachers: Sequence[nn.Module],
    example: Examples,
    task: Task | None = None,
) -> None:
    """Try on one example what training will need, with the dense network in the student's place; trains nothing.

    Raises:
        RecipeError: the device is not there, a layer is unknown. DataError: there is nothing to learn from.
        ModelError: a teacher has other outputs, the optimiser does not fit the network.
    """
    device_kind(options)
    if options.batch < process_count():
        raise RecipeError(
            f"[recover] batch is {options.batch}, and {process_count()} processes train together.",
            "It is the batch of all processes: give each at least one example.",
        )
    with trainable(dense, partly=True):
        learner = Learner(dense, [dense, *teachers], task or Classification(), options, example, "fp32")
        optimizers(learner, options)
