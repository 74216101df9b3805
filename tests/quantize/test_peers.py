"""The other tools of benchmarks/int8.py are used fairly: what they calibrate on is every image."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from onnx import numpy_helper

from . import nets

pytest.importorskip("onnxruntime.quantization")


def peers() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "int8_peers.py"
    spec = importlib.util.spec_from_file_location("int8_peers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("count", [7, 16])
@pytest.mark.parametrize("place", [0, -1])
def test_min_max_ranges_are_those_of_all_images(count: int, place: int, tmp_path: Path) -> None:
    model, images = nets.residual(), nets.images(count)
    images[place] *= 3  # the extremes are in one image
    onnx.save(model, tmp_path / "float.onnx")
    peers().onnxruntime_quantization(
        tmp_path / "float.onnx", tmp_path / "prepared.onnx", images, "ort-minmax", tmp_path / "int8.onnx", signed=False
    )
    found = onnx.load(tmp_path / "int8.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.initializer}
    quantiser = next(node for node in found.node if node.op_type == "QuantizeLinear" and node.input[0] == "input")
    seen = float(images.max()) - min(float(images.min()), 0.0)
    assert float(constants[quantiser.input[1]]) == pytest.approx(seen / 255, rel=1e-5)


@pytest.mark.parametrize("maker", ["ort-percentile", "ort-entropy"])
@pytest.mark.parametrize("count", [7, 32])
def test_histograms_are_those_of_all_images_a_few_at_a_time(
    maker: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.quantization.calibrate import HistogramCollector

    model, images = nets.residual(), nets.images(count)
    onnx.save(model, tmp_path / "float.onnx")
    whole, seen, held = HistogramCollector.collect, [], []

    def collect(self: HistogramCollector, given: dict[str, list[object]]) -> object:
        held.append(len(given["stem_output"]))
        found = whole(self, given)
        seen.append(int(self.histogram_dict["stem_output"][0].sum()))
        return found

    monkeypatch.setattr(HistogramCollector, "collect", collect)
    peers().onnxruntime_quantization(
        tmp_path / "float.onnx", tmp_path / "prepared.onnx", images, maker, tmp_path / "int8.onnx", signed=False
    )
    assert sum(held) == count and max(held) <= 16
    assert seen[-1] == count * 16 * 16 * 16  # images, channels, height, width
