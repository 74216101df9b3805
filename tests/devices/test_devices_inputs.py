"""Artifacts of several inputs, of tokens and masks, run and are measured; what does not fit them is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune import devices, runtimes
from edgeprune import target as targets
from edgeprune.devices.types import columns
from edgeprune.errors import JobFailed
from edgeprune.model import export_onnx


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ids, self.head = nn.Embedding(9, 6), nn.Linear(8, 3)

    def forward(self, tokens, size, mask):
        x = (self.ids(tokens) * mask[..., None]).sum(1)
        x = self.head(torch.cat([x, size], 1))
        return x, x.argmax(1)


@pytest.mark.long
@pytest.mark.parametrize("name", ["x86-onnxruntime", "intel-cpu"])
def test_several_inputs_by_name_and_in_order(tmp_path: Path, name: str) -> None:
    device, network, random = targets.load(name), Words().eval(), np.random.default_rng(0)
    given = {
        "tokens": random.integers(0, 9, (5, 4)),
        "size": random.normal(size=(5, 2)).astype(np.float32),
        "mask": random.random((5, 4)) < 0.5,
    }
    example = {key: torch.from_numpy(value[:1]) for key, value in given.items()}
    export_onnx(network, example, tmp_path / "net.onnx")
    artifact = runtimes.build(tmp_path / "net.onnx", tmp_path, device, "net", "fp32")
    with torch.no_grad():
        wanted = [part.numpy() for part in network(**{key: torch.from_numpy(value) for key, value in given.items()})]
    with devices.connect(device, "") as there:
        loaded = there.load(artifact)
        for form in (given, dict(reversed(given.items())), tuple(given.values())):
            scores, best = there.infer(loaded, form)
            assert np.allclose(scores, wanted[0], atol=1e-5) and np.array_equal(best, wanted[1])
        assert there.profile(loaded, 2)
        with pytest.raises(JobFailed, match="it takes tokens, size, mask; given were"):
            there.infer(loaded, {"tokens": given["tokens"]})


def test_arrays_of_several_lengths_are_refused() -> None:
    with pytest.raises(JobFailed, match="of several lengths"):
        columns((np.zeros(3), np.zeros(2)), ("a", "b"), "net")
    assert columns(np.zeros((3, 2)), ("a",), "net")[0].shape == (3, 2)


class Summed(nn.Module):
    """Its second output is of the whole batch."""

    def forward(self, x):
        return x * 2, x.sum((0, 2))


@pytest.mark.long
def test_an_output_of_the_whole_batch_is_said(tmp_path: Path) -> None:
    """The first axis of every output is the batch; what has none is no row of each example."""
    device = targets.load("x86-onnxruntime")
    export_onnx(Summed().eval(), torch.zeros(1, 3, 2), tmp_path / "net.onnx")
    artifact = runtimes.build(tmp_path / "net.onnx", tmp_path, device, "net", "fp32")
    with devices.connect(device, "") as there:
        loaded = there.load(artifact)
        with pytest.raises(JobFailed, match=r"has shape \(3,\) for a batch of 1: its first axis must be the examples'"):
            there.infer(loaded, np.ones((2, 3, 2), np.float32))
