"""Q/DQ graphs: placement, numbers, names, and that the runtimes truly run them in INT8."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeprune.errors import GraphError, InputError, RecipeError
from edgeprune.quantize import Ranges, apply, calibrate, dummy_ranges, lint
from edgeprune.quantize.ranges.grids import qparams, quantise_weight
from edgeprune.quantize.view import View
from edgeprune.quantize.write.placement import place
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import nets, running

NETS = {"residual": nets.residual, "inverted": nets.inverted, "plain": nets.plain}


def run(model: onnx.ModelProto, images: np.ndarray, optimise: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input": image[None]})[0] for image in images])


def sqnr(exact: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((exact**2).sum() / ((exact - got) ** 2).sum()))


@pytest.mark.long
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("net", NETS)
def test_int8_is_close_to_float(net: str, dialect: str) -> None:
    model, images = NETS[net](), nets.images(16)
    quantised = apply(model, calibrate(model, images, DIALECTS[dialect]), DIALECTS[dialect])
    onnx.checker.check_model(quantised)
    assert lint(quantised, DIALECTS[dialect]) == []
    assert sqnr(run(model, images), run(quantised, images, optimise=False)) > 20


@pytest.mark.parametrize(
    ("dialect", "narrow"), [("tensorrt-a", "float"), ("tensorrt-b", "float"), ("openvino", "int8")]
)
def test_a_narrow_pointwise_layer_stays_in_float_where_it_has_no_kernel(dialect: str, narrow: str) -> None:
    net = nets.Net()
    x = net.relu(net.conv("input", "stem", 3, 4))  # three channels, but 3x3: an INT8 kernel
    model = net.model(net.conv(net.relu(net.conv(x, "narrow", 4, 16, k=1)), "wide", 16, 16, k=1))
    quantised = apply(model, dummy_ranges(model), DIALECTS[dialect])
    found = {n.name: n.input[1].endswith(".dq") for n in quantised.graph.node if n.op_type == "Conv"}
    assert found == {"stem": True, "narrow": narrow == "int8", "wide": True}


def test_dummy_ranges_differ_from_tensor_to_tensor_as_real_ones_do() -> None:
    """Runtimes share the kernels of layers whose ranges are the same, and are then faster than with any real ones."""
    model = nets.inverted()
    view, ranges = View.of(model), dummy_ranges(model).tensors
    made = [(node, output) for node in view.nodes for output in node.output]
    assert len({ranges[name].high for _, name in made}) == len(made)
    assert len({ranges[name].low for _, name in made if ranges[name].low < 0}) > 3
    clips = [ranges[name] for node, name in made if node.op_type == "Clip"]
    assert clips and all(0 == one.low < one.high <= 6 for one in clips)


@pytest.mark.long
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("net", NETS)
def test_dummy_and_real_ranges_give_the_same_graph(net: str, dialect: str) -> None:
    model = NETS[net]()
    real = apply(model, calibrate(model, nets.images(4), DIALECTS[dialect]), DIALECTS[dialect])
    dummy = apply(model, dummy_ranges(model), DIALECTS[dialect])
    describe = [[(n.op_type, n.name, list(n.input), list(n.output)) for n in m.graph.node] for m in (real, dummy)]
    assert describe[0] == describe[1]
    types = [{t.name: t.data_type for t in m.graph.initializer} for m in (real, dummy)]
    assert types[0] == types[1]


def test_layers_keep_their_names_and_the_float_graph_is_untouched() -> None:
    model = nets.residual()
    before = model.SerializeToString(deterministic=True)
    quantised = apply(model, dummy_ranges(model), DIALECTS["ort-x86"])
    assert model.SerializeToString(deterministic=True) == before
    assert [n.name for n in quantised.graph.node if n.op_type == "Conv"] == [
        n.name for n in model.graph.node if n.op_type == "Conv"
    ]
    assert [o.name for o in quantised.graph.output] == ["output"]


@pytest.mark.parametrize("net", NETS)
def test_onnx_runtime_runs_all_of_it_in_int8(net: str, tmp_path: Path) -> None:
    model = NETS[net]()
    quantised = apply(model, dummy_ranges(model), DIALECTS["ort-x86"])
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(quantised.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, {"input": nets.images(1)})
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = Counter(e["args"]["op_name"] for e in events if e.get("cat") == "Node" and "kernel_time" in e["name"])
    floats = {"Conv", "Gemm", "Add", "Relu", "Clip", "GlobalAveragePool", "DequantizeLinear"} & set(kernels)
    assert not floats, kernels
    assert kernels["QuantizeLinear"] == 1
    assert kernels["QLinearConv"] == sum(n.op_type == "Conv" for n in model.graph.node)


@pytest.mark.parametrize("net", NETS)
def test_openvino_runs_all_of_it_in_int8(net: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model = NETS[net]()
    path = tmp_path / "model.onnx"
    onnx.save(apply(model, dummy_ranges(model), DIALECTS["openvino"]), path)
    options = {"PERF_COUNT": "YES", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    request.infer({0: nets.images(1)})
    done = [p for p in request.profiling_info if str(p.status).endswith("EXECUTED")]
    layers = [
        p for p in done if p.node_type.startswith(("Convolution", "GroupConvolution", "FullyConnected", "MatMul"))
    ]
    assert len(layers) == sum(n.op_type in ("Conv", "Gemm") for n in model.graph.node)
    assert {p.node_name for p in layers if "i8" not in p.exec_type.lower()} == set()
    assert sum(p.node_type in ("Subgraph", "FakeQuantize") for p in done) == 1  # the input alone


def test_float_layers_stay_float_and_wrong_names_are_refused() -> None:
    model = nets.residual()
    ranges = dummy_ranges(model)
    quantised = apply(model, ranges, DIALECTS["ort-x86"], {"block1.conv2": "float"})
    conv = next(n for n in quantised.graph.node if n.name == "block1.conv2")
    assert conv.input[1] == "block1.conv2.weight"
    with pytest.raises(RecipeError, match=r"Did you mean 'block1\.conv2'"):
        apply(model, ranges, DIALECTS["ort-x86"], {"block1.conv3": "float"})
    with pytest.raises(GraphError, match="must be quantised"):
        apply(model, Ranges({}), DIALECTS["ort-x86"])


@pytest.mark.long
@pytest.mark.parametrize("dialect", DIALECTS)
def test_concat_shares_one_scale(dialect: str) -> None:
    model = nets.concatenated()
    quantised = apply(model, calibrate(model, nets.images(4, 8), DIALECTS[dialect]), DIALECTS[dialect])
    values = {t.name: onnx.numpy_helper.to_array(t) for t in quantised.graph.initializer}
    cat = next(n for n in quantised.graph.node if n.op_type == "Concat")
    assert len({float(values[f"{name.removesuffix('.dq')}.scale"]) for name in cat.input}) == 1
    assert lint(quantised, DIALECTS[dialect]) == []


@pytest.mark.long
@pytest.mark.parametrize("method", ["minmax", "moving-average", "percentile", "mse", "entropy"])
def test_every_method_is_used_and_clips_no_more_than_it_saw(method: str) -> None:
    model = nets.residual()
    ranges = calibrate(model, nets.images(8), DIALECTS["openvino"], QuantizeSection(method=method))
    assert {t.method for t in ranges.tensors.values()} == {method}
    for tensor in ranges.tensors.values():
        assert min(tensor.minimum, 0) <= tensor.low <= 0 <= tensor.high <= max(tensor.maximum, 0)
    clipped = any(t.high < t.maximum for t in ranges.tensors.values())
    assert clipped or method in ("minmax", "entropy")
    assert not clipped or method != "minmax"


@pytest.mark.long
def test_ranges_travel_as_json(tmp_path: Path) -> None:
    ranges = calibrate(nets.residual(), nets.images(4), DIALECTS["openvino"])
    ranges.save(tmp_path / "ranges.json")
    assert Ranges.load(tmp_path / "ranges.json") == ranges
    (tmp_path / "ranges.json").write_text("{}")
    with pytest.raises(InputError, match="not a file of ranges"):
        Ranges.load(tmp_path / "ranges.json")


def test_grids_hold_zero_exactly_and_cover_the_range() -> None:
    for dialect in DIALECTS.values():
        for low, high in [(0.0, 3.0), (-1.0, 3.0), (-5.0, 0.1), (0.0, 0.0), (1.0, 2.0), (-2.0, -1.0)]:
            found = qparams(low, high, dialect)
            assert found.low <= found.zero <= found.high
            step = found.scale * 1.001
            assert found.scale * (found.low - found.zero) <= min(low, 0) + step / 2
            assert found.scale * (found.high - found.zero) >= max(high, 0) - step / 2


def test_weights_are_symmetric_and_a_zero_channel_survives() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    weight[2] = 0
    integers, scales = quantise_weight(weight, 0, 127)
    assert np.abs(integers.astype(int)).max(axis=(1, 2, 3)).tolist() == [127, 127, 0, 127]
    assert np.all(np.isfinite(scales)) and np.all(scales > 0)
    assert np.abs(integers * scales[:, None, None, None] - weight).max() <= scales.max() / 2 * 1.001


def test_apply_is_fast_enough_for_latency_sampling() -> None:
    net = nets.Net(size=8)
    x = net.relu(net.conv("input", "stem", 3, 64))
    for index in range(55):
        x = net.relu(net.conv(x, f"layer.{index}", 64, 64))
    model = net.model(net.conv(x, "last", 64, 10))
    ranges = dummy_ranges(model)
    began = time.process_time()
    apply(model, ranges, DIALECTS["openvino"])
    assert time.process_time() - began < 1.0


def test_what_others_read_keeps_its_own_range_at_a_concat_of_onnx_runtime() -> None:
    images, dialect = nets.images(16, size=8), running.scheme("ort-x86")
    for times, apart in ((20.0, True), (1.0, False)):
        model = nets.neck(times=times)
        ranges = calibrate(model, images, dialect)
        placement = place(View.of(model), dialect)
        small, large = (View.of(model).settled(View.of(model).layers[name].output[0]) for name in ("small", "large"))
        assert placement.scale_of[small] != placement.scale_of[large]
        assert (ranges.tensors[small].high != ranges.tensors[large].high) == apart
        found = apply(model, ranges, dialect)
        assert [str(one) for one in lint(found, dialect)] == []
        assert sqnr(run(model, images), run(found, images)) > 28
