"""The door of calibration: images in, `Ranges` out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from edgeprune.errors import RecipeError, did_you_mean
from edgeprune.quantize.insert import grid
from edgeprune.quantize.methods import Method, choose, noise
from edgeprune.quantize.observe import Images, Watched, watch
from edgeprune.quantize.placement import place
from edgeprune.quantize.ranges import Ranges, TensorRange, read_model
from edgeprune.quantize.view import View
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes.dialects import Dialect

Progress = Callable[[int], None]


def calibrate(
    float_onnx: Path | onnx.ModelProto,
    images: Images,
    dialect: Dialect,
    options: QuantizeSection | None = None,
    progress: Progress | None = None,
) -> Ranges:
    """Choose the range of every tensor that `dialect` quantises.

    Args:
        float_onnx: the float graph of docs/doors.md, a file or already loaded.
        images: a callable that gives an iterable of preprocessed images or batches (N, C, H, W), or a sequence of them.
        options: the recipe's [quantize] section.
        progress: called with the number of images done.

    Raises:
        ModelError: the file is no ONNX model that ONNX Runtime runs.
        DataError: no images, or images of another shape.
        RecipeError: an override names a layer that the graph does not have.
        GraphError: the graph has several inputs or no fixed shape.
    """
    options = options or QuantizeSection()
    model = read_model(float_onnx)
    view = View.of(model)
    check_overrides(view, options)
    placement = place(view, dialect)
    seen, count = watch(model, placement.tensors, images, options.images, lambda _, done: progress and progress(done))
    tensors = {name: _range(seen[name], dialect, options) for name in placement.tensors}
    floats = {name: "float" for name, layer in options.layers.items() if layer.precision == "float"}
    return Ranges(tensors=tensors, images=count, dialect=dialect.name, precision=floats)


def check_overrides(view: View, options: QuantizeSection) -> None:
    """Refuse an override of a layer that is not there."""
    for name in options.layers:
        if name not in view.layers and all(name != node.name for node in view.nodes):
            raise RecipeError(f"[quantize.layers] no layer is called '{name}'.", did_you_mean(name, view.layers))


def _range(seen: Watched, dialect: Dialect, options: QuantizeSection) -> TensorRange:
    method: Method = "mse" if options.method == "auto" else options.method
    low, high = choose(method, seen, dialect, options.percentile)
    histogram = seen.histogram
    return TensorRange(
        low=low,
        high=high,
        method=method,
        minimum=seen.minimum,
        maximum=seen.maximum,
        counts=tuple(int(count) for count in histogram.counts),
        start=histogram.start * histogram.width,
        width=histogram.width,
    )


__all__ = ["calibrate", "check_overrides", "grid", "noise"]
