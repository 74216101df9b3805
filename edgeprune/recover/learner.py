"""The student and all that is trained with it, as one module: its forward pass is the loss of a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.engine import Examples, call
from edgeprune.errors import ModelError
from edgeprune.recipe import RecoverSection
from edgeprune.recover import distill
from edgeprune.recover.features import Bridges, choose, watched
from edgeprune.workload import Task

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@contextlib.contextmanager
def _layer_by_layer() -> Iterator[None]:
    """Without torch's fused encoder layer: it passes by the modules inside, and takes no shorter type on a CPU."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class Learner(nn.Module):
    """Student, bridges and temperature are trained; teachers only teach, and are no part of the state.

    Args:
        example: up to 64 examples on the network's device; outputs and layers are tried on them.
        precision: "fp32", "bf16" or "fp16", of forward passes; losses are float32.
        penalty: (share done) -> what is added to the loss.

    Raises:
        DataError, ModelError, RecipeError: what cannot be learnt from; see `distill.check_terms`.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        task: Task,
        options: RecoverSection,
        example: Examples,
        precision: str,
        penalty: Callable[[float], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.student, self.task, self.options, self.penalty = student, task, options, penalty
        self._teachers = [teacher.eval() for teacher in teachers]  # a list: not among the modules
        self.reduced = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        outputs = tuple(_tried(network, example) for network in (student, *teachers))
        self.terms = distill.check_terms(options, task, outputs[0])
        if self.terms:
            distill.check_teachers(outputs[1:], outputs[0])
        self._scales = distill.scales_of(task, outputs[-len(teachers) :][0]) if "distance" in self.terms else None
        inside = any(name in self.terms for name in ("features", "attention"))
        self.layers = choose(teachers[0], student, example, options.feature_layers) if inside else {}
        self.bridges = Bridges(self.layers) if "features" in self.terms else None
        self.temperature = distill.Temperature(options)

    def train(self, mode: bool = True) -> Learner:
        """Dropout stays off while the student learns from a teacher: soft outputs regularise, and a narrow network
        has no features to spare.
        """
        super().train(mode)
        if mode and self.terms:
            for module in self.student.modules():
                if isinstance(module, DROPOUTS):
                    module.eval()
        return self

    def forward(self, examples: Examples, targets: Any, done: float) -> Tensor:
        """The loss of one batch: a scalar.

        Args:
            targets: as the task's loss takes them.
            done: the share of training that is done.
        """
        kind = next(iter(examples.values())) if isinstance(examples, dict) else examples
        device = (kind if isinstance(kind, Tensor) else kind[0]).device.type  # type: ignore[index]
        names = list(self.layers)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_layer_by_layer())
            mine = stack.enter_context(watched(self.student, names)) if names else {}
            theirs = stack.enter_context(watched(self._teachers[0], names)) if names else {}
            stack.enter_context(
                torch.autocast(device, self.reduced or torch.bfloat16, enabled=self.reduced is not None)
            )
            with torch.no_grad():
                taught = [call(teacher, examples) for teacher in self._teachers] if self.terms else []
            outputs = call(self.student, examples)
        return self.loss(_float(outputs), [_float(one) for one in taught], targets, done, mine, theirs)

    def loss(
        self,
        outputs: tuple[Tensor, ...],
        taught: Sequence[tuple[Tensor, ...]],
        targets: Any,
        done: float = 0.0,
        mine: dict[str, Tensor] | None = None,
        theirs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """The weighted sum of the labels' loss and the losses against the teachers."""
        value = outputs[0].new_zeros(())
        if self.options.label_weight:
            found = self.task.loss(outputs, targets)
            if found is None:
                raise ModelError(
                    f"[recover] label_weight is {self.options.label_weight:g}, but the task has no loss of labels.",
                    "Set it to 0, which is label-free, or give the task a loss.",
                )
            value = value + self.options.label_weight * found
        wanted = distill.merged(taught, self.options.combine, self.task) if taught else ()
        for name, weight in self.terms.items():
            value = value + weight * self._term(name, outputs, wanted, done, mine or {}, theirs or {})
        return value if self.penalty is None else value + self.penalty(done)

    def _term(
        self,
        name: str,
        outputs: tuple[Tensor, ...],
        wanted: tuple[Tensor, ...],
        done: float,
        mine: dict[str, Tensor],
        theirs: dict[str, Tensor],
    ) -> Tensor:
        if name == "features":
            assert self.bridges is not None
            return distill.feature_loss(self.bridges(mine), theirs)
        if name == "attention":
            return distill.attention_loss(mine, theirs, {layer: axis for layer, (axis, _, _) in self.layers.items()})
        return distill.loss(name, outputs, wanted, self.task, self.temperature(done), self._scales)

    def extras(self) -> dict[str, Tensor]:
        """The state of what is trained beside the student: bridges and temperature."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("student.")}

    def load_extras(self, state: dict[str, Tensor]) -> None:
        """Put back what `extras` gave."""
        self.load_state_dict(state, strict=False)


def _float(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(output.float() if output.is_floating_point() else output for output in outputs)


@torch.no_grad()
def _tried(network: nn.Module, example: Examples) -> tuple[Tensor, ...]:
    """The outputs on one example, in evaluation mode."""
    training = network.training
    network.eval()
    try:
        return call(network, example)
    except (RuntimeError, TypeError, ValueError, IndexError) as cause:
        first = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ModelError(f"[recover] a network does not take the examples: {first[0][:200]}.") from cause
    finally:
        network.train(training)
