"""One example for a contact sheet: its first input as a picture where it can be one, its label, and a line of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import MissingDependency
from edgeprune.model import Preprocess
from edgeprune.pipeline import reading
from edgeprune.pipeline.subject import Subject
from edgeprune.recipe import Recipe
from edgeprune.report import Tile, overlaid
from edgeprune.workload import Outputs, Workload, sources, to_array

Array = NDArray[Any]
Box = tuple[tuple[float, float, float, float], str]
Undo = Callable[[Array], Array]  # the network's input [C, H, W] -> [H, W, C], 0..255
SMALLEST = 8  # pixels a side; what is smaller is no picture
FEW = 12  # numbers of an input, or tokens of a text, that a line shows


@dataclass(frozen=True)
class Seen:
    """One example: a picture, unless the input is none, and a line."""

    tile: Tile | None
    text: str


@dataclass(frozen=True)
class SheetView:
    """How the examples of one workload are shown.

    Attributes:
        undo: takes preprocessing back, so that a picture looks as it was.
        words: token number -> token; None where no tokenizer is known.
    """

    work: Workload
    undo: Undo
    words: Callable[[int], str | None] | None = None

    def of(self, inputs: Sequence[Array], target: Any, outputs: Outputs) -> Seen:
        """Inputs without the batch axis, and the outputs of this one example."""
        right, caption = self._caption(target, outputs)
        pixels = self._pixels(inputs[0])
        text = f"{caption}: {self._values(inputs)}"
        if pixels is None:
            return Seen(None, text)
        boxes: list[Box] = []
        if isinstance(target, Mapping) and "boxes" in target:
            boxes = self._boxes(target, pixels.shape[:2])
        elif _is_map(target, np.integer):
            pixels = self._with_mask(pixels, to_array(target), outputs)
        elif _is_map(target, np.floating) and (other := self._pixels(to_array(target))) is not None:
            pixels = _beside(pixels, other)
        return Seen(Tile(pixels, caption, right, tuple(boxes)), text)

    # Labels

    def _caption(self, target: Any, outputs: Outputs) -> tuple[bool | None, str]:
        """(is the network right?, the label, and what the network says where that is something else)."""
        names, label = self.work.data.names, self._label(target)
        answers = getattr(self.work.task, "answers", lambda _: None)(outputs)
        if answers is None or not _is_number(target):
            return None, label
        answer = int(answers[0])
        if answer == int(to_array(target).reshape(())):
            return True, label
        return False, f"{label} (network: {named(names, answer) if answer >= 0 else 'broken'})"

    def _label(self, target: Any) -> str:
        names = self.work.data.names
        if target is None or isinstance(target, str):
            return "no label" if target is None else target
        if isinstance(target, Mapping):
            if "labels" not in target:
                return ", ".join(sorted(map(str, target)))
            counts = Counter(named(names, int(label)) for label in to_array(target["labels"]).reshape(-1))
            return ", ".join(name if n == 1 else f"{n} {name}" for name, n in sorted(counts.items())) or "nothing"
        array = to_array(target)
        if _is_number(target):
            return named(names, int(array.reshape(()))) if names else str(int(array.reshape(())))
        if array.ndim == 1 and len(names) == len(array) > 1 and np.isin(array, (0, 1)).all():
            return ", ".join(names[place] for place in np.flatnonzero(array)) or "none"
        if array.ndim >= 2 and np.issubdtype(array.dtype, np.integer) and names:
            return ", ".join(named(names, int(number)) for number in np.unique(array))
        if array.ndim >= 2:
            return f"target {' x '.join(map(str, array.shape))}"
        return _short(array) if array.dtype != object else str(target)

    # Pictures

    def _pixels(self, value: Array) -> NDArray[np.uint8] | None:
        """[H, W, 3]; None where it is no picture. Of other than three channels the first is shown, as grey."""
        if value.ndim == 2:
            value = value[None]
        if value.ndim != 3 or min(value.shape[1:]) < SMALLEST or value.dtype.kind not in "fu":
            return None
        shown = np.clip(np.rint(self.undo(value)), 0, 255).astype(np.uint8)
        return shown if shown.shape[2] == 3 else np.repeat(shown[:, :, :1], 3, 2)

    def _boxes(self, target: Mapping[str, Array], size: Sequence[int]) -> list[Box]:
        """In parts of the picture, whichever of the two units the labels have."""
        boxes = to_array(target["boxes"]).astype(np.float64).reshape(-1, 4)
        if len(boxes) and boxes.max() > 1.5:
            boxes = boxes / np.array([size[1], size[0], size[1], size[0]])
        names = self.work.data.names
        labels = to_array(target["labels"]).reshape(-1)
        return [
            ((float(a), float(b), float(c), float(d)), named(names, int(label)))
            for (a, b, c, d), label in zip(boxes, labels, strict=False)
        ]

    def _with_mask(self, pixels: NDArray[np.uint8], mask: Array, outputs: Outputs) -> NDArray[np.uint8]:
        told = getattr(self.work.task, "shown", lambda *_: None)(outputs, [mask])
        flat = mask[0] if mask.ndim == 3 else mask
        count = max(len(self.work.data.names), told[1] if told else 0, 2)
        return overlaid(pixels, flat, count, getattr(self.work.task, "ignore", None))

    # Text

    def _values(self, inputs: Sequence[Array]) -> str:
        first = inputs[0]
        if self.words is not None and first.ndim == 1 and first.dtype.kind == "i":
            ids = first.tolist()
            while len(ids) > 1 and ids[-1] == ids[-2]:  # padding
                ids.pop()
            return " ".join(self.words(int(number)) or f"<{number}>" for number in ids)
        parts = zip(self.work.inputs.names, inputs, strict=True)
        return "; ".join(f"{name} {_short(value)}" for name, value in parts)


def named(names: Sequence[str], number: int) -> str:
    """A class by its name, where it has one."""
    return names[number] if 0 <= number < len(names) else str(number)


def undone(subject: Subject, low: float, high: float) -> tuple[Undo, str]:
    """What takes the preprocessing back, and a word on it.

    Args:
        low, high: the smallest and the largest number of the first input; where a dataset of the user's prepares it,
            pictures in 0..1 and 0..255 are known by them, and others are stretched.
    """
    section = subject.recipe.data
    own = any("prepare" in given for given in (section.options, *section.splits.values()))
    if subject.pictured:
        return _inverse(subject.data.preprocess), "as before scale, mean and std"
    stated = subject.workload.data.prepare
    if isinstance(stated, Preprocess):
        return _inverse(stated), "as before scale, mean and std"
    kind = sources.KINDS.get(section.kind)
    if kind is not None and kind.own == "prepare" and not own:
        return _inverse(reading.preprocess(subject.recipe)), "as before scale, mean and std"
    if low >= 0 and high <= 1.001:
        return _scaled(0.0, 1.0), "0 to 1 is black to white"
    if low >= 0 and 2 < high <= 255.5:
        return _scaled(0.0, 255.0), "0 to 255 is black to white"
    return _scaled(low, high), f"{low:.4g} to {high:.4g} is black to white"


def tokens(recipe: Recipe, split: str) -> Callable[[int], str | None] | None:
    """The words of a text's tokenizer file; None for other data."""
    section = recipe.data
    kind = sources.KINDS.get(section.kind)
    if kind is None or not kind.tokenizer:
        return None
    given = {**section.options, **section.splits.get(split, section.splits["test"])}  # type: ignore[call-overload]
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise MissingDependency("tokenizers is not installed.", "pip install 'edgeprune[text]'") from None
    made = Tokenizer.from_file(str(recipe.resolve(str(given[kind.tokenizer]))))
    words: Callable[[int], str | None] = made.id_to_token
    return words


def _inverse(preprocess: Preprocess) -> Undo:
    mean, std = (np.asarray(part, np.float64) for part in (preprocess.mean, preprocess.std))
    turn = -1 if preprocess.order == "BGR" else 1
    return lambda value: ((value.transpose(1, 2, 0) * std + mean) / preprocess.scale)[:, :, ::turn]


def _scaled(low: float, high: float) -> Undo:
    span = max(high - low, 1e-12)
    return lambda value: 255 * (value.transpose(1, 2, 0).astype(np.float64) - low) / span


def _beside(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two pictures of one height: the smaller one is enlarged by repeating its pixels."""
    height = max(left.shape[0], right.shape[0])

    def grown(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rows = (np.arange(height) * picture.shape[0]) // height
        width = max(1, picture.shape[1] * height // picture.shape[0])
        return picture[np.ix_(rows, (np.arange(width) * picture.shape[1]) // width)]

    return np.concatenate([grown(left), grown(right)], 1)


def _is_number(target: Any) -> bool:
    if target is None or isinstance(target, str | Mapping):
        return False
    array = to_array(target)
    return array.size == 1 and array.dtype.kind in "iub"


def _is_map(target: Any, kind: type) -> bool:
    if target is None or isinstance(target, str | Mapping):
        return False
    array = to_array(target)
    return array.ndim in (2, 3) and min(array.shape[-2:]) >= SMALLEST and np.issubdtype(array.dtype, kind)


def _short(value: Array) -> str:
    """The first numbers, and the shape."""
    flat = value.reshape(-1)
    some = ", ".join(f"{number:.4g}" if flat.dtype.kind == "f" else str(number) for number in flat[:FEW].tolist())
    return f"{list(value.shape)} {some}" + (" ..." if flat.size > FEW else "")
