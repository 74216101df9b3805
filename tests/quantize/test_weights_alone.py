"""Weights alone in INT8 or INT4: the graph, its kernels by the runtimes' own profiles, and what is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgeprune import devices, runtimes, target
from edgeprune.errors import RecipeError
from edgeprune.quantize import apply, calibrate, dummy_ranges, fine_tune, lint
from edgeprune.quantize.check import kernels
from edgeprune.quantize.ranges.ranges import Ranges
from edgeprune.quantize.view import View
from edgeprune.quantize.write import weights
from edgeprune.recipe import LayerOverride, QuantizeSection
from edgeprune.runtimes import DIALECTS
from edgeprune.target import Protocol

from . import running

RUNTIMES = {"ort-x86": "x86-onnxruntime", "openvino": "intel-cpu"}
KINDS = {"ort-x86": "MatMulNBits", "openvino": "FullyConnectedCompressed"}
TOKENS = np.random.default_rng(0).standard_normal((8, 16, 64), np.float32)
ROWS = TOKENS[:, 0]


def tokens() -> nn.Module:
    """Linear layers on [batch, tokens, features]: MatMul and Add."""
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.Linear(64, 8))


def rows() -> nn.Module:
    """Linear layers on [batch, features]: Gemm with transB."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 8))


def pictures() -> nn.Module:
    """A convolution in INT8 whose output a large linear layer reads."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 128), nn.Linear(128, 8))


NETS = {"tokens": (tokens, TOKENS), "rows": (rows, ROWS), "pictures": (pictures, None)}


def case(name: str) -> tuple[onnx.ModelProto, np.ndarray]:
    """A network and its examples."""
    build, examples = NETS[name]
    if examples is None:
        examples = np.random.default_rng(0).standard_normal((8, 3, 16, 16), np.float32)
    return running.exported(running.seeded(build), torch.from_numpy(examples[:1])), examples


def decibels(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Signal to noise of first outputs."""
    a, b = np.concatenate([x.ravel() for x in found]), np.concatenate([x.ravel() for x in wanted])
    return float(10 * np.log10(np.square(b).sum() / np.square(a - b).sum()))


@pytest.mark.long
@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("dialect", RUNTIMES)
@pytest.mark.parametrize("net", NETS)
def test_large_layers_run_in_the_runtimes_own_kernel(net: str, dialect: str, bits: str) -> None:
    model, examples = case(net)
    scheme = DIALECTS[dialect]
    options = QuantizeSection(weights=bits, weights_from=10_000)
    ranges = calibrate(model, [examples], scheme, options)
    large = [n.name for n in View.of(model).layers.values() if weights._numbers(View.of(model), n) >= 10_000]
    assert dict(ranges.precision) == dict.fromkeys(large, f"{bits}-weights")
    assert not set(large) & set(ranges.layers)
    assert Ranges.from_dict(ranges.to_dict()).precision == ranges.precision
    graph = apply(model, ranges, scheme)
    onnx.checker.check_model(graph)
    assert not lint(graph, scheme)
    feed = {"input": examples[:1]}
    if dialect == "openvino":
        kinds = [kernel.kind for kernel in running.openvino_kernels(graph, feed)]
        got = [running.openvino(graph, {"input": x[None]})[0] for x in examples]
    else:
        kinds = list(running.kernels(graph, feed).elements())
        got = [running.optimised(graph, {"input": x[None]})[0] for x in examples]
    assert kinds.count(KINDS[dialect]) == len(large)
    if running.scheme(dialect) is not scheme:
        pytest.skip(f"this CPU has no VNNI: {dialect} saturates on it, and its twin is not given weights alone")
    wanted = [running.outputs(model, {"input": x[None]})[0] for x in examples]
    assert decibels(got, wanted) > {"int8": 30, "int4": 14}[bits]


@pytest.mark.long
@pytest.mark.parametrize("dialect", RUNTIMES)
def test_the_profile_tells_that_weights_stay_compact_and_where_they_do_not(
    dialect: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    model, examples = case("tokens")
    scheme, quick = DIALECTS[dialect], Protocol(warmup_runs=1, runs=2, rounds=2, max_spread=1e9)
    profile = msgspec.structs.replace(target.load(RUNTIMES[dialect]), protocol=quick)
    ranges = calibrate(model, [examples], scheme, QuantizeSection(weights="int4", weights_from=10_000))
    graph = apply(model, ranges, scheme)
    names = [node.name for node in View.of(graph).nodes if node.name in ranges.precision]
    with devices.connect(profile) as device:
        path = tmp_path / "net.onnx"
        onnx.save(graph, path)
        found = device.profile(device.load(runtimes.build(path, tmp_path, profile, "net", "int8")), runs=2)
    assert kernels.in_float(graph, found, scheme) == []
    others = [one for one in found if KINDS[dialect] != one.kind]
    assert [finding.node for finding in kernels.in_float(graph, others, scheme)] == sorted(names)


def test_four_bits_are_packed_as_onnx_reads_them_and_blocks_are_rounded_to_their_own_steps() -> None:
    weight = np.random.default_rng(1).standard_normal((96, 5)).astype(np.float32) * np.linspace(0.1, 9, 96)[:, None]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    for bits, least in ((8, 40.0), (4, 17.0)):
        integers, scales = weights.stored(node, weight.astype(np.float32), bits)
        assert scales.shape == (3, 5)
        tensor = weights.packed("w", integers, bits)
        assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), integers)
        again = integers * scales.repeat(32, 0)
        assert decibels([again], [weight]) > least
        assert np.abs(integers).max() == 2 ** (bits - 1) - 1
    turned = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    other, steps = weights.stored(turned, np.ascontiguousarray(weight.T, np.float32), 4)
    assert np.array_equal(other, integers) and np.array_equal(steps, scales)


@pytest.mark.long
def test_what_has_no_kernel_is_refused_in_a_line() -> None:
    model, examples = case("pictures")
    conv, linear = (
        next(n for n in View.of(model).layers if View.of(model).layers[n].op_type == k) for k in ("Conv", "Gemm")
    )
    one = {conv: LayerOverride(precision="int4-weights")}
    with pytest.raises(RecipeError, match=f"'{conv}' has precision = 'int4-weights', and only linear layers"):
        calibrate(model, [examples], DIALECTS["openvino"], QuantizeSection(layers=one))
    for dialect in ("tensorrt-b", "ort-arm64"):
        with pytest.raises(RecipeError, match=r"\[quantize\] weights = 'int8', and .* is not given weights alone"):
            calibrate(model, [examples], DIALECTS[dialect], QuantizeSection(weights="int8"))
    odd = running.exported(running.seeded(lambda: nn.Sequential(nn.Linear(20, 64))), torch.zeros(1, 20))
    name = next(iter(View.of(odd).layers))
    with pytest.raises(RecipeError, match="its 20 input channels are no multiple of 16"):
        apply(odd, dummy_ranges(odd), DIALECTS["ort-x86"], {name: "int8-weights"})
    alone = QuantizeSection(layers={name: LayerOverride(precision="int8-weights")}, equalize=False)
    kept = calibrate(
        odd, [np.random.default_rng(0).standard_normal((8, 20)).astype(np.float32)], DIALECTS["ort-x86"], alone
    )
    assert not kept.precision and f"'{name}' has precision = 'int8-weights', but stays in INT8" in " ".join(
        kept.warnings
    )
    ranges = calibrate(model, [examples], DIALECTS["openvino"], QuantizeSection(weights="int4", weights_from=10**9))
    assert not ranges.precision and "no linear layer of 1,000,000,000 weights or more" in " ".join(ranges.warnings)
    held = calibrate(model, [examples], DIALECTS["openvino"], QuantizeSection(weights="int4", weights_from=10_000))
    assert list(held.precision) == [linear]
    with pytest.raises(RecipeError, match="do not go together"):
        fine_tune(model, held, DIALECTS["openvino"], [], epochs=1)


@pytest.mark.long
def test_a_layer_that_is_named_keeps_its_own_and_fallback_leaves_weights_alone() -> None:
    model, examples = case("tokens")
    names = list(View.of(model).layers)
    given = {names[0]: LayerOverride(precision="int8"), names[1]: LayerOverride(precision="int4-weights")}
    options = QuantizeSection(weights="int8", weights_from=500, layers=given)
    ranges = calibrate(model, [examples], DIALECTS["ort-x86"], options)
    assert dict(ranges.precision) == {names[1]: "int4-weights", names[2]: "int8-weights"}
    for dialect in ("ort-x86", "openvino"):
        written = apply(model, ranges, DIALECTS[dialect])
        assert written == apply(model, ranges, DIALECTS[dialect], dict.fromkeys(names[1:], "float"))


@pytest.mark.long
def test_the_linter_names_weights_that_are_dequantised_at_every_call() -> None:
    model, examples = case("rows")
    ranges = calibrate(model, [examples], DIALECTS["openvino"], QuantizeSection(weights="int8", weights_from=10_000))
    graph = apply(model, ranges, DIALECTS["openvino"])
    for dialect in ("ort-x86", "ort-arm64"):  # written as a pair: a Relu or a Q behind it, and it is not fused
        assert {f.rule for f in lint(graph, DIALECTS[dialect]) if f.node in ranges.precision} == {"weights-alone"}
    first = next(node for node in graph.graph.node if node.name in ranges.precision)
    pair = View.of(graph).producer[first.input[1]]
    next(one for one in pair.attribute if one.name == "block_size").i = 24
    assert [f.rule for f in lint(graph, DIALECTS["openvino"])] == ["weights-alone"]


class Words(nn.Module):
    """An embedding large enough to be stored as bytes, a small one beside it, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(8000, 64), nn.Embedding(16, 64), nn.LayerNorm(64)
        self.kinds, self.head = nn.Embedding(2, 64), nn.Linear(64, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.words(ids) + self.places.weight[None] + self.kinds(ids % 2)))


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["ort-x86", "ort-arm64", "openvino"])
def test_embeddings_of_words_are_bytes_and_only_gathered_rows_are_dequantised(dialect: str) -> None:
    ids = np.random.default_rng(0).integers(0, 8000, (16, 16))
    model = running.exported(running.seeded(Words), {"ids": torch.from_numpy(ids[:1])})
    scheme = running.scheme(dialect)
    ranges = calibrate(model, [{"ids": ids}], scheme)
    graph = apply(model, ranges, scheme)
    assert not lint(graph, scheme)
    assert (
        sum(t.data_type == onnx.TensorProto.INT8 and list(t.dims) == [8000, 64] for t in graph.graph.initializer) == 1
    )
    assert len(graph.SerializeToString()) < 0.3 * len(model.SerializeToString())
    run = running.openvino if dialect == "openvino" else running.outputs
    got, wanted = (
        [call(g, {"ids": one[None]})[0] for one in ids] for call, g in ((run, graph), (running.outputs, model))
    )
    assert decibels(got, wanted) > 30
    if dialect == "ort-x86":
        assert running.kernels(graph, {"ids": ids[:1]})["DequantizeLinear"] == 1
    gather = next(node.name for node in model.graph.node if node.op_type == "Gather")
    kept = apply(model, ranges, scheme, {gather: "float"})
    assert all(list(t.dims) != [8000, 64] or t.data_type == onnx.TensorProto.FLOAT for t in kept.graph.initializer)
