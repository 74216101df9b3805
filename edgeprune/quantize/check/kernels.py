"""What a runtime's own profiler says of a Q/DQ graph: which of its INT8 layers run in float all the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from edgeprune import runtimes
from edgeprune.devices import KernelTime
from edgeprune.quantize.check.findings import DQ, LintFinding
from edgeprune.quantize.check.lint_float import on_weights_alone
from edgeprune.quantize.view import WEIGHTED, View
from edgeprune.quantize.write.weights import OPERATOR
from edgeprune.runtimes import Dialect


def in_float(model: onnx.ModelProto, kernels: Iterable[KernelTime], dialect: Dialect) -> list[LintFinding]:
    """A finding for each layer of `model` that does not run in the kernel that it was written for.

    Data and weights quantised, and the kernel computes in float; or weights alone, and they are dequantised before it.

    Args:
        model: the Q/DQ graph.
        kernels: its profile on the device, from `Device.profile`.
    """
    wanted = {node.name: node for node in intended(View.of(model))}
    found = list[LintFinding]()
    kernels = list(kernels)
    for kernel in kernels:
        for name in [name for name in (kernel.layers or (kernel.name,)) if name in wanted]:
            if not runs_in_int8(kernel, dialect):
                what = " ".join(part for part in (kernel.kind, kernel.implementation) if part)
                why = f"{dialect.title} runs it in float ({what}), its weights dequantised on the way."
                found.append(
                    LintFinding(name, "kernel-float", "warning", why, "Leave it in float, or report the graph.")
                )
    kind = runtimes.load(dialect.runtime).weights_kind
    held = {name for kernel in kernels if kernel.kind == kind for name in (kernel.layers or (kernel.name,))}
    for name in [names[0] for names in _compact(View.of(model)) if not held.intersection(names)]:
        why = f"{dialect.title} dequantises its weights at every call: no {kind or 'kernel for it'} in the profile."
        found.append(LintFinding(name, "kernel-float", "warning", why, "Leave it in float, or report the graph."))
    return found


def _compact(view: View) -> Iterator[list[str]]:
    """The layers whose weights alone are integers: their names, and that of the Add of a bias that is fused."""
    for node in view.nodes:
        if node.op_type == OPERATOR or on_weights_alone(view, node):
            reader = view.only_consumer(node.output[0])
            yield [node.name, *([reader.name] if reader is not None and reader.op_type == "Add" else [])]


def intended(view: View) -> Iterator[onnx.NodeProto]:
    """The layers of a Q/DQ graph that read nothing but dequantised values."""
    for node in view.nodes:
        makers = [view.producer.get(name) for name in node.input[:2]]
        if on_weights_alone(view, node):
            continue
        if node.op_type in WEIGHTED and all(maker is not None and maker.op_type == DQ for maker in makers):
            yield node


def runs_in_int8(kernel: KernelTime, dialect: Dialect) -> bool:
    """Whether a kernel of a profile multiplies integers."""
    return runtimes.load(dialect.runtime).runs_in_int8(kernel.kind, kernel.implementation)
