"""Images, networks and overrides that cannot or should not be calibrated on: one clear line each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeprune.errors import DataError, GraphError, ModelError, RecipeError
from edgeprune.quantize import apply, calibrate, dummy_ranges
from edgeprune.recipe import LayerOverride, QuantizeSection
from edgeprune.runtimes import DIALECTS

from . import nets

OPENVINO = DIALECTS["openvino"]
QUICK = QuantizeSection(method="minmax", equalize=False)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_images_are_refused(value: float) -> None:
    with pytest.raises(DataError, match="all 4 calibration images are"):
        calibrate(nets.plain(), np.full((4, 3, 16, 16), value, np.float32), OPENVINO, QUICK)


def test_no_images_and_other_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="no images"):
        calibrate(nets.plain(), [], OPENVINO, QUICK)
    with pytest.raises(DataError, match=r"shape \[3, 8, 8\], but the network reads"):
        calibrate(nets.plain(), nets.images(2, 8), OPENVINO, QUICK)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_an_image_names_the_image(value: float) -> None:
    images = nets.images(4)
    images[2, 0, 3, 3] = value
    with pytest.raises(DataError, match="image 2 has 1 values"):
        calibrate(nets.plain(), images, OPENVINO, QUICK)


@pytest.mark.parametrize("equalise", [False, True])
@pytest.mark.parametrize(
    ("value", "message"), [(np.inf, r"'block1\.conv1\.weight' has 1 val"), (3e38, "infinite in tensor")]
)
def test_nan_in_weights_and_activations_is_named(value: float, message: str, equalise: bool) -> None:
    model = nets.residual()
    weight = next(t for t in model.graph.initializer if t.name == "block1.conv1.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 1, 1] = value
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(ModelError, match=message):
        calibrate(model, 50 * nets.images(4), OPENVINO, QuantizeSection(method="minmax", equalize=equalise))


@pytest.mark.long
def test_one_image_works_and_is_warned_of() -> None:
    ranges = calibrate(nets.residual(), nets.images(1), OPENVINO)
    assert any("one image only" in text for text in ranges.warnings)
    assert ranges.images == 1


@pytest.mark.long
def test_raw_pixels_are_warned_of_with_the_evidence() -> None:
    pixels = np.rint(nets.images(40) * 255)
    text = " ".join(calibrate(nets.plain(), pixels, OPENVINO, QUICK).warnings)
    assert "raw pixels" in text and "0 to 255" in text
    assert calibrate(nets.plain(), pixels / 255, OPENVINO, QUICK).warnings == ()
    assert "nearly black" in " ".join(calibrate(nets.plain(), pixels / 255**2, OPENVINO, QUICK).warnings)


def test_an_operator_without_an_int8_kernel_is_named() -> None:
    net = nets.Net()
    x = net.relu(net.conv("input", "stem", 3, 8))
    weight = net.constant("up.weight", net.rng.normal(size=(8, 4, 2, 2)).astype(np.float32))
    model = net.model(net.node("ConvTranspose", x, weight, name="up", strides=[2, 2], kernel_shape=[2, 2]))
    ranges = calibrate(model, nets.images(40), DIALECTS["ort-x86"], QUICK)
    assert any("1 ConvTranspose layer stays in float" in text and "'up'" in text for text in ranges.warnings)
    quantised = apply(model, ranges, DIALECTS["ort-x86"])
    assert next(n for n in quantised.graph.node if n.name == "up").input[1] == "up.weight"


def test_an_old_opset_is_raised_where_that_is_possible() -> None:
    model = nets.residual()
    model.opset_import[0].version = 11
    quantised = apply(model, dummy_ranges(model), OPENVINO)
    assert quantised.opset_import[0].version == 13
    onnx.checker.check_model(quantised)
    model.graph.node[0].op_type = "Nonsense"
    model.graph.node.append(onnx.helper.make_node("Squeeze", ["output"], ["flat"], axes=[0]))
    with pytest.raises(GraphError, match="opset 11"):
        apply(model, dummy_ranges(model), OPENVINO)


def test_overrides_are_followed_and_unknown_layers_are_refused() -> None:
    layers = {
        "block1.conv1": LayerOverride(range=(0.0, 1.25)),
        "block2.conv1": LayerOverride(method="entropy"),
        "block1.conv2": LayerOverride(precision="float"),
    }
    model = nets.residual()
    ranges = calibrate(model, nets.images(8), OPENVINO, QuantizeSection(method="mse", equalize=False, layers=layers))
    by_layer = {node.name: node.input[0] for node in model.graph.node}
    assert (ranges.tensors[by_layer["block1.conv1"]].high, ranges.tensors[by_layer["block1.conv1"]].method) == (
        1.25,
        "user",
    )
    assert ranges.tensors[by_layer["block2.conv1"]].method == "entropy"
    assert ranges.tensors[by_layer["block2.shortcut"]].method == "entropy"  # it reads the same tensor
    assert ranges.tensors["input"].method == "mse"
    quantised = apply(model, ranges, OPENVINO)
    assert next(n for n in quantised.graph.node if n.name == "block1.conv2").input[1] == "block1.conv2.weight"
    with pytest.raises(RecipeError, match=r"Did you mean 'block1\.conv"):
        calibrate(model, nets.images(8), OPENVINO, QuantizeSection(layers={"block1.conv": LayerOverride()}))


def test_several_inputs_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    model = nets.plain()
    model.graph.input.append(onnx.helper.make_tensor_value_info("second", 1, [1, 3]))
    with pytest.raises(DataError, match=r"2 inputs \(input, second\)"):
        calibrate(model, nets.images(2), OPENVINO, QUICK)
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not a readable ONNX model"):
        calibrate(tmp_path / "broken.onnx", nets.images(2), OPENVINO, QUICK)


@pytest.mark.long
def test_same_input_same_bytes_and_the_cache_knows_what_it_depends_on(tmp_path: Path) -> None:
    model, images = nets.residual(), nets.images(8)
    first, second = (calibrate(model, images, OPENVINO) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    streamed = calibrate(model, lambda: (images[i : i + 3] for i in range(0, 8, 3)), OPENVINO)
    assert streamed.to_dict() == first.to_dict()
    other = images.copy()
    other[0, 0, 0, 0] += 0.01
    changed = [
        calibrate(model, other, OPENVINO, QUICK).key,
        calibrate(model, images, DIALECTS["ort-x86"], QUICK).key,
        calibrate(nets.plain(), images, OPENVINO, QUICK).key,
        calibrate(model, images, OPENVINO, QUICK).key,
        first.key,
    ]
    assert len(set(changed)) == 5
    calibrate(model, images, OPENVINO, QUICK, cache=tmp_path)
    file = next(tmp_path.glob("ranges-*.json"))
    file.write_text(file.read_text().replace('"images":8', '"images":77'))
    assert calibrate(model, images, OPENVINO, QUICK, cache=tmp_path).images == 77


def test_progress_counts_work_done_and_in_all() -> None:
    seen: list[tuple[int, int]] = []
    calibrate(nets.plain(), nets.images(5), OPENVINO, progress=lambda done, total: seen.append((done, total)))
    assert len({total for _, total in seen}) == 1 and len(seen) > 20
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1][0] == seen[-1][1]
