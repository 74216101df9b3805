"""What lies behind the last weights stays in float; what that costs, by the runtime's own profile of the artifact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from edgeprune import quantize
from edgeprune.model import Ends
from edgeprune.result import Facts

CALCULATED = ("QuantizeLinear", "DequantizeLinear", "Constant", "Identity")  # no operators of the network


@dataclass(frozen=True)
class Behind:
    """Operators behind the last layers with weights.

    Attributes:
        operators: kind -> how many.
        share: of the artifact's latency.
        latency: in the unit of the artifact's.
    """

    operators: dict[str, int]
    share: float
    latency: float

    def said(self, unit: str) -> str:
        """One sentence."""
        named = ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in self.operators.items())
        return (
            f"behind the last weights, in float: {named}: {self.latency:.3g} {unit}, {100 * self.share:.1f} % of the "
            "artifact's latency"
        )


def cost(graph: onnx.ModelProto, ends: Ends, kernels: Sequence[Mapping[str, object]], latency: float) -> Behind | None:
    """Operators behind the last layers with weights, what [export] put there included, and their share of the latency.

    A kernel counts where all that the runtime says it holds lies there: what is fused into a layer is the layer's.
    None where nothing lies there.

    Args:
        graph: the float graph of the network that the artifact was made of.
        kernels: the runtime's profile of the artifact.
        latency: of the artifact, measured; kernels are scaled to it.
    """
    view = quantize.View.of(ends.around(graph))
    last = quantize.tail(view)
    kinds = Counter(node.op_type for node in view.nodes if node.name in last and node.op_type not in CALCULATED)
    if not kinds:
        return None
    times = dict.fromkeys((True, False), 0.0)
    for kernel in map(Facts, kernels):
        held = [str(name) for name in kernel.listed("layers")]
        times[bool(held) and set(held) <= last] += kernel.number("median") or 0.0
    share = times[True] / sum(times.values()) if any(times.values()) else 0.0
    return Behind(dict(sorted(kinds.items())), share, share * latency)
