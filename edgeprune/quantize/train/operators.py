# mypy: disable-error-code="no-any-return"
"""ONNX operators in PyTorch, one table: what `interpret` computes with. Each matches ONNX Runtime in a test.

An operator takes its node and its inputs (None for one left out) and gives its output, or a tuple of them. Where a case
is not covered it raises `Unknown`, and the node is left to ONNX Runtime. Imports torch.
Source: the ONNX operator specification, opsets 13 to 21.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import onnx
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from edgeprune.quantize.train.operators_nn import LAYERS, NodeInputs, Operator, Unknown
from edgeprune.quantize.view import attribute

_INTEGERS = {
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def _one(function: Callable[[Tensor], Tensor]) -> Operator:
    """An operator of one input."""
    return lambda node, inputs: function(inputs[0])


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of two inputs."""
    return lambda node, inputs: function(inputs[0], inputs[1])


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of inputs."""
    return lambda node, inputs: reduce(function, inputs)


def _div(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    a, b = inputs
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    return torch.fmod(*inputs) if attribute(node, "fmod", 0) else torch.remainder(*inputs)


def _pow(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    return torch.pow(inputs[0], inputs[1].to(inputs[0].dtype))


def _clip(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, low, high = (*inputs, None, None)[:3]
    return x if low is None and high is None else torch.clamp(x, low, high)


def _prelu(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    return torch.where(inputs[0] < 0, inputs[0] * inputs[1], inputs[0])


def _hard_sigmoid(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    return torch.clamp(attribute(node, "alpha", 0.2) * inputs[0] + attribute(node, "beta", 0.5), 0, 1)


def _gelu(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    return functional.gelu(inputs[0], approximate=attribute(node, "approximate", b"none").decode())


def _elu(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    return functional.elu(inputs[0], attribute(node, "alpha", 1.0))


def _selu(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    gamma, alpha = attribute(node, "gamma", 1.0507009873554805), attribute(node, "alpha", 1.6732632423543772)
    return gamma * functional.elu(inputs[0], alpha)


def _cast(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    kind = attribute(node, "to") if node.op_type == "Cast" else None
    if kind in _FLOATS:
        x: Tensor = inputs[0]
        return x if x.is_floating_point() else x.to(inputs.work)
    if kind in _INTEGERS:
        return inputs[0].to(_INTEGERS[kind])
    if node.op_type == "CastLike":
        return inputs[0].to(inputs[1].dtype)
    raise Unknown


def _reshape(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    """The sizes are the exported batch's: the leading one grows with the batch at hand.

    Heads may have been merged with the batch (`[heads, n, n]` -> `[1, heads, n, n]`), so that the leading sizes differ;
    or a detector's queries were picked out of all batches at once (`[queries, n]` -> `[1, queries, -1]`).
    """
    x, wanted = inputs[0], inputs[1].tolist()
    keep = not attribute(node, "allowzero", 0)
    sizes = [x.shape[index] if size == 0 and keep else int(size) for index, size in enumerate(wanted)]
    if sizes and -1 not in sizes and all(sizes):
        return x.reshape([sizes[0] * (x.numel() // math.prod(sizes)), *sizes[1:]])
    if inputs.grown and sizes and sizes[0] == 1 and x.ndim and x.shape[0] != 1:
        known = math.prod(size for size in sizes[1:] if size > 0) or 1
        if x.numel() % (x.shape[0] * known) == 0:
            return x.reshape([x.shape[0], *sizes[1:]])
        if len(sizes) > 1 and sizes[1] > 0 and x.shape[0] % sizes[1] == 0:
            return x.reshape([x.shape[0] // sizes[1], *sizes[1:]])
    return x.reshape(sizes)


def _flatten(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    axis, x = attribute(node, "axis", 1), inputs[0]
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(torch.tensor(x.shape[:axis]).prod()) if axis else 1, -1)


def _transpose(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    return inputs[0].permute(attribute(node, "perm") or list(reversed(range(inputs[0].ndim))))


def _axes(node: onnx.NodeProto, inputs: NodeInputs, at: int = 1) -> list[int] | None:
    found = inputs[at].tolist() if len(inputs) > at and inputs[at] is not None else attribute(node, "axes")
    return None if found is None else [int(axis) for axis in found]


def _squeeze(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    axes = _axes(node, inputs)
    return torch.squeeze(inputs[0]) if axes is None else torch.squeeze(inputs[0], tuple(axes))


def _unsqueeze(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    axes = _axes(node, inputs) or []
    x: Tensor = inputs[0]
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    """A reduction over the node's axes; all of them where none are named."""

    def operator(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
        x: Tensor = inputs[0]
        axes = _axes(node, inputs)
        if not axes and attribute(node, "noop_with_empty_axes", 0):
            return x
        return function(x, axes or list(range(x.ndim)), bool(attribute(node, "keepdims", 1)))

    return operator


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    if attribute(node, "select_last_index", 0):
        raise Unknown
    find = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    return find(inputs[0], attribute(node, "axis", 0), keepdim=bool(attribute(node, "keepdims", 1)))


def _top(node: onnx.NodeProto, inputs: NodeInputs) -> tuple[Tensor, Tensor]:
    largest = bool(attribute(node, "largest", 1))
    values, indices = torch.topk(inputs[0], int(inputs[1]), attribute(node, "axis", -1), largest)
    return values, indices


def _cumsum(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, axis = inputs[0], int(inputs[1])
    x = x.flip(axis) if attribute(node, "reverse", 0) else x
    total = torch.cumsum(x, axis)
    total = total - x if attribute(node, "exclusive", 0) else total
    return total.flip(axis) if attribute(node, "reverse", 0) else total


def _concat(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    """A constant with the exported batch of 1 beside a larger batch is repeated."""
    axis = attribute(node, "axis")
    most = max(x.shape[0] if x.ndim else 1 for x in inputs)
    if axis % inputs[0].ndim and most > 1:
        inputs = NodeInputs([x.expand(most, *x.shape[1:]) for x in inputs], inputs.work)
    return torch.cat(list(inputs), axis)


def _split(node: onnx.NodeProto, inputs: NodeInputs) -> tuple[Tensor, ...]:
    x, axis, count = inputs[0], attribute(node, "axis", 0), len(node.output)
    if len(inputs) > 1 and inputs[1] is not None:
        return torch.split(x, inputs[1].tolist(), axis)
    each = -(-x.shape[axis] // count)
    return torch.split(x, each, axis)


def _slice(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, starts, ends, axes, steps = (*inputs, None, None)[:5]
    axes = range(len(starts)) if axes is None else axes.tolist()
    steps = [1] * len(starts) if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes, steps, strict=True):
        taken = range(*slice(start, end, step).indices(x.shape[axis]))
        if step > 0:
            x = x.narrow(axis, taken.start, max(taken.stop - taken.start, 0)) if taken else x.narrow(axis, 0, 0)
            x = x[(slice(None),) * (axis % x.ndim) + (slice(None, None, step),)] if step > 1 else x
        else:
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64))
    return x


def _gather(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, indices = inputs
    axis = attribute(node, "axis", 0) % x.ndim
    flat = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    taken = x.index_select(axis, flat.reshape(-1))
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_elements(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, indices = inputs
    axis = attribute(node, "axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


def _gather_nd(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    if attribute(node, "batch_dims", 0):
        raise Unknown
    x, indices = inputs
    return x[tuple(indices.long().unbind(-1))]


def _scatter_nd(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    if attribute(node, "reduction", b"none") != b"none":
        raise Unknown
    x, indices, updates = inputs
    return torch.index_put(x, tuple(indices.long().unbind(-1)), updates)


def _scatter_elements(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    if attribute(node, "reduction", b"none") != b"none":
        raise Unknown
    x, indices, updates = inputs
    axis = attribute(node, "axis", 0)
    return torch.scatter(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long(), updates)


def _expand(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, shape = inputs[0], inputs[1].tolist()
    if shape and shape[0] == 1 and x.ndim == len(shape):
        shape[0] = x.shape[0]
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(shape)))  # type: ignore[no-untyped-call]


def _pad(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, pads, value, axes = (*inputs, None, None)[:4]
    axes = list(range(x.ndim)) if axes is None else [int(axis) % x.ndim for axis in axes.tolist()]
    sides = dict(zip(axes, zip(pads.tolist()[: len(axes)], pads.tolist()[len(axes) :], strict=True), strict=True))
    mode = attribute(node, "mode", b"constant").decode()
    if mode == "constant":
        flat = [side for axis in reversed(range(x.ndim)) for side in sides.get(axis, (0, 0))]
        return functional.pad(x, flat, value=0.0 if value is None else value.item())
    for axis, (before, after) in sides.items():
        if before < 0 or after < 0:
            raise Unknown
        if before or after:
            x = x.index_select(axis, _border(x.shape[axis], before, after, mode))
    return x


def _border(size: int, before: int, after: int, mode: str) -> Tensor:
    """Which index each place of a padded axis repeats."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    if size == 1:
        raise Unknown
    places = places.abs() % (2 * size - 2)
    return torch.where(places >= size, 2 * size - 2 - places, places)


def _shape(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    sizes = list(inputs[0].shape)[attribute(node, "start", 0) : attribute(node, "end")]
    return torch.tensor(sizes, dtype=torch.int64)


def _filled(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    value = attribute(node, "value")
    number = (
        torch.zeros(()) if value is None else torch.from_numpy(onnx.numpy_helper.to_array(value).copy()).reshape(())
    )
    number = number.to(inputs.work) if number.is_floating_point() else number
    return number.expand(inputs[0].tolist()).clone()


def _range(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    start, limit, delta = (one.item() for one in inputs)
    return torch.arange(start, limit, delta, dtype=inputs[0].dtype)


def _one_hot(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    indices, depth, values = inputs
    axis = attribute(node, "axis", -1)
    hot = functional.one_hot(torch.remainder(indices.long(), int(depth)), int(depth))
    spread = torch.where(hot.bool(), values[1], values[0])
    return spread if axis == -1 else spread.movedim(-1, axis)


def _trilu(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    k = int(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else 0
    return torch.triu(inputs[0], k) if attribute(node, "upper", 1) else torch.tril(inputs[0], k)


def _softplus(x: Tensor) -> Tensor:
    return functional.softplus(x, threshold=50)


_LOGIC: Mapping[str, Operator] = {
    "Not": _one(torch.logical_not),
    "And": _two(torch.logical_and),
    "Or": _two(torch.logical_or),
    "Xor": _two(torch.logical_xor),
    "Equal": _two(torch.eq),
    "Greater": _two(torch.gt),
    "GreaterOrEqual": _two(torch.ge),
    "Less": _two(torch.lt),
    "LessOrEqual": _two(torch.le),
    "IsNaN": _one(torch.isnan),
    "Where": lambda node, inputs: torch.where(*inputs),
}

_SAME_NAME = (
    *("Abs", "Neg", "Exp", "Log", "Sqrt", "Erf", "Sin", "Cos", "Tan", "Tanh", "Asin", "Acos", "Atan", "Sinh", "Cosh"),
    *("Asinh", "Acosh", "Atanh", "Floor", "Ceil", "Round", "Sign", "Relu", "Sigmoid", "Reciprocal"),
)  # as torch spells them in small letters

_ELEMENTWISE: Mapping[str, Operator] = {
    **{name: _one(getattr(torch, name.lower())) for name in _SAME_NAME},
    "Add": _two(torch.add),
    "Sub": _two(torch.sub),
    "Mul": _two(torch.mul),
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Sum": _fold(torch.add),
    "Mean": lambda node, inputs: reduce(torch.add, inputs) / len(inputs),
    "Clip": _clip,
    "LeakyRelu": lambda node, inputs: functional.leaky_relu(inputs[0], attribute(node, "alpha", 0.01)),
    "PRelu": _prelu,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": lambda node, inputs: functional.celu(inputs[0], attribute(node, "alpha", 1.0)),
    "Softplus": _one(_softplus),
    "Softsign": _one(functional.softsign),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _one(functional.hardswish),
    "Mish": _one(functional.mish),
    "Gelu": _gelu,
    "Softmax": lambda node, inputs: torch.softmax(inputs[0], attribute(node, "axis", -1)),
    "LogSoftmax": lambda node, inputs: torch.log_softmax(inputs[0], attribute(node, "axis", -1)),
    "Cast": _cast,
    "CastLike": _cast,
    "Identity": _one(lambda x: x),
    "Dropout": _one(lambda x: x),
}

_REDUCTIONS: Mapping[str, Operator] = {
    "ReduceMean": _reduced(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduced(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduced(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduced(_product),
    "ReduceL1": _reduced(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduced(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep)),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "ReduceLogSum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "ReduceLogSumExp": _reduced(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ArgMax": _extreme,
    "ArgMin": _extreme,
    "TopK": _top,
    "CumSum": _cumsum,
}

_MOVING: Mapping[str, Operator] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "Expand": _expand,
    "Tile": lambda node, inputs: inputs[0].repeat(inputs[1].tolist()),
    "Pad": _pad,
    "Shape": _shape,
    "Size": lambda node, inputs: torch.tensor(inputs[0].numel()),
    "ConstantOfShape": _filled,
    "Range": _range,
    "OneHot": _one_hot,
    "Trilu": _trilu,
}

OPERATORS: Mapping[str, Operator] = {**_ELEMENTWISE, **_LOGIC, **_REDUCTIONS, **_MOVING, **LAYERS}


def known(node: onnx.NodeProto) -> bool:
    """Whether the table has an operator of this name; a case that it does not cover still raises `Unknown`."""
    return node.domain in ("", "ai.onnx") and node.op_type in OPERATORS


def applied(node: onnx.NodeProto, inputs: list[Any], work: torch.dtype, grown: bool = True) -> tuple[Tensor, ...]:
    """The outputs of a node.

    Args:
        inputs: None for one that is left out.
        work: the floating type that everything has.
        grown: the inputs may hold more examples than the graph was exported with.

    Raises:
        Unknown: an operator, or a case of one, that is not covered.
    """
    if not known(node):
        raise Unknown
    found = OPERATORS[node.op_type](node, NodeInputs(inputs, work, grown))
    return found if isinstance(found, tuple) else (found,)
