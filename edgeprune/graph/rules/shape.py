"""Operators that move positions: views, permutations, concats, cuts and repeats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edgeprune.graph.rules.pointwise import elementwise
from edgeprune.graph.space import Axis, constant
from edgeprune.graph.walk import Arguments, Rule, RuleError, Shaped, Walk, constant_along


def reshape_axes(walk: Walk, axes: Sequence[Axis], shape: Sequence[int]) -> tuple[Axis, ...]:
    """The axes after a row-major reshape.

    The dimensions fall into the smallest runs with equal products. In a run the cut points of both sides refine each
    other; a side that joins several factors becomes their product (`Space.factor`).
    """
    out: list[Axis] = []
    left, right = list(axes), list(shape)
    while left or right:
        ins = [left.pop(0)] if left else []
        outs = [right.pop(0)] if right else []
        a, b = math.prod(x.size for x in ins), math.prod(outs)
        while a != b:
            if (a < b or not right) and left:
                ins.append(left.pop(0))
                a *= ins[-1].size
            elif right:
                outs.append(right.pop(0))
                b *= outs[-1]
            else:
                raise RuleError("sizes do not multiply out")
        out.extend(_run(walk, ins, outs))
    return tuple(out)


def _run(walk: Walk, ins: Sequence[Axis], outs: Sequence[int]) -> list[Axis]:
    wide = [a for a in ins if a.size != 1]
    sizes = [n for n in outs if n != 1]
    if [a.size for a in wide] == sizes:
        result = list(wide)
    else:
        cuts = sorted(set(_prefixes([a.size for a in wide])) | set(_prefixes(sizes)))
        if any(b % a for a, b in zip([1, *cuts], cuts, strict=False)):
            for axis in wide:
                walk.freeze(axis, "a view across sizes that do not divide each other")
            result = [constant(n) for n in sizes]
        else:
            factors = _split(walk, wide, cuts)
            result = _join(walk, factors, sizes)
    narrow = [a for a in ins if a.size == 1]
    full = iter(result)
    ones = iter(narrow)
    return [next(full) if n != 1 else next(ones, constant(1)) for n in outs]


def _prefixes(sizes: Sequence[int]) -> list[int]:
    return np.cumprod(np.array(sizes, dtype=np.int64)).tolist() if sizes else []


def _factor_sizes(size: int, start: int, cuts: Sequence[int]) -> list[int]:
    """The factors of a dimension that covers the prefix products (start, start * size]."""
    points = [start, *[c for c in cuts if start < c <= start * size]]
    return [b // a for a, b in itertools.pairwise(points)]


def _split(walk: Walk, wide: Sequence[Axis], cuts: Sequence[int]) -> list[Axis]:
    factors: list[Axis] = []
    start = 1
    for axis in wide:
        sizes = _factor_sizes(axis.size, start, cuts)
        start *= axis.size
        if len(sizes) == 1:
            factors.append(axis)
            continue
        grid = axis.reshape(sizes)
        varying = [d for d in range(len(sizes)) if not constant_along(grid, d)]
        parts: list[Axis] = []
        for d, n in enumerate(sizes):
            if d not in varying:
                parts.append(constant(n))
            elif len(varying) == 1:
                index: list[Any] = [0] * len(sizes)
                index[d] = slice(None)
                parts.append(grid[tuple(index)])
            else:
                parts.append(walk.space.fresh(n))
        if len(varying) > 1:
            walk.factor(axis, parts)
        factors.extend(parts)
    return factors


def _join(walk: Walk, factors: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    result: list[Axis] = []
    rest = list(factors)
    for size in sizes:
        parts: list[Axis] = []
        while math.prod(p.size for p in parts) != size or not parts:
            parts.append(rest.pop(0))
        live = [i for i, p in enumerate(parts) if p.any()]
        if len(parts) == 1:
            result.append(parts[0])
        elif not live:
            result.append(constant(size))
        elif len(live) == 1:
            shape = [1] * len(parts)
            shape[live[0]] = parts[live[0]].size
            grid = np.broadcast_to(parts[live[0]].reshape(shape), [p.size for p in parts])
            result.append(np.ascontiguousarray(grid).reshape(-1))
        else:
            joint = walk.space.fresh(size)
            walk.factor(joint, parts)
            result.append(joint)
    return result


def view(walk: Walk, a: Arguments) -> Shaped:
    """view, reshape, flatten, unflatten: sizes written in the call are literals."""
    shape = tuple(int(n) for n in walk.node.meta["val"].shape)
    out = reshape_axes(walk, a.shaped("self").axes, shape)
    written = a.get("size") or a.get("shape")
    if written is not None and len(written) == len(out):
        walk.sources(a["self"], tuple(written))
        for i, (size, axis) in enumerate(zip(written, out, strict=True)):
            walk.literal(size, axis, part=i, sizes=tuple(written))
    elif "sizes" in a:
        walk.sources(a["self"])
        dim = a["dim"] % a.shaped("self").ndim
        for i, size in enumerate(a["sizes"]):
            walk.literal(size, out[dim + i])
    return Shaped(out)


def permute(walk: Walk, a: Arguments) -> Shaped:
    """permute, transpose, t, movedim: read the order from a toy of the same rank."""
    x = a.shaped("self")
    toy = torch.empty(list(range(2, 2 + x.ndim)), device="meta")
    kwargs = {k: v for k, v in a.items() if k != "self"}
    order = [int(n) - 2 for n in walk.node.target(toy, **kwargs).shape]  # type: ignore[operator]
    return Shaped(tuple(x.axes[d] for d in order))


def squeeze(walk: Walk, a: Arguments) -> Shaped:
    """Dimensions of one position go; a prunable dimension never becomes one by accident (see groups)."""
    x = a.shaped("self")
    dims = a.get("dim")
    chosen = range(x.ndim) if dims is None else [d % x.ndim for d in ([dims] if isinstance(dims, int) else dims)]
    return Shaped(tuple(axis for d, axis in enumerate(x.axes) if not (d in chosen and axis.size == 1)))


def unsqueeze(walk: Walk, a: Arguments) -> Shaped:
    """A new dimension of one position."""
    x = a.shaped("self")
    dim = a["dim"] % (x.ndim + 1)
    return Shaped((*x.axes[:dim], constant(1), *x.axes[dim:]))


def expand(walk: Walk, a: Arguments) -> Shaped:
    """A broadcast written out: the new positions repeat one value, so they are free until tied."""
    x = a.shaped("self")
    shape = [int(n) for n in walk.node.meta["val"].shape]
    other: Shaped | None = a.get("other")
    axes = []
    for d, n in enumerate(shape):
        at = d - len(shape) + x.ndim
        if at >= 0 and x.axes[at].size == n:
            axes.append(x.axes[at])
        elif other is not None:
            axes.append(other.axes[d])
        else:
            axes.append(walk.space.fresh(n))
    for d, size in enumerate(a.get("size") or ()):
        walk.literal(size, axes[d])
    return Shaped(tuple(axes))


def repeat(walk: Walk, a: Arguments) -> Shaped:
    """Tiles: position p of tile t has the atom of p."""
    x = a.shaped("self")
    counts: list[int] = list(a["repeats"] if "repeats" in a else a["dims"])
    axes = [constant(1)] * (len(counts) - x.ndim) + list(x.axes)
    counts = [1] * (len(axes) - len(counts)) + counts
    return Shaped(tuple(np.tile(axis, n) for axis, n in zip(axes, counts, strict=True)))


def repeat_interleave(walk: Walk, a: Arguments) -> Shaped:
    """Each position repeated in place."""
    x = a.shaped("self")
    count = a["repeats"]
    if not isinstance(count, int) or a.get("dim") is None:
        raise RuleError("counts that are not one number")
    dim = a["dim"] % x.ndim
    return x.replace(dim, x.axes[dim].repeat(count))


def cat(walk: Walk, a: Arguments) -> Shaped:
    """Concatenate along `dim`; the other dimensions are tied."""
    values: list[Shaped] = [v for v in a["tensors"] if v.shape != (0,)]
    dim = a["dim"] % values[0].ndim
    axes: list[Axis] = []
    for d in range(values[0].ndim):
        if d == dim:
            axes.append(np.concatenate([v.axes[d] for v in values]))
            continue
        axis = values[0].axes[d]
        for v in values[1:]:
            axis = walk.unite(axis, v.axes[d])
        axes.append(axis)
    return Shaped(tuple(axes))


def stack(walk: Walk, a: Arguments) -> Shaped:
    """A new frozen dimension; the others are tied."""
    values: list[Shaped] = a["tensors"]
    dim = a["dim"] % (values[0].ndim + 1)
    axes = list(values[0].axes)
    for v in values[1:]:
        axes = [walk.unite(x, y) for x, y in zip(axes, v.axes, strict=True)]
    return Shaped((*axes[:dim], constant(len(values)), *axes[dim:]))


def even_pieces(walk: Walk, x: Shaped, dim: int, count: int) -> list[Shaped]:
    """Cut into `count` equal pieces that keep the same places, so that an equal cut still fits after narrowing."""
    axis = x.axes[dim]
    pieces = axis.reshape(count, -1)
    if axis.any():
        for i in range(1, count):
            walk.unite(pieces[0], pieces[i])
    return [x.replace(dim, pieces[i]) for i in range(count)]


def chunk(walk: Walk, a: Arguments) -> list[Shaped]:
    """Equal pieces by count; unequal ones freeze."""
    x = a.shaped("self")
    dim = a["dim"] % x.ndim
    sizes = [int(v.shape[dim]) for v in walk.node.meta["val"]]
    if len(set(sizes)) == 1:
        return even_pieces(walk, x, dim, len(sizes))
    walk.freeze(x.axes[dim], "cut into unequal chunks by count")
    return _pieces(x, dim, sizes)


def split(walk: Walk, a: Arguments) -> list[Shaped]:
    """Pieces by size: equal ones keep the same places, unequal ones are groups of their own."""
    x = a.shaped("self")
    dim = a["dim"] % x.ndim
    sizes = [int(v.shape[dim]) for v in walk.node.meta["val"]]
    if len(set(sizes)) == 1:
        pieces = even_pieces(walk, x, dim, len(sizes))
    else:
        pieces = _pieces(x, dim, sizes)
    walk.sources(x)
    written = a.get("split_size") or a.get("split_sizes") or a.get("indices")
    if isinstance(written, int):
        walk.literal(written, pieces[0].axes[dim])
    elif written is not None and "indices" not in a:
        for i, (size, piece) in enumerate(zip(written, pieces, strict=True)):
            walk.literal(size, piece.axes[dim], part=i, sizes=tuple(written))
    return pieces


def _pieces(x: Shaped, dim: int, sizes: Sequence[int]) -> list[Shaped]:
    ends = np.cumsum(sizes)
    return [x.replace(dim, x.axes[dim][end - n : end]) for n, end in zip(sizes, ends, strict=True)]


def unbind(walk: Walk, a: Arguments) -> list[Shaped]:
    """One value a position: the axis must stay."""
    x = a.shaped("self")
    dim = a["dim"] % x.ndim
    walk.freeze(x.axes[dim], "taken apart position by position")
    rest = Shaped((*x.axes[:dim], *x.axes[dim + 1 :]))
    return [rest] * x.axes[dim].size


def select(walk: Walk, a: Arguments) -> Shaped:
    """One position: the axis must stay."""
    x = a.shaped("self")
    dim = a["dim"] % x.ndim
    walk.freeze(x.axes[dim], "a position is picked by number")
    return Shaped((*x.axes[:dim], *x.axes[dim + 1 :]))


def slice_(walk: Walk, a: Arguments) -> Shaped:
    """A range of positions; where it starts and ends are literals."""
    x = a.shaped("self")
    dim = a["dim"] % x.ndim
    axis = x.axes[dim]
    start, end, step = a.get("start"), a.get("end"), a.get("step", 1)
    if "length" in a:
        end = start + a["length"]
    piece = axis[slice(start, end, step)]
    if piece.size != axis.size:
        walk.sources(x)
        if step != 1:
            walk.freeze(axis, "every n-th position is taken")
        for bound in (start, end):
            if bound is not None and 0 < bound < axis.size:
                walk.literal(bound, axis[:bound])
            elif bound is not None and -axis.size < bound < 0:
                walk.literal(-bound, axis[bound:])
    return x.replace(dim, piece)


def reorder(walk: Walk, a: Arguments) -> Shaped:
    """flip, roll: the order along the dimensions matters, so they must stay."""
    x = a.shaped("self")
    dims = a.get("dims")
    for d in dims if dims else range(x.ndim):
        walk.freeze(x.axes[d], "its order changes")
    return x


def index(walk: Walk, a: Arguments) -> Shaped:
    """x[i, :, j]: indexed dimensions must stay; the others pass."""
    x = a.shaped("self")
    where: list[Shaped | None] = list(a["indices"]) + [None] * (x.ndim - len(a["indices"]))
    used = [d for d, i in enumerate(where) if i is not None]
    indexed = [i for i in where if i is not None]
    for d in used:
        walk.freeze(x.axes[d], "picked by an index tensor")
    for i in indexed:
        for axis in i.axes:
            walk.freeze(axis, "used as an index")
    ndim = max(i.ndim for i in indexed)
    shape = walk.node.meta["val"].shape
    at = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    rest = [x.axes[d] for d in range(x.ndim) if d not in used]
    new = [constant(int(n)) for n in shape[at : at + ndim]]
    return Shaped((*rest[:at], *new, *rest[at:]))


def index_select(walk: Walk, a: Arguments) -> Shaped:
    """Positions picked along `dim`."""
    x = a.shaped("self")
    dim = a["dim"] % x.ndim
    walk.freeze(x.axes[dim], "picked by an index tensor")
    return x.replace(dim, constant(a.shaped("index").axes[0].size))


def pixel_shuffle(walk: Walk, a: Arguments) -> Shaped:
    """(C r r, H, W) -> (C, H r, W r): the r x r channels of one output channel go together."""
    x = a.shaped("self")
    r = a["upscale_factor"]
    grid = x.axes[-3].reshape(-1, r * r)
    axis = grid[:, 0]
    for k in range(1, r * r):
        axis = walk.unite(axis, grid[:, k])
    return Shaped((*x.axes[:-3], axis, constant(x.axes[-2].size * r), constant(x.axes[-1].size * r)))


def pixel_unshuffle(walk: Walk, a: Arguments) -> Shaped:
    """(C, H r, W r) -> (C r r, H, W)."""
    x = a.shaped("self")
    r = a["downscale_factor"]
    for axis in x.axes[-2:]:
        walk.freeze(axis, "a position in space")
    return Shaped(
        (*x.axes[:-3], x.axes[-3].repeat(r * r), constant(x.axes[-2].size // r), constant(x.axes[-1].size // r))
    )


def channel_shuffle(walk: Walk, a: Arguments) -> Shaped:
    """(g, C / g) -> (C / g, g) on dimension 1: as the view, transpose and view that it stands for."""
    x = a.shaped("self")
    groups = a["groups"]
    outer, inner = reshape_axes(walk, [x.axes[1]], [groups, x.axes[1].size // groups])
    walk.literal(groups, outer, "groups")
    if inner.any():
        walk.freeze(outer, "the groups of a shuffle: the same places go in each")
    (axis,) = reshape_axes(walk, [inner, outer], [x.axes[1].size])
    return x.replace(1, axis)


def windows(walk: Walk, a: Arguments) -> Shaped:
    """Tensor.unfold: windows along a dimension that must stay."""
    x = a.shaped("self")
    dim = a["dimension"] % x.ndim
    walk.freeze(x.axes[dim], "cut into sliding windows")
    shape = walk.node.meta["val"].shape
    return Shaped((*x.replace(dim, constant(int(shape[dim]))).axes, constant(int(shape[-1]))))


def select_as_elementwise(walk: Walk, a: Arguments) -> Any:
    """copy_ and expand_as-like writes: tied position by position."""
    return elementwise(walk, Arguments(self=a["self"], src=a["src"]))


RULES: dict[str, Rule] = dict.fromkeys(
    ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as"), view
)
RULES |= dict.fromkeys(
    ("permute", "transpose", "t", "movedim", "swapaxes", "swapdims", "numpy_T", "mT", "moveaxis"), permute
)
RULES |= {"squeeze": squeeze, "unsqueeze": unsqueeze, "expand": expand, "expand_as": expand, "broadcast_to": expand}
RULES |= {"repeat": repeat, "tile": repeat, "repeat_interleave": repeat_interleave}
RULES |= {"cat": cat, "concat": cat, "concatenate": cat, "stack": stack}
RULES |= {"chunk": chunk, "split": split, "split_with_sizes": split, "tensor_split": split}
RULES |= {"unbind": unbind, "select": select, "slice": slice_, "narrow": slice_, "copy": select_as_elementwise}
RULES |= {"flip": reorder, "roll": reorder, "index": index, "index_select": index_select}
RULES |= {"pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle, "channel_shuffle": channel_shuffle}
RULES |= {"unfold": windows}
