"""A small project of every kind of input: a recipe, a network, weights, a target, images, sounds, tables."""

from __future__ import annotations

import csv
import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np

SIDE, CLASSES = 16, 4
NAMES = ("ant", "bee", "cat", "dog")
COLOURS = np.array([[0.7, 0.3, 0.3], [0.3, 0.7, 0.3], [0.3, 0.3, 0.7], [0.6, 0.6, 0.2]])

NETWORK = '''\
import torch
from torch import nn

COLOURS = [[0.7, 0.3, 0.3], [0.3, 0.7, 0.3], [0.3, 0.3, 0.7], [0.6, 0.6, 0.2]]


def bare(wide=64):
    """Random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, wide, 3, padding=1), nn.ReLU(),
        nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 4),
    ).eval()


def net(wide=64):
    """Random features; the last layer is fitted by least squares to noisy images of four colours."""
    model = bare(wide)
    labels = torch.arange(256) % 4
    images = (torch.tensor(COLOURS)[labels][:, :, None, None] + 0.6 * (torch.rand(256, 3, 16, 16) - 0.5)).clamp(0, 1)
    with torch.no_grad():
        features = torch.cat([model[:-1](images), torch.ones(256, 1)], 1).double()
        wanted = 4 * nn.functional.one_hot(labels, 4).double() - 1
        fit = torch.linalg.solve(features.T @ features + 1e-4 * torch.eye(wide + 1), features.T @ wanted).float()
        model[-1].weight.copy_(fit[:wide].T)
        model[-1].bias.copy_(fit[wide])
    return model


def small():
    """The same, narrow."""
    return net(32)
'''
RECIPE = """\
name = "tiny"

[model]
factory = "net.py:net"
input = [3, 16, 16]
arguments = { wide = 64 }

[data]
source = "data.npz"
calibration = 32
selection = 60
test = 50
scale = 0.00392156862745098
mean = [0.0]
std = [1.0]
augment = ["flip"]

[task]
kind = "classification"

[budget]
speedup = 1.05
max_drop = 90.0
confidence = 0.95

[search]
method = "uniform"
images = 32
rounds = 1
time_limit = 10.0

[recover]
epochs = 0.2
batch = 32
lr = 0.002
distill = { kl = 1.0, features = 0.5 }
temperature = 4.0

[quantize]
images = 32
method = "auto"
percentile = 99.99

[quantize.layers]

[measure]
patience = 20
"""
PROFILE = """\
name = "quick"
title = "ONNX Runtime here, measured in a hurry"
family = "x86"
runtime = "onnxruntime"
dialect = "ort-x86"
requires = ">=1.15"

[channels]
step = 32
input_step = 4
depthwise_step = 8
minimum = 8

[execution]
threads = 1
batch = 1
options = {}

[protocol]
warmup_runs = 3
runs = 40
rounds = 24
min_seconds = 0.0
max_seconds = 60.0
max_spread = 5.0

[connection]
transport = "local"

[[evidence]]
level = "device"
date = "2026-01-01"
on = "this machine"
runtime = "onnxruntime 1"
what = "all"
"""


def pixels(labels: Any, seed: int = 0) -> Any:
    """Noisy uint8 images [N, 16, 16, 3] whose colour tells the class."""
    noise = np.random.default_rng(seed).random((len(labels), SIDE, SIDE, 3)) - 0.5
    return (255 * np.clip(COLOURS[labels][:, None, None] + 0.6 * noise, 0, 1)).astype(np.uint8)


def make(folder: Path, train: int = 100, test: int = 60) -> Path:
    """recipe.toml, net.py, data.npz and quick/profile.toml."""
    for name, text in (("recipe.toml", RECIPE), ("net.py", NETWORK), ("quick/profile.toml", PROFILE)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    arrays: dict[str, Any] = {"classes": np.array(NAMES)}
    for split, count in (("train", train), ("test", test)):
        arrays[f"{split}_labels"] = np.arange(count) % CLASSES
        arrays[f"{split}_images"] = pixels(arrays[f"{split}_labels"], count)
    np.savez(folder / "data.npz", **arrays)
    return folder


def pictures(folder: Path, suffix: str) -> list[Path]:
    """train/CLASS and test/CLASS of image files."""
    from PIL import Image

    made = []
    for split, count in (("train", 8), ("test", 8)):
        labels = np.arange(count) % CLASSES
        for number, array in enumerate(pixels(labels)):
            path = folder / split / NAMES[labels[number]] / f"{number}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
            made.append(path)
    return made


def sound(rate: int = 8000, samples: int = 800) -> bytes:
    """A wav file of one tone."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((8000 * np.sin(np.arange(samples) / 5)).astype("<i2").tobytes())
    return stream.getvalue()


def csv_table() -> bytes:
    """Texts and labels."""
    stream = io.StringIO()
    rows = csv.writer(stream)
    rows.writerow(["text", "label"])
    rows.writerows([[f"a {name} runs, number {n}", name] for n in range(3) for name in NAMES])
    return stream.getvalue().encode()


def coco_table() -> dict[str, Any]:
    """Annotations of one picture."""
    return {
        "images": [{"id": 3, "file_name": "a.png", "width": 40, "height": 20}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}],
        "annotations": [
            {"image_id": 3, "category_id": 7, "bbox": [10, 5, 20, 10]},
            {"image_id": 3, "category_id": 9, "bbox": [0, 0, 4, 4], "iscrowd": 1},
        ],
    }


VOC = """<annotation><filename>a.png</filename><size><width>40</width><height>20</height></size>
<object><name>cat</name><bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>15</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>
</object></annotation>
"""
YOLO = "1 0.5 0.5 0.2 0.4\n0 0.2 0.2 0.1 0.1\n"


def tokenizer() -> bytes:
    """A tokenizer.json of words."""
    words = ["[UNK]", "[PAD]", "a", "runs", "number", *NAMES]
    return json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
            "model": {"type": "WordLevel", "vocab": {w: n for n, w in enumerate(words)}, "unk_token": "[UNK]"},
        }
    ).encode()  # fmt: skip
