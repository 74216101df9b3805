"""TensorRT's artifact, and the model of latency that stands in until a device has measured."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import tinynets

from edgeprune import runtimes, target
from edgeprune.devices.roofline import LABEL, modelled_kernel_ms
from edgeprune.errors import MissingDependency, TargetError

NANO, XAVIER = target.load("jetson-orin-nano"), target.load("jetson-xavier-nx")
LAYER = {"kernel": (3, 3), "input_positions": 56 * 56, "output_positions": 56 * 56}


def test_the_graph_is_shipped_and_the_device_told_how_to_build_it(tmp_path: Path) -> None:
    source = tinynets.float_net(tmp_path / "net.onnx")
    plain = runtimes.build(source, tmp_path / "out", NANO, "dense-fp32", "fp32")
    assert plain.options == {"precision": "fp32"} and plain.runtime == "tensorrt"
    assert plain.files["dense-fp32.onnx"].read_bytes() == source.read_bytes()
    typed = msgspec.structs.replace(NANO, dialect="tensorrt-b")
    int8 = runtimes.build(source, tmp_path / "out", typed, "dense-int8", "int8")
    assert int8.options == {"precision": "int8", "strongly_typed": True}


def test_tensorrt_has_no_version_here() -> None:
    with pytest.raises(MissingDependency, match="not needed here"):
        runtimes.version("tensorrt")


def test_the_model_steps_where_kernels_pad() -> None:
    times = [modelled_kernel_ms(NANO, inputs=64, outputs=width, **LAYER) for width in (33, 64, 65, 96)]
    assert times[0] == times[1] < times[2] == times[3]
    fine = [modelled_kernel_ms(NANO, inputs=64, outputs=w, precision="fp16", **LAYER) for w in (33, 40, 41)]
    assert fine[0] == fine[1] < fine[2]


def test_the_model_knows_fast_from_slow() -> None:
    def model(device: target.Target, precision: str) -> float:
        return modelled_kernel_ms(device, inputs=256, outputs=256, precision=precision, **LAYER)

    assert model(NANO, "int8") < model(NANO, "fp16") and model(NANO, "int8") < model(XAVIER, "int8")
    assert "not measured" in LABEL


def test_a_profile_without_the_makers_figures_has_no_model() -> None:
    bare = msgspec.structs.replace(NANO, extra={})
    with pytest.raises(TargetError, match=r"\[extra\] int8_tops is missing"):
        modelled_kernel_ms(bare, inputs=64, outputs=64, **LAYER)
