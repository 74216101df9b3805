"""Channels lie where the operator says, whatever the rank; graphs of every kind are narrowed as plans narrow them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from edgeprune.devices.types import KernelTime
from edgeprune.graph import trace, width
from edgeprune.latency.kernels import cell_channels, entries
from edgeprune.latency.network import read_network, runs
from edgeprune.latency.sites import channels, find_sites
from edgeprune.latency.slicing import narrow
from edgeprune.latency.variants import draw
from edgeprune.model.export import export_onnx
from edgeprune.target import Channels

STEPS = Channels(step=8, input_step=8, depthwise_step=8, minimum=8)


def spatial(dims: int) -> nn.Module:
    """Convolution, norm, depthwise, transposed convolution, in 1, 2 or 3 dimensions."""
    conv, norm, up = {
        1: (nn.Conv1d, nn.BatchNorm1d, nn.ConvTranspose1d),
        2: (nn.Conv2d, nn.BatchNorm2d, nn.ConvTranspose2d),
        3: (nn.Conv3d, nn.BatchNorm3d, nn.ConvTranspose3d),
    }[dims]
    return nn.Sequential(
        conv(4, 24, 3, padding=1), norm(24), nn.ReLU(), conv(24, 24, 3, padding=1, groups=24), conv(24, 40, 1),
        nn.ReLU(), up(40, 32, 2, 2), nn.Sigmoid(), conv(32, 4, 1),
    )  # fmt: skip


class Tokens(nn.Module):
    """[N, T, C]: linear layers, a norm, attention of four heads, a gated pair by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 96), nn.Linear(48, 32), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, -1, 8).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, -1))
        value, gate = self.up(x).chunk(2, -1)
        return self.head((x + self.down(value * torch.sigmoid(gate))).mean(1))


class Split(nn.Module):
    """A detector's parts: split, concat, pooling, resize."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(48, 24, 1)
        self.d = nn.Conv2d(56, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = torch.relu(self.a(x))
        parts = list(wide.chunk(2, 1))
        parts.append(self.b(parts[-1]))
        low = nn.functional.max_pool2d(torch.relu(self.c(torch.cat(parts, 1))), 2)
        return self.d(torch.cat([nn.functional.interpolate(low, scale_factor=2.0), wide], 1)).flatten(2)


CASES = {
    "1-d": (lambda: spatial(1), (4, 20)),
    "2-d": (lambda: spatial(2), (4, 12, 10)),
    "3-d": (lambda: spatial(3), (4, 6, 5, 4)),
    "tokens": (Tokens, (12, 32)),
    "split": (Split, (3, 8, 8)),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    make, shape = CASES[request.param]
    torch.manual_seed(0)
    model, example = make().eval(), torch.randn(1, *shape)
    path: Path = tmp_path_factory.mktemp("axes") / "dense.onnx"
    return model, example, trace(model, example), export_onnx(model, example, path)


def test_a_layers_channels_are_the_structures_whatever_the_rank(case) -> None:
    _, _, structure, dense = case
    network, layers = read_network(dense), {layer.name: layer for layer in structure.layers}
    found = [node for node in network.nodes.values() if node.weighted]
    assert len(found) == len(layers)
    for node in found:
        layer = layers[node.name]
        assert (node.c_in, node.c_out) == (width(layer.inputs, {}), width(layer.outputs, {})), node
        assert node.size == tuple(layer.input_size)


def test_slicing_computes_what_the_applied_plan_computes(case) -> None:
    model, example, structure, dense = case
    sliced = 0
    for variant in draw(structure, STEPS, 4, seed=1, blocks=False):
        graph = narrow(dense, structure, variant)
        assert graph is not None, variant
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(None, {"input": example.numpy()})[0]
        plan = structure.plan({name: range(units) for name, units in variant.widths.items()})
        with torch.no_grad():
            wanted = plan.apply(model)(example).numpy()
        assert np.abs(found - wanted).max() < 1e-5
        sliced += any(units < structure.group(name).size for name, units in variant.widths.items())
    assert sliced >= 2


@pytest.mark.slow
def test_every_kernels_channels_in_a_narrowed_network_are_foretold(case) -> None:
    """What the predictor thinks that a narrowed network's kernels are is what they are, layer or not."""
    _, _, structure, dense = case
    network, layers = read_network(dense), {layer.name: layer for layer in structure.layers}
    drawn = [(v.widths, narrow(dense, structure, v)) for v in draw(structure, STEPS, 6, seed=3, blocks=False)]
    read = [(widths, read_network(graph)) for widths, graph in drawn]
    kernels = [KernelTime(name, node.op, (), 1.0, 0.01, 10) for name, node in network.nodes.items()]
    sites = find_sites(entries(kernels, network, {}, "r 1", 1), network, structure, read[:3])
    for widths, narrowed in read[3:]:
        for site in sites:
            assert channels(site, layers, widths) == cell_channels(narrowed.nodes[site.node]), site


def test_shapes_are_cut_into_runs_of_equal_product() -> None:
    assert runs((1, 12, 96), (1, 12, 3, 4, 8)) == [([0], [0]), ([1], [1]), ([2], [2, 3, 4])]
    assert runs((1, 24, 4, 4), (1, 384)) == [([0], [0]), ([1, 2, 3], [1])]
    assert runs((2, 8, 1, 1), (2, 8)) == [([0], [0]), ([1], [1]), ([2], []), ([3], [])]


@pytest.mark.slow
def test_a_recurrent_cell_has_the_width_of_its_input_and_of_its_state(tmp_path: Path) -> None:
    class Listener(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(24, 32, batch_first=True), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    example = torch.zeros(1, 10, 24)
    model = Listener().eval()
    structure, dense = trace(model, example), export_onnx(model, example, tmp_path / "dense.onnx")
    network = read_network(dense)
    cell = next(node for node in network.nodes.values() if node.op == "LSTM")
    assert (cell.c_in, cell.c_out, cell.weighted, cell.size) == (24, 32, True, (10,))
    found = entries([KernelTime(cell.name, "LSTM", (), 1.0, 0.01, 10)], network, {}, "r 1", 1)
    (site,) = find_sites(found, network, structure)
    assert (site.layer, site.side, site.family.kind, site.family.cls) == ("lstm", "both", "lstm", "recurrent")
    layers = {layer.name: layer for layer in structure.layers}
    assert channels(site, layers, {group.name: 16 for group in structure.groups}) == (24, 16)
