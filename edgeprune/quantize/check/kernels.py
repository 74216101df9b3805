"""What a runtime's own profiler says of a Q/DQ graph: which of its INT8 layers run in float all the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from edgeprune import runtimes
from edgeprune.devices import KernelTime
from edgeprune.quantize.check.findings import DQ, LintFinding
from edgeprune.quantize.view import WEIGHTED, View
from edgeprune.runtimes import Dialect


def in_float(model: onnx.ModelProto, kernels: Iterable[KernelTime], dialect: Dialect) -> list[LintFinding]:
    """A finding for each layer whose data and weights are quantised in `model` and whose kernel computes in float.

    Args:
        model: the Q/DQ graph.
        kernels: its profile on the device, from `Device.profile`.
    """
    wanted = {node.name: node for node in intended(View.of(model))}
    found = []
    for kernel in kernels:
        for name in [name for name in (kernel.layers or (kernel.name,)) if name in wanted]:
            if not runs_in_int8(kernel, dialect):
                what = " ".join(part for part in (kernel.kind, kernel.implementation) if part)
                why = f"{dialect.title} runs it in float ({what}), its weights dequantised on the way."
                found.append(
                    LintFinding(name, "kernel-float", "warning", why, "Leave it in float, or report the graph.")
                )
    return found


def intended(view: View) -> Iterator[onnx.NodeProto]:
    """The layers of a Q/DQ graph that read nothing but dequantised values."""
    for node in view.nodes:
        makers = [view.producer.get(name) for name in node.input[:2]]
        if node.op_type in WEIGHTED and all(maker is not None and maker.op_type == DQ for maker in makers):
            yield node


def runs_in_int8(kernel: KernelTime, dialect: Dialect) -> bool:
    """Whether a kernel of a profile multiplies integers."""
    return runtimes.load(dialect.runtime).runs_in_int8(kernel.kind, kernel.implementation)
