"""Every operator of the torch table against ONNX Runtime: the same outputs, and a gradient where there must be one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeprune.quantize import inference_session
from edgeprune.quantize.train import operators
from edgeprune.quantize.train.interpret import constants, interpret

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return (RNG.random(shape) + 0.1).astype(np.float32)


def ints(*values: Any) -> np.ndarray:
    return np.array(values[0] if len(values) == 1 and isinstance(values[0], list) else list(values), np.int64)


X = floats(2, 4, 6, 6)
ONE = [
    *("Abs", "Neg", "Exp", "Erf", "Sin", "Cos", "Tanh", "Sinh", "Cosh", "Asinh"),
    *("Atan", "Floor", "Ceil", "Round", "Sign", "Relu", "Sigmoid", "Elu", "Selu", "Celu"),
    *("Softplus", "Softsign", "HardSigmoid", "HardSwish", "Mish", "LeakyRelu", "Softmax", "LogSoftmax"),
    *("Identity", "IsNaN", "Tan"),
]  # fmt: skip

# name -> operator, inputs (None: left out), attributes
CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    **{name: (name, [X], {}) for name in ONE},
    **{name: (name, [positive(2, 3)], {}) for name in ("Log", "Sqrt", "Reciprocal")},
    **{name: (name, [0.9 * np.tanh(floats(2, 3))], {}) for name in ("Asin", "Acos", "Atanh")},
    "Acosh": ("Acosh", [1 + positive(3)], {}),
    **{name: (name, [X, floats(4, 1, 6)], {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")},
    "Max of three": ("Max", [X, floats(6), floats(4, 1, 1)], {}),
    "Div of integers": ("Div", [ints(7, -7, 9), ints(2, 2, -4)], {}),
    "Mod": ("Mod", [ints(7, -7, 9), ints(3, 3, -4)], {}),
    "Mod of floats": ("Mod", [floats(5), positive(5)], {"fmod": 1}),
    "Pow": ("Pow", [positive(2, 3), np.array(2.5, np.float32)], {}),
    "Pow of an integer": ("Pow", [X, ints(2).reshape(())], {}),
    "Clip": ("Clip", [X, np.float32(-0.5), np.float32(0.7)], {}),
    "Clip of one side": ("Clip", [X, None, np.float32(0.7)], {}),
    "PRelu": ("PRelu", [X, positive(4, 1, 1)], {}),
    "Gelu": ("Gelu", [X], {}),
    "Gelu tanh": ("Gelu", [X], {"approximate": "tanh"}),
    "Softmax of an axis": ("Softmax", [X], {"axis": 1}),
    "Dropout": ("Dropout", [X], {}),
    "Cast to int": ("Cast", [4 * X], {"to": TensorProto.INT64}),
    "Cast to bool": ("Cast", [np.round(X)], {"to": TensorProto.BOOL}),
    "Cast to float": ("Cast", [ints(1, -2)], {"to": TensorProto.FLOAT}),
    "CastLike": ("CastLike", [4 * X, ints(1)], {}),
    "Not": ("Not", [X > 0], {}),
    **{name: (name, [X > 0, X > 0.5], {}) for name in ("And", "Or", "Xor")},
    **{name: (name, [X, floats(6)], {}) for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")},
    "Equal": ("Equal", [ints(1, 2, 3), ints(1, 5, 3)], {}),
    "Where": ("Where", [X > 0, X, floats(6)], {}),
    **{
        f"{name} {axes}": (name, [X, np.array(axes, np.int64)], {"keepdims": keep})
        for name in (
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSumExp",
            "ReduceProd",
        )
        for axes, keep in (([2, 3], 1), ([-1], 0))
    },
    "ReduceMean of all": ("ReduceMean", [X], {"keepdims": 0}),
    "ReduceLogSum": ("ReduceLogSum", [positive(2, 3), ints(1)], {}),
    "ArgMax": ("ArgMax", [X], {"axis": 1}),
    "ArgMin": ("ArgMin", [X], {"axis": -1, "keepdims": 0}),
    "TopK": ("TopK", [X, ints(3)], {"axis": -1}),
    "CumSum": ("CumSum", [X, ints(1).reshape(())], {}),
    "CumSum reversed": ("CumSum", [X, ints(2).reshape(())], {"reverse": 1, "exclusive": 1}),
    "Reshape": ("Reshape", [X, ints(0, -1, 3)], {}),
    "Reshape of picked queries": ("Reshape", [floats(5, 8), ints(1, 5, -1)], {}),
    "Reshape of positions": ("Reshape", [floats(16, 64), ints(1, 16, -1)], {}),
    "Flatten": ("Flatten", [X], {"axis": 2}),
    "Flatten from the end": ("Flatten", [X], {"axis": -1}),
    "Transpose": ("Transpose", [X], {"perm": [0, 2, 3, 1]}),
    "Transpose of all": ("Transpose", [X], {}),
    "Squeeze": ("Squeeze", [X[:, :1], ints(1)], {}),
    "Unsqueeze": ("Unsqueeze", [X, ints(0, -1)], {}),
    "Concat": ("Concat", [X, floats(2, 1, 6, 6)], {"axis": 1}),
    "Split": ("Split", [X, ints(1, 3)], {"axis": 1}),
    "Split evenly": ("Split", [X], {"axis": 2, "num_outputs": 2}),
    "Slice": ("Slice", [X, ints(1, 0), ints(2**62, -1), ints(2, 3)], {}),
    "Slice with steps": ("Slice", [X, ints(0), ints(2**62), ints(3), ints(2)], {}),
    "Slice backwards": ("Slice", [X, ints(-1), ints(-(2**62)), ints(2), ints(-2)], {}),
    "Slice of nothing": ("Slice", [X, ints(4), ints(2), ints(3)], {}),
    "Gather": ("Gather", [X, ints([[0, -1], [2, 1]])], {"axis": 1}),
    "Gather of one": ("Gather", [X, ints(1).reshape(())], {"axis": 2}),
    "GatherElements": ("GatherElements", [X, RNG.integers(-4, 4, (2, 2, 6, 6))], {"axis": 1}),
    "GatherND": ("GatherND", [X, ints([[0, 1], [1, 3]])], {}),
    "ScatterND": ("ScatterND", [X, ints([[0, 1], [1, 3]]), floats(2, 6, 6)], {}),
    "ScatterElements": ("ScatterElements", [X, RNG.integers(0, 1, (2, 1, 6, 6)), floats(2, 1, 6, 6)], {"axis": 1}),
    "Expand": ("Expand", [floats(4, 1), ints(2, 1, 3)], {}),
    "Tile": ("Tile", [floats(2, 3), ints(2, 2)], {}),
    "Pad": ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.5)], {}),
    "Pad cut": ("Pad", [X, ints(0, 0, -1, 0, 0, 0, 1, -2)], {}),
    **{f"Pad {mode}": ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": mode}) for mode in ("reflect", "edge")},
    "Pad of axes": ("Pad", [X, ints(1, 2), None, ints(3)], {}),
    "Shape": ("Shape", [X], {"start": 1, "end": 3}),
    "Size": ("Size", [X], {}),
    "ConstantOfShape": (
        "ConstantOfShape",
        [ints(2, 3)],
        {"value": numpy_helper.from_array(np.array([1.5], np.float32))},
    ),
    "Range": ("Range", [ints(1).reshape(()), ints(9).reshape(()), ints(2).reshape(())], {}),
    "OneHot": ("OneHot", [ints(0, 2, -1), ints(3).reshape(()), np.array([0.1, 0.9], np.float32)], {"axis": 0}),
    "Trilu": ("Trilu", [floats(4, 4), ints(1).reshape(())], {"upper": 0}),
    "Conv 1d": ("Conv", [floats(2, 4, 9), floats(6, 2, 3), floats(6)], {"group": 2, "pads": [2, 1], "dilations": [2]}),
    "Conv 2d": ("Conv", [X, floats(8, 4, 3, 3), floats(8)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "Conv 3d": ("Conv", [floats(1, 2, 5, 6, 7), floats(3, 2, 3, 3, 3), floats(3)], {"pads": [1, 0, 1, 1, 1, 1]}),
    "Conv same": ("Conv", [X, floats(8, 4, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    "ConvTranspose": (
        "ConvTranspose",
        [X, floats(4, 3, 3, 3), floats(6)],
        {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    "ConvTranspose uneven": ("ConvTranspose", [X, floats(4, 3, 3, 3)], {"pads": [0, 1, 2, 1]}),
    "ConvTranspose 1d": ("ConvTranspose", [floats(1, 4, 7), floats(4, 3, 4)], {"strides": [2], "pads": [1, 1]}),
    "Gemm": ("Gemm", [floats(4, 3), floats(4, 5), floats(5)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    "MatMul": ("MatMul", [floats(2, 3, 4, 5), floats(3, 5, 6)], {}),
    "Einsum": ("Einsum", [floats(2, 3, 4), floats(2, 4, 5)], {"equation": "bij,bjk->bik"}),
    "MaxPool": ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "MaxPool uneven": ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    "MaxPool 1d": ("MaxPool", [floats(2, 3, 9)], {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}),
    "MaxPool 3d": ("MaxPool", [floats(1, 2, 4, 6, 6)], {"kernel_shape": [2, 2, 2]}),
    "AveragePool": ("AveragePool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "AveragePool counted": ("AveragePool", [X], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 0], "count_include_pad": 1}),
    "AveragePool uneven": ("AveragePool", [X], {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1]}),
    "GlobalAveragePool": ("GlobalAveragePool", [X], {}),
    "GlobalMaxPool": ("GlobalMaxPool", [floats(2, 3, 7)], {}),
    "BatchNormalization": ("BatchNormalization", [X, floats(4), floats(4), floats(4), positive(4)], {}),
    "InstanceNormalization": ("InstanceNormalization", [X, floats(4), floats(4)], {}),
    "LayerNormalization": ("LayerNormalization", [X, floats(6, 6), floats(6, 6)], {"axis": 2}),
    "GroupNormalization": ("GroupNormalization", [X, floats(4), floats(4)], {"num_groups": 2}),
    "RMSNormalization": ("RMSNormalization", [X, floats(6)], {}),
    "DepthToSpace": ("DepthToSpace", [X], {"blocksize": 2}),
    "DepthToSpace CRD": ("DepthToSpace", [X], {"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": ("SpaceToDepth", [X], {"blocksize": 2}),
    **{
        f"Resize {mode} {place} {sizes}": (
            "Resize",
            [X, None, None, ints(2, 4, *sizes)],
            {
                "mode": mode,
                "coordinate_transformation_mode": place,
                **({"nearest_mode": "floor"} if place == "asymmetric" else {}),
            },
        )
        for mode in ("nearest", "linear", "cubic")
        for place in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        for sizes in ((12, 12), (4, 9))
    },
    "Resize by scales": ("Resize", [X, None, np.array([1, 1, 2, 1.5], np.float32)], {"mode": "linear"}),
    **{
        f"{kind} {way}": (
            kind,
            [
                floats(5, 2, 3),
                floats(ways, gates * 4, 3),
                floats(ways, gates * 4, 4),
                floats(ways, 2 * gates * 4),
                None,
                floats(ways, 2, 4),
            ],
            {"hidden_size": 4, "direction": way, **({"linear_before_reset": 1} if kind == "GRU" else {})},
        )
        for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
        for way, ways in (("forward", 1), ("reverse", 1), ("bidirectional", 2))
    },
    "GRU, reset before": ("GRU", [floats(5, 2, 3), floats(1, 12, 3), floats(1, 12, 4)], {"hidden_size": 4}),
    "QuantizeLinear": ("QuantizeLinear", [X, np.float32(0.02), np.uint8(100)], {}),
    "DequantizeLinear": (
        "DequantizeLinear",
        [RNG.integers(-128, 127, (4, 3)).astype(np.int8), positive(3), np.zeros(3, np.int8)],
        {"axis": 1},
    ),
}
OUTPUTS = {"Split": 2, "TopK": 2, "LSTM": 3, "GRU": 2, "RNN": 2}
OPSETS = {"Gelu": 20, "GroupNormalization": 21, "RMSNormalization": 23}


def model_of(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    feeds = {f"x{i}": np.asarray(value) for i, value in enumerate(inputs) if value is not None}
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(inputs)]
    made = [f"y{i}" for i in range(OUTPUTS.get(operator, 1))]
    node = helper.make_node(operator, names, made, name="node", **attributes)
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    graph = helper.make_graph([node], "one", given, [onnx.ValueInfoProto(name=name) for name in made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSETS.get(operator, 18))])
    model.ir_version = 10
    return model, feeds


@pytest.mark.parametrize("case", CASES)
def test_an_operator_gives_what_onnx_runtime_gives(case: str) -> None:
    model, feeds = model_of(*CASES[case])
    wanted = inference_session(model).run(None, feeds)
    given = {name: torch.from_numpy(value.copy()) for name, value in feeds.items()}
    found = interpret(model, constants(model, torch.float32), given)
    for exact, got in zip(wanted, found, strict=True):
        assert tuple(exact.shape) == tuple(got.shape)
        np.testing.assert_allclose(got.numpy().astype(np.float64), exact.astype(np.float64), rtol=2e-4, atol=2e-5)


def test_every_operator_of_the_table_is_in_a_case() -> None:
    assert {operator for operator, _, _ in CASES.values()} == set(operators.OPERATORS)
