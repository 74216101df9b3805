"""A small interpreter of ONNX graphs in PyTorch: enough to train a Q/DQ graph where it stands. Imports torch.

Values have one floating type throughout, the parameters' own (float64 shows that two graphs are equal); a Cast between
floating types is left out. QuantizeLinear and DequantizeLinear compute with integers held in that type, and gradients
pass straight through inside the range and not at all outside (Bengio et al., arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from edgeprune.errors import GraphError
from edgeprune.quantize.view import attribute


class _Round(torch.autograd.Function):
    """clamp(round(x / scale) + zero, low, high); the gradient of x / scale inside, 0 outside."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: float, high: float, work: torch.dtype | None = None
    ) -> Tensor:
        quotient = x / scale if work is None else (x.to(work) / scale.to(work)).to(x.dtype)
        whole = torch.round(quotient) + zero
        ctx.save_for_backward((whole >= low) & (whole <= high), scale)
        return whole.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inside, scale = ctx.saved_tensors
        return gradients[0] * inside / scale, None, None, None, None, None


def rounded(x: Tensor, scale: Tensor, limit: float, work: torch.dtype) -> Tensor:
    """x on the symmetric grid of `scale`, as a value again; gradients pass straight through inside.

    Args:
        work: the type that the division is done in, so that ties fall as they do where the graph is written.
    """
    whole: Tensor = _Round.apply(x, scale, torch.zeros_like(scale), -limit, limit, work)  # type: ignore[no-untyped-call]
    return whole * scale


_LIMITS = {torch.int8: (-128.0, 127.0), torch.uint8: (0.0, 255.0), torch.int32: (-(2.0**31), 2.0**31 - 1)}


def constants(model: onnx.ModelProto, dtype: torch.dtype) -> dict[str, Tensor]:
    """Initializers and Constant nodes as tensors; floating ones in `dtype`."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(attribute(node, "value"))
    tensors = {name: torch.from_numpy(value.copy()) for name, value in found.items()}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def interpret(model: onnx.ModelProto, fixed: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs of `model`.

    Args:
        fixed: from `constants`.
        given: the inputs, and any other tensors that are to be used in place of what the graph would compute.

    Raises:
        GraphError: an operator that is not known here.
    """
    values: dict[str, Tensor] = {**fixed, **given}
    for node in model.graph.node:
        if node.op_type == "Constant" or all(name in given for name in node.output):
            continue
        operator = _OPERATORS.get(node.op_type)
        if operator is None:
            raise GraphError(
                f"'{node.name}' is a {node.op_type}, which quantisation-aware training does not know.",
                "Set [quantize] qat_epochs = 0.",
            )
        values[node.output[0]] = operator(node, [values[name] if name else None for name in node.input])
    return [values[output.name] for output in model.graph.output]


Inputs = list[Any]


def _spread(value: Tensor, like: Tensor, axis: int) -> Tensor:
    """A scale or zero point of one value an index of `axis`, shaped to broadcast."""
    if value.ndim == 0 or value.numel() == 1:
        return value.reshape(())
    return value.reshape([-1 if index == axis % like.ndim else 1 for index in range(like.ndim)])


def _quantise(node: onnx.NodeProto, inputs: Inputs) -> Tensor:
    x, scale, zero = inputs
    axis = attribute(node, "axis", 1)
    low, high = _LIMITS[zero.dtype]
    steps, middle = _spread(scale, x, axis), _spread(zero, x, axis).to(x.dtype)
    whole: Tensor = _Round.apply(x, steps, middle, low, high)  # type: ignore[no-untyped-call]
    return whole


def _dequantise(node: onnx.NodeProto, inputs: Inputs) -> Tensor:
    x, scale, zero = inputs
    axis = attribute(node, "axis", 1)
    value: Tensor = (x.to(scale.dtype) - _spread(zero, x, axis).to(scale.dtype)) * _spread(scale, x, axis)
    return value


def _conv(node: onnx.NodeProto, inputs: Inputs) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    rank = weight.ndim - 2
    pads = attribute(node, "pads") or [0] * 2 * rank
    if pads[:rank] != pads[rank:]:
        sides = [side for index in reversed(range(rank)) for side in (pads[index], pads[index + rank])]
        x, pads = functional.pad(x, sides), [0] * 2 * rank
    strides, dilations = attribute(node, "strides") or [1] * rank, attribute(node, "dilations") or [1] * rank
    convolve = functional.conv1d if rank == 1 else functional.conv2d
    return convolve(x, weight, bias, strides, pads[:rank], dilations, attribute(node, "group", 1))


def _gemm(node: onnx.NodeProto, inputs: Inputs) -> Tensor:
    a, b, c = (*inputs, None)[:3]
    a = a.T if attribute(node, "transA", 0) else a
    b = b.T if attribute(node, "transB", 0) else b
    product: Tensor = attribute(node, "alpha", 1.0) * (a @ b)
    return product if c is None else product + attribute(node, "beta", 1.0) * c


def _clip(node: onnx.NodeProto, inputs: Inputs) -> Tensor:
    x, low, high = (*inputs, None, None)[:3]
    return torch.clamp(x, low, high)


def _pool(node: onnx.NodeProto, inputs: Inputs) -> Tensor:
    pads = attribute(node, "pads") or [0] * 4
    if pads[:2] != pads[2:]:
        raise GraphError(f"'{node.name}' pads unevenly, which quantisation-aware training does not know.")
    kernel = attribute(node, "kernel_shape")
    strides = attribute(node, "strides") or [1] * len(kernel)
    ceil = bool(attribute(node, "ceil_mode", 0))
    if node.op_type == "MaxPool":
        return functional.max_pool2d(inputs[0], kernel, strides, pads[:2], ceil_mode=ceil)
    counted = bool(attribute(node, "count_include_pad", 0))
    return functional.avg_pool2d(inputs[0], kernel, strides, pads[:2], ceil, counted)


def _reshape(node: onnx.NodeProto, inputs: Inputs) -> Tensor:
    """A leading 1 in the shape is the exported batch: it becomes the batch at hand."""
    x: Tensor = inputs[0]
    shape: Tensor = inputs[1]
    sizes = [x.shape[index] if size == 0 else int(size) for index, size in enumerate(shape.tolist())]
    return x.reshape([x.shape[0], *sizes[1:]] if sizes[0] == 1 else sizes)


def _axes(node: onnx.NodeProto, inputs: Inputs) -> list[int]:
    found = inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else attribute(node, "axes")
    return [int(axis) for axis in found]


def _squeeze(node: onnx.NodeProto, inputs: Inputs) -> Tensor:
    return torch.squeeze(inputs[0], tuple(_axes(node, inputs)))


def _unsqueeze(node: onnx.NodeProto, inputs: Inputs) -> Tensor:
    x: Tensor = inputs[0]
    for axis in sorted(_axes(node, inputs)):
        x = x.unsqueeze(axis)
    return x


def _mean(node: onnx.NodeProto, inputs: Inputs) -> Tensor:
    x: Tensor = inputs[0]
    return x.mean(_axes(node, inputs), keepdim=bool(attribute(node, "keepdims", 1)))


def _hard_sigmoid(node: onnx.NodeProto, inputs: Inputs) -> Tensor:
    return torch.clamp(attribute(node, "alpha", 0.2) * inputs[0] + attribute(node, "beta", 0.5), 0, 1)


def _cast(node: onnx.NodeProto, inputs: Inputs) -> Tensor:
    x: Tensor = inputs[0]
    return x


_OPERATORS: Mapping[str, Callable[[onnx.NodeProto, Inputs], Tensor]] = {
    "QuantizeLinear": _quantise,
    "DequantizeLinear": _dequantise,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": lambda node, inputs: inputs[0] @ inputs[1],
    "Add": lambda node, inputs: inputs[0] + inputs[1],
    "Sub": lambda node, inputs: inputs[0] - inputs[1],
    "Mul": lambda node, inputs: inputs[0] * inputs[1],
    "Div": lambda node, inputs: inputs[0] / inputs[1],
    "Relu": lambda node, inputs: torch.relu(inputs[0]),
    "Clip": _clip,
    "LeakyRelu": lambda node, inputs: functional.leaky_relu(inputs[0], attribute(node, "alpha", 0.01)),
    "PRelu": lambda node, inputs: torch.where(inputs[0] < 0, inputs[0] * inputs[1], inputs[0]),
    "Elu": lambda node, inputs: functional.elu(inputs[0], attribute(node, "alpha", 1.0)),
    "Softplus": lambda node, inputs: functional.softplus(inputs[0]),
    "Tanh": lambda node, inputs: torch.tanh(inputs[0]),
    "Erf": lambda node, inputs: torch.erf(inputs[0]),
    "Exp": lambda node, inputs: torch.exp(inputs[0]),
    "Sqrt": lambda node, inputs: torch.sqrt(inputs[0]),
    "Pow": lambda node, inputs: inputs[0] ** inputs[1],
    "Neg": lambda node, inputs: -inputs[0],
    "Abs": lambda node, inputs: torch.abs(inputs[0]),
    "Sigmoid": lambda node, inputs: torch.sigmoid(inputs[0]),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node, inputs: functional.hardswish(inputs[0]),
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": lambda node, inputs: inputs[0].mean((2, 3), keepdim=True),
    "ReduceMean": _mean,
    "Flatten": lambda node, inputs: inputs[0].flatten(attribute(node, "axis", 1)),
    "Reshape": _reshape,
    "Transpose": lambda node, inputs: inputs[0].permute(attribute(node, "perm")),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda node, inputs: torch.cat(inputs, attribute(node, "axis")),
    "Softmax": lambda node, inputs: torch.softmax(inputs[0], attribute(node, "axis", -1)),
    "Identity": _cast,
    "Dropout": _cast,
    "Cast": _cast,
}
