"""Average pooling in ONNX Runtime: a depthwise convolution where it is one, the same numbers, and faster kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from edgeprune.quantize import apply, calibrate, lint
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import nets, running

ORT = DIALECTS["ort-x86"]
FAST = QuantizeSection(method="minmax", equalize=False, bias_correction=False)
IMAGES = np.random.default_rng(0).random((4, 3, 16, 16), np.float32)


def pooled(**attributes: Any) -> onnx.ModelProto:
    net = nets.Net()
    x = net.node("AveragePool", net.relu(net.conv("input", "first", 3, 8)), name="pool", **attributes)
    return net.model(net.conv(x, "last", 8, 8, k=1))


@pytest.mark.parametrize("dialect", ["ort-x86", "ort-x86-avx2"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        {"kernel_shape": [5, 3], "pads": [2, 1, 2, 1], "count_include_pad": 1},
    ],
)
def test_it_is_a_convolution_with_the_same_numbers(attributes: dict[str, Any], dialect: str) -> None:
    model, chosen = pooled(**attributes), DIALECTS[dialect]
    ranges = calibrate(model, IMAGES, chosen, FAST)
    graph, before = apply(model, ranges, chosen), apply(model, ranges, replace(chosen, slow_pools=False))
    ran = running.kernels(graph, {"input": IMAGES[:1]})
    assert ran["QLinearConv"] == 3 and ran["QLinearAveragePool"] == 0
    assert running.kernels(before, {"input": IMAGES[:1]})["QLinearAveragePool"] == 1
    assert lint(graph, chosen) == [] and [one.rule for one in lint(before, chosen)] == ["pool-slow"]
    exact, got, then = (running.outputs(one, {"input": IMAGES[:1]})[0] for one in (model, graph, before))
    assert running.sqnr(exact, got) > running.sqnr(exact, then) - 0.5
    onnx.checker.check_model(graph)


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},  # at the border it divides by fewer
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [16, 16]},  # all of the image
    ],
)
def test_what_is_no_convolution_stays_a_pooling(attributes: dict[str, Any]) -> None:
    model = pooled(**attributes)
    graph = apply(model, calibrate(model, IMAGES, ORT, FAST), ORT)
    assert running.kernels(graph, {"input": IMAGES[:1]})["QLinearConv"] == 2


@pytest.mark.parametrize("dialect", ["openvino", "ort-arm64", "tensorrt-a", "tensorrt-b"])
def test_other_runtimes_are_given_the_pooling(dialect: str) -> None:
    model = pooled(kernel_shape=[2, 2], strides=[2, 2])
    graph = apply(model, calibrate(model, IMAGES, DIALECTS[dialect], FAST), DIALECTS[dialect])
    assert sum(node.op_type == "AveragePool" for node in graph.graph.node) == 1
