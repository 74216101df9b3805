"""What is tried where nobody states it: an input's shape, pixel ranges, crops, features of sound, decoders of boxes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune import tasks
from edgeprune.pipeline import workloads
from edgeprune.pipeline.draft_text import Sections

if TYPE_CHECKING:
    from torch import nn

SIDES = (224, 32, 28, 96, 64, 128, 160, 192, 240, 256, 299, 320, 352, 384, 416, 512, 640)
LENGTHS = (64, 32, 16)  # tokens, where the network takes no more
LARGEST = 640  # pixels a side that images of one size are taken at as they are
PIXELS: tuple[tuple[str, Mapping[str, object]], ...] = (  # 0..255 -> what networks are trained on
    ("ImageNet's mean and std", {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}),
    ("pixels as 0..1", {}),
    ("pixels as -1..1", {"mean": [0.5], "std": [0.5]}),
    ("pixels as 0..255", {"scale": 1.0}),
)
SOUND = (  # (window, hop, fft) in ms of the clip's rate, mels, coefficients
    *itertools.product(((30, 10), (25, 10), (40, 20), (32, 16), (32, 10), (64, 32)), (40, 80, 64, 32), (0, 10, 13, 40)),
)
Patch = Mapping[str, Mapping[str, object]]  # section -> keys


@dataclass(frozen=True)
class Trials:
    """Candidates of one kind.

    Attributes:
        what: they are about, for the user.
        candidates: (in words, what the recipe says then).
        remedy: where none of them works.
        first: the first that works is taken, and not the best.
    """

    what: str
    candidates: tuple[tuple[str, Patch], ...]
    remedy: str = ""
    first: bool = False


def patched(sections: Sections, patch: Patch) -> Sections:
    """The recipe with these keys."""
    made = {name: dict(keys) for name, keys in sections.items()}
    for name, keys in patch.items():
        made[name] = {**made.get(name, {}), **keys}
    return made


def shapes(
    network: nn.Module, some: Sequence[Path], size: tuple[int, ...], stated: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Shapes of a picture to try: the stated one; or the network's own, the pictures', and usual ones.

    Args:
        some: files of pictures.
        size: of all pictures, where they are arrays.
    """
    if stated:
        return [stated]
    found = []
    own = _own(network).get("input_size")
    if isinstance(own, tuple | list) and len(own) == 3:
        found.append(tuple(int(size) for size in own))
    channels = _channels(network)
    sizes = {size} if size else {_size(path) for path in some}
    if len(sizes) == 1 and max(next(iter(sizes))) <= LARGEST:
        found.append((channels, *next(iter(sizes))))
    return list(dict.fromkeys([*found, *((channels, side, side) for side in SIDES)]))


def all_of(some: Sequence[Path], size: tuple[int, ...]) -> bool:
    """Are these pictures of this height and width?"""
    return all(_size(path) == size for path in some)


def trials(
    network: nn.Module, sections: Sections, kind: str, task: str, files: bool, stated: bool = False
) -> list[Trials]:
    """What has to be tried, in order; one candidate alone is checked like several.

    Args:
        files: pictures lie in files, so that they may be of any size.
        stated: the user has said the input's shape.
    """
    if kind == "wav" and "features" not in _options(sections):
        return [_sounds(sections)]
    if kind == "text":
        return [_texts(network, sections, stated)]
    if kind in ("arrays", "function") or (kind == "wav"):
        return [Trials("dense", (("as it lies", {}),))]
    side = list(sections["model"]["input"])  # type: ignore[call-overload]
    square: Mapping[str, object] = {"resize": side[1:]} if files else {}
    known = {"scale", "mean", "std"} & sections["data"].keys()
    ranges = [("as stated", {})] if known else _pixels(network, side[0])
    every = [(label, {"data": {**square, **keys}}) for label, keys in ranges]
    if task == "detection" and "decode" not in sections.get("task", {}):
        every = [
            (f"{name}, {label}", {**patch, "task": {"kind": task, "decode": name, **settings}})
            for name, settings in _decoders(side[1:])
            for label, patch in every
        ]
    made = [Trials("pixels", tuple(every), "Give the outputs' meaning: --decode file.py:function (tasks.md).")]
    if kind == "images" and files and len(set(side[1:])) == 1:
        crop = {"resize": round(side[1] / 0.875), "crop": side[1]}
        made.append(
            Trials("size", ((f"squashed to {side[1:]}", {}), ("shorter side, then the middle", {"data": crop})))
        )
    return made


def decoders_of(kind: Trials) -> list[str]:
    """The decoders of boxes that these candidates try; none where the user states one, or where there are no boxes."""
    tasks_of = [patch.get("task") for _, patch in kind.candidates]
    return list(dict.fromkeys(str(one["decode"]) for one in tasks_of if isinstance(one, Mapping) and "decode" in one))


def _texts(network: nn.Module, sections: Sections, stated: bool) -> Trials:
    """As many tokens as the texts have, or as the network takes; ids and mask by the names of its arguments."""
    options = dict(_options(sections))
    names = list(workloads.argument_names(network))[:2]
    longest = int(str(options["length"]))
    lengths = [longest, *(length for length in LENGTHS if length < longest and not stated)]
    named = {"names": names} if names else {}
    made = [(f"{length} tokens", {"data": {"options": {**options, **named, "length": length}}}) for length in lengths]
    return Trials("texts", tuple(made), "The network takes ids [N, tokens], and perhaps a mask (your-text.md).", True)


def _options(sections: Sections) -> Mapping[str, object]:
    found = sections["data"].get("options")
    return found if isinstance(found, Mapping) else {}


def _own(network: nn.Module) -> Mapping[str, object]:
    """What a network of timm says of its input."""
    for name in ("pretrained_cfg", "default_cfg"):
        found = getattr(network, name, None)
        if isinstance(found, Mapping):
            return found
    return {}


def _channels(network: nn.Module) -> int:
    from torch import nn

    first = next((one for one in network.modules() if isinstance(one, nn.Conv2d)), None)
    return first.in_channels if first is not None else 3


def _size(path: Path) -> tuple[int, int]:
    """(height, width), by the header."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError:  # said when the files are looked at
        return LARGEST + 1, 0


def _pixels(network: nn.Module, channels: int) -> list[tuple[str, Mapping[str, object]]]:
    own = _own(network)
    found: list[tuple[str, Mapping[str, object]]] = []
    mean, std = own.get("mean"), own.get("std")
    if isinstance(mean, tuple | list) and isinstance(std, tuple | list):
        found.append(("the network's own mean and std", {"mean": list(mean), "std": list(std)}))
    found += [one for one in PIXELS if channels == 3 or len(list(one[1].get("mean", [0]))) == 1]  # type: ignore[call-overload]
    if channels == 1:
        found.append(("MNIST's mean and std", {"mean": [0.1307], "std": [0.3081]}))
    else:
        found.append(("CIFAR's mean and std", {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}))
    return found


def _decoders(size: list[int]) -> list[tuple[str, Mapping[str, object]]]:
    """Built-in decoders that need nothing but the picture's size."""
    sized = {"arguments": {"decode": {"size": size}}}
    given = {"YoloAnchorFree": sized, "FastestDet": {}, "DETR": {}}
    return [(name, settings) for name, settings in given.items() if hasattr(tasks.decoders, name)]


def _sounds(sections: Sections) -> Trials:
    """Log-mel and MFCC features whose shape is the network's input."""
    options = _options(sections)
    rate, samples = int(str(options["rate"])), int(str(options["samples"]))
    given = sections["model"].get("input")
    shape = tuple(int(one) for one in given) if isinstance(given, list) else ()
    found: list[tuple[str, Patch]] = []
    for (window, hop), mels, coefficients in SOUND:
        span, step = rate * window // 1000, rate * hop // 1000
        frames, bins = 1 + (samples - span) // step, coefficients or mels
        if coefficients > mels or samples < span:
            continue
        layouts = {"TF": (frames, bins), "FT": (bins, frames), "1TF": (1, frames, bins), "1FT": (1, bins, frames)}
        for layout in (name for name, made in layouts.items() if made == shape):
            keys = {"rate": rate, "window": span, "hop": step, "fft": 1 << (span - 1).bit_length(), "mels": mels}
            keys |= {"coefficients": coefficients, "high": float(min(8000, rate // 2)), "layout": layout}  # type: ignore[dict-item]
            kind = f"{coefficients} MFCC of {mels}" if coefficients else f"{mels} log-mel"
            found.append(
                (f"{kind} bands, {window} ms every {hop}", {"data": {"options": {**options, "features": keys}}})
            )
    remedy = "Say what the network hears: --features file.py:function, and --input with its shape (your-sound.md)."
    return Trials("features", tuple(found), remedy)
