"""Operators beyond convolutions and linear layers: each is calibrated, its output close to FP32, its kernels INT8."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from edgeprune import devices, runtimes, target
from edgeprune.errors import DataError
from edgeprune.quantize import apply, calibrate, dummy_ranges, lint
from edgeprune.quantize.check import kernels, rtx
from edgeprune.quantize.train.qat import Trainable, fine_tune
from edgeprune.quantize.view import View
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import DIALECTS
from edgeprune.target import Protocol

from . import running

IMAGES = np.random.default_rng(0).random((16, 3, 16, 16), np.float32)
TOKENS = np.random.default_rng(0).normal(size=(16, 32, 48)).astype(np.float32)


class Chunks(nn.Module):
    """ShuffleNetV2's way: half of the channels pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p, q = torch.relu(self.a(x)).chunk(2, 1)
        return self.f(torch.cat([p, torch.relu(self.b(q))], 1).mean((2, 3)))


class Threshold(nn.Module):
    """A comparison makes a tensor of booleans."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.f(torch.relu(self.b(torch.where(x > 0, x, 0.1 * x))).mean((2, 3)))


def head() -> nn.Module:
    """An INT8 layer is the graph's output, behind an operator: every U-Net."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 1))


def feed_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 48))


NETWORKS = {"chunks": Chunks, "threshold": Threshold, "head": head}


def decibels(model: onnx.ModelProto, dialect: str, items: np.ndarray, options: QuantizeSection | None = None) -> float:
    """Signal to noise at the outputs of the graph that calibration makes."""
    chosen = DIALECTS[dialect]
    quantised = apply(model, calibrate(model, [items], chosen, options), chosen)
    assert not [finding for finding in lint(quantised, chosen) if finding.severity == "error"]
    found = [
        (running.outputs(model, {"input": i[None]}), running.outputs(quantised, {"input": i[None]})) for i in items
    ]
    return running.sqnr(np.concatenate([a[0] for a, _ in found]), np.concatenate([b[0] for _, b in found]))


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["ort-x86", "ort-arm64", "openvino"])
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_of_several_outputs_booleans_and_heads_calibrate(network: str, dialect: str) -> None:
    model = running.exported(running.seeded(NETWORKS[network]), torch.zeros(1, 3, 16, 16))
    assert decibels(model, dialect, IMAGES) > 28


class Merged(nn.Module):
    """Heads are merged with the batch for the products: [heads, n, d], and come apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(48, 48) for _ in "qkvo")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = (f(x).view(b, n, 3, 16).transpose(1, 2).reshape(b * 3, n, 16) for f in (self.q, self.k, self.v))
        scores = torch.bmm(q, k.transpose(1, 2)).view(b, 3, n, n).softmax(-1).view(b * 3, n, n)
        return self.o(torch.bmm(scores, v).view(b, 3, n, 16).transpose(1, 2).reshape(b, n, c))


@pytest.mark.long
def test_heads_merged_with_the_batch_calibrate() -> None:
    model = running.exported(running.seeded(Merged), torch.zeros(1, 32, 48))
    assert decibels(model, "openvino", TOKENS[:4]) > 28


def dead_channels() -> onnx.ModelProto:
    """Four channels whose weights have decayed to nothing and whose biases have not."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 16), nn.Flatten()
    )
    with torch.no_grad():
        net[1].weight[:4], net[1].bias[:4] = 1e-9, torch.tensor([1.0, -1.0, 300.0, 1e-3])
        net[3].weight[:, 2] *= 1e-3
    return running.exported(net, torch.zeros(1, 3, 16, 16))


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["ort-x86", "ort-x86-avx2", "ort-arm64", "openvino"])
def test_a_bias_beside_weights_of_nothing_is_kept(dialect: str) -> None:
    assert decibels(dead_channels(), dialect, IMAGES) > 24


@pytest.mark.long
def test_a_clipped_int32_bias_is_found_and_what_is_trained_is_what_is_written() -> None:
    model, dialect = dead_channels(), DIALECTS["ort-x86"]
    ranges = calibrate(model, [IMAGES], dialect)
    quantised = apply(model, ranges, dialect)
    assert not lint(quantised, dialect)
    student = Trainable(model, ranges, dialect).double()
    wanted = running.outputs(quantised, {"input": IMAGES[:1]})[0]
    np.testing.assert_allclose(student(torch.from_numpy(IMAGES[:1]).double()).detach().numpy(), wanted, atol=1e-4)
    bias = next(t for t in quantised.graph.initializer if t.name == "0.bias.q")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, 2**31 - 1, np.int32), bias.name))
    assert [finding.rule for finding in lint(quantised, dialect)] == ["bias-saturated"]


@pytest.mark.long
@pytest.mark.parametrize("shape", [(1, 32, 48), (1, 4, 8, 48)])
def test_linear_layers_on_tokens_run_in_int8(shape: tuple[int, ...]) -> None:
    model, dialect = running.exported(running.seeded(feed_forward), torch.zeros(shape)), DIALECTS["ort-x86"]
    items = TOKENS.reshape(16, *shape[1:])
    quantised = apply(model, calibrate(model, [items], dialect), dialect)
    assert not lint(quantised, dialect)
    found = running.kernels(quantised, {"input": items[:1]})
    assert found["MatMulIntegerToFloat"] == 2 and not {"Gemm", "MatMul", "DequantizeLinear"} & set(found)
    plain = onnx.ModelProto()  # with a bias of one axis the sum is the same, bit for bit, as written
    plain.CopyFrom(quantised)
    for tensor in plain.graph.initializer:
        if "add.bias" in tensor.name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).reshape(-1), tensor.name))
    exact, got = (running.outputs(one, {"input": items[:1]})[0] for one in (plain, quantised))
    np.testing.assert_array_equal(exact, got)
    assert [finding.rule for finding in lint(plain, dialect)] == ["matmul-add"] * 2
    assert running.kernels(plain, {"input": items[:1]})["Gemm"] == 2  # which is why


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["tensorrt-a", "tensorrt-b"])
def test_tensorrt_is_given_linear_layers_on_tokens_in_int8(dialect: str) -> None:
    model, scheme = running.exported(running.seeded(feed_forward), torch.zeros(1, 32, 48)), DIALECTS[dialect]
    graph = apply(model, dummy_ranges(model), scheme)
    assert not lint(graph, scheme)
    assert len(list(kernels.intended(View.of(graph)))) == 2
    if rtx.available():
        compiled = rtx.compile_for(graph)
        assert compiled.accepted and set(compiled.in_int8) == set(compiled.intended)


def test_the_compilers_listing_names_layers_that_it_made_one_kernel_of() -> None:
    record = "Name: b.v+b.k+b.q_myl0_5, LayerType: gemm, Inputs: [ { Name: x, Datatype: Int8 }], Outputs: []"
    other = "Name: proj_myl0_1, LayerType: gemm, Inputs: [ { Name: x, Datatype: Half }], Outputs: []"
    found = rtx._layers([("INFO", f"{record}\n{other}")], ["b.k", "b.q", "b.v", "proj"])
    assert found == {"b.k": "Int8", "b.q": "Int8", "b.v": "Int8", "proj": "Half"}


@pytest.mark.long
def test_a_linear_layer_of_two_axes_is_kept_from_the_float_gemm() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(48, 24)), nn.Parameter(torch.randn(24))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.relu(x @ self.w + self.b)

    model, dialect = running.exported(running.seeded(Product), torch.zeros(1, 48)), DIALECTS["ort-x86"]
    assert "MatMul" in {node.op_type for node in model.graph.node}
    quantised = apply(model, calibrate(model, [TOKENS[0]], dialect), dialect)
    assert not lint(quantised, dialect)
    assert running.kernels(quantised, {"input": TOKENS[0][:1]})["QLinearMatMul"] == 1


@pytest.mark.long
def test_the_profile_tells_which_layers_ran_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    quick = Protocol(warmup_runs=1, runs=2, rounds=2, max_spread=1e9)
    ort = msgspec.structs.replace(target.load("x86-onnxruntime"), protocol=quick)
    model, dialect = running.exported(running.seeded(feed_forward), torch.zeros(1, 32, 48)), DIALECTS["ort-x86"]
    quantised = apply(model, calibrate(model, [TOKENS], dialect), dialect)
    plain = onnx.ModelProto()
    plain.CopyFrom(quantised)
    for tensor in plain.graph.initializer:
        if "add.bias" in tensor.name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).reshape(-1), tensor.name))
    found = {}
    with devices.connect(ort) as device:
        for name, graph in (("kept", quantised), ("plain", plain)):
            path = tmp_path / f"{name}.onnx"
            onnx.save(graph, path)
            loaded = device.load(runtimes.build(path, tmp_path, ort, name, "int8"))
            found[name] = kernels.in_float(graph, device.profile(loaded, runs=2), dialect)
    assert not found["kept"]
    assert [finding.node for finding in found["plain"]] == ["0", "2"]


class Tokens(nn.Module):
    """A transformer's layer on tokens and a mask; two outputs, the second a hundred times smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.f1, self.f2, self.n2, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.words(ids)
        bias = (1.0 - mask[:, None, None].to(x.dtype)) * -1e9
        q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        a = ((q @ k.transpose(-1, -2)) / 8**0.5 + bias).softmax(-1) @ v
        x = self.norm(x + self.o(a.transpose(1, 2).flatten(2)))
        x = self.n2(x + self.f2(functional.gelu(self.f1(x))))
        return self.head(x[:, 0]), 0.01 * x


def tokens() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    rng = np.random.default_rng(0)
    mask = np.arange(16)[None] < rng.integers(8, 16, (24, 1))
    items = [{"ids": rng.integers(0, 50, (1, 16)), "mask": row[None].astype(np.int64)} for row in mask]
    example = {name: torch.from_numpy(value) for name, value in items[0].items()}
    return running.exported(running.seeded(Tokens), example), items


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["openvino", "ort-x86"])
def test_tokens_and_masks_calibrate_and_every_output_steers(dialect: str) -> None:
    (model, items), chosen = tokens(), DIALECTS[dialect]
    assert [value.name for value in model.graph.input] == ["ids", "mask"]
    ranges = calibrate(model, items, chosen)
    assert not any("gradient" in warning for warning in ranges.warnings)
    assert max(abs(end) for entry in ranges.tensors.values() for end in (entry.low, entry.high)) < 1e6  # not the mask's
    quantised = apply(model, ranges, chosen)
    assert not lint(quantised, chosen)
    rows = [(running.outputs(model, item), running.outputs(quantised, item)) for item in items]
    for index in range(2):
        exact, got = (np.concatenate([row[side][index] for row in rows]) for side in (0, 1))
        assert running.sqnr(exact, got) > 25


@pytest.mark.long
def test_items_are_mappings_tuples_or_batches_and_wrong_ones_are_told() -> None:
    (model, items), dialect = tokens(), DIALECTS["openvino"]
    batch = {name: np.concatenate([item[name] for item in items]) for name in ("ids", "mask")}
    same = [calibrate(model, given, dialect) for given in (items, [batch], [(batch["ids"], batch["mask"])])]
    assert same[0].to_dict() == same[1].to_dict() == same[2].to_dict()
    for wrong, words in (
        (batch["ids"], "2 inputs"),
        ({"ids": batch["ids"]}, "ids"),
        ({**batch, "ids": batch["ids"] + 0.5}, "whole numbers"),
        ({**batch, "ids": batch["ids"][:3]}, "together"),
    ):
        with pytest.raises(DataError, match=words):
            calibrate(model, [wrong], dialect)


@pytest.mark.long
def test_a_tasks_distance_steers() -> None:
    """With a distance that sees one of two heads, that head comes out better than with one that sees the other."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 4, 1)
            with torch.no_grad():  # channel 0 is large, and only head b reads it
                self.stem.weight[0] *= 30
                self.a.weight[:, 0], self.b.weight[:, 1:] = 0, 0

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.relu(self.stem(x))
            return self.a(x), self.b(x)

    model, dialect = running.exported(running.seeded(Heads), torch.zeros(1, 3, 16, 16)), DIALECTS["tensorrt-a"]
    reached = []
    for head in (0, 1):
        options = QuantizeSection(equalize=False)
        ranges = calibrate(
            model, [IMAGES], dialect, options, distance=lambda y, z, h=head: (y[h] - z[h]).square().flatten(1).mean(1)
        )
        quantised = apply(model, ranges, dialect)
        rows = [
            (running.outputs(model, {"input": i[None]}), running.outputs(quantised, {"input": i[None]})) for i in IMAGES
        ]
        reached.append([running.sqnr(*(np.concatenate([r[s][k] for r in rows]) for s in (0, 1))) for k in (0, 1)])
    assert reached[0][0] > reached[1][0] + 3 and reached[1][1] > reached[0][1] + 3


@pytest.mark.long
def test_only_what_cannot_be_followed_falls_back() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x))
            x = functional.interpolate(torch.relu(self.b(x)), scale_factor=0.5, mode="bilinear", antialias=True)
            return self.c(x).mean((2, 3))

    model, dialect = running.exported(running.seeded(Random), torch.zeros(1, 3, 16, 16)), DIALECTS["openvino"]
    ranges = calibrate(model, [IMAGES], dialect)
    (line,) = [warning for warning in ranges.warnings if "gradient" in warning]
    assert "Resize" in line and "2 ranges" in line  # of the two tensors before it, not of the one behind


@pytest.mark.long
def test_training_in_int8_sees_every_output_of_tokens_and_masks() -> None:
    (model, items), dialect = tokens(), DIALECTS["openvino"]
    ranges = calibrate(model, items, dialect, QuantizeSection(method="minmax", equalize=False))
    batch = {name: np.concatenate([item[name] for item in items]) for name in ("ids", "mask")}
    losses: list[float] = []
    trained = fine_tune(
        model, ranges, dialect, lambda: [batch], 12, lr=3e-5, on_step=lambda _, loss: losses.append(loss)
    )
    assert min(losses[-3:]) < losses[0]
    written = running.outputs(apply(*trained, dialect), items[0])
    exact = running.outputs(model, items[0])
    assert all(running.sqnr(one, two) > 20 for one, two in zip(exact, written, strict=True))


class Normed(nn.Module):
    """A post-norm layer: what it adds is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(48, 96), nn.Linear(96, 48), nn.LayerNorm(48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.second(functional.relu(self.first(x))))


@pytest.mark.long
def test_onnx_runtime_is_kept_from_its_slow_kernel_of_sum_and_norm() -> None:
    model, scheme = running.exported(running.seeded(Normed), torch.zeros(1, 32, 48)), DIALECTS["ort-x86"]
    assert running.kernels(model, {"input": TOKENS[:1]})["SkipLayerNormalization"] == 1
    graph = apply(model, calibrate(model, [TOKENS], scheme), scheme)
    found = running.kernels(graph, {"input": TOKENS[:1]})
    assert (found["SkipLayerNormalization"], found["LayerNormalization"], found["Sum"]) == (0, 1, 1)
    assert found["MatMulIntegerToFloat"] == 2 and not lint(graph, scheme)
    wanted, got = (running.outputs(one, {"input": TOKENS[:1]})[0] for one in (model, graph))
    assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()) > 30
