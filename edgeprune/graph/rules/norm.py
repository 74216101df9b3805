"""Normalisations and reductions. A statistic over a narrowed axis is taken over what is kept (see prove)."""

from __future__ import annotations

from typing import Any

from edgeprune.graph.rules.pointwise import elementwise
from edgeprune.graph.space import Axis, constant
from edgeprune.graph.walk import Arguments, Rule, Shaped, Walk, frozen_like, operator_name


def batch_norm(walk: Walk, a: Arguments) -> Any:
    """Per-channel statistics on dimension 1."""
    x = a.shaped("input")
    axis = x.axes[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if a.get(name) is not None:
            axis = walk.unite(axis, a[name].axes[0])
            walk.literal(axis.size, a[name].axes[0], "num_features")
    out = x.replace(1, axis)
    value = walk.node.meta["val"]
    if isinstance(value, tuple | list):
        return [out, *[frozen_like(v) for v in value[1:]]]
    return out


def layer_norm(walk: Walk, a: Arguments) -> Any:
    """Statistics over the last dimensions; scale and shift go with them."""
    x = a.shaped("input")
    shape = list(a["normalized_shape"])
    axes = list(x.axes)
    for i, size in enumerate(shape):
        d = x.ndim - len(shape) + i
        for name in ("weight", "bias"):
            if a.get(name) is not None:
                axes[d] = walk.unite(axes[d], a[name].axes[i])
        walk.literal(size, axes[d], "normalized_shape", i)
    out = Shaped(tuple(axes))
    value = walk.node.meta["val"]
    return [out, *[frozen_like(v) for v in value[1:]]] if isinstance(value, tuple | list) else out


def group_norm(walk: Walk, a: Arguments) -> Any:
    """Whole groups go, or the same places in every group."""
    x = a.shaped("input")
    axis: Axis = x.axes[1]
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            axis = walk.unite(axis, a[name].axes[0])
    count: int = a["num_groups"] if "num_groups" in a else a["group"]
    walk.literal(axis.size, axis, "num_channels")
    if axis.any() and count > 1:
        if count == axis.size:
            walk.literal(count, axis, "num_groups")
        else:
            groups, inner = walk.space.fresh(count), walk.space.fresh(axis.size // count)
            walk.factor(axis, (groups, inner), "normalised in groups")
            walk.literal(count, groups, "num_groups")
    out = x.replace(1, axis)
    value = walk.node.meta["val"]
    return [out, *[frozen_like(v) for v in value[1:]]] if isinstance(value, tuple | list) else out


def keeps_shape(walk: Walk, a: Arguments) -> Shaped:
    """softmax and the like: the statistic is over what is kept."""
    return a.shaped("self")


def weight_norm(walk: Walk, a: Arguments) -> Any:
    """v scaled to the length g along all dimensions but `dim`: the length is over what is kept."""
    v = a.shaped("v")
    g = a.shaped("g")
    dim = a.get("dim") or 0
    axis = walk.unite(v.axes[dim], g.axes[dim]) if g.ndim == v.ndim else v.axes[dim]
    out = v.replace(dim, axis)
    return [out, g] if isinstance(walk.node.meta["val"], tuple | list) else out


def reduce(walk: Walk, a: Arguments) -> Any:
    """mean, sum, amax, norm, ...: the reduced dimensions go, or stay with one position."""
    x = a.shaped("self")
    if isinstance(a.get("other"), Shaped):
        return elementwise(walk, a)
    dims = a.get("dim")
    if dims is not None and operator_name(walk.node) in ("max", "min"):
        walk.freeze(x.axes[dims], "the position of its largest or smallest value is asked for")
    if dims is None or dims == []:
        chosen = set(range(x.ndim))
    else:
        chosen = {d % x.ndim for d in ([dims] if isinstance(dims, int) else dims)} if x.ndim else set()
    keep = bool(a.get("keepdim"))
    axes = [constant(1) if d in chosen else axis for d, axis in enumerate(x.axes) if keep or d not in chosen]
    out = Shaped(tuple(axes))
    value = walk.node.meta["val"]
    return [out] * len(value) if isinstance(value, tuple | list) else out


def positional(walk: Walk, a: Arguments) -> Any:
    """argmax, topk, sort, cumsum: positions along `dim` matter, so that axis stays."""
    x = a.shaped("self")
    dim = a.get("dim")
    dims = range(x.ndim) if dim is None else [dim % x.ndim]
    for d in dims:
        walk.freeze(x.axes[d], "its order matters")
    value = walk.node.meta["val"]
    first = value[0] if isinstance(value, tuple | list) else value
    shape = tuple(first.shape)
    if len(shape) == x.ndim:
        axes = tuple(constant(int(n)) if d in dims else x.axes[d] for d, n in enumerate(shape))
    else:
        axes = tuple(axis for d, axis in enumerate(x.axes) if d not in dims)
    out = Shaped(axes)
    return [out] * len(value) if isinstance(value, tuple | list) else out


RULES: dict[str, Rule] = dict.fromkeys(
    ("batch_norm", "_native_batch_norm_legit", "instance_norm", "native_batch_norm"), batch_norm
)
RULES |= {"layer_norm": layer_norm, "native_layer_norm": layer_norm, "rms_norm": layer_norm}
RULES |= {"group_norm": group_norm, "native_group_norm": group_norm}
RULES |= {"_weight_norm": weight_norm, "_weight_norm_interface": weight_norm}
RULES |= dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin"), keeps_shape)
RULES |= dict.fromkeys(
    [
        "mean",
        "sum",
        "amax",
        "amin",
        "std",
        "var",
        "var_mean",
        "std_mean",
        "norm",
        "linalg_vector_norm",
        "logsumexp",
        "prod",
        "any",
        "all",
        "max",
        "min",
    ],
    reduce,
)
RULES |= dict.fromkeys(
    ["argmax", "argmin", "topk", "sort", "argsort", "cumsum", "cumprod", "median", "mode", "kthvalue"], positional
)
