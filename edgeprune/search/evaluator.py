"""What a whole plan truly costs: narrow the weights, repair them, and take the distance to the dense network on
examples not used for that.

Adding up curves ignores that cuts interact; this does not. Runs on the dense tape: no surgery, no new capture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeprune.engine import Session, SoftenedKL, layout
from edgeprune.recover import kept_outputs, repair_weights, same_steps

if TYPE_CHECKING:
    from edgeprune.graph import Plan, Structure


@dataclass(frozen=True)
class Verdict:
    """What is left of the dense network's behaviour, after repair.

    Attributes:
        loss: mean distance to the dense network: KL in nats, softened as the curves are, or the task's.
        agreement: share of examples with the same top answer; None where the distance is not KL of class scores.
    """

    loss: float
    agreement: float | None


class Evaluator:
    """Evaluates plans of one network. Half of the session's examples repair, the other half judge."""

    def __init__(self, structure: Structure, session: Session) -> None:
        self.structure, self.session = structure, session

    def __call__(self, plan: Plan) -> Verdict:
        """Repair and judge one plan; a second or two for a ResNet-56 and 256 images, the first takes longer."""
        session = self.session
        with torch.no_grad():
            tape, route = same_steps(session, self.structure, plan), session.tape.route(self.structure.gone(plan))
            narrow = narrowed(session.weights, plan)
            narrow |= repair_weights(
                session, tape, narrow, route, kept_outputs(plan, session.device), session.fit,
                options=plan.options, ridges=session.ridges, seed=session.seed,
            )  # fmt: skip
            loss, same, positions = 0.0, 0, 0
            for batch, dense in zip(session.judge, session.dense, strict=True):
                outputs = session.outputs(tape, narrow, route, batch)
                loss += float(session.distance(dense, outputs).sum())
                if isinstance(session.distance, SoftenedKL):
                    equal = dense[0].argmax(-1) == outputs[0].argmax(-1)
                    same, positions = same + int(equal.sum()), positions + equal.numel()
        return Verdict(loss / session.judged, same / positions if positions else None)


def narrowed(weights: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """The dense tensors with the plan's cuts."""
    result = dict(weights)
    for cut in plan.cuts:
        if cut.parameter in result:
            kept = torch.as_tensor(list(cut.kept), device=result[cut.parameter].device)
            result[cut.parameter] = layout(result[cut.parameter].index_select(cut.axis, kept))
    return result
