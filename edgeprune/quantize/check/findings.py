"""What the linter says, and what all of its rules look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import onnx

from edgeprune.quantize.view import View
from edgeprune.quantize.write.placement import SHARING
from edgeprune.runtimes import Dialect

Q, DQ = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class LintFinding:
    """One thing that is wrong with a Q/DQ graph.

    Attributes:
        node: the node's name.
        rule: which rule, a stable short name.
        severity: "error" (rejected, or computed wrongly) or "warning" (slower than it looks).
        why: what the runtime does with it.
        remedy: what to do.
    """

    node: str
    rule: str
    severity: Literal["error", "warning"]
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.node}: {self.rule}: {self.why} {self.remedy}"


LintRule = Callable[[View, Dialect], Iterator[LintFinding]]


def dequantised(view: View, tensor: str) -> onnx.NodeProto | None:
    """The DQ that `tensor` comes from, through nodes that only move values; rows of an embedding are no activations."""
    node = view.producer.get(tensor)
    while node is not None and node.op_type in SHARING:
        node = view.producer.get(node.input[0])
    if node is None or node.op_type != DQ:
        return None
    rows = view.producer.get(node.input[0])
    return None if rows is not None and rows.op_type == "Gather" and view.is_constant(rows.input[0]) else node
