"""Every operator alone, and pairs of them (Hypothesis), between convolutions in each dialect.

What is written lints clean, is as close to float as the operators alone let one expect, and every layer that was meant
to runs in INT8 by the runtimes' own profilers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeprune.quantize import apply, calibrate, lint
from edgeprune.quantize.check.kernels import in_float
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import running
from .nets import Net

FAST = QuantizeSection(method="minmax", equalize=False, bias_correction=False)
IMAGES = np.random.default_rng(0).random((6, 3, 8, 8), np.float32)
C = 16  # channels of what an operator reads and gives
MORE = 6.0  # dB by which a pair may be noisier than both alone
Middle = Callable[[Net, str], str]


def ints(net: Net, *values: int) -> str:
    return net.constant(f"ints{len(net.constants)}", np.array(values, np.int64))


def floats(net: Net, *values: float) -> str:
    return net.constant(f"floats{len(net.constants)}", np.array(values, np.float32))


def number(net: Net, value: float) -> str:
    return net.constant(f"number{len(net.constants)}", np.array(value, np.float32))


def conv(net: Net, x: str, c_in: int = C, c_out: int = C, k: int = 1) -> str:
    return net.conv(x, f"conv{len(net.constants)}", c_in, c_out, k)


def plain(operator: str, **attributes: object) -> Middle:
    return lambda net, x: net.node(operator, x, **attributes)


def vector(net: Net, size: int = C, *rest: int) -> str:
    return net.constant(f"v{len(net.constants)}", net.rng.random((size, *rest)).astype(np.float32) + 0.5)


def silu(net: Net, x: str) -> str:
    return net.node("Mul", x, net.node("Sigmoid", x))


def gelu(net: Net, x: str) -> str:
    erf = net.node("Add", net.node("Erf", net.node("Div", x, number(net, 2**0.5))), number(net, 1))
    return net.node("Mul", net.node("Mul", x, erf), number(net, 0.5))


def shuffle(net: Net, x: str) -> str:
    apart = net.node("Transpose", net.node("Reshape", x, ints(net, 1, 2, C // 2, -1, 8)), perm=[0, 2, 1, 3, 4])
    return net.node("Reshape", apart, ints(net, 1, C, -1, 8))


def halves(net: Net, x: str) -> str:
    """Split, a layer on one half, Concat."""
    name = f"/Split_{net.count + 1}"
    first = net.node("Split", x, ints(net, C // 2, C // 2), name=name, axis=1)
    net.nodes[-1].output.append(f"{name}_other")
    return net.node("Concat", first, conv(net, f"{name}_other", C // 2, C // 2), axis=1)


def cropped(net: Net, x: str) -> str:
    inner = net.node("Slice", x, ints(net, 1), ints(net, 7), ints(net, 2))
    return net.node("Pad", inner, ints(net, 0, 0, 1, 0, 0, 0, 1, 0))


def gathered(net: Net, x: str) -> str:
    return net.node("Gather", x, ints(net, *reversed(range(C))), axis=1)


def resized(mode: str) -> Middle:
    def middle(net: Net, x: str) -> str:
        y = net.node("Resize", x, "", floats(net, 1, 1, 2, 2), mode=mode)
        return net.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])

    return middle


def depth_to_space(net: Net, x: str) -> str:
    y = net.node("DepthToSpace", conv(net, x, C, 4 * C), blocksize=2)
    return net.node("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])


def space_to_depth(net: Net, x: str) -> str:
    return net.node("DepthToSpace", net.node("SpaceToDepth", x, blocksize=2), blocksize=2)


def transposed(net: Net, x: str) -> str:
    weight = net.constant(f"up{len(net.constants)}", net.rng.normal(0, 0.2, (C, C, 2, 2)).astype(np.float32))
    y = net.node("ConvTranspose", x, weight, kernel_shape=[2, 2], strides=[2, 2])
    return net.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])


def linear(net: Net, x: str) -> str:
    tokens = net.node("Transpose", net.node("Reshape", x, ints(net, 1, C, 64)), perm=[0, 2, 1])
    weight = net.constant(f"w{len(net.constants)}", net.rng.normal(0, C**-0.5, (C, C)).astype(np.float32))
    tokens = net.node("Add", net.node("MatMul", tokens, weight), vector(net))
    return net.node("Reshape", net.node("Transpose", tokens, perm=[0, 2, 1]), ints(net, 1, C, 8, 8))


def excited(net: Net, x: str) -> str:
    return net.node("Mul", x, net.node("Sigmoid", conv(net, net.node("GlobalAveragePool", x))))


def normed(net: Net, x: str) -> str:
    return net.node("LayerNormalization", x, vector(net, 8), axis=-1)


def einsum(net: Net, x: str) -> str:
    weight = net.constant(f"e{len(net.constants)}", net.rng.normal(0, 0.25, (C, C)).astype(np.float32))
    return net.node("Einsum", x, weight, equation="nchw,cd->ndhw")


def recurrent(operator: str, gates: int) -> Middle:
    def middle(net: Net, x: str) -> str:
        steps = net.node("Transpose", net.node("Reshape", x, ints(net, 1, C, 64)), perm=[2, 0, 1])
        size = (1, gates * C, C)
        w, r = (net.constant(f"{n}{net.count}", net.rng.normal(0, 0.2, size).astype(np.float32)) for n in "wr")
        found = net.node("Squeeze", net.node(operator, steps, w, r, hidden_size=C), ints(net, 1))
        return net.node("Reshape", net.node("Transpose", found, perm=[1, 2, 0]), ints(net, 1, C, 8, 8))

    return middle


MIDDLES: dict[str, Middle] = {
    **{name: plain(name) for name in ("Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu")},
    "PRelu": lambda net, x: net.node("PRelu", x, vector(net, C, 1, 1)),
    "Clip": lambda net, x: net.clip(x, 1.5),
    "Softmax": plain("Softmax", axis=1),
    "SiLU": silu,
    "GELU": gelu,
    "Add": lambda net, x: net.node("Add", x, conv(net, x)),
    "Mul": lambda net, x: net.node("Mul", x, conv(net, x)),
    "Concat": lambda net, x: conv(net, net.node("Concat", x, conv(net, x), axis=1), 2 * C, C),
    "MaxPool": plain("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool": plain("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool, border counted": plain("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "channel shuffle": shuffle,
    "Split": halves,
    "Slice and Pad": cropped,
    "Gather": gathered,
    "nearest Resize": resized("nearest"),
    "linear Resize": resized("linear"),
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "ConvTranspose": transposed,
    "MatMul": linear,
    "squeeze and excite": excited,
    "LayerNormalization": normed,
    "InstanceNormalization": lambda net, x: net.node("InstanceNormalization", x, vector(net), vector(net)),
    "BatchNormalization": lambda net, x: net.node(
        "BatchNormalization", net.relu(x), vector(net), vector(net), vector(net), vector(net)
    ),
    "depthwise": lambda net, x: net.conv(x, f"d{len(net.constants)}", C, C, 3, group=C),
    "Tile": lambda net, x: conv(net, net.node("Tile", x, ints(net, 1, 2, 1, 1)), 2 * C, C),
    "Einsum": einsum,
    "LSTM": recurrent("LSTM", 4),
    "GRU": recurrent("GRU", 3),
}
NAMES = ("openvino", "openvino-avx2", "ort-x86", "ort-x86-avx2", "ort-arm64", "tensorrt-a", "tensorrt-b")
FLOATING = ("Conv", "FusedConv", "Gemm", "FusedGemm", "FusedMatMul", "MatMul")


@cache
def model(names: tuple[str, ...]) -> onnx.ModelProto:
    """A convolution, the operators with one between each two, and a convolution."""
    net = Net(size=8)
    x = net.conv("input", "first", 3, C)
    for index, name in enumerate(names):
        x = conv(net, x, k=3) if index else x
        x = MIDDLES[name](net, x)
    return net.model(net.conv(x, "last", C, 8))


@cache
def noise(names: tuple[str, ...], dialect: str) -> float:
    """Noise over signal of the graph as it is written; lint and the profile have nothing against it."""
    chosen, exact = DIALECTS[dialect], model(names)
    found = apply(exact, calibrate(exact, list(IMAGES), chosen, FAST), chosen)
    assert [str(finding) for finding in lint(found, chosen)] == []
    feeds = {"input": IMAGES[:1]}
    if dialect == "ort-x86":
        wanted = 1 if "Einsum" in names else 0  # a float product
        ran = running.kernels(found, feeds)
        assert sum(ran[kind] for kind in FLOATING) <= wanted * names.count("Einsum"), ran
    elif dialect == "openvino":
        assert [str(finding) for finding in in_float(found, running.openvino_kernels(found, feeds), chosen)] == []
    rows = [(running.outputs(one, {"input": i[None]})[0] for one in (exact, found)) for i in IMAGES]
    pairs = [tuple(row) for row in rows]
    decibels = running.sqnr(*(np.concatenate([pair[side] for pair in pairs]) for side in (0, 1)))
    return float(10 ** (-decibels / 10))


@pytest.mark.long
@pytest.mark.parametrize("dialect", NAMES)
@pytest.mark.parametrize("name", MIDDLES)
def test_an_operator_alone(name: str, dialect: str) -> None:
    assert noise((name,), dialect) < 10**-2.0  # 20 dB


@pytest.mark.long
@pytest.mark.parametrize("dialect", NAMES)
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(pair=st.tuples(st.sampled_from(sorted(MIDDLES)), st.sampled_from(sorted(MIDDLES))))
def test_a_pair_is_as_close_as_both_alone_let_expect(dialect: str, pair: tuple[str, str]) -> None:
    expected = noise(pair[:1], dialect) + noise(pair[1:], dialect)
    assert noise(pair, dialect) < 10 ** (MORE / 10) * expected, pair
