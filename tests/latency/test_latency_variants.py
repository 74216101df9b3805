from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from latency_net import Prepared
from onnx import numpy_helper

from edgeprune.graph import Configuration, trace
from edgeprune.latency.build import ArtifactBuilder
from edgeprune.latency.slicing import narrow
from edgeprune.latency.variants import draw, floor, options
from edgeprune.target import Channels

STEPS = Channels(step=16, input_step=8, depthwise_step=16, minimum=8)


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"input": image})[0]
    return result


def test_options_lie_on_the_grid_and_end_with_the_dense_width(prepared: Prepared) -> None:
    allowed = options(prepared.structure, STEPS)
    assert allowed["first.conv1"] == (8, 16, 24, 32, 40, 48)
    assert allowed["stem"] == (16, 32)  # a depthwise convolution is tied to it
    assert all(widths[-1] == prepared.structure.group(name).size for name, widths in allowed.items())


def test_drawn_variants_are_legal_reproducible_and_cover_the_range(prepared: Prepared) -> None:
    allowed = options(prepared.structure, STEPS)
    drawn = draw(prepared.structure, STEPS, 60, seed=3)
    assert drawn == draw(prepared.structure, STEPS, 60, seed=3) != draw(prepared.structure, STEPS, 60, seed=4)
    for variant in drawn:
        assert all(units in allowed[name] for name, units in variant.widths.items())
    for name, widths in allowed.items():
        assert {variant.widths[name] for variant in drawn} >= {widths[0], widths[-1]}
    assert {variant.removed for variant in drawn} >= {(), ("first",), ("second",)}
    assert all(not variant.removed for variant in draw(prepared.structure, STEPS, 20, blocks=False))


@pytest.mark.parametrize("seed", range(4))
def test_slicing_computes_what_the_applied_plan_computes(prepared: Prepared, seed: int) -> None:
    variant = draw(prepared.structure, STEPS, 4, seed=11)[seed]
    graph = narrow(prepared.dense, prepared.structure, variant)
    assert graph is not None
    plan = prepared.structure.plan({name: range(n) for name, n in variant.widths.items()}, variant.removed)
    image = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    with torch.no_grad():
        wanted = plan.apply(prepared.model)(torch.from_numpy(image)).numpy()
    assert np.abs(run(graph, image) - wanted).max() < 1e-4


def test_the_floor_is_the_least_of_everything(prepared: Prepared) -> None:
    least = floor(prepared.structure, STEPS)
    assert set(least.removed) == {"first", "second"}
    assert all(least.widths[name] == widths[0] for name, widths in options(prepared.structure, STEPS).items())
    assert narrow(prepared.dense, prepared.structure, least) is not None


@pytest.mark.long
def test_a_graph_that_cannot_be_sliced_is_refused_and_exported_instead(
    prepared: Prepared, made: ArtifactBuilder
) -> None:
    """A constant of the graph that no parameter names (here: renamed) would keep its old width."""
    import dataclasses

    strange = onnx.ModelProto()
    strange.CopyFrom(prepared.dense)
    for tensor in strange.graph.initializer:
        if tensor.name == "first.conv2.weight":
            tensor.name = "folded"
    for node in strange.graph.node:
        node.input[:] = ["folded" if name == "first.conv2.weight" else name for name in node.input]
    variant = Configuration({"first.conv1": 16})
    assert narrow(strange, prepared.structure, variant) is None
    graph = dataclasses.replace(made, dense=strange).float_graph(variant)
    shapes = {t.name: list(numpy_helper.to_array(t).shape) for t in graph.graph.initializer}
    assert shapes["first.conv2.weight"] == [32, 16, 3, 3]


class Flat(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.fc = torch.nn.Linear(16 * 8 * 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(torch.relu(self.conv(x)), 1))


@pytest.mark.slow
def test_a_flattened_map_is_cut_by_whole_channels(tmp_path: object) -> None:
    from pathlib import Path

    from edgeprune.model.export import export_onnx

    model, example = Flat().eval(), torch.zeros(1, 3, 8, 8)
    structure = trace(model, example)
    dense = export_onnx(model, example, Path(str(tmp_path)) / "flat.onnx")
    graph = narrow(dense, structure, Configuration({"conv": 8}))
    assert graph is not None
    image = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    with torch.no_grad():
        wanted = structure.plan({"conv": range(8)}).apply(model)(torch.from_numpy(image)).numpy()
    assert np.abs(run(graph, image) - wanted).max() < 1e-4
