"""Pools, resizes and shifts: leading dimensions pass through, the spatial ones are frozen."""

from __future__ import annotations

from typing import Any

from edgeprune.graph.space import constant
from edgeprune.graph.walk import Arguments, Rule, Shaped, Walk, frozen_like


def spatial(dims: int, results: int = 1) -> Rule:
    """A rule for an operator over the last `dims` dimensions."""

    def rule(walk: Walk, a: Arguments) -> Any:
        x: Shaped = a.get("self") or a["input"]
        for axis in x.axes[-dims:]:
            walk.freeze(axis, "a position in space")
        value = walk.node.meta["val"]
        if results == 1:
            return Shaped(x.axes[:-dims] + frozen_like(value).axes[-dims:])
        return [Shaped(x.axes[:-dims] + frozen_like(v).axes[-dims:]) for v in value]

    return rule


def pad(walk: Walk, a: Arguments) -> Shaped:
    """Padding is a concat with positions that must stay: a constant along dimension d, else space only."""
    x = a.shaped("self")
    amounts = list(a["pad"])
    axes = list(x.axes)
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        if not before and not after:
            continue
        d = x.ndim - 1 - i
        size = walk.node.meta["val"].shape[d]
        axis = axes[d]
        if not axis.any():
            axes[d] = constant(size)
        elif before >= 0 and after >= 0 and a.get("mode", "constant") == "constant" and "value" in a:
            walk.freeze(axis, "padded with a constant along its channels")
            axes[d] = constant(size)
        else:
            walk.freeze(axis, "padded along its channels")
            axes[d] = constant(size)
    return Shaped(tuple(axes))


def grid_sample(walk: Walk, a: Arguments) -> Shaped:
    """Sampling in space: channels pass, the grid is frozen."""
    x = a.shaped("input")
    for axis in (*x.axes[2:], *a.shaped("grid").axes):
        walk.freeze(axis, "a position in space")
    return Shaped((*x.axes[:2], *frozen_like(walk.node.meta["val"]).axes[2:]))


def im2col(walk: Walk, a: Arguments) -> Shaped:
    """Sliding windows: channel c becomes the columns c*k ... c*k + k - 1."""
    x = a.shaped("self")
    kernel = a["kernel_size"][0] * a["kernel_size"][1]
    for axis in x.axes[-2:]:
        walk.freeze(axis, "a position in space")
    out = frozen_like(walk.node.meta["val"])
    return Shaped((*x.axes[:-3], x.axes[-3].repeat(kernel), out.axes[-1]))


def col2im(walk: Walk, a: Arguments) -> Shaped:
    """The inverse of im2col."""
    x = a.shaped("self")
    kernel = a["kernel_size"][0] * a["kernel_size"][1]
    grid = x.axes[-2].reshape(-1, kernel)
    axis = grid[:, 0]
    for k in range(1, kernel):
        axis = walk.unite(axis, grid[:, k])
    walk.freeze(x.axes[-1], "a position in space")
    out = frozen_like(walk.node.meta["val"])
    return Shaped((*x.axes[:-2], axis, *out.axes[-2:]))


RULES: dict[str, Rule] = {}
for _n in (1, 2, 3):
    for _name in ("max_pool{}d", "avg_pool{}d", "adaptive_avg_pool{}d", "_adaptive_avg_pool{}d", "lp_pool{}d"):
        RULES[_name.format(_n)] = spatial(_n)
    for _name in ("max_pool{}d_with_indices", "adaptive_max_pool{}d", "fractional_max_pool{}d"):
        RULES[_name.format(_n)] = spatial(_n, 2)
    for _name in ("reflection_pad{}d", "replication_pad{}d"):
        RULES[_name.format(_n)] = spatial(_n)
    RULES[f"upsample_nearest{_n}d"] = spatial(_n)
    RULES[f"_upsample_nearest_exact{_n}d"] = spatial(_n)
RULES |= {"upsample_linear1d": spatial(1), "upsample_trilinear3d": spatial(3)}
for _name in ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"):
    RULES[_name] = spatial(2)
RULES |= {"pad": pad, "constant_pad_nd": pad, "grid_sampler": grid_sample, "grid_sampler_2d": grid_sample}
RULES |= {"im2col": im2col, "col2im": col2im}
