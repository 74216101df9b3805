"""This x86 machine in the place of an ARM board: the same outputs, bit for bit.

With `session.qdqisint8allowed` ONNX Runtime fuses an S8S8 graph here as it does on ARM, and of its INT8 kernels all but
one round alike. The sum of two quantised tensors (QLinearAdd) is float arithmetic that rounds halves to even on x86; on
ARM both scale ratios become whole numbers of 22 bits, and the sum of products is shifted back, halves away from zero
(onnxruntime/core/mlas/lib/qladd.cpp). Near a tie the two are one step apart. So outputs are computed here from a graph
whose sums are written out in ARM's arithmetic; that graph is never measured and never shipped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.devices import settings
from edgeprune.devices.device import AgentDevice, Opened
from edgeprune.devices.transport import Transport
from edgeprune.devices.types import Examples, Loaded
from edgeprune.target import Target

if TYPE_CHECKING:
    import onnx

LEAST, MOST = 2.0**-10, 2.0**8  # of the larger ratio of an input's scale to the output's; outside, ARM sums in float
LEAST_OTHER = 2.0**-14
BITS = 22  # of the larger multiplier
# Held against ONNX Runtime on a Cortex-A76 (docs/devices.md): INT8 kernels that give the same bits on both.
PROVEN = ("Conv", "Gemm", "Mul", "Sigmoid", "Concat", "AveragePool", "GlobalAveragePool")
# Bytes are only moved, compared or cut off; quantising and its inverse are one IEEE operation each.
MOVING = ("Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
CASTS = ("QuantizeLinear", "DequantizeLinear")


class PreCheck(AgentDevice):
    """A device on this machine whose `infer` computes what an ARM core does. Use as a context manager."""

    def __init__(self, target: Target, transport: Transport) -> None:
        super().__init__(target, transport)
        self._exact: dict[str, Loaded] = {}  # handle -> what computes its outputs
        self._folder: settings.Scratch | None = None

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def unload(self, loaded: Loaded) -> None:
        """Forget an artifact, and what computed its outputs."""
        exact = self._exact.pop(loaded.handle, loaded) if isinstance(loaded, Opened) else loaded
        if exact is not loaded:
            super().unload(exact)
        super().unload(loaded)

    def infer(self, loaded: Loaded, images: Examples) -> list[NDArray[Any]]:
        """Run every image (shape [N, ...]) as an ARM core would; the outputs, each of shape [N, ...]."""
        if isinstance(loaded, Opened) and loaded.artifact.precision == "int8":
            if loaded.handle not in self._exact:
                self._exact[loaded.handle] = self._written_out(loaded)
            loaded = self._exact[loaded.handle]
        return super().infer(loaded, images)

    def _written_out(self, loaded: Opened) -> Loaded:
        import onnx

        name, path = next(iter(loaded.artifact.files.items()))
        model = onnx.load(path)
        if not write_out_sums(model):
            return loaded
        if self._folder is None:
            self._folder = settings.Scratch()
        own = self._folder.path / f"{loaded.handle[:16]}-{name}"
        onnx.save(model, own)
        return self.load(dataclasses.replace(loaded.artifact, files={name: own}))


def write_out_sums(model: onnx.ModelProto) -> int:
    """Replace each sum that ONNX Runtime would make a QLinearAdd of by ARM's arithmetic; how many there were."""
    graph = _Graph(model.graph)
    written = 0
    for node in [one for one in model.graph.node if one.op_type == "Add"]:
        chain = [node, *graph.readers(node)]
        if chain[-1].op_type == "Relu":
            chain += graph.readers(chain[-1])
        ends = [*(graph.maker(name, "DequantizeLinear") for name in node.input), chain[-1]]
        scales = [graph.scale(end) for end in ends]
        if ends[-1].op_type != "QuantizeLinear" or None in scales:
            continue
        (first, a), (second, b), (out, c) = (one for one in scales if one)
        fixed = multipliers(float(first / out), float(second / out))
        alone = len(chain) == 2 or int(c) == np.iinfo(c.dtype).min  # the activation is what saturation does
        if fixed and alone and a.dtype == b.dtype == c.dtype:
            inputs = [end.input[0] for end in ends[:2] if end]
            graph.write_sum(chain, inputs, (int(a), int(b), int(c)), fixed, c.dtype)
            written += 1
    graph.forget_unused()
    return written


def unproven(model: onnx.ModelProto) -> tuple[str, ...]:
    """What in a Q/DQ graph may give other bits on ARM than `PreCheck` here; empty: every bit must be the same.

    Operators outside the list that was held against ARM, and those that run in float there ("float Conv", or a sum of
    extreme scales): they agree to about 1e-5, which a later quantiser may turn into a step.
    """
    import onnx

    written = onnx.ModelProto()
    written.CopyFrom(model)
    write_out_sums(written)
    left = {node.output[0] for node in written.graph.node if node.op_type == "Add"}
    graph, found = _Graph(model.graph), set()
    for node in model.graph.node:
        kind = node.op_type
        if kind in (*MOVING, *CASTS):
            continue
        if kind not in PROVEN and kind != "Add":
            found.add(kind)
        elif not graph.quantised(node) or (kind == "Add" and node.output[0] in left):
            found.add(f"float {kind}")
    return tuple(sorted(found))


def multipliers(first: float, second: float) -> tuple[int, int, int] | None:
    """(shift, multiplier, multiplier) of ARM's kernel, given the inputs' scales over the output's; None where float."""
    larger = max(first, second)
    if not LEAST <= larger < MOST or min(first, second) < LEAST_OTHER:
        return None
    shift = BITS - math.frexp(larger)[1]
    one, other = round(first * 2.0**shift), round(second * 2.0**shift)
    return None if max(one, other) >= 1 << BITS else (shift, one, other)


class _Graph:
    """Who makes and who reads what in a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        from onnx import numpy_helper

        self._graph = graph
        self._values = {one.name: numpy_helper.to_array(one) for one in graph.initializer if len(one.dims) < 2}
        self._constants = {one.name for one in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._outputs = {one.name for one in graph.output}

    def maker(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node of that kind that makes `name`."""
        found = self._makers.get(name)
        return found if found is not None and found.op_type == kind else None

    def quantised(self, node: onnx.NodeProto) -> bool:
        """Whether a node stands between quantisers, a constant or an activation behind it aside.

        A Gemm need have none behind it: QGemm's float output is its whole number times one scale.
        """
        named = [name for name in node.input if name and name not in self._constants]
        if not all(self.maker(name, "DequantizeLinear") for name in named):
            return False
        ends = self._used(node.output[0])
        if ends and ends[0].op_type in ("Relu", "Clip"):
            ends = self._used(ends[0].output[0]) if len(ends) == 1 else []
        return node.op_type == "Gemm" or (bool(ends) and all(end.op_type == "QuantizeLinear" for end in ends))

    def _used(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read `name`."""
        return [one for one in self._graph.node if name in one.input]

    def readers(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The one node that reads `node`; none where there are more, or where the graph gives it out."""
        found = self._used(node.output[0])
        return found if len(found) == 1 and node.output[0] not in self._outputs else []

    def scale(self, node: onnx.NodeProto | None) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Scale and zero point of a quantiser or its inverse, where there is one of each."""
        found = [self._values.get(name) for name in node.input[1:3]] if node is not None else []
        if len(found) < 2 or any(one is None or one.size != 1 for one in found):
            return None
        scale, zero = (one.reshape(()) for one in found if one is not None)
        return scale, zero

    def write_sum(
        self,
        chain: Sequence[onnx.NodeProto],
        inputs: Sequence[str],
        zeros: tuple[int, int, int],
        fixed: tuple[int, int, int],
        kind: np.dtype[Any],
    ) -> None:
        """saturate(zero + round(sum of multiplier * (input - zero) / 2 ** shift)), exactly, in doubles, for `chain`."""
        from onnx import TensorProto, helper, numpy_helper

        name, shift = chain[0].output[0] + ".exact", fixed[0]
        nodes: list[onnx.NodeProto] = []

        def constant(value: float) -> str:
            label = f"{name}.c{len(self._graph.initializer)}"
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float64), label))
            return label

        def do(operator: str, *operands: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(operator, operands, [f"{name}.{len(nodes)}"], **attributes))
            return str(nodes[-1].output[0])

        terms = [
            do(
                "Mul",
                do("Sub", do("Cast", one, to=TensorProto.DOUBLE), constant(zero)),
                constant(multiplier * 2.0**-shift),
            )
            for one, zero, multiplier in zip(inputs, zeros[:2], fixed[1:], strict=True)
        ]
        total = do("Add", *terms)
        away = do("Mul", do("Floor", do("Add", do("Abs", total), constant(0.5))), do("Sign", total))
        limits = np.iinfo(kind)
        clipped = do("Clip", do("Add", away, constant(zeros[2])), constant(limits.min), constant(limits.max))
        do("Cast", clipped, to=helper.np_dtype_to_tensor_dtype(kind))
        nodes[-1].output[0] = chain[-1].output[0]
        place = list(self._graph.node).index(chain[-1])
        for old in chain:
            self._graph.node.remove(old)
        for offset, new in enumerate(nodes, place - len(chain) + 1):
            self._graph.node.insert(offset, new)

    def forget_unused(self) -> None:
        """Remove what nothing reads any longer."""
        used = {name for node in self._graph.node for name in node.input} | self._outputs
        kept = [node for node in self._graph.node if used & set(node.output)]
        del self._graph.node[:]
        self._graph.node.extend(kept)
