"""INT8 on x86 CPUs without VNNI: the runtimes sum products in 16 bits, so weights get 63 steps there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import numpy_helper

from edgeprune.quantize import Ranges, apply, dummy_ranges
from edgeprune.quantize.ranges.observe import watch
from edgeprune.runtimes import DIALECTS, for_cpu

from . import nets, running


@pytest.mark.parametrize(
    ("name", "features", "wanted"),
    [
        ("openvino", ["avx2"], "openvino-avx2"),
        ("openvino", ["avx2", "avx512f"], "openvino-avx2"),
        ("ort-x86", ["avx2"], "ort-x86-avx2"),
        ("ort-x86", ["avx2", "avx_vnni"], "ort-x86"),
        ("openvino", ["avx2", "avx512f", "avx512_vnni"], "openvino"),
        ("ort-x86", [], "ort-x86"),  # not known
        ("ort-x86-avx2", ["avx2"], "ort-x86-avx2"),
        ("ort-arm64", ["asimddp"], "ort-arm64"),
        ("tensorrt-b", ["avx2"], "tensorrt-b"),
    ],
)
def test_the_cpu_chooses_the_twin(name: str, features: list[str], wanted: str) -> None:
    assert for_cpu(name, features).name == wanted


@pytest.mark.parametrize("name", ["openvino-avx2", "ort-x86-avx2"])
def test_no_pair_of_products_passes_sixteen_bits(name: str) -> None:
    model = nets.residual()
    graph = apply(model, dummy_ranges(model), DIALECTS[name]).graph
    weights = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    largest = max(int(np.abs(w.astype(int)).max()) for w in weights if w.dtype == np.int8 and w.ndim > 1)
    assert largest > 32 and 2 * 255 * largest < 2**15


@pytest.mark.parametrize("name", ["openvino-avx2", "ort-x86-avx2"])
def test_the_runtime_computes_what_is_written_on_any_cpu(name: str) -> None:
    """All products positive and large: whichever CPU runs this, nothing may be lost."""
    pytest.importorskip(DIALECTS[name].runtime)
    net = nets.Net()
    model = net.model(net.conv(net.relu(net.conv("input", "a", 3, 16)), "b", 16, 16))
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            weight = np.abs(numpy_helper.to_array(tensor)) + np.float32(0.2)
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    image = np.full((1, 3, 16, 16), 0.95, np.float32)
    dummies = dummy_ranges(model)
    seen, _ = watch(model, list(dummies.tensors), [image], 1)
    ranges = Ranges({t: replace(one, low=0.0, high=seen[t].maximum) for t, one in dummies.tensors.items()})
    graph = apply(model, ranges, DIALECTS[name])
    run = running.optimised if name.startswith("ort") else running.openvino
    (wanted,), (found,) = running.outputs(graph, {"input": image}), run(graph, {"input": image})
    assert found == pytest.approx(wanted, rel=0.02)
