"""Float graphs of several inputs and outputs: called as the network's are, and equal to PyTorch at every output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from edgeprune.errors import ModelError
from edgeprune.model import check_export, export_onnx
from edgeprune.model.masks import finite_masks


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.size = nn.Parameter(torch.ones(1))  # an input is called so too
        self.ids, self.head = nn.Embedding(9, 6), nn.Linear(8, 3)

    def forward(self, tokens, mask, size):
        x = (self.ids(tokens) * mask[..., None]).sum(1) * self.size
        x = self.head(torch.cat([x, size], 1))
        return {"scores": x, "best": x.argmax(1), "any": mask.any(1)}


EXAMPLE = {
    "tokens": torch.tensor([[1, 2, 8], [0, 3, 4]]),
    "mask": torch.tensor([[True, True, False], [False, True, True]]),
    "size": torch.randn(2, 2),
}


@pytest.mark.long
@pytest.mark.parametrize("form", ["by name", "by name, another order", "in order"])
def test_inputs_are_called_as_forwards_arguments_and_outputs_by_number(tmp_path: Path, form: str) -> None:
    network = Several().train()
    example = {"in order": tuple(EXAMPLE.values()), "by name": EXAMPLE}.get(form, dict(reversed(EXAMPLE.items())))
    made = export_onnx(network, example, tmp_path / "x.onnx", ("tokens", "mask", "size"))
    check_export(network, example, made)
    assert network.training
    session = onnxruntime.InferenceSession(made.SerializeToString())
    assert sorted(value.name for value in session.get_inputs()) == ["mask", "size", "tokens"]
    assert {value.name: value.type for value in session.get_inputs()}["mask"] == "tensor(bool)"
    assert [value.name for value in session.get_outputs()] == ["output", "output_1", "output_2"]
    found = session.run(None, {name: value.numpy() for name, value in EXAMPLE.items()})
    with torch.no_grad():
        wanted = network.eval()(**EXAMPLE)
    for one, two in zip(found, wanted.values(), strict=True):
        assert np.allclose(one, two.numpy(), atol=1e-5) and one.dtype == two.numpy().dtype


@pytest.mark.long
def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    network = Several().eval()
    made = export_onnx(network, EXAMPLE, tmp_path / "x.onnx")
    with torch.no_grad():
        network.head.bias.add_(0.1)
    with pytest.raises(ModelError, match="output 0 of the exported network is not the network's own"):
        check_export(network, EXAMPLE, made)


@pytest.mark.long
def test_an_input_called_output_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, output):
            return output * 2

    with pytest.raises(ModelError, match="called 'output'"):
        export_onnx(Odd(), {"output": torch.ones(1, 2)}, tmp_path / "x.onnx")


class Cached(nn.Module):
    """Keeps its anchors from one forward to the next, as detectors do."""

    anchors = torch.empty(0)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.anchors.shape != x.shape[-1:]:
            self.anchors = torch.arange(x.shape[-1], dtype=torch.float32)
        return self.layer(x) + self.anchors


@pytest.mark.long
def test_a_network_that_keeps_things_in_attributes_runs_as_before_after_its_export(tmp_path: Path) -> None:
    network, x = Cached().eval(), torch.rand(1, 3, 8, 8)
    export_onnx(network, x, tmp_path / "network.onnx")
    assert type(network.anchors) is torch.Tensor and network.anchors.numel() == 0
    with torch.no_grad():
        assert network(x).numpy().shape == (1, 4, 8, 8)


@pytest.mark.long
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1)])
def test_zeros_padded_ahead_of_a_pool_count_as_zeros_in_the_runtime(tmp_path: Path, pool: nn.Module) -> None:
    """ONNX Runtime takes them for minus infinity ahead of a MaxPool: all is negative here, so zeros must win."""
    network = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), pool)
    example = -torch.rand(1, 2, 5, 5) - 0.5
    exported = export_onnx(network, example, tmp_path / "pool.onnx")
    check_export(network, example, exported)
    found = onnxruntime.InferenceSession(tmp_path / "pool.onnx").run(None, {"input": example.numpy()})[0]
    assert found == pytest.approx(network(example).numpy(), abs=1e-6)
    if isinstance(pool, nn.MaxPool2d):
        assert found[0, 0, -1].max() == pytest.approx(0.0, abs=1e-30)


class Masked(nn.Module):
    """torch's own encoder: what is padding, and what comes later, is filled with minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
        self.encoder, self.later = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 8)
        self.register_buffer("causal", torch.full((5, 5), float("-inf")).triu(1))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = self.later(self.encoder(x, src_key_padding_mask=mask == 0))
        return torch.softmax(y @ x.transpose(1, 2) + self.causal, -1) @ x


@pytest.mark.long
def test_masks_of_minus_infinity_are_exported_as_finite_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, mask = Masked().eval(), torch.ones(2, 5)
    mask[0, 3:] = 0
    example = (torch.randn(2, 5, 8), mask)
    made = export_onnx(network, example, tmp_path / "masked.onnx")
    constants = [numpy_helper.to_array(tensor) for tensor in made.graph.initializer]
    assert all(np.isfinite(one).all() for one in constants if one.dtype.kind == "f")
    assert sum(int((one == -1e4).sum()) for one in constants if one.dtype.kind == "f") >= 11  # a fill, ten of causal
    check_export(network, example, made)


def test_a_weight_of_minus_infinity_stays_one() -> None:
    weight = numpy_helper.from_array(np.array([[-np.inf]], np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", 1, [1, 1])], [weight])
    finite_masks(graph)
    assert np.isneginf(numpy_helper.to_array(graph.initializer[0])).all()
