"""Boxes in the graph ([export] output = "nms"): a detector's head decoded, non-maximum suppression, the best boxes.

The nodes do what the decoders of `edgeprune.tasks.decoders` do on the host, with the same settings; a decoder is known
here by its name, so that nothing of it is imported. What comes out of the graph has one shape whatever is seen:
[N, most, 6], best first: x0, y0, x1, y1 in 0..1, score, class; where there is no object: zeros, and class -1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import ModelError, RecipeError

ROW = 6  # x0, y0, x1, y1, score, class
NOTHING = (0.0, 0.0, 0.0, 0.0, 0.0, -1.0)


@dataclass(frozen=True)
class Places:
    """A head of one picture, decoded, by names in the graph.

    Attributes:
        boxes: [1, 4, places], corners in 0..1.
        best: [1, 1, places], the score of the best class.
        kinds: [1, 1, places] int64, that class.
        classes: how many there are.
    """

    boxes: str
    best: str
    kinds: str
    classes: int


class Nodes:
    """Appends nodes to a graph, one a call; tensors are called after it."""

    def __init__(self, graph: onnx.ModelProto, name: str) -> None:
        self.graph, self.name, self._count = graph.graph, name, 0
        self.opset = next(one.version for one in graph.opset_import if one.domain in ("", "ai.onnx"))

    def __call__(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        self._count += 1
        made = [f"{self.name}/{kind.lower()}_{self._count}{f'.{n}' if n else ''}" for n in range(outputs)]
        self.graph.node.append(helper.make_node(kind, list(inputs), made, made[0], **attributes))
        return made[-1]

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        self._count += 1
        name = f"{self.name}/constant_{self._count}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def shaped(self, tensor: str, *sizes: int) -> str:
        return self("Reshape", tensor, self.constant(sizes, np.int64))

    def part(self, tensor: str, start: int, end: int, axis: int = 1) -> str:
        return self("Slice", tensor, *(self.constant([one], np.int64) for one in (start, end, axis)))

    def most(self, tensor: str, axis: int) -> str:
        """The largest along an axis, which stays."""
        if self.opset < 18:
            return self("ReduceMax", tensor, axes=[axis], keepdims=1)
        return self("ReduceMax", tensor, self.constant([axis], np.int64), keepdims=1)

    def times(self, tensor: str, values: Any) -> str:
        return self("Mul", tensor, self.constant(values))

    def from_centre(self, centre: str, half: str, axis: int = 1) -> str:
        """Corners of centres and half sizes, two each along the axis."""
        return self("Concat", self("Sub", centre, half), self("Add", centre, half), axis=axis)


def title(decode: Any) -> str:
    """In words, with what its latency depends on, such as "FastestDet's 100 boxes of 0.01 and more"."""
    return f"{type(decode).__name__}'s {decode.most} boxes of {decode.score:g} and more"


def check(decode: object) -> None:
    """Raises RecipeError for a decoder that cannot be put into a graph."""
    name, known = type(decode).__name__, ", ".join(_HEADS)
    if name == "DETR":
        raise RecipeError('[export] output = "nms": DETR needs no suppression.', "Leave it out.")
    if name not in _HEADS or not type(decode).__module__.startswith("edgeprune."):
        raise RecipeError(
            f'[export] output = "nms" is for the decoders {known}; this task has another.',
            "Leave it out: your decode runs on the host, behind the artifact.",
        )
    if name == "SSD" and decode.softmax is None:  # type: ignore[attr-defined]
        raise RecipeError(
            '[export] output = "nms": SSD looks at the scores to tell logits from probabilities; a graph cannot.',
            "arguments.decode = { softmax = true } (logits) or false.",
        )


def append(graph: onnx.ModelProto, decode: Any) -> None:
    """Put a decoder with suppression behind all outputs of a graph, in place; raises RecipeError, ModelError.

    Args:
        decode: an object with the class name and the settings of a decoder of `edgeprune.tasks.decoders`.
    """
    check(decode)
    given = [_Output(one) for one in graph.graph.output]
    name, batch = given[0].name, given[0].shape[0]
    for node in graph.graph.node:  # the outputs' own names are free again
        node.output[:] = [f"{one}/raw" if one in {out.name for out in given} else one for one in node.output]
        node.input[:] = [f"{one}/raw" if one in {out.name for out in given} else one for one in node.input]
    nodes, rows = Nodes(graph, f"{name}/nms"), []
    for place in range(batch):
        raw = [
            (f"{out.name}/raw" if batch == 1 else nodes.part(f"{out.name}/raw", place, place + 1, 0), out.shape[1:])
            for out in given
        ]
        rows.append(_suppressed(nodes, _HEADS[type(decode).__name__](nodes, decode, raw), decode))
    nodes.graph.node.append(helper.make_node("Concat", rows, [name], f"{name}/nms", axis=0))
    del graph.graph.output[:]
    sizes = [batch, decode.most, ROW]
    graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))


class _Output:
    """Name and sizes of an output."""

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.shape = tuple(one.dim_value for one in value.type.tensor_type.shape.dim)


def _suppressed(nodes: Nodes, found: Places, decode: Any) -> str:
    """[1, most, 6] of one picture's places."""
    boxes = nodes("Transpose", found.boxes, perm=[0, 2, 1])
    scores = found.best
    if found.classes > 1:  # a place is of its best class alone, as on the host
        numbers = nodes.constant(np.arange(found.classes).reshape(1, -1, 1), np.int64)
        chosen = nodes("Cast", nodes("Equal", found.kinds, numbers), to=TensorProto.FLOAT)
        scores = nodes("Mul", found.best, chosen)
    limits = nodes.constant([decode.most], np.int64), nodes.constant([decode.overlap]), nodes.constant([decode.score])
    kept = nodes("NonMaxSuppression", boxes, scores, *limits)  # [K, 3]: picture, class, place
    place = nodes.shaped(nodes.part(kept, 2, 3), -1)
    sure = nodes("Gather", nodes.shaped(found.best, -1), place, axis=0)
    kinds = nodes("Cast", nodes.part(kept, 1, 2), to=TensorProto.FLOAT)
    corners = nodes("Gather", nodes.shaped(boxes, -1, 4), place, axis=0)
    rows = nodes("Concat", corners, nodes.shaped(sure, -1, 1), kinds, axis=1)
    filled = nodes("Concat", rows, nodes.constant([NOTHING] * decode.most), axis=0)
    order = nodes("Concat", sure, nodes.constant([0.0] * decode.most), axis=0)
    best = nodes("TopK", order, nodes.constant([decode.most], np.int64), axis=0, outputs=2)
    return nodes.shaped(nodes("Gather", filled, best, axis=0), 1, decode.most, ROW)


Raw = Sequence[tuple[str, tuple[int, ...]]]  # (name in the graph, sizes without the batch) of each output


def _grid(rows: int, columns: int, shift: float = 0.0) -> NDArray[np.float64]:
    """x and y of each place, [1, 2, rows * columns]."""
    y, x = np.mgrid[:rows, :columns].astype(np.float64) + shift
    return np.stack([x.reshape(-1), y.reshape(-1)])[None]


def _column(*values: float) -> NDArray[np.float64]:
    return np.array(values, np.float64).reshape(1, -1, 1)


def _fits(good: bool, wanted: str, raw: Raw) -> None:
    if not good:
        raise ModelError(f"this head is {wanted}; the network gives {[list(shape) for _, shape in raw]}.")


def _fastestdet(nodes: Nodes, decode: Any, raw: Raw) -> Places:
    _fits(len(raw) == 1 and len(raw[0][1]) == 3 and raw[0][1][0] > 5, "one output [5 + classes, H, W]", raw)
    (name, (channels, rows, columns)) = raw[0]
    head = nodes.shaped(name, 1, channels, -1)
    classes, zero = nodes.part(head, 5, channels), nodes.constant(0.0)
    object_, class_ = (nodes("Max", one, zero) for one in (nodes.part(head, 0, 1), nodes.most(classes, 1)))
    best = nodes("Mul", nodes("Pow", object_, nodes.constant(0.6)), nodes("Pow", class_, nodes.constant(0.4)))
    centre = nodes("Add", nodes("Tanh", nodes.part(head, 1, 3)), nodes.constant(_grid(rows, columns)))
    centre = nodes.times(centre, _column(1 / columns, 1 / rows))
    half = nodes.times(nodes("Sigmoid", nodes.part(head, 3, 5)), 0.5)
    kinds = nodes("ArgMax", classes, axis=1, keepdims=1)
    return Places(nodes.from_centre(centre, half), best, kinds, channels - 5)


def _yolo_anchor_free(nodes: Nodes, decode: Any, raw: Raw) -> Places:
    if len(raw) == 1 and len(raw[0][1]) == 2:
        return _yolo_decoded(nodes, decode, raw)
    sides, boxes, classes = 4 * decode.bins, list[str](), list[str]()
    _fits(all(len(s) == 3 and s[0] > sides for _, s in raw), f"maps [{sides} + classes, H, W]", raw)
    _fits(len({shape[0] for _, shape in raw}) == 1, "maps of as many classes", raw)
    for name, (channels, rows, columns) in raw:
        level = nodes.shaped(name, 1, channels, -1)
        far = nodes.part(level, 0, sides)
        if decode.bins > 1:
            share = nodes("Softmax", nodes.shaped(far, 4, decode.bins, -1), axis=1)
            share = nodes.times(share, _column(*range(decode.bins)))
            far = nodes.shaped(nodes("ReduceSum", share, nodes.constant([1], np.int64), keepdims=0), 1, 4, -1)
        middle = nodes.constant(_grid(rows, columns, 0.5))
        first = nodes("Sub", middle, nodes.part(far, 0, 2))
        corners = nodes("Concat", first, nodes("Add", middle, nodes.part(far, 2, 4)), axis=1)
        boxes.append(nodes.times(corners, _column(*[1 / columns, 1 / rows] * 2)))
        classes.append(nodes.part(level, sides, channels))
    logits = nodes("Concat", *classes, axis=2)
    best = nodes("Sigmoid", nodes.most(logits, 1))
    kinds = nodes("ArgMax", logits, axis=1, keepdims=1)
    return Places(nodes("Concat", *boxes, axis=2), best, kinds, raw[0][1][0] - sides)


def _yolo_decoded(nodes: Nodes, decode: Any, raw: Raw) -> Places:
    (name, (channels, _)) = raw[0]
    _fits(channels > 4, "one output [4 + classes, places]", raw)
    height, width = decode.size
    centre = nodes.times(nodes.part(name, 0, 2), _column(1 / width, 1 / height))
    half = nodes.times(nodes.part(name, 2, 4), _column(0.5 / width, 0.5 / height))
    classes = nodes.part(name, 4, channels)
    kinds = nodes("ArgMax", classes, axis=1, keepdims=1)
    return Places(nodes.from_centre(centre, half), nodes.most(classes, 1), kinds, channels - 4)


def _yolo_anchors(nodes: Nodes, decode: Any, raw: Raw) -> Places:
    _fits(len(raw) == len(decode.anchors), f"{len(decode.anchors)} maps, as anchors are given", raw)
    height, width = decode.size
    boxes, sure, kinds, classes = list[str](), list[str](), list[str](), 0
    for (name, shape), anchors in zip(raw, decode.anchors, strict=True):
        count = len(anchors)
        _fits(len(shape) == 3 and shape[0] % count == 0 and shape[0] // count > 5, "maps of these anchors", raw)
        channels, rows, columns = shape[0] // count, shape[1], shape[2]
        level = nodes.shaped(name, count, channels, -1)
        at, size = nodes.part(level, 0, 2), nodes.part(level, 2, 4)
        span = np.array(anchors, np.float64)[:, :, None]
        if decode.squared:
            at = nodes("Sub", nodes.times(nodes("Sigmoid", at), 2.0), nodes.constant(0.5))
            root = nodes.times(nodes("Sigmoid", size), 2.0)
            size = nodes("Mul", root, root)
        else:
            at = nodes("Sigmoid", at)
            size = nodes("Exp", nodes("Clip", size, nodes.constant(-20.0), nodes.constant(20.0)))
        centre = nodes.times(nodes("Add", at, nodes.constant(_grid(rows, columns))), _column(1 / columns, 1 / rows))
        half = nodes.times(size, span * _column(0.5 / width, 0.5 / height))
        corners = nodes("Transpose", nodes.from_centre(centre, half), perm=[1, 0, 2])
        boxes.append(nodes.shaped(corners, 1, 4, -1))
        own, classes = nodes.part(level, 5, channels), channels - 5
        both = nodes("Mul", nodes("Sigmoid", nodes.part(level, 4, 5)), nodes("Sigmoid", nodes.most(own, 1)))
        sure.append(nodes.shaped(both, 1, 1, -1))
        kinds.append(nodes.shaped(nodes("ArgMax", own, axis=1, keepdims=1), 1, 1, -1))
    whole, best, named = (nodes("Concat", *parts, axis=2) for parts in (boxes, sure, kinds))
    return Places(whole, best, named, classes)


def _ssd(nodes: Nodes, decode: Any, raw: Raw) -> Places:
    wanted = "[priors, classes] and [priors, 4]"
    _fits(len(raw) == 2 and all(len(shape) == 2 for _, shape in raw), wanted, raw)
    (scores, (places, classes)), (boxes, (others, numbers)) = raw
    if numbers != 4 and classes == 4:
        (boxes, (others, numbers)), (scores, (places, classes)) = raw
    _fits(places == others and numbers == 4, wanted, raw)
    if decode.softmax:
        kind, how = ("Sigmoid", {}) if decode.background is None else ("Softmax", {"axis": 2})
        scores = nodes(kind, scores, **how)
    scores, boxes = (nodes("Transpose", one, perm=[0, 2, 1]) for one in (scores, boxes))
    if decode.priors is not None:
        priors = np.asarray(decode.priors, np.float64).T[None]
        _fits(priors.shape == (1, 4, places), f"of {priors.shape[2]} priors", raw)
        moved = nodes.times(nodes.part(boxes, 0, 2), decode.variance[0] * priors[:, 2:])
        grown = nodes.times(nodes.part(boxes, 2, 4), decode.variance[1])
        size = nodes("Exp", nodes("Clip", grown, nodes.constant(-20.0), nodes.constant(20.0)))
        centre, half = nodes("Add", moved, nodes.constant(priors[:, :2])), nodes.times(size, priors[:, 2:] / 2)
        boxes = nodes.from_centre(centre, half)
    if decode.background is not None:
        at = decode.background % classes
        parts = [nodes.part(scores, *ends) for ends in ((0, at), (at + 1, classes)) if ends[0] < ends[1]]
        scores = parts[0] if len(parts) == 1 else nodes("Concat", *parts, axis=1)
        classes -= 1
    return Places(boxes, nodes.most(scores, 1), nodes("ArgMax", scores, axis=1, keepdims=1), classes)


_HEADS: dict[str, Callable[[Nodes, Any, Raw], Places]] = {
    "FastestDet": _fastestdet,
    "YoloAnchorFree": _yolo_anchor_free,
    "YoloAnchors": _yolo_anchors,
    "SSD": _ssd,
}
