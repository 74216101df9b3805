"""The door of calibration: images in, `Ranges` out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from edgeprune.errors import RecipeError, did_you_mean
from edgeprune.quantize.check.check import InputWatch, cache_key, check_placement, check_seen, check_weights
from edgeprune.quantize.check.report import REPORTED, measure_layers
from edgeprune.quantize.correct.correct import IMAGES, PASSES, correct
from edgeprune.quantize.correct.equalise import COMPARED, WATCHED, equalised, factors
from edgeprune.quantize.correct.features import feature_factors
from edgeprune.quantize.effort import affordable, uncrowded
from edgeprune.quantize.feeds import Counted, Images, feeds
from edgeprune.quantize.ranges.observe import watch
from edgeprune.quantize.ranges.ranges import Ranges, read_model
from edgeprune.quantize.ranges.select import PROBED, alike, propose, select, tensor_range
from edgeprune.quantize.ranges.unseen import widened
from edgeprune.quantize.view import View
from edgeprune.quantize.write.placement import place
from edgeprune.quantize.write.weights import only, weights_chosen
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import Dialect

if TYPE_CHECKING:
    from edgeprune.quantize.ranges.outputs import Distance

Progress = Callable[[int, int], None]  # steps done, steps in all

RUNS = {"equalise": 2, "watch": 1, "select": 5, "report": 4, "correct": 2}  # of the network, an image
BAD_SQNR_DB = 40.0  # at a layer's output; below it rounding is reconstructed, if the recipe wants that


def calibrate(
    float_onnx: Path | onnx.ModelProto,
    images: Images,
    dialect: Dialect,
    options: QuantizeSection | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
    distance: Distance | None = None,
) -> Ranges:
    """Choose the range of every tensor that `dialect` quantises, and measure what remains to be corrected.

    Args:
        float_onnx: the float graph of docs/doors.md, a file or already loaded.
        images: a callable that gives an iterable of preprocessed examples or batches of them, or a sequence; an item is
            an array, or where the graph has several inputs a mapping by input name (or a tuple). It is gone through
            several times.
        options: the recipe's [quantize] section.
        progress: called with the work done and the work in all, in runs of the network: a step of what is left takes
            about as long as one of what is done.
        distance: of the task, `distance(reference, outputs)` with tuples of tensors in and [batch] out, 0 where equal;
            None: see outputs.py.
        cache: a folder; ranges found there for the same graph, images, dialect and options are given back at once.

    Raises:
        ModelError: the file is no ONNX model that ONNX Runtime runs, or activations are NaN or infinite.
        DataError: no images, images of another shape or by other names, all constant, NaN or infinite.
        RecipeError: an override names a layer that the graph does not have.
        GraphError: the graph has no fixed shape.
    """
    options = options or QuantizeSection()
    original = read_model(float_onnx)
    check_overrides(View.of(original), options)
    check_weights(View.of(original))
    inputs = look(View.of(original), images, options.images)
    task = "" if distance is None else f"{getattr(distance, '__module__', '')}.{getattr(distance, '__qualname__', '')}"
    key = cache_key(original, inputs.digest.hexdigest() + task, dialect, options)
    stored = cache / f"ranges-{key}.json" if cache is not None else None
    if stored is not None and stored.exists():
        return Ranges.load(stored)
    warnings = inputs.warnings()
    with uncrowded(View.of(original)):
        ranges = _calibrate(original, images, dialect, options, progress, distance)
    ranges = replace(ranges, key=key, warnings=(*warnings, *ranges.warnings))
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        ranges.save(stored)
    return ranges


def look(view: View, images: Images, limit: int) -> InputWatch:
    """Look at the images alone: what they are like, and their hash."""
    inputs = InputWatch()
    for feed, real in feeds(view, images, limit):
        inputs.add({name: value[:real] for name, value in feed.items()})
    return inputs


def _calibrate(
    original: onnx.ModelProto,
    images: Images,
    dialect: Dialect,
    options: QuantizeSection,
    progress: Progress | None,
    distance: Distance | None,
) -> Ranges:
    effort, count = options.effort, options.images
    view = View.of(original)
    plan = {
        "equalise": affordable(view, count, WATCHED, 1, effort) + 5 * affordable(view, count, COMPARED, 5, effort),
        "watch": count,
        "select": RUNS["select"] * affordable(view, count, PROBED, RUNS["select"], effort),
        "report": 4 * affordable(view, count, REPORTED, 4, effort),
        "correct": 2 * affordable(view, count, IMAGES, PASSES, effort),
    }
    precision, warned = weights_chosen(view, dialect, options)
    steps = Steps(images, plan, progress)
    equalise = factors(original, dialect, steps("equalise"), count, effort, distance) if options.equalize else {}
    equalise |= feature_factors(original, dialect, images, count, precision) if options.equalize else {}
    model = equalised(original, equalise)
    view = View.of(model)
    placement = place(view, dialect)
    seen, looked = watch(model, placement.tensors, steps("watch"), count)
    warnings = [*warned, *check_seen(model, seen), *check_placement(view, placement, dialect, options)]
    placement = alike(view, placement, seen, dialect)
    proposals = propose(view, placement, seen, dialect, options)
    best = select(model, placement, proposals, steps("select"), count, effort, distance, warnings)
    best = widened(model, placement, best, seen, images, looked, dialect, options, distance, warnings)
    tensors = {name: tensor_range(seen[name], *best[placement.scale_of[name]]) for name in placement.tensors}
    grids = {name: best[placement.scale_of[name]][0].grid for name in placement.tensors}
    reported = affordable(view, count, REPORTED, 4, effort)
    layers = measure_layers(model, placement, grids, dialect, steps("report"), reported)
    ranges = Ranges(
        tensors=tensors,
        images=looked,
        dialect=dialect.name,
        equalise=equalise,
        warnings=tuple(warnings),
        precision=precision,
    )
    bad = (
        [name for name, layer in layers.items() if (layer.sqnr_db or 0.0) < BAD_SQNR_DB] if options.reconstruct else []
    )
    found = correct(original, ranges, dialect, steps("correct"), count, options.bias_correction, bad, effort)
    steps.end()
    reports = {
        name: replace(layer, accumulated_sqnr_db=found.sqnr_db.get(name))
        for name, layer in layers.items()
        if name not in only(precision)
    }
    return replace(ranges, layers=reports, bias=found.bias, rounding=found.rounding)


class Steps:
    """Counts the work of calibration's parts, one after the other, for whoever waits.

    Args:
        plan: part -> its runs of the network, in order.
    """

    def __init__(self, images: Images, plan: Mapping[str, int], progress: Progress | None) -> None:
        self._source = images.source if isinstance(images, Counted) else images
        self._plan, self._progress = plan, progress
        self._total, self._done, self._end = sum(plan.values()), 0, 0

    def __call__(self, part: str) -> Counted:
        """The images for a part; what was left of the parts before counts as done."""
        names = list(self._plan)
        self._done = sum(self._plan[name] for name in names[: names.index(part)])
        self._end = self._done + self._plan[part]
        each = RUNS[part]

        def used(examples: int) -> None:
            self._done = min(self._done + each * examples, self._end)
            if self._progress is not None:
                self._progress(self._done, self._total)

        return Counted(self._source, used)

    def end(self) -> None:
        """Everything is done."""
        if self._progress is not None:
            self._progress(self._total, self._total)


def check_overrides(view: View, options: QuantizeSection) -> None:
    """Refuse an override of a layer that is not there."""
    for name in options.layers:
        if name not in view.layers and all(name != node.name for node in view.nodes):
            raise RecipeError(
                f"[quantize.layers] no layer is called '{name[:200]}'.", did_you_mean(name[:200], view.layers)
            )
