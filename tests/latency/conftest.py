"""A small residual network, traced and exported once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from latency_net import Net, Prepared

from edgeprune import target as targets
from edgeprune.graph import trace
from edgeprune.latency.build import ArtifactBuilder, maker
from edgeprune.model.export import export_onnx


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.manual_seed(0)
    model, example = Net().eval(), torch.zeros(1, 3, 16, 16)
    path = tmp_path_factory.mktemp("net") / "dense.onnx"
    return Prepared(model, trace(model, example), example, export_onnx(model, example, path))


@pytest.fixture
def made(prepared: Prepared, tmp_path: Path) -> ArtifactBuilder:
    """A maker for ONNX Runtime's dialect."""
    target = targets.load("x86-onnxruntime")
    return maker(
        prepared.model, prepared.structure, prepared.example, target, tmp_path / "built", float_onnx=prepared.dense
    )
