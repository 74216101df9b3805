"""ONNX graphs in PyTorch: what gradients are taken through, and what quantisation-aware training trains. Imports torch.

Values have one floating type throughout, that of the given inputs (float64 shows that two graphs are equal); a Cast
between floating types is left out. QuantizeLinear and DequantizeLinear compute with integers held in that type, and
gradients pass straight through inside the range and not at all outside (Bengio et al., arXiv 1308.3432).
The operators are in operators.py; a node that they do not cover may be run by ONNX Runtime, without a gradient.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from edgeprune.errors import GraphError
from edgeprune.quantize.ranges.observe import inference_session
from edgeprune.quantize.train.operators import applied
from edgeprune.quantize.train.operators_nn import ClampedRound, Unknown
from edgeprune.quantize.view import attribute


def rounded(x: Tensor, scale: Tensor, limit: float, work: torch.dtype) -> Tensor:
    """x on the symmetric grid of `scale`, as a value again; gradients pass straight through inside.

    Args:
        work: the type that the division is done in, so that ties fall as they do where the graph is written.
    """
    whole: Tensor = ClampedRound.apply(x, scale, torch.zeros_like(scale), -limit, limit, work)  # type: ignore[no-untyped-call]
    return whole * scale


def constants(model: onnx.ModelProto, dtype: torch.dtype) -> dict[str, Tensor]:
    """Initializers and Constant nodes as tensors; floating ones in `dtype`."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(attribute(node, "value"))
    tensors = {name: torch.from_numpy(value.copy()) for name, value in found.items()}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def interpret(
    model: onnx.ModelProto,
    fixed: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    beyond: set[str] | None = None,
    wanted: Collection[str] = (),
) -> list[Tensor]:
    """The outputs of `model`.

    Args:
        fixed: from `constants`.
        given: the inputs, and any other tensors that are to be used in place of what the graph would compute.
        beyond: takes the names of nodes that the table of operators does not cover; ONNX Runtime runs them, and no
            gradient passes. None: they are refused.
        wanted: tensors whose gradients will be asked for, even where all before them is constant or tokens.

    Raises:
        GraphError: an operator that is not known here, or one with a graph inside.
    """
    values: dict[str, Tensor] = {**fixed, **given}
    work = next(
        (value.dtype for value in (*given.values(), *fixed.values()) if value.is_floating_point()), torch.float32
    )
    grown = _more_examples(model, given)  # tensors that may have more examples than the exported graph's
    for node in model.graph.node:
        if node.op_type == "Constant" or all(name in given for name in node.output):
            continue
        inputs = [values[name] if name else None for name in node.input]
        more = not grown.isdisjoint(node.input)
        grown.update(node.output if more else ())
        try:
            found: Sequence[Tensor] = applied(node, inputs, work, more)
        except Unknown:
            if beyond is None or any(one.HasField("g") for one in node.attribute):
                raise GraphError(
                    f"'{node.name}' is a {node.op_type}, through which no gradient can be followed.",
                    "Set [quantize] qat_epochs = 0.",
                ) from None
            beyond.add(node.name)
            found = alone(node, inputs, model, work)
        for name, value in zip(node.output, found, strict=False):
            starts = name in wanted and value.is_floating_point() and not value.requires_grad
            values[name] = value.detach().requires_grad_() if starts else value
    return [values[output.name] for output in model.graph.output]


def _more_examples(model: onnx.ModelProto, given: Mapping[str, Tensor]) -> set[str]:
    """All that is given, where an input holds another number of examples than it was exported with; else nothing."""
    for one in model.graph.input:
        sizes = one.type.tensor_type.shape.dim
        if one.name in given and sizes and given[one.name].ndim and given[one.name].shape[0] != sizes[0].dim_value:
            return set(given)
    return set()


def alone(
    node: onnx.NodeProto, inputs: Sequence[Tensor | None], model: onnx.ModelProto, work: torch.dtype
) -> list[Tensor]:
    """The outputs of one node, computed by ONNX Runtime in float32; no gradient passes."""
    arrays = {
        name: value.detach().to(torch.float32).numpy() if value.is_floating_point() else value.numpy()
        for name, value in zip(node.input, inputs, strict=True)
        if value is not None
    }
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in arrays.items()
    ]
    made = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "node", given, made)
    single = helper.make_model(graph, opset_imports=list(model.opset_import))
    single.ir_version = min(single.ir_version, 10)
    results = dict(zip([one.name for one in made], inference_session(single).run(None, arrays), strict=True))
    tensors = [torch.from_numpy(results[name].copy()) if name else torch.zeros(()) for name in node.output]
    return [value.to(work) if value.is_floating_point() else value for value in tensors]
