"""Second moments of what every layer reads in the dense network, over a sample of positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.engine.examples import Batch
from edgeprune.engine.layers import AffineLayer, positions, positions_each, rows
from edgeprune.engine.regression import Moments
from edgeprune.engine.tape import Tape


@dataclass(frozen=True, eq=False)
class InputMoments:
    """Of one layer's inputs: covariance [G, d, d] and mean [G, d], float64."""

    xx: Tensor
    mean: Tensor


def input_moments(
    tape: Tape,
    layers: Sequence[AffineLayer],
    weights: Mapping[str, Tensor],
    examples: Sequence[Batch],
    *,
    seed: int = 0,
) -> dict[str, InputMoments]:
    """The moments by layer name, in one pass of the dense network over batches of examples."""
    generator = torch.Generator().manual_seed(seed)
    states = [tape.begin(batch) for batch in examples]
    route, at, found = tape.route(), 0, {}
    count = sum(len(batch[0]) for batch in examples)
    for layer in layers:
        for values in states:
            tape.run(values, route, weights, at, layer.step, keep={layer.source})
        at = layer.step
        each = positions_each(layer, weights, count)
        total: Moments | None = None
        for values in states:
            part = rows(layer, values[layer.source], positions(layer, values[layer.source], each, generator))
            more = Moments.of(part, part[:, :, :1])
            total = more if total is None else total + more
        assert total is not None
        xx, _, mean, _ = total.centred()
        found[layer.name] = InputMoments(xx, mean)
    return found
