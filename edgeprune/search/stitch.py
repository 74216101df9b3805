"""What a whole plan truly costs: narrow the weights, repair them, and take KL(dense || pruned) on images not used
for that.

Adding up curves ignores that cuts interact; this does not. Runs on the dense tape: no surgery, no new capture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeprune.recover.repair import kept_outputs, repair_weights, same_steps
from edgeprune.recover.tape import Tape, Values, batch_size, batches, layout, weights_of
from edgeprune.recover.units import units
from edgeprune.search.curves import kl, temperature

if TYPE_CHECKING:
    from edgeprune.graph import Plan, Structure


@dataclass(frozen=True)
class Verdict:
    """What is left of the dense network's behaviour, after repair.

    Attributes:
        loss: KL in nats, softened as the curves are.
        agreement: share of images with the same top answer.
    """

    loss: float
    agreement: float


class Stitcher:
    """Evaluates plans of one network. Half of the images repair, the other half judge."""

    def __init__(self, model: nn.Module, structure: Structure, images: Tensor, seed: int = 0) -> None:
        size = batch_size(images)
        self.model, self.structure, self.seed = model, structure, seed
        self.tape, self.weights = Tape.of(model, images[:size]), weights_of(model)
        self.units = units(self.tape, self.weights)
        every = batches(images, size)
        half = max(1, len(every) // 2)
        self.fit, self.judge = every[:half], every[half:] or every
        with torch.no_grad():
            self.dense = [self._run(self.tape, self.weights, (), batch) for batch in self.judge]
        self.heat = temperature(self.dense)
        self.ridges: dict[str, float] = {}  # chosen once a layer: the images stay the same

    def __call__(self, plan: Plan) -> Verdict:
        """Repair and judge one plan; a second or two for a ResNet-56 and 256 images, the first takes longer."""
        with torch.no_grad():
            tape = same_steps(self.tape, self.model, self.structure, plan, self.fit[0])
            narrow = narrowed(self.weights, plan)
            narrow |= repair_weights(
                self.tape, tape, self.units, self.weights, narrow, self.tape.route(plan.removed),
                kept_outputs(plan), self.fit, ridges=self.ridges, seed=self.seed,
            )  # fmt: skip
            loss, same, count = 0.0, 0, 0
            for batch, dense in zip(self.judge, self.dense, strict=True):
                logits = self._run(tape, narrow, plan.removed, batch)
                loss += kl(dense, logits, self.heat)
                same += int((dense.argmax(-1) == logits.argmax(-1)).sum())
                count += len(batch)
        return Verdict(loss / count, same / (count * max(1, self.dense[0][0].numel() // self.dense[0].shape[-1])))

    def _run(self, tape: Tape, weights: Mapping[str, Tensor], removed: tuple[str, ...], batch: Tensor) -> Tensor:
        values: Values = {0: batch}
        tape.run(values, tape.route(removed), weights)
        return tape.logits(values).float()


def narrowed(weights: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """The dense tensors with the plan's cuts."""
    result = dict(weights)
    for cut in plan.cuts:
        if cut.parameter in result:
            kept = torch.as_tensor(list(cut.kept))
            result[cut.parameter] = layout(result[cut.parameter].index_select(cut.axis, kept))
    return result
