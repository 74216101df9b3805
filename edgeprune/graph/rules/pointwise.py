"""Element-wise operators: equal positions go together; a dimension of one position is broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeprune.graph.space import Axis, constant
from edgeprune.graph.walk import Arguments, Rule, Shaped, Walk, shaped_in


def broadcast(walk: Walk, values: Sequence[Shaped]) -> Shaped:
    """Tie the aligned dimensions of several tensors and return the result's axes."""
    ndim = max(v.ndim for v in values)
    axes: list[Axis] = []
    for d in range(ndim):
        column = [v.axes[d - ndim + v.ndim] for v in values if d - ndim + v.ndim >= 0]
        wide = [a for a in column if a.size != 1]
        if not wide:
            live = [a for a in column if a.any()]
            axes.append(live[0] if live else column[0])
            continue
        axis = wide[0]
        for other in wide[1:]:
            axis = walk.unite(axis, other)
        axes.append(axis)
    return Shaped(tuple(axes))


def elementwise(walk: Walk, a: Arguments) -> Any:
    """Any operator whose result at a position depends on its arguments at that position only."""
    values = list(shaped_in(a))
    return broadcast(walk, values) if values else None


def like(walk: Walk, a: Arguments) -> Shaped:
    """A result of the first argument's shape; the other tensors do not matter."""
    value: Shaped = a["self"] if "self" in a else a["input"]
    return value


def prelu(walk: Walk, a: Arguments) -> Shaped:
    """One slope a channel (dimension 1), or one for all."""
    x = a.shaped("self")
    slopes: Axis = a.shaped("weight").axes[0]
    if slopes.size == 1:
        return x
    walk.literal(slopes.size, slopes, "num_parameters")
    return x.replace(1, walk.unite(x.axes[1], slopes))


def nothing(walk: Walk, a: Arguments) -> None:
    """Checks on metadata: no result."""
    return


def glu(walk: Walk, a: Arguments) -> Shaped:
    """Half of the channels gates the other half."""
    x = a.shaped("self")
    dim = a["dim"] % x.ndim
    half = x.axes[dim].size // 2
    return x.replace(dim, walk.unite(x.axes[dim][:half], x.axes[dim][half:]))


def complex_view(walk: Walk, a: Arguments) -> Shaped:
    """Real pairs to complex numbers: the last dimension (2) goes."""
    x = a.shaped("self")
    walk.freeze(x.axes[-1], "a real and an imaginary part")
    return Shaped(x.axes[:-1])


def real_view(walk: Walk, a: Arguments) -> Shaped:
    """Complex numbers to real pairs."""
    return Shaped((*a.shaped("self").axes, constant(2)))


_ELEMENTWISE = [
    "abs",
    "add",
    "addcdiv",
    "addcmul",
    "alias",
    "asin",
    "acos",
    "atan",
    "atan2",
    "atanh",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "ceil",
    "celu",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clip",
    "clone",
    "contiguous",
    "copy",
    "copysign",
    "cos",
    "cosh",
    "detach",
    "div",
    "divide",
    "elu",
    "eq",
    "erf",
    "erfc",
    "exp",
    "exp2",
    "expm1",
    "fill",
    "floor",
    "floor_divide",
    "fmod",
    "frac",
    "ge",
    "gelu",
    "gt",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "isfinite",
    "isinf",
    "isnan",
    "le",
    "leaky_relu",
    "lerp",
    "lift_fresh",
    "lift_fresh_copy",
    "log",
    "log10",
    "log1p",
    "log2",
    "log_sigmoid",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "logit",
    "lt",
    "masked_fill",
    "maximum",
    "minimum",
    "mish",
    "mul",
    "multiply",
    "nan_to_num",
    "ne",
    "neg",
    "negative",
    "ones_like",
    "positive",
    "pow",
    "reciprocal",
    "relu",
    "relu6",
    "remainder",
    "resolve_conj",
    "resolve_neg",
    "round",
    "rrelu",
    "rsqrt",
    "rsub",
    "selu",
    "sgn",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "sinc",
    "sinh",
    "softplus",
    "softshrink",
    "softsign",
    "special_expit",
    "sqrt",
    "square",
    "sub",
    "subtract",
    "tan",
    "tanh",
    "tanhshrink",
    "threshold",
    "to",
    "_to_copy",
    "true_divide",
    "trunc",
    "where",
    "xlogy",
    "zeros_like",
    "zero",
    "dropout",
    "alpha_dropout",
    "native_dropout",
    "float",
    "double",
    "half",
    "bfloat16",
    "int",
    "long",
    "bool",
    "full_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "bernoulli",
    "real",
    "imag",
    "conj",
    "angle",
    "square",
    "expand_as_",
    "_conj",
    "data",
    "__and__",
    "__or__",
    "__xor__",
]

RULES: dict[str, Rule] = dict.fromkeys(_ELEMENTWISE, elementwise)
RULES |= dict.fromkeys(("feature_dropout", "feature_alpha_dropout", "type_as"), like)
RULES |= {"prelu": prelu, "_prelu_kernel": elementwise, "glu": glu}
RULES |= {"view_as_complex": complex_view, "view_as_real": real_view}
RULES |= dict.fromkeys(("_assert_tensor_metadata", "_assert_async", "sym_constrain_range_for_size"), nothing)
