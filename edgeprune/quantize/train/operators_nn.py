# mypy: disable-error-code="no-any-return"
"""ONNX operators in PyTorch, continued: Q/DQ, convolutions, pooling, normalisation, resizing, recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.quantize.view import attribute


class Unknown(Exception):
    """An operator, or a case of one, that the table does not cover."""


class NodeInputs(list[Any]):
    """The inputs of a node.

    Attributes:
        work: the floating type that everything has.
        grown: they may hold more examples than the graph was exported with.
    """

    def __init__(self, values: Iterable[Any], work: torch.dtype, grown: bool = True) -> None:
        super().__init__(values)
        self.work, self.grown = work, grown


Operator = Callable[[onnx.NodeProto, NodeInputs], "Tensor | tuple[Tensor, ...]"]


class ClampedRound(torch.autograd.Function):
    """clamp(round(x / scale) + zero, low, high); the gradient of x / scale inside, 0 outside, for both x and scale."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: float, high: float, work: torch.dtype | None = None
    ) -> Tensor:
        quotient = x / scale if work is None else (x.to(work) / scale.to(work)).to(x.dtype)
        whole = torch.round(quotient) + zero
        learns = ctx.needs_input_grad[1]
        ctx.save_for_backward((whole >= low) & (whole <= high), scale, x if learns else None)
        return whole.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inside, scale, x = ctx.saved_tensors
        into = gradients[0] * inside / scale
        of_scale = None if x is None else (-into * x / scale).sum_to_size(scale.shape)
        return into, of_scale, None, None, None, None


_LIMITS = {torch.int8: (-128.0, 127.0), torch.uint8: (0.0, 255.0), torch.int32: (-(2.0**31), 2.0**31 - 1)}


def _spread(value: Tensor, like: Tensor, axis: int) -> Tensor:
    """A scale or zero point of one value an index of `axis`, shaped to broadcast."""
    if value.ndim == 0 or value.numel() == 1:
        return value.reshape(())
    return value.reshape([-1 if index == axis % like.ndim else 1 for index in range(like.ndim)])


def _quantise(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, scale, zero = inputs
    axis = attribute(node, "axis", 1)
    low, high = _LIMITS[zero.dtype]
    steps, middle = _spread(scale, x, axis), _spread(zero, x, axis).to(x.dtype)
    whole: Tensor = ClampedRound.apply(x, steps, middle, low, high)  # type: ignore[no-untyped-call]
    return whole


def _dequantise(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, scale, zero = inputs
    axis = attribute(node, "axis", 1)
    value: Tensor = (x.to(scale.dtype) - _spread(zero, x, axis).to(scale.dtype)) * _spread(scale, x, axis)
    return value


def _window(node: onnx.NodeProto, x: Tensor, kernel: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Pads (begins, then ends), strides and dilations of a convolution or pooling."""
    rank = x.ndim - 2
    strides, dilations = attribute(node, "strides") or [1] * rank, attribute(node, "dilations") or [1] * rank
    automatic = attribute(node, "auto_pad", b"NOTSET").decode()
    if automatic not in ("SAME_UPPER", "SAME_LOWER"):
        pads = None if automatic == "VALID" else attribute(node, "pads")
        return list(pads or [0] * 2 * rank), strides, dilations
    begins, ends = [], []
    for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if automatic == "SAME_UPPER" else large)
        ends.append(large if automatic == "SAME_UPPER" else small)
    return begins + ends, strides, dilations


def _sides(pads: list[int]) -> list[int]:
    """ONNX's pads as torch orders them: the last axis first."""
    rank = len(pads) // 2
    return [side for index in reversed(range(rank)) for side in (pads[index], pads[index + rank])]


def _conv(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    rank = weight.ndim - 2
    pads, strides, dilations = _window(node, x, list(weight.shape[2:]))
    if pads[:rank] != pads[rank:]:
        x, pads = functional.pad(x, _sides(pads)), [0] * 2 * rank
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    return convolve(x, weight, bias, strides, pads[:rank], dilations, attribute(node, "group", 1))


def _conv_transpose(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    rank = weight.ndim - 2
    if attribute(node, "output_shape") or attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise Unknown
    pads, strides, dilations = _window(node, x, list(weight.shape[2:]))
    more = attribute(node, "output_padding") or [0] * rank
    convolve = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
    groups = attribute(node, "group", 1)
    if pads[:rank] == pads[rank:]:
        return convolve(x, weight, bias, strides, pads[:rank], more, groups, dilations)
    y = convolve(x, weight, bias, strides, 0, more, groups, dilations)
    for axis in range(rank):
        y = y.narrow(axis + 2, pads[axis], y.shape[axis + 2] - pads[axis] - pads[axis + rank])
    return y


def _gemm(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    a, b, c = (*inputs, None)[:3]
    a = a.T if attribute(node, "transA", 0) else a
    b = b.T if attribute(node, "transB", 0) else b
    product: Tensor = attribute(node, "alpha", 1.0) * (a @ b)
    return product if c is None else product + attribute(node, "beta", 1.0) * c


def _pool(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, kernel = inputs[0], attribute(node, "kernel_shape")
    rank = len(kernel)
    pads, strides, dilations = _window(node, x, kernel)
    ceil, even = bool(attribute(node, "ceil_mode", 0)), pads[:rank] == pads[rank:]
    fits = all(2 * pad <= k for pad, k in zip(pads[:rank], kernel, strict=True))
    if (ceil and not (even and fits)) or len([name for name in node.output if name]) > 1:
        raise Unknown
    if node.op_type == "MaxPool":
        pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
        if even and fits:
            return pool(x, kernel, strides, pads[:rank], dilations, ceil)
        return pool(functional.pad(x, _sides(pads), value=-math.inf), kernel, strides, 0, dilations)
    if any(dilation != 1 for dilation in dilations):
        raise Unknown
    average = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    counted = bool(attribute(node, "count_include_pad", 0))
    if even and fits:
        return average(x, kernel, strides, pads[:rank], ceil, counted)
    found = average(functional.pad(x, _sides(pads)), kernel, strides)
    if counted:
        return found
    ones = functional.pad(torch.ones_like(x[:1, :1]), _sides(pads))
    return found / average(ones, kernel, strides)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(1, -1, *[1] * (x.ndim - 2))


def _batch_norm(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, scale, bias, mean, variance = inputs
    factor = scale / torch.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return (x - _per_channel(mean, x)) * _per_channel(factor, x) + _per_channel(bias, x)


def _normalised(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(axes, keepdim=True) + epsilon)


def _instance_norm(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, scale, bias = inputs
    found = _normalised(x, _spatial(x), attribute(node, "epsilon", 1e-5))
    return found * _per_channel(scale, x) + _per_channel(bias, x)


def _layer_norm(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, scale, bias = (*inputs, None)[:3]
    if len([name for name in node.output if name]) > 1:
        raise Unknown
    axes = list(range(attribute(node, "axis", -1) % x.ndim, x.ndim))
    found = _normalised(x, axes, attribute(node, "epsilon", 1e-5)) * scale
    return found if bias is None else found + bias


def _group_norm(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, scale, bias = inputs
    groups = attribute(node, "num_groups")
    parts = x.reshape(x.shape[0], groups, -1)
    found = _normalised(parts, [2], attribute(node, "epsilon", 1e-5)).reshape(x.shape)
    if scale.numel() == groups != x.shape[1]:  # opset 18: one a group
        scale, bias = (value.repeat_interleave(x.shape[1] // groups) for value in (scale, bias))
    return found * _per_channel(scale, x) + _per_channel(bias, x)


def _rms_norm(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, scale = inputs
    axes = list(range(attribute(node, "axis", -1) % x.ndim, x.ndim))
    return x / torch.sqrt(x.square().mean(axes, keepdim=True) + attribute(node, "epsilon", 1e-5)) * scale


def _blocks(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    x, size = inputs[0], attribute(node, "blocksize")
    n, c, h, w = x.shape
    if node.op_type == "SpaceToDepth":
        parts = x.reshape(n, c, h // size, size, w // size, size)
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, c * size * size, h // size, w // size)
    if attribute(node, "mode", b"DCR") == b"DCR":
        return x.reshape(n, size, size, -1, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * size, w * size)
    return x.reshape(n, -1, size, size, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, -1, h * size, w * size)


def _resize(node: onnx.NodeProto, inputs: NodeInputs) -> Tensor:
    """One axis at a time: an index each for "nearest", a matrix of weights for the others."""
    x, _, scales, sizes = (*inputs, None, None, None)[:4]
    mode, place = attribute(node, "mode", b"nearest"), attribute(node, "coordinate_transformation_mode", b"half_pixel")
    policy = attribute(node, "keep_aspect_ratio_policy", b"stretch")
    if attribute(node, "antialias", 0) or policy != b"stretch" or place == b"tf_crop_and_resize":
        raise Unknown
    axes = attribute(node, "axes") or list(range(x.ndim))
    for index, axis in enumerate(axes):
        old = x.shape[axis]
        if sizes is not None and sizes.numel():
            new = int(sizes[index])
            new = old if axis == 0 and new == 1 else new
            scale = new / old
        else:
            scale = float(scales[index])
            new = math.floor(old * scale)
        if scale == 1.0 and new == old:
            continue
        at = _places(place, new, old, scale)
        if mode == b"nearest":
            x = x.index_select(axis, _nearest(attribute(node, "nearest_mode", b"round_prefer_floor"), at, old))
        else:
            weights = _linear(at, old) if mode == b"linear" else _cubic(node, at, old)
            x = torch.movedim(torch.movedim(x, axis, -1) @ weights.to(x.dtype).T, -1, axis)
    return x


def _places(kind: bytes, new: int, old: int, scale: float) -> Tensor:
    """Where in the old axis each index of the new one lies."""
    index = torch.arange(new, dtype=torch.float64)
    match kind:
        case b"asymmetric":
            return index / scale
        case b"align_corners":
            return index * (old - 1) / (new - 1) if new > 1 else torch.zeros_like(index)
        case b"pytorch_half_pixel" if new == 1:
            return torch.zeros_like(index)
        case b"half_pixel" | b"pytorch_half_pixel":
            return (index + 0.5) / scale - 0.5
        case b"half_pixel_symmetric":
            centre = old / 2 * (1 - new / (scale * old))
            return centre + (index + 0.5) / scale - 0.5
    raise Unknown


def _nearest(kind: bytes, at: Tensor, size: int) -> Tensor:
    at = at.float()  # as ONNX Runtime computes it
    match kind:
        case b"floor":
            found = torch.floor(at)
        case b"ceil":
            found = torch.ceil(at)
        case b"round_prefer_ceil":
            found = torch.floor(at + 0.5)
        case _:
            found = torch.ceil(at - 0.5)
    return found.clamp(0, size - 1).long()


def _linear(at: Tensor, size: int) -> Tensor:
    """Weights [new, old]."""
    at = at.clamp(0, size - 1)
    low = torch.floor(at).long().clamp(max=max(size - 2, 0))
    part = at - low
    weights = torch.zeros(len(at), size, dtype=torch.float64)
    rows = torch.arange(len(at))
    weights[rows, low] += 1 - part
    weights[rows, (low + 1).clamp(max=size - 1)] += part
    return weights


def _cubic(node: onnx.NodeProto, at: Tensor, size: int) -> Tensor:
    """Weights [new, old] of Keys' kernel."""
    if attribute(node, "exclude_outside", 0) or attribute(node, "mode") != b"cubic":
        raise Unknown
    a = attribute(node, "cubic_coeff_a", -0.75)
    base = torch.floor(at)
    weights = torch.zeros(len(at), size, dtype=torch.float64)
    rows = torch.arange(len(at))
    for offset in (-1, 0, 1, 2):
        d = (at - base - offset).abs()
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        value = torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
        weights.index_put_((rows, (base + offset).clamp(0, size - 1).long()), value, accumulate=True)
    return weights


def _recurrent(node: onnx.NodeProto, inputs: NodeInputs) -> tuple[Tensor, ...]:
    """LSTM, GRU and RNN in either direction; gates in ONNX's order (i o f c, and z r h)."""
    x, w, r, b, lengths, h0, c0, peepholes = (*inputs, *[None] * 6)[:8]
    plain = all(attribute(node, name) is None for name in ("activations", "clip", "input_forget"))
    if lengths is not None or peepholes is not None or attribute(node, "layout", 0) or not plain:
        raise Unknown
    directions, hidden = w.shape[0], r.shape[2]
    kind = attribute(node, "direction", b"forward")
    batch = x.shape[1]
    zeros = x.new_zeros(batch, hidden)
    outputs, last_h, last_c = [], [], []
    for index in range(directions):
        reverse = kind == b"reverse" or index == 1
        bias = x.new_zeros(2 * w.shape[1]) if b is None else b[index]
        h = zeros if h0 is None else h0[index].expand(batch, hidden)
        c = zeros if c0 is None or node.op_type != "LSTM" else c0[index].expand(batch, hidden)
        steps: list[Tensor] = []
        given = functional.linear(x, w[index], bias[: w.shape[1]])
        for step in range(x.shape[0]):
            part = given[-1 - step if reverse else step]
            h, c = _cell(node, part, h, c, r[index], bias[w.shape[1] :])
            steps.append(h)
        outputs.append(torch.stack(steps[::-1] if reverse else steps))
        last_h.append(h)
        last_c.append(c)
    found = (torch.stack(outputs, 1), torch.stack(last_h))
    return (*found, torch.stack(last_c)) if node.op_type == "LSTM" else found


def _cell(
    node: onnx.NodeProto, given: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """One step: the new hidden and cell state."""
    if node.op_type == "LSTM":
        i, o, f, g = (given + functional.linear(h, weight, bias)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    if node.op_type == "RNN":
        return torch.tanh(given + functional.linear(h, weight, bias)), c
    size = h.shape[-1]
    z, r = torch.sigmoid(given[..., : 2 * size] + functional.linear(h, weight[: 2 * size], bias[: 2 * size])).chunk(
        2, -1
    )
    if attribute(node, "linear_before_reset", 0):
        n = torch.tanh(given[..., 2 * size :] + r * functional.linear(h, weight[2 * size :], bias[2 * size :]))
    else:
        n = torch.tanh(given[..., 2 * size :] + functional.linear(r * h, weight[2 * size :], bias[2 * size :]))
    return (1 - z) * n + z * h, c


LAYERS: Mapping[str, Operator] = {
    "QuantizeLinear": _quantise,
    "DequantizeLinear": _dequantise,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": lambda node, inputs: inputs[0] @ inputs[1],
    "Einsum": lambda node, inputs: torch.einsum(attribute(node, "equation").decode(), *inputs),
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": lambda node, inputs: inputs[0].mean(_spatial(inputs[0]), keepdim=True),
    "GlobalMaxPool": lambda node, inputs: inputs[0].amax(_spatial(inputs[0]), keepdim=True),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "RMSNormalization": _rms_norm,
    "DepthToSpace": _blocks,
    "SpaceToDepth": _blocks,
    "Resize": _resize,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
