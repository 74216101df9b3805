"""How much of an artifact really runs in INT8: by the kernels that the runtime's profiler names, else by the graph."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from edgeprune.result import Facts, Precision

WEIGHTED = re.compile(r"conv(?!ert)|gemm|matmul|matrixmultiply|fullyconnected|innerproduct", re.IGNORECASE)
# ONNX Runtime says it in the operator, OpenVINO and TensorRT in the implementation's or the tactic's name.
INT8_KIND = re.compile(r"^(qlinear|qgemm|qattention|dynamicquantize)|integer", re.IGNORECASE)
INT8_IMPLEMENTATION = re.compile(r"(?<![a-z0-9])[iu]8|(?<=[i_])i8|[su]8s8|int8|(?<![a-z])imma", re.IGNORECASE)
WEIGHTS_KIND = ("MatMulNBits", "FullyConnectedCompressed")  # weights alone are integers: no INT8 operators
MODELLED = "modelled"  # the implementation of a kernel that nobody ran


def precision(kernels: Sequence[Mapping[str, object]], graph: Mapping[str, bool]) -> Precision:
    """Count the operators with weights that run in INT8, as in result.json.

    Args:
        kernels: the runtime's profile of the artifact: `kind`, `implementation`, `layers`, `median`.
        graph: layer -> do its data and its weights come out of DequantizeLinear; counts where no profiler tells.
    """
    every = [Facts(one) for one in kernels]
    seen = [one for one in every if WEIGHTED.search(one.text("kind")) and one.text("implementation") != MODELLED]
    if not seen:
        floats = sorted(name for name, quantised in graph.items() if not quantised)
        return Precision(by="graph", operators=len(graph), int8=len(graph) - len(floats), floats=tuple(floats))
    rest = [one for one in seen if not _int8(one)]
    total, slow = (sum(one.number("median") or 0.0 for one in group) for group in (seen, rest))
    return Precision(
        by="profiler",
        operators=len(seen),
        int8=len(seen) - len(rest),
        floats=tuple(_name(one) for one in rest),
        weights=tuple(_name(one) for one in rest if one.text("kind") in WEIGHTS_KIND),
        share=1 - slow / total if total > 0 else None,
    )


def _name(kernel: Facts) -> str:
    return str(next(iter(kernel.listed("layers")), kernel.text("name")))


def _int8(kernel: Facts) -> bool:
    if kernel.text("kind") in WEIGHTS_KIND:
        return False
    return bool(INT8_KIND.search(kernel.text("kind")) or INT8_IMPLEMENTATION.search(kernel.text("implementation")))
