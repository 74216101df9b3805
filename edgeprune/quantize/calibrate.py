"""The door of calibration: images in, `Ranges` out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from edgeprune.errors import RecipeError, did_you_mean
from edgeprune.quantize.check import InputWatch, cache_key, check_placement, check_seen, check_weights
from edgeprune.quantize.correct import correct
from edgeprune.quantize.equalise import equalised, factors
from edgeprune.quantize.observe import Images, batches, input_shape, watch
from edgeprune.quantize.placement import place
from edgeprune.quantize.ranges import Ranges, read_model
from edgeprune.quantize.report import measure_layers
from edgeprune.quantize.select import propose, select, tensor_range
from edgeprune.quantize.view import View
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes.dialects import Dialect

Progress = Callable[[int], None]

BAD_SQNR_DB = 40.0  # at a layer's output; below it rounding is reconstructed, if the recipe wants that


def calibrate(
    float_onnx: Path | onnx.ModelProto,
    images: Images,
    dialect: Dialect,
    options: QuantizeSection | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Ranges:
    """Choose the range of every tensor that `dialect` quantises, and measure what remains to be corrected.

    Args:
        float_onnx: the float graph of docs/doors.md, a file or already loaded.
        images: a callable that gives an iterable of preprocessed images or batches (N, C, H, W), or a sequence of them;
            it is gone through several times.
        options: the recipe's [quantize] section.
        progress: called with the number of images whose ranges have been seen.
        cache: a folder; ranges found there for the same graph, images, dialect and options are given back at once.

    Raises:
        ModelError: the file is no ONNX model that ONNX Runtime runs, or activations are NaN or infinite.
        DataError: no images, images of another shape, all constant, NaN or infinite.
        RecipeError: an override names a layer that the graph does not have.
        GraphError: the graph has several inputs or no fixed shape.
    """
    options = options or QuantizeSection()
    original = read_model(float_onnx)
    check_overrides(View.of(original), options)
    check_weights(View.of(original))
    inputs = look(View.of(original), images, options.images)
    key = cache_key(original, inputs.digest.hexdigest(), dialect, options)
    stored = cache / f"ranges-{key}.json" if cache is not None else None
    if stored is not None and stored.exists():
        return Ranges.load(stored)
    warnings = inputs.warnings()
    ranges = _calibrate(original, images, dialect, options, progress)
    ranges = replace(ranges, key=key, warnings=(*warnings, *ranges.warnings))
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        ranges.save(stored)
    return ranges


def look(view: View, images: Images, limit: int) -> InputWatch:
    """Look at the images alone: what they are like, and their hash."""
    _, size, shape = input_shape(view)
    inputs = InputWatch()
    for batch, real in batches(images, size, limit, shape):
        inputs.add(batch[:real])
    return inputs


def _calibrate(
    original: onnx.ModelProto, images: Images, dialect: Dialect, options: QuantizeSection, progress: Progress | None
) -> Ranges:
    equalise = factors(original, dialect, images, options.images) if options.equalize else {}
    model = equalised(original, equalise)
    view = View.of(model)
    placement = place(view, dialect)
    seen, count = watch(model, placement.tensors, images, options.images, lambda _, done: progress and progress(done))
    warnings = [*check_seen(model, seen), *check_placement(view, placement, dialect, options)]
    chosen = select(model, placement, propose(view, placement, seen, dialect, options), images, options.images)
    tensors = {name: tensor_range(seen[name], *chosen[placement.scale_of[name]]) for name in placement.tensors}
    grids = {name: chosen[placement.scale_of[name]][0].grid for name in placement.tensors}
    layers = measure_layers(model, placement, grids, dialect, images, options.images)
    ranges = Ranges(
        tensors=tensors,
        images=count,
        dialect=dialect.name,
        equalise=equalise,
        warnings=tuple(warnings),
        precision={name: "float" for name, layer in options.layers.items() if layer.precision == "float"},
    )
    bad = (
        [name for name, layer in layers.items() if (layer.sqnr_db or 0.0) < BAD_SQNR_DB] if options.reconstruct else []
    )
    found = correct(original, ranges, dialect, images, options.images, options.bias_correction, bad)
    reports = {name: replace(layer, accumulated_sqnr_db=found.sqnr_db.get(name)) for name, layer in layers.items()}
    return replace(ranges, layers=reports, bias=found.bias, rounding=found.rounding)


def check_overrides(view: View, options: QuantizeSection) -> None:
    """Refuse an override of a layer that is not there."""
    for name in options.layers:
        if name not in view.layers and all(name != node.name for node in view.nodes):
            raise RecipeError(f"[quantize.layers] no layer is called '{name}'.", did_you_mean(name, view.layers))
