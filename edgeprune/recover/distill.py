"""What the student learns from: a weighted sum of losses against its teachers, and the task's own loss of labels.

Sources: KL with temperature, Hinton et al., arXiv:1503.02531; DIST, Huang et al., NeurIPS 2022 (Pearson correlation
between and within classes); features with a 1x1 bridge, FitNets, arXiv:1412.6550; attention maps, Zagoruyko and
Komodakis, arXiv:1612.03928; relations of tokens, MiniLMv2, arXiv:2012.15828; a temperature that is learnt against the
student, CTKD, arXiv:2211.16231; teachers weighted by confidence, CA-MKD, arXiv:2201.00007.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.errors import DataError, ModelError, RecipeError
from edgeprune.recipe import RecoverSection
from edgeprune.workload import BaseTask, Classification, Custom, Task, distances

Outputs = Sequence[Tensor]
ON_SCORES = ("kl", "dist", "soft")  # these look at scores of classes, along axis 1


def terms(options: RecoverSection, task: Task) -> dict[str, float]:
    """Each distillation loss and its weight; "auto" is `kl` for classes, and the task's distance for all others."""
    chosen = options.distill
    if isinstance(chosen, str):
        if chosen == "auto":
            chosen = "kl" if isinstance(task, Classification) else "distance"
        found: dict[str, float] = {} if chosen == "none" else {chosen: 1.0}
    else:
        found = {name: weight for name, weight in chosen.items() if weight}
    return {name: weight * options.distill_weight for name, weight in found.items() if options.distill_weight}


def check_terms(options: RecoverSection, task: Task, outputs: Outputs) -> dict[str, float]:
    """`terms`, where they fit the network.

    Raises:
        DataError: there is nothing to learn from. ModelError: no output holds scores of classes.
        RecipeError: the task has no loss of labels.
    """
    found = terms(options, task)
    if not found and options.label_weight == 0:
        raise DataError(
            "[recover] distill is 'none' and label_weight is 0: there is nothing to learn from.", "Set one."
        )
    if options.label_weight and not _has_loss(task):
        raise RecipeError(
            f"[recover] label_weight is {options.label_weight:g}, but the task has no loss of labels.",
            "Set it to 0, which is label-free, or give the task a loss.",
        )
    for name in found:
        if name in ON_SCORES and not scores_of(task, outputs):
            shapes = [list(output.shape) for output in outputs]
            raise ModelError(
                f"[recover] distill '{name}' needs scores of classes along axis 1; the outputs are {shapes}.",
                'Use "distance" or "mse".',
            )
    return found


def _has_loss(task: Task) -> bool:
    if isinstance(task, Custom):
        return task._loss is not None
    return getattr(type(task), "loss", None) is not BaseTask.loss


def scores_of(task: Task, outputs: Outputs) -> list[int]:
    """The numbers of the outputs that hold scores of classes [batch, classes, ...]."""
    if isinstance(task, Classification):
        return [task.output]
    return [n for n, out in enumerate(outputs) if out.is_floating_point() and out.ndim > 1 and out.shape[1] > 1]


def rows(scores: Tensor) -> Tensor:
    """[batch, classes, ...] -> [batch x places, classes]."""
    return scores if scores.ndim == 2 else scores.movedim(1, -1).flatten(0, -2)


def scales_of(task: Task, outputs: Outputs) -> tuple[Tensor, ...] | None:
    """What the usual distance divides by, from more examples than a batch may have; None: the task has its own."""
    own = getattr(type(task), "distance", None) is not BaseTask.distance
    if own and not (isinstance(task, Custom) and task._distance is None):
        return None
    return distances.variances(outputs) if all(output.is_floating_point() for output in outputs) else None


def loss(
    name: str,
    outputs: Outputs,
    wanted: Outputs,
    task: Task,
    temperature: float | Tensor,
    scales: Sequence[Tensor] | None = None,
) -> Tensor:
    """One loss between the outputs of student and teacher: a scalar."""
    if name == "distance" and scales is not None:
        return distances.scaled_error(wanted, outputs, scales).mean()
    if name == "distance":
        return task.distance(wanted, outputs).mean()
    if name == "mse":
        pairs = [(w, o) for w, o in zip(wanted, outputs, strict=True) if o.is_floating_point()]
        return _mean([F.mse_loss(mine.float(), theirs.float()) for theirs, mine in pairs])
    pairs = [(rows(wanted[n]).float(), rows(outputs[n]).float()) for n in scores_of(task, outputs)]
    by_name = {"kl": kl, "dist": dist, "soft": soft}
    return _mean([by_name[name](mine, theirs, temperature) for theirs, mine in pairs])


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean()


def kl(scores: Tensor, wanted: Tensor, temperature: float | Tensor) -> Tensor:
    """Kullback-Leibler divergence of softened probabilities, times the square of the temperature; [N, classes] each."""
    t = temperature
    divergence = F.kl_div(
        F.log_softmax(scores / t, 1), F.log_softmax(wanted / t, 1), reduction="batchmean", log_target=True
    )
    return t * t * divergence


def soft(scores: Tensor, wanted: Tensor, temperature: float | Tensor) -> Tensor:
    """Cross-entropy of the student's own probabilities against the teacher's softened ones, as soft labels."""
    return F.cross_entropy(scores, (wanted / temperature).softmax(1))


def dist(scores: Tensor, wanted: Tensor, temperature: float | Tensor) -> Tensor:
    """DIST: 2 x (1 - correlation between classes) + 2 x (1 - correlation within classes), of softened probabilities."""
    p, q = (scores / temperature).softmax(1), (wanted / temperature).softmax(1)
    inter = 1 - _pearson(p, q).mean()
    intra = 1 - _pearson(p.t(), q.t()).mean()
    return temperature**2 * 2 * (inter + intra)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1, eps=1e-8)


def merged(every: Sequence[Outputs], how: str, task: Task) -> tuple[Tensor, ...]:
    """Several teachers' outputs as one: their mean, or weighted, example by example, by how sure each is of its class.

    Args:
        how: "mean", or "confidence": weights are the softmax of minus the entropy of each teacher's scores.
    """
    if len(every) == 1:
        return tuple(every[0])
    scored = scores_of(task, every[0])
    weights = torch.full((len(every), len(every[0][0])), 1 / len(every), device=every[0][0].device)
    if how == "confidence" and scored:
        entropies = []
        for outputs in every:
            logs = F.log_softmax(outputs[scored[0]].float(), 1)
            entropies.append(
                -(logs.exp() * logs).sum(1).flatten(1).mean(1) if logs.ndim > 2 else -(logs.exp() * logs).sum(1)
            )
        weights = (-torch.stack(entropies)).softmax(0)
    found = []
    for parts in zip(*every, strict=True):
        if not parts[0].is_floating_point():
            found.append(parts[0])
            continue
        shape = [len(every), len(parts[0]), *[1] * (parts[0].ndim - 1)]
        found.append((torch.stack([part.float() for part in parts]) * weights.reshape(shape)).sum(0))
    return tuple(found)


def check_teachers(every: Sequence[Outputs], outputs: Outputs) -> None:
    """Refuse a teacher whose outputs are not those of the student: ModelError."""
    mine = [list(output.shape[1:]) for output in outputs]
    for number, theirs in enumerate(every):
        shapes = [list(output.shape[1:]) for output in theirs]
        if shapes != mine:
            who = "the teacher" if len(every) == 1 else f"teacher {number}"
            raise ModelError(
                f"[recover] {who} has outputs of {shapes} an example; the pruned network has {mine}.",
                "A teacher must have the same outputs, in the same order.",
            )


class Temperature(nn.Module):
    """The temperature: fixed, moving to another one as training goes on, or learnt against the student.

    Learnt: 1 + 2 (t - 1) sigmoid(x), whose gradient is reversed, by a share that grows from 0 to 1 (CTKD): what makes
    the loss larger is harder to imitate.
    """

    def __init__(self, options: RecoverSection) -> None:
        super().__init__()
        self.start, self.end = options.temperature, options.temperature_end or options.temperature
        self.x = nn.Parameter(torch.zeros(())) if options.temperature_learnt else None

    def forward(self, done: float) -> float | Tensor:
        """The temperature after the share `done` of training."""
        if self.x is None:
            return self.start + (self.end - self.start) * done if self.end != self.start else self.start
        reversed_x: Tensor = _Reversed.apply(self.x, done)  # type: ignore[no-untyped-call]
        return 1 + 2 * max(self.start - 1, 0.1) * reversed_x.sigmoid()


class _Reversed(torch.autograd.Function):
    """The identity; its gradient is turned round and scaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradient, None


def feature_loss(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
    """Mean over layers of the squared error over the teacher's variance; bridged already."""
    found = []
    for name, wanted in theirs.items():
        wanted = wanted.float()
        found.append(F.mse_loss(mine[name].float(), wanted) / wanted.var().clamp_min(1e-6))
    return _mean(found)


def attention_loss(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], axes: Mapping[str, int]) -> Tensor:
    """Mean over layers of how far the maps of attention are apart; widths may differ.

    Of places (images, sounds): the mean square over channels, normalised (arXiv:1612.03928), squared error. Of tokens:
    softmax(h h^T / sqrt(width)), each token's relation to all others (arXiv:2012.15828), KL divergence.
    """
    found = []
    for name, wanted in theirs.items():
        axis = axes[name]
        if wanted.ndim == 3 and axis == 2:
            logs = [
                torch.log_softmax(h @ h.transpose(1, 2) / h.shape[2] ** 0.5, 2)
                for h in (mine[name].float(), wanted.float())
            ]
            found.append(F.kl_div(logs[0].flatten(0, 1), logs[1].flatten(0, 1), reduction="batchmean", log_target=True))
            continue
        maps = [F.normalize(h.float().square().mean(axis).flatten(1), dim=1) for h in (mine[name], wanted)]
        found.append((maps[0] - maps[1]).square().sum(1).mean())
    return _mean(found)
