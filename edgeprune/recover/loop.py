"""The loop of training: steps, evaluations, checkpoints; exact resume.

Sources: moving average of weights, Polyak and Juditsky, 1992; cosine schedule, arXiv:1608.03983; the losses are in
`distill`, optimisers and schedules in `steps`, devices and processes in `place`.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.engine import Examples, take
from edgeprune.errors import ModelError
from edgeprune.model import Split
from edgeprune.recipe import RecoverSection
from edgeprune.recover import checkpoint
from edgeprune.recover.judge import HeldOutScorer
from edgeprune.recover.learner import Learner
from edgeprune.recover.place import agreed, device_of, from_first, precision
from edgeprune.recover.source import BatchSource, moved
from edgeprune.recover.sparsity import Penalty
from edgeprune.recover.steps import averaged, optimizers, schedule

CHECKPOINT_SECONDS = 20.0
LOG_SECONDS = 10.0
Progress = Callable[[float, float, str], None]  # done, total, message
Log = Callable[[dict[str, object]], None]  # numbers of training so far, every ten seconds and at each evaluation


@dataclass(frozen=True)
class Training:
    """What a training run did.

    Attributes:
        steps, epochs, seconds: how much; seconds include those before an interruption.
        history: one entry an evaluation: epoch, loss since the last one, score on the selection split in the metric's
            unit (for images of classes also accuracy, a fraction).
        best_epoch, best_score: of the weights that were kept, chosen on the selection split (`TrainingRun.go`).
        best_accuracy: the same as a fraction where the metric is top-1 of images; None elsewhere.
        precision: "fp32", "bf16" or "fp16".
        resumed: the step at which an interrupted run went on; 0 for a run in one piece.
        metric, unit: of the scores.
        device, processes: where it ran: "cpu", "cuda", ...
        micro_batch: examples at once on each device; below the batch's share where memory ran out, or was stated.
        stopped: why it ended before its last epoch: "", "hours" or "patience".
    """

    steps: int
    epochs: float
    seconds: float
    history: tuple[dict[str, float], ...]
    best_epoch: float
    best_accuracy: float | None
    precision: str
    resumed: int
    best_score: float = 0.0
    metric: str = "top-1"
    unit: str = "points"
    device: str = "cpu"
    processes: int = 1
    micro_batch: int = 0
    stopped: str = ""

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


class Diverged(Exception):
    """The loss is not finite."""


class TrainingRun:
    """The state of one training run."""

    def __init__(
        self,
        student: nn.Module,
        teachers: list[nn.Module],
        source: BatchSource,
        judge: HeldOutScorer,
        options: RecoverSection,
        folder: Path,
        accelerator: Any,
        key: str,
        progress: Progress | None,
        log: Log | None,
        penalty: Penalty | None = None,
    ) -> None:
        self.student, self.teachers, self.source, self.judge, self.options = student, teachers, source, judge, options
        self.folder, self.accelerator, self.key, self.progress, self.log = folder, accelerator, key, progress, log
        self.penalty = penalty
        self.device = device_of(accelerator)
        self.precision = precision(options, self.device.type)
        self.total = max(1, round(options.epochs * len(source)))
        self.images = isinstance(judge.split, Split)
        self.first = copy.deepcopy(student.state_dict())
        self.main = bool(accelerator.is_main_process)
        self._begin(options.lr)

    def _begin(self, lr: float) -> None:
        for network in (self.student, *self.teachers):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        example = take(moved(self.source.at(0)[0], self.device), 0, 64)
        self.learner = Learner(
            self.student, self.teachers, self.judge.task, self.options, example, self.precision, self.penalty
        ).to(self.device)
        self.model: nn.Module = self.learner
        if self.accelerator.num_processes > 1:
            ids = None if self.device.type == "cpu" else [self.device.index]
            unused = bool(agreed(self.accelerator, float(self._has_unused())))
            self.model = nn.parallel.DistributedDataParallel(
                self.learner, device_ids=ids, find_unused_parameters=unused
            )
        self.average = averaged(self.student, self.options.ema)
        self.average.eval()
        self.best = copy.deepcopy(self.student.state_dict())
        self.optimizers = [self.accelerator.prepare_optimizer(one) for one in optimizers(self.learner, self.options)]
        self.lr, self.step, self.seconds, self.resumed, self.waited = lr, 0, 0.0, 0, 0
        self.history: list[dict[str, float]] = []
        self.best_epoch, self.best_score = 0.0, math.nan
        each = max(1, self.source.size // self.accelerator.num_processes)
        self.micro = min(self.options.micro_batch or each, each)
        self.stopped = ""

    def _has_unused(self) -> bool:
        """Does some parameter that is trained get no gradient? Processes must know, or they wait for it."""
        examples, targets = self.source.at(0)
        self.learner.eval()
        try:
            self.learner(take(moved(examples, self.device), 0, 2), targets[:2], 0.0).backward()
        except RuntimeError:  # two examples may be too few for a loss
            return True
        finally:
            missing = any(one.grad is None for one in self.learner.parameters() if one.requires_grad)
            self.learner.zero_grad(set_to_none=True)
        return missing

    def restart(self, lr: float) -> None:
        """Start again from the first weights."""
        if self.main:
            checkpoint.forget(self.folder)
        self.student.load_state_dict(self.first)
        self._begin(lr)

    def go(self) -> Training:
        self._resume()
        if not self.history and math.isnan(self.best_score):
            self.best_score = self._score(self.student)
        began, saved, told, losses = time.monotonic() - self.seconds, time.monotonic(), time.monotonic(), list[float]()
        started, marks = (time.monotonic(), self.step), self._evaluation_steps()
        while self.step < self.total and not self.stopped:
            losses.append(self._one_step())
            self.step += 1
            self.seconds = (
                agreed(self.accelerator, time.monotonic() - began) if self.options.hours else (time.monotonic() - began)
            )
            over = bool(self.options.hours) and self.seconds >= 3600 * self.options.hours
            if self.step in marks or over:
                self._evaluate(math.fsum(losses) / len(losses))
                self._tell(losses, started, self.history[-1])
                losses, told = [], time.monotonic()
                self.stopped = "hours" if over and self.step < self.total else self._patience()
            elif time.monotonic() - told > LOG_SECONDS:
                self._tell(losses, started)
                told = time.monotonic()
            if time.monotonic() - saved > CHECKPOINT_SECONDS and self.step < self.total and not self.stopped:
                self._save()
                saved = time.monotonic()
            if self.progress and self.main:
                spent = self.seconds / (3600 * self.options.hours) if self.options.hours else 0.0  # what ends first
                done = max(float(self.step), min(spent, 1.0) * self.total)
                self.progress(done, self.total, self.judge.shown(self.best_score))
        if self.step > self.resumed:
            self._save()  # it stays until the stage is whole: no step is repeated, whenever this run is killed
        if self.penalty is None:  # with one, what was pressed to zero counts, not what scores best
            self.student.load_state_dict(self.best)
            self._prefer_last()
        self.student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.student.eval()
        return self._result()

    def _prefer_last(self) -> None:
        """Keep the last weights in place of the best, unless held-out examples tell that they are worse.

        The best of many scores was luckier than the others as a rule, and weights of an early peak know little of the
        schedule. Nothing that scored better than the network before training: then that one stays.
        """
        epoch = self.step / len(self.source)
        if self.best_epoch in (0.0, epoch) or self.stopped == "patience" or not self.history:
            return
        worse = self.judge.told_worse(self.average.module, self.student) if self.main else None
        if from_first(self.accelerator, worse):
            return
        self.student.load_state_dict(self.average.module.state_dict())
        self.best_epoch, self.best_score = epoch, self.history[-1]["accuracy" if self.images else "score"]

    def _result(self) -> Training:
        score, accuracy = (100 * self.best_score, self.best_score) if self.images else (self.best_score, None)
        return Training(
            self.step,
            self.step / len(self.source),
            self.seconds,
            tuple(self.history),
            self.best_epoch,
            accuracy,
            self.precision,
            self.resumed,
            score,
            self.judge.task.metric,
            self.judge.task.unit,
            self.device.type,
            self.accelerator.num_processes,
            self.micro,
            self.stopped,
        )

    @property
    def done(self) -> float:
        """The share of training that is done: of its steps, or of its hours where those are less."""
        share = self.step / self.total
        return max(share, min(1.0, self.seconds / (3600 * self.options.hours))) if self.options.hours else share

    def _one_step(self) -> float:
        self.learner.train()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * schedule(self.done, self.options.warmup, self.options.schedule)
        torch.manual_seed(hash((self.options.seed, self.step)) % 2**63)  # dropout of a resumed run is the same
        examples, targets = self.source.at(self.step)
        examples = moved(examples, self.device)
        count = len(targets)
        while True:
            short = 0.0
            try:
                value = self._gradients(examples, targets, count)
            except (torch.OutOfMemoryError, RuntimeError) as cause:
                if not _memory(cause):
                    raise
                short, value = 1.0, 0.0
            if not agreed(self.accelerator, short):
                break
            self._halve()
        if agreed(self.accelerator, 0.0 if math.isfinite(value) else 1.0):
            raise Diverged(self.step)
        if self.options.clip:
            self.accelerator.clip_grad_norm_(self.learner.parameters(), self.options.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update_parameters(self.student)
        return value

    def _gradients(self, examples: Examples, targets: Any, count: int) -> float:
        """The gradients of one batch, in as many pieces as memory asks for; gives its loss."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        starts, total = range(0, count, self.micro), 0.0
        for start in starts:
            stop = min(start + self.micro, count)
            last = stop == count
            piece, wanted = (
                (examples, targets) if len(starts) == 1 else (take(examples, start, stop), targets[start:stop])
            )
            waiting = not last and self.model is not self.learner
            with self.model.no_sync() if waiting else contextlib.nullcontext():  # type: ignore[operator]
                value: Tensor = self.model(piece, wanted, self.done)
                if len(starts) > 1:
                    value = value * ((stop - start) / count)
                if not torch.isfinite(value):
                    total = math.nan
                    if self.model is self.learner:
                        return total
                self.accelerator.backward(value)
            total += float(value.detach())
        return total

    def _halve(self) -> None:
        if self.micro == 1:
            raise ModelError(
                f"[recover] training on one example at a time does not fit the memory of the {self.device.type}.",
                'Use a larger device, or precision = "bf16".',
            )
        self.micro = math.ceil(self.micro / 2)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _evaluation_steps(self) -> set[int]:
        """After every epoch, and at least four times a run."""
        every = max(1, min(len(self.source), self.total // 4))
        return {*range(every, self.total + 1, every), self.total}

    def _evaluate(self, mean_loss: float) -> None:
        epoch = self.step / len(self.source)
        score = self._score(self.average.module)
        entry = {"epoch": round(epoch, 3), "loss": round(mean_loss, 5)}
        self.history.append(
            {**entry, "accuracy": score, "score": 100 * score} if self.images else {**entry, "score": score}
        )
        self.waited += 1
        if self.judge.better(score, self.best_score):
            self.waited = 0 if score != self.best_score else self.waited
            self.best = copy.deepcopy(self.average.module.state_dict())
            self.best_epoch, self.best_score = epoch, score

    def _score(self, network: nn.Module) -> float:
        """By process 0 alone, whose batch norm's statistics are the ones that are kept; all of them hear it."""
        return float(from_first(self.accelerator, float(self.judge(network)) if self.main else None))

    def _patience(self) -> str:
        waited = self.options.patience and self.waited >= self.options.patience
        return "patience" if waited and self.step < self.total else ""

    def _tell(self, losses: list[float], started: tuple[float, int], entry: dict[str, float] | None = None) -> None:
        if self.log is None or not self.main or not losses:
            return
        seconds = max(1e-9, time.monotonic() - started[0])
        pace = (self.step - started[1]) / seconds
        left = (self.total - self.step) / pace if pace else 0.0
        if self.options.hours:
            left = min(left, max(0.0, 3600 * self.options.hours - self.seconds))
        self.log(
            {
                "step": self.step,
                "steps": self.total,
                "epoch": round(self.step / len(self.source), 3),
                "loss": round(math.fsum(losses) / len(losses), 6),
                "lr": self.optimizers[0].param_groups[0]["lr"],
                "examples_per_second": round(pace * self.source.size, 1),
                "seconds_left": round(left, 1),
                **({"score": entry["score"], "metric": self.judge.task.metric} if entry else {}),
            }
        )

    def _save(self) -> None:
        if not self.main:
            return
        scaler = self.accelerator.scaler
        state = {
            "lr": self.lr,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "waited": self.waited,
            "micro": self.micro,
            "stopped": self.stopped,
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "extras": self.learner.extras(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": scaler.state_dict() if scaler is not None else {},
        }
        checkpoint.save(self.folder, self.key, state)

    def _resume(self) -> None:
        state = checkpoint.load(self.folder, self.key, self.device) if self.main else None
        state = from_first(self.accelerator, state)  # the others may be on machines that do not see the folder
        if state is None:
            return
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.learner.load_extras(state["extras"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.best, self.best_epoch, self.best_score = state["best"], state["best_epoch"], state["best_score"]
        self.lr, self.step, self.seconds, self.micro = state["lr"], state["step"], state["seconds"], state["micro"]
        self.history, self.waited, self.stopped = state["history"], state["waited"], state["stopped"]
        self.resumed = self.step


def _memory(cause: BaseException) -> bool:
    """Did the device's memory run out? PyTorch's CPU allocator has no error class of its own."""
    return (
        isinstance(cause, torch.OutOfMemoryError) or "not enough memory" in str(cause) or "out of memory" in str(cause)
    )
