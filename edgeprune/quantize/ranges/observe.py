"""Running the float graph over images and watching its tensors, in bounded memory whatever the number of images.

Calibration is analysis of the float graph, not a run of an artifact, so ONNX Runtime is used here directly (with one
thread-count and no randomness: the same images in the same order give the same bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgeprune.errors import DataError, ModelError
from edgeprune.quantize.effort import threads
from edgeprune.quantize.feeds import Counted, Feed, Images, feeds
from edgeprune.quantize.view import View

Floats = NDArray[np.float32]

BINS = 4096  # at most, a tensor: 16 to 32 bins an INT8 step
SAMPLE = 1 << 16  # values a tensor and an image that enter the histogram, at most; extremes always count every value
ENOUGH = 1 << 21  # values a tensor over all images


@dataclass
class Histogram:
    """Counts in bins of width 2^k that start at multiples of it; grows by merging pairs, and needs no range beforehand.

    The final bins depend only on the values' extremes and the order of merging does not matter: merging is exact.
    """

    exponent: int = -126
    start: int = 0  # index of the first bin; its left edge is start * width
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def width(self) -> float:
        """Width of one bin."""
        return float(2.0**self.exponent)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Middle of each bin."""
        return np.asarray((np.arange(len(self.counts)) + self.start + 0.5) * self.width, np.float64)

    def add(self, values: Floats, low: float, high: float) -> None:
        """Count `values`, whose extremes lie within [low, high]."""
        if not len(self.counts):
            self.exponent = _exponent(low, high)
            self.start = int(np.floor(low / self.width))
            self.counts = np.zeros(1, np.int64)
        while self._span(low, high) > BINS:
            self._halve()
        first = min(self.start, int(np.floor(low / self.width)))
        last = max(self.start + len(self.counts) - 1, int(np.floor(high / self.width)))
        if first < self.start or last >= self.start + len(self.counts):
            self.counts = np.pad(self.counts, (self.start - first, last - (self.start + len(self.counts) - 1)))
            self.start = first
        index = np.floor(values * np.float32(1 / self.width)).astype(np.int64) - self.start
        self.counts += np.bincount(np.clip(index, 0, len(self.counts) - 1), minlength=len(self.counts))

    def _span(self, low: float, high: float) -> int:
        first = min(self.start, int(np.floor(low / self.width)))
        last = max(self.start + len(self.counts) - 1, int(np.floor(high / self.width)))
        return last - first + 1

    def _halve(self) -> None:
        before, after = self.start % 2, (self.start + len(self.counts)) % 2
        padded = np.pad(self.counts, (before, after))
        self.counts = padded.reshape(-1, 2).sum(axis=1)
        self.start = (self.start - before) // 2
        self.exponent += 1


def _exponent(low: float, high: float) -> int:
    """A k for which [low, high] needs at least BINS bins of width 2^k; merging then finds the least k that fits."""
    extent = max(high - low, abs(low) * 1e-6, abs(high) * 1e-6, 1e-30)
    return int(np.floor(np.log2(extent / BINS)))


@dataclass
class Watched:
    """What was seen of one tensor.

    Attributes:
        minimum, maximum: over everything.
        average_low, average_high: moving averages of each image's extremes.
        tops, bottoms: the two images that reach furthest up and down, the furthest first: (value, number of the image).
        bad: values that were NaN or infinite.
    """

    minimum: float = np.inf
    maximum: float = -np.inf
    average_low: float = 0.0
    average_high: float = 0.0
    seen: int = 0
    bad: int = 0
    tops: tuple[tuple[float, int], ...] = ()
    bottoms: tuple[tuple[float, int], ...] = ()
    sample: int = SAMPLE
    histogram: Histogram = field(default_factory=Histogram)

    def add(self, values: Floats) -> None:
        """Watch one image's values (any shape)."""
        flat = values.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            finite = flat[np.isfinite(flat)]
            self.bad += len(flat) - len(finite)
            if not len(finite):
                return
            flat, low, high = finite, float(finite.min()), float(finite.max())
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.tops = tuple(sorted((*self.tops, (high, self.seen)), reverse=True)[:2])
        self.bottoms = tuple(sorted((*self.bottoms, (low, self.seen)))[:2])
        rate = 1.0 / min(self.seen + 1, 100)  # a plain mean at first, then an exponential one
        self.average_low += rate * (low - self.average_low)
        self.average_high += rate * (high - self.average_high)
        self.seen += 1
        step = -(-len(flat) // self.sample)
        self.histogram.add(flat[self.seen % step :: step], self.minimum, self.maximum)


def batches(images: Images, size: int, limit: int, shape: Sequence[int]) -> Iterator[tuple[Floats, int]]:
    """Batches of exactly `size` images and how many of each are real (the last one is padded by repetition).

    Args:
        images: a callable that gives an iterable of arrays, or a sequence; each item is one image or a batch of them.
        limit: stop after this many images.
        shape: of one image.

    Raises:
        DataError: an item does not have that shape, or there are no images.
    """
    pending: list[Floats] = []
    done = 0
    source = images.source if isinstance(images, Counted) else images
    for image in _single(source() if callable(source) else source, tuple(shape)):
        pending.append(image)
        done += 1
        if len(pending) == size:
            yield np.stack(pending), size
            pending = []
        if done == limit:
            break
    if pending:
        real = len(pending)
        yield np.stack((pending * size)[:size]) if real < size else np.stack(pending), real
    if not done:
        raise DataError("calibration has no images.", "Check [data] source and [quantize] images.")


def _single(items: Iterable[Any], shape: tuple[int, ...]) -> Iterator[Floats]:
    for item in items:
        array = np.asarray(item, np.float32)
        if array.ndim == len(shape):
            array = array[None]
        if array.shape[1:] != shape:
            raise DataError(
                f"a calibration image has shape {list(array.shape[1:])}, but the network reads {list(shape)}.",
                "Check [data] resize and crop, and [model] input.",
            )
        yield from array


def inference_session(model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session for analysis; raises ModelError with the runtime's words.

    A Q/DQ graph runs as it is written: optimised, it would become this CPU's graph, and those made for other runtimes
    can come out wrong (signed activations of MobileNetV2 with float16 around them: 4 % of classes right, not 94 %).
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as cause:  # onnxruntime's own exceptions share no public root
        raise ModelError(f"ONNX Runtime refuses the float graph ({cause}).", "Export it again.") from None


def with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A shallow copy of `model` that gives out `tensors` only."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return copy


def watch(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: Images,
    limit: int,
    on_image: Callable[[Feed, int], None] | None = None,
) -> tuple[dict[str, Watched], int]:
    """Run up to `limit` images and watch `tensors`; gives what was seen and the number of images.

    Args:
        on_image: called with each batch and the number of images so far (progress, checks on the input).
    """
    view = View.of(model)
    made = [tensor for tensor in tensors if tensor in view.producer]
    runner = inference_session(with_outputs(model, made), threads(view)) if made else None
    sample = int(np.clip(ENOUGH // max(limit, 1), SAMPLE // 8, SAMPLE))
    seen = {tensor: Watched(sample=sample) for tensor in tensors}
    done = 0
    for feed, real, found in _ahead(runner, feeds(view, images, limit)):
        size = len(next(iter(feed.values())))
        values = dict(zip(made, found, strict=True)) | feed
        done += real
        for tensor in tensors:
            value = values[tensor]
            per_image = value[:real] if value.ndim and value.shape[0] == size else [value]
            for one in per_image:
                seen[tensor].add(np.asarray(one, np.float32))
        if on_image is not None:
            on_image({name: value[:real] for name, value in feed.items()}, done)
    return seen, done


def _ahead(runner: Any, batches: Iterable[tuple[Feed, int]]) -> Iterator[tuple[Feed, int, list[Any]]]:
    """Each batch with its outputs; the next one runs on another core while this one is looked at."""
    with ThreadPoolExecutor(1) as pool:
        before: tuple[Feed, int, Future[list[Any]]] | None = None
        for feed, real in batches:
            running = pool.submit(runner.run, None, feed) if runner is not None else pool.submit(list)
            if before is not None:
                yield before[0], before[1], before[2].result()
            before = feed, real, running
        if before is not None:
            yield before[0], before[1], before[2].result()
