"""What operators behind the last weights cost: told by the runtime's profile, said in the log and on the page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from edgeprune import devices, model, quantize, runtimes, target
from edgeprune.pipeline import behind
from edgeprune.report import network
from edgeprune.result import Facts
from edgeprune.tasks import decoders


class Head(nn.Module):
    """A classifier that sorts by itself; or without anything behind its last layer."""

    def __init__(self, bare: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.bare = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 9, 1), bare

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.head(torch.relu(self.body(x)))
        return made if self.bare else made.softmax(1).sort(1)[0]


def exported(folder: Path, bare: bool) -> onnx.ModelProto:
    return model.export_onnx(Head(bare).eval(), torch.zeros(1, 3, 24, 24), folder / "float.onnx")


@pytest.mark.long
@pytest.mark.parametrize("name", ["x86-onnxruntime", "intel-cpu"])
@pytest.mark.parametrize("case", ["sorts", "boxes out"])
def test_the_runtimes_own_profile_tells(tmp_path: Path, name: str, case: str) -> None:
    if name == "intel-cpu":
        pytest.importorskip("openvino", reason="the extra edgeprune[openvino] is not installed")
    profile = target.load(name)
    ends = model.Ends(output="nms", decode=decoders.FastestDet()) if case == "boxes out" else model.Ends()
    graph = exported(tmp_path, case == "boxes out")
    dialect = runtimes.DIALECTS[profile.dialect]
    onnx.save(ends.around(quantize.apply(graph, quantize.dummy_ranges(graph), dialect)), tmp_path / "int8.onnx")
    artifact = runtimes.build(tmp_path / "int8.onnx", tmp_path / "out", profile, "int8", "int8")
    with devices.connect(profile, "local") as device:
        kernels = [vars(one) for one in device.profile(device.load(artifact))]
    found = behind.cost(graph, ends, kernels, 2.0)
    assert found is not None and 0.05 < found.share < 0.99
    assert found.latency == pytest.approx(2.0 * found.share)
    wanted = {"NonMaxSuppression", "TopK", "Tanh"} if case == "boxes out" else {"Softmax", "TopK"}
    assert wanted <= set(found.operators)
    said = found.said("ms")
    assert said.startswith("behind the last weights, in float: ") and said.endswith("% of the artifact's latency")
    page = str(network.latency(Facts({"unit": "ms", "layers": [ROW], "postprocessing": asdict(found)})))
    assert "Behind the last weights, in float: " in page and "Behind" not in str(
        network.latency(Facts({"unit": "ms", "layers": [ROW]}))
    )


ROW: dict[str, Any] = {"name": "body", "before": [3, 32], "after": [3, 16], "dense_ms": 1.0, "pruned_ms": 0.5}
KERNELS = [
    {"name": "body", "layers": ["body"], "median": 6.0},
    {"name": "fused", "layers": ["head", "softmax"], "median": 2.0},
    {"name": "softmax", "layers": ["softmax"], "median": 1.0},
    {"name": "reorder", "layers": [], "median": 1.0},
]


def test_what_is_fused_into_a_layer_is_the_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = exported(tmp_path, False)
    monkeypatch.setattr(
        quantize, "tail", lambda view: {"softmax", *(n.name for n in view.nodes if "Conv" not in n.op_type)}
    )
    found = behind.cost(graph, model.Ends(), KERNELS, 5.0)
    assert found is not None and found.share == pytest.approx(0.1) and found.latency == pytest.approx(0.5)


def test_a_network_that_ends_in_weights_says_nothing(tmp_path: Path) -> None:
    assert behind.cost(exported(tmp_path, True), model.Ends(), KERNELS, 1.0) is None
