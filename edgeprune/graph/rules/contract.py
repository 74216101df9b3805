"""Layers and products: convolution, linear, embedding, matmul, einsum and attention."""

from __future__ import annotations

import math
from typing import Any

from edgeprune.graph.capture import owner_of
from edgeprune.graph.rules.pointwise import broadcast
from edgeprune.graph.space import Axis, constant
from edgeprune.graph.walk import Arguments, Call, Rule, RuleError, Shaped, Walk, frozen_like


def record(walk: Walk, kind: str, weight: Shaped, inputs: Axis, outputs: Axis, per_pair: float, **more: Any) -> None:
    """Remember this call as a layer; `per_pair` is multiply-accumulates a pair of one input and one output channel."""
    parameter = more.pop("parameter", None) or walk.parameter_of("weight", 1)
    walk.calls.append(
        Call(
            node=walk.path + walk.node.name,
            module=owner_of(walk.node),
            kind=kind,
            weight=parameter,
            weight_shape=weight.shape,
            inputs=inputs,
            outputs=outputs,
            in_size=more.pop("in_size", ()),
            out_size=more.pop("out_size", ()),
            macs_per_pair=per_pair,
            **more,
        )
    )


def convolution(walk: Walk, a: Arguments) -> Shaped:
    """conv1d/2d/3d and their transposes; grouped ones lose whole groups, or the same places in each."""
    x = a.shaped("input")
    w = a.shaped("weight")
    name = str(walk.node.target)
    transposed = "transpose" in name
    dims = w.ndim - 2
    groups: int = a["groups"]
    batched = x.ndim == w.ndim
    channel = 1 if batched else 0
    axis = x.axes[channel]
    out_side, in_side = (w.axes[1], w.axes[0]) if transposed else (w.axes[0], w.axes[1])
    for extra in w.axes[2:]:
        walk.freeze(extra, "a position in the kernel")
    padding = a["padding"] if isinstance(a["padding"], str) else _sizes(a["padding"], dims)
    stride = _sizes(a["stride"], dims)
    space: list[Axis] = []
    for d, (place, n) in enumerate(zip(x.axes[channel + 1 :], walk.node.meta["val"].shape[channel + 1 :], strict=True)):
        if w.shape[2 + d] == stride[d] == 1 and not isinstance(padding, str) and padding[d] == 0:
            space.append(place)  # each place by itself
        else:
            walk.freeze(place, "a position in space")
            space.append(constant(int(n)))
    if groups == 1:
        axis = walk.unite(axis, in_side)
        out = out_side
    elif transposed:
        out = _grouped_transposed(walk, axis, in_side, out_side, groups)
    else:
        out = _grouped(walk, axis, in_side, out_side, groups)
    if a.get("bias") is not None:
        out = walk.unite(out, a.shaped("bias").axes[0])
    walk.literal(axis.size, axis, "in_channels")
    walk.literal(out.size, out, "out_channels")
    shape = [int(n) for n in walk.node.meta["val"].shape]
    space_out = tuple(shape[channel + 1 :])
    space_in = x.shape[channel + 1 :]
    kernel = math.prod(w.shape[2:])
    per_pair = kernel * math.prod(space_in if transposed else space_out) * (x.shape[0] if batched else 1)
    record(
        walk, ("conv_transpose" if transposed else "conv") + f"{dims}d", w, axis, out, per_pair, in_size=space_in,
        out_size=space_out, stride=stride, padding=padding, dilation=_sizes(a["dilation"], dims),
        groups=groups, batch=x.shape[0] if batched else 1,
    )  # fmt: skip
    return Shaped((*x.axes[:channel], out, *space))


def _sizes(value: Any, dims: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * dims if len(values) == 1 else values)


def _grouped(walk: Walk, axis: Axis, in_side: Axis, out_side: Axis, groups: int) -> Axis:
    """x: (groups, inner), weight: ((groups, outer), inner)."""
    outer = out_side.size // groups
    if in_side.size == 1 and outer == 1:
        result = walk.unite(out_side, axis)
        walk.literal(groups, result, "groups")
        return result
    group = axis if in_side.size == 1 else walk.space.fresh(groups)
    if in_side.size > 1:
        walk.factor(axis, (group, in_side), "a grouped convolution")
    outer_axis = walk.space.fresh(outer) if outer > 1 else constant(1)
    walk.factor(out_side, (group, outer_axis), "a grouped convolution")
    walk.literal(groups, group, "groups")
    return out_side


def _grouped_transposed(walk: Walk, axis: Axis, in_side: Axis, out_side: Axis, groups: int) -> Axis:
    """x: (groups, inner), weight: ((groups, inner), outer); the output is (groups, outer)."""
    axis = walk.unite(axis, in_side)
    if axis.size == groups and out_side.size == 1:
        walk.literal(groups, axis, "groups")
        return axis
    inner = axis.size // groups
    group = axis if inner == 1 else walk.space.fresh(groups)
    if inner > 1:
        walk.factor(axis, (group, walk.space.fresh(inner)), "a grouped convolution")
    walk.literal(groups, group, "groups")
    if out_side.size == 1:
        return group
    out = walk.space.fresh(groups * out_side.size)
    walk.factor(out, (group, out_side), "a grouped convolution")
    return out


def linear(walk: Walk, a: Arguments) -> Shaped:
    """y = x W^T + b."""
    x = a.shaped("input")
    w = a.shaped("weight")
    axis = walk.unite(x.axes[-1], w.axes[1])
    out = w.axes[0]
    if a.get("bias") is not None:
        out = walk.unite(out, a.shaped("bias").axes[0])
    walk.literal(axis.size, axis, "in_features")
    walk.literal(out.size, out, "out_features")
    rows = math.prod(x.shape[:-1])
    record(walk, "linear", w, axis, out, rows, in_size=x.shape[1:-1], out_size=x.shape[1:-1], batch=x.shape[0])
    return Shaped((*x.axes[:-1], out))


def embedding(walk: Walk, a: Arguments) -> Shaped:
    """Rows are picked by index and stay; columns are channels."""
    w = a.shaped("weight")
    walk.freeze(w.axes[0], "rows are picked by index")
    for axis in a.shaped("indices").axes:
        walk.freeze(axis, "an index")
    walk.literal(w.axes[1].size, w.axes[1], "embedding_dim")
    walk.calls.append(
        Call(
            walk.path + walk.node.name, owner_of(walk.node), "embedding", walk.parameter_of("weight", 0), w.shape,
            constant(0), w.axes[1], a.shaped("indices").shape[1:], a.shaped("indices").shape[1:],
        )
    )  # fmt: skip
    return Shaped((*a.shaped("indices").axes, w.axes[1]))


def matmul(walk: Walk, a: Arguments) -> Shaped:
    """Contract the last axis of the first with the second last of the second; the leading ones broadcast."""
    x: Shaped = a.get("self") or a["batch1"]
    y: Shaped | None = a.get("other") or a.get("mat2") or a.get("vec") or a.get("tensor")
    if y is None:
        raise RuleError("no second factor")
    return _product(walk, x, y)


def _product(walk: Walk, x: Shaped, y: Shaped) -> Shaped:
    inner = y.axes[-2] if y.ndim > 1 else y.axes[-1]
    weighted = any(walk.is_weight(name, i) for i, name in enumerate(("self", "other")))
    if not weighted:
        walk.contract(inner)
    walk.unite(x.axes[-1], inner)
    lead_x = Shaped(x.axes[:-2]) if x.ndim > 2 else Shaped(())
    lead_y = Shaped(y.axes[:-2]) if y.ndim > 2 else Shaped(())
    lead = broadcast(walk, [lead_x, lead_y]) if lead_x.ndim or lead_y.ndim else Shaped(())
    if not weighted:
        walk.heads.extend(lead.axes)
    rows = (x.axes[-2],) if x.ndim > 1 else ()
    cols = (y.axes[-1],) if y.ndim > 1 else ()
    return Shaped((*lead.axes, *rows, *cols))


def addmm(walk: Walk, a: Arguments) -> Shaped:
    """bias + x y."""
    product = _product(walk, a.get("mat1") or a["batch1"], a.get("mat2") or a["batch2"])
    return broadcast(walk, [product, a["self"]])


def einsum(walk: Walk, a: Arguments) -> Shaped:
    """One axis a letter."""
    equation = a["equation"].replace(" ", "")
    if "." in equation:
        raise RuleError("an ellipsis")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        right = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    letters: dict[str, Axis] = {}
    for term, value in zip(terms, a["tensors"], strict=True):
        for letter, axis in zip(term, value.axes, strict=True):
            seen = letters.get(letter)
            if seen is None or seen.size == 1:
                letters[letter] = axis
            elif axis.size != 1:
                letters[letter] = walk.unite(seen, axis)
    contracted = len(terms) > 1 and any(letter not in right for letter in letters)
    for letter, axis in letters.items():
        if contracted and letter not in right:
            walk.contract(axis)
        elif contracted and all(letter in term for term in terms):
            walk.heads.append(axis)
    return Shaped(tuple(letters[c] for c in right))


def attention(walk: Walk, a: Arguments) -> Shaped:
    """softmax(q k^T s) v. The width of q and k sets the scale where none is given, so then it stays."""
    q, k, v = a["query"], a["key"], a["value"]
    width = walk.unite(q.axes[-1], k.axes[-1])
    if a.get("scale") is None:
        walk.freeze(width, "the width of query and key sets attention's scale")
    walk.contract(width)
    walk.unite(k.axes[-2], v.axes[-2])
    for axis in (q.axes[-2], k.axes[-2]):
        walk.freeze(axis, "a position in the sequence")
    lead: list[Axis] = []
    for d in range(q.ndim - 2):
        trio = [q.axes[d], k.axes[d], v.axes[d]]
        if a.get("enable_gqa") and 1 < k.axes[d].size < q.axes[d].size:  # one head of keys for several of queries
            trio = [trio[0], *[t.repeat(q.axes[d].size // t.size) for t in trio[1:]]]
        lead.extend(broadcast(walk, [Shaped((t,)) for t in trio]).axes)
    walk.heads.extend(lead)
    out = Shaped((*lead, q.axes[-2], v.axes[-1]))
    if a.get("attn_mask") is not None:
        broadcast(walk, [Shaped((*lead, q.axes[-2], k.axes[-2])), a["attn_mask"]])
    return out


def bilinear(walk: Walk, a: Arguments) -> Any:
    """No pruning through bilinear layers."""
    for axis in a.shaped("weight").axes:
        walk.freeze(axis, "a bilinear layer")
    for axis in (a.shaped("input1").axes[-1], a.shaped("input2").axes[-1]):
        walk.freeze(axis, "a bilinear layer")
    return frozen_like(walk.node.meta["val"])


RULES: dict[str, Rule] = dict.fromkeys(
    ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), convolution
)
RULES |= {"linear": linear, "embedding": embedding, "einsum": einsum, "bilinear": bilinear}
RULES |= dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), matmul)
RULES |= {"addmm": addmm, "baddbmm": addmm, "scaled_dot_product_attention": attention}
