"""Fine-tuning by distillation from the dense network: SGD, cosine schedule, moving average, checkpoints.

Sources: DIST, Huang et al., NeurIPS 2022 (Pearson correlation between and within classes); KL with temperature,
Hinton et al., arXiv:1503.02531; moving average of weights, Polyak and Juditsky, 1992; cosine schedule,
arXiv:1608.03983.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.errors import DataError, ModelError
from edgeprune.model import Split
from edgeprune.recipe import RecoverSection
from edgeprune.recover.batches import Batches, evaluate

CHECKPOINT_SECONDS = 20.0
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
Progress = Callable[[float, float, str], None]  # done, total, message


@dataclass(frozen=True)
class Training:
    """What a training run did.

    Attributes:
        steps, epochs, seconds: how much; seconds include those before an interruption.
        history: one entry an evaluation: epoch, loss since the last one, accuracy on the selection split (a fraction).
        best_epoch, best_accuracy: of the weights that were kept, chosen on the selection split.
        precision: "fp32" or "bf16".
        resumed: the step at which an interrupted run went on; 0 for a run in one piece.
    """

    steps: int
    epochs: float
    seconds: float
    history: tuple[dict[str, float], ...]
    best_epoch: float
    best_accuracy: float
    precision: str
    resumed: int

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def train(
    student: nn.Module,
    teacher: nn.Module,
    images: Split,
    selection: Split,
    options: RecoverSection,
    folder: Path,
    *,
    augment: tuple[str, ...] = (),
    workers: int = 0,
    progress: Progress | None = None,
) -> Training:
    """Train `student` in place; afterwards it holds the weights that did best on `selection`, in eval mode.

    The student before training is a candidate too, so training never makes it worse on `selection`. Dropout is off
    while it learns from the teacher: the soft outputs regularise, and a narrow network has no features to spare.

    Args:
        images: what to learn from; labels are used with weight `options.label_weight`.
        selection: what to choose by; never trained on.
        folder: holds `checkpoint.pt` while training runs, so that an interrupted run goes on from there.

    Raises:
        ModelError: the loss is not finite, in spite of one automatic restart at a tenth of the learning rate.
    """
    if options.epochs == 0:
        return Training(0, 0.0, 0.0, (), 0.0, evaluate(student, selection), "fp32", 0)
    if options.distill == "none" and options.label_weight == 0:
        raise DataError(
            "[recover] distill is 'none' and label_weight is 0: there is nothing to learn from.", "Set one."
        )
    run = _Run(student, teacher, images, selection, options, folder, augment, workers, progress)
    try:
        return run.go()
    except _Diverged:
        run.restart(options.lr / 10)
    try:
        return run.go()
    except _Diverged as cause:
        raise ModelError(f"[recover] training diverged at step {cause.args[0]}.", "Lower [recover] lr.") from None


class _Diverged(Exception):
    pass


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        images: Split,
        selection: Split,
        options: RecoverSection,
        folder: Path,
        augment: tuple[str, ...],
        workers: int,
        progress: Progress | None,
    ) -> None:
        self.student, self.teacher, self.options, self.progress = student, teacher.eval(), options, progress
        self.selection, self.folder = selection, folder
        self.first = copy.deepcopy(student.state_dict())
        self.batches = Batches(images, options.batch, options.seed, augment, workers)
        self.total = max(1, round(options.epochs * len(self.batches)))
        self.precision = _precision(options.precision)
        self.device = next(student.parameters()).device
        self.key = _key(options, augment, self.total, self.first)
        self._begin(options.lr)

    def _begin(self, lr: float) -> None:
        self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.student).eval()
        self.best = copy.deepcopy(self.student.state_dict())
        self.optimizer = torch.optim.SGD(
            _parameter_groups(self.student, self.options.weight_decay),
            lr=lr,
            momentum=self.options.momentum,
            nesterov=self.options.momentum > 0,
        )
        self.lr, self.step, self.seconds, self.resumed = lr, 0, 0.0, 0
        self.history: list[dict[str, float]] = []
        self.best_epoch, self.best_accuracy = 0.0, -1.0

    def restart(self, lr: float) -> None:
        """Start again from the first weights."""
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        self.student.load_state_dict(self.first)
        self._begin(lr)

    def go(self) -> Training:
        self._resume()
        if self.best_accuracy < 0:
            self.best_accuracy = evaluate(self.student, self.selection)
        began, saved, losses = time.monotonic() - self.seconds, time.monotonic(), []
        marks = self._evaluation_steps()
        while self.step < self.total:
            losses.append(self._one_step())
            self.step += 1
            self.seconds = time.monotonic() - began
            if self.step in marks:
                self._evaluate(math.fsum(losses) / len(losses))
                losses = []
            if time.monotonic() - saved > CHECKPOINT_SECONDS and self.step < self.total:
                self._save()
                saved = time.monotonic()
            if self.progress:
                self.progress(
                    self.step, self.total, f"best {self.best_accuracy:.1%} on {len(self.selection)} held-out images"
                )
        self.student.load_state_dict(self.best)
        self.student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.student.eval()
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return Training(
            self.total,
            self.total / len(self.batches),
            self.seconds,
            tuple(self.history),
            self.best_epoch,
            self.best_accuracy,
            self.precision,
            self.resumed,
        )

    def _one_step(self) -> float:
        self.student.train()
        if self.options.distill != "none":
            _without_dropout(self.student)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * _schedule(self.step / self.total, self.options.warmup)
        pixels, labels = self.batches.at(self.step)
        pixels, labels = pixels.to(self.device).contiguous(memory_format=torch.channels_last), labels.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            with torch.no_grad():
                wanted = self.teacher(pixels) if self.options.distill != "none" else None
            logits = self.student(pixels)
        value = loss(logits.float(), None if wanted is None else wanted.float(), labels, self.options)
        if not torch.isfinite(value):
            raise _Diverged(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        _average(self.ema, self.student, self.options.ema, self.step)
        return float(value.detach())

    def _evaluation_steps(self) -> set[int]:
        """After every epoch, and at least four times a run."""
        every = max(1, min(len(self.batches), self.total // 4))
        return {*range(every, self.total + 1, every), self.total}

    def _evaluate(self, mean_loss: float) -> None:
        epoch = self.step / len(self.batches)
        accuracy = evaluate(self.ema, self.selection)
        self.history.append({"epoch": round(epoch, 3), "loss": round(mean_loss, 5), "accuracy": accuracy})
        if accuracy >= self.best_accuracy:
            self.best, self.best_epoch, self.best_accuracy = copy.deepcopy(self.ema.state_dict()), epoch, accuracy

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "key": self.key,
            "lr": self.lr,
            "step": self.step,
            "seconds": self.seconds,
            "history": json.dumps(self.history),
            "best_epoch": self.best_epoch,
            "best_accuracy": self.best_accuracy,
            "student": self.student.state_dict(),
            "ema": self.ema.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.folder / "checkpoint.pt.part"
        try:
            torch.save(state, partial)
            partial.replace(self.folder / "checkpoint.pt")
        finally:
            partial.unlink(missing_ok=True)

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True)
        except Exception:  # a damaged checkpoint costs time, not the run
            return
        if state.get("key") != self.key:
            return
        self.student.load_state_dict(state["student"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_epoch, self.best_accuracy = state["best"], state["best_epoch"], state["best_accuracy"]
        self.lr, self.step, self.seconds = state["lr"], state["step"], state["seconds"]
        self.history, self.resumed = json.loads(state["history"]), state["step"]


def loss(logits: Tensor, wanted: Tensor | None, labels: Tensor, options: RecoverSection) -> Tensor:
    """Weighted sum of cross-entropy on labels and the distillation loss; logits are [N, classes]."""
    value = logits.new_zeros(())
    if options.label_weight:
        value = value + options.label_weight * F.cross_entropy(logits, labels)
    if wanted is None or options.distill == "none":
        return value
    if options.distill == "kl":
        t = options.temperature
        soft = F.kl_div(
            F.log_softmax(logits / t, 1), F.log_softmax(wanted / t, 1), reduction="batchmean", log_target=True
        )
        return value + options.distill_weight * t * t * soft
    return value + options.distill_weight * dist(logits, wanted, options.temperature)


def dist(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """DIST: 2 x (1 - correlation between classes) + 2 x (1 - correlation within classes), of softened probabilities."""
    p, q = (logits / temperature).softmax(1), (wanted / temperature).softmax(1)
    inter = 1 - _pearson(p, q).mean()
    intra = 1 - _pearson(p.t(), q.t()).mean()
    return temperature**2 * 2 * (inter + intra)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1, eps=1e-8)


def _without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, DROPOUTS):
            module.eval()


def _schedule(done: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine to zero; `done` is the share of steps already taken."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """No weight decay on biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def _average(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move `ema` towards `model`; the decay starts small, so that early steps are forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    for mine, theirs in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs.to(mine.dtype), 1 - decay)
        else:
            mine.copy_(theirs)


def _precision(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capable = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if capable() else "fp32"


def _key(options: RecoverSection, augment: tuple[str, ...], total: int, first: dict[str, Tensor]) -> str:
    """What a checkpoint must share with the run that goes on from it."""
    sha = hashlib.sha256(json.dumps([msgspec.to_builtins(options), augment, total]).encode())
    for name, value in first.items():
        sha.update(f"{name}{list(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
