"""Step sizes of activations that learn: the scale of each quantiser is trained along with the weights.

In the log domain, so that Adam moves every scale by a share of itself, whatever its size; zero points stay where they
are, so that a range grows and shrinks as a whole. Only scales that the dialect takes from their ranges learn: those
that it fixes (a sigmoid's, for example), that the user stated, or that are tied to such, stay as they are.

Sources: the gradient, LSQ, arXiv:1902.08153; the log domain, TQT, arXiv:1903.08066.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgeprune.quantize.ranges.ranges import Ranges

TRIED = 1.125  # exact in binary: what the dialect makes of ranges that are wider by this says which scales learn
CLOSE, CLOSE_HALF = 1e-5, 2.0**-10  # relative; of scales in float16, which are rounded twice
STATED = "user"  # the method of a range that the recipe states
QUICKER = 10.0  # than weights: a scale's learning rate
Write = Callable[[Ranges], onnx.ModelProto]


class LearntScales(nn.Module):
    """The scales of a Q/DQ graph that learn.

    Args:
        graph: as `write` makes it of `ranges`.
        write: makes the graph of other ranges.
    """

    def __init__(self, graph: onnx.ModelProto, ranges: Ranges, write: Write) -> None:
        super().__init__()
        self.ranges = ranges
        held = _scales(graph, ranges)
        alike: dict[bytes, list[str]] = {}
        for name, value in held.items():
            alike.setdefault(value.tobytes(), []).append(name)
        groups = [group for group in alike.values() if all(ranges.tensors[name].method != STATED for name in group)]
        while groups:  # a scale that follows no range alone holds back those that are tied to it
            wider = _scales(write(_times(ranges, {name: TRIED for group in groups for name in group})), ranges)
            good = [group for group in groups if all(_follows(held[name], wider.get(name)) for name in group)]
            if len(good) == len(groups):
                break
            groups = good
        self.groups = tuple(tuple(group) for group in groups)
        self.logs = nn.Parameter(torch.zeros(len(groups)))

    def scales(self, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The scales as they are now, by the names of their constants."""
        found: dict[str, Tensor] = {}
        for log, group in zip(self.logs.to(torch.float32).exp(), self.groups, strict=True):
            found |= {_constant(name): fixed[_constant(name)] * log for name in group}
        return found

    def learnt(self) -> Ranges:
        """The ranges with the scales that were learnt."""
        factors = self.logs.detach().double().cpu().exp().tolist()
        return _times(
            self.ranges, {name: one for one, group in zip(factors, self.groups, strict=True) for name in group}
        )

    @property
    def largest(self) -> float:
        """The most that a scale has changed by, as a factor of 1 or more."""
        return math.exp(float(self.logs.detach().abs().max())) if self.groups else 1.0


def _constant(name: str) -> str:
    return f"{name}.scale"


def _scales(graph: onnx.ModelProto, ranges: Ranges) -> dict[str, np.ndarray]:
    """Tensor -> its scale, of those that have a range and a scale of their own."""
    wanted = {_constant(name): name for name in ranges.tensors}
    return {wanted[one.name]: numpy_helper.to_array(one) for one in graph.graph.initializer if one.name in wanted}


def _times(ranges: Ranges, factors: Mapping[str, float]) -> Ranges:
    return replace(
        ranges,
        tensors={
            name: replace(one, low=one.low * factors[name], high=one.high * factors[name]) if name in factors else one
            for name, one in ranges.tensors.items()
        },
    )


def _follows(before: np.ndarray, after: np.ndarray | None) -> bool:
    if after is None:
        return False
    close = CLOSE_HALF if after.dtype == np.float16 else CLOSE
    return bool(np.allclose(after.astype(np.float32), before.astype(np.float32) * TRIED, rtol=close, atol=0))
