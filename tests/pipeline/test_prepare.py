"""Data(prepare=...): what a dataset of one's own says of files travels to the board, and what cannot be is refused."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune import target, tasks
from edgeprune.errors import DataError
from edgeprune.model import Preprocess
from edgeprune.pipeline import pictures, travelling, workloads
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.events import silent
from edgeprune.pipeline.objects import recipe_of
from edgeprune.pipeline.rundir import RunDirectory
from edgeprune.release.device import show
from edgeprune.workload import Features, Input, Inputs

PICTURE = Preprocess((6, 8), 0, 1 / 255, (0.5,), (0.25,), (3, 6, 8))
SOUND = Features(rate=8000, window=256, hop=128, fft=256, mels=6, high=4000.0, layout="1TF")


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.float().flatten(1).mean(1, keepdim=True) * self.scale).reshape(-1, 1)


def context_of(folder: Path, prepare: Any, make: Any) -> Context:
    items = [(make(i), float(np.mean(make(i)))) for i in range(24)]
    data = edgeprune.Data(items[:12], items[12:], selection_examples=4, calibration_examples=4, prepare=prepare)
    asked, given = recipe_of(Sum(), data, tasks.Regression("MAE"), edgeprune.Budget(speedup=1.2), {"epochs": 0})
    return Context(asked, target.load("x86-onnxruntime"), RunDirectory(folder / "run"), "", silent, given)


def pixels(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)


def sound(number: int) -> Any:
    return np.random.default_rng(number).uniform(-1, 1, 128 * 9 + 256).astype(np.float32)


def test_a_picture_on_the_board_is_what_the_dataset_gave(tmp_path: Path) -> None:
    with context_of(tmp_path, PICTURE, lambda i: PICTURE(pixels(i))) as context:
        spec = travelling.preprocessing(context.subject, tmp_path)
        undo, how = pictures.undone(context.subject, -2.0, 2.0)  # the contact sheet takes back what is stated
    assert np.allclose(undo(PICTURE(pixels(3))), pixels(3), atol=1e-3) and how.startswith("as before")
    assert spec["kind"] == "image"
    np.save(tmp_path / "one.npy", pixels(3))
    (made,) = show.load(str(tmp_path / "one.npy"), [], json.loads(json.dumps(spec)))
    assert np.array_equal(made[0], PICTURE(pixels(3)))


def test_a_sound_on_the_board_is_what_the_dataset_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(edgeprune.__file__).parent / "workload"))  # run.py has features.py beside it
    with context_of(tmp_path, SOUND, lambda i: SOUND(sound(i))) as context:
        spec = travelling.preprocessing(context.subject, tmp_path)
    assert (spec["kind"], spec["samples"]) == ("features", 128 * 9 + 256)
    said = np.rint(sound(5) * 32767).astype("<i2")
    with wave.open(str(tmp_path / "one.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes(np.concatenate([said, said]).tobytes())  # what is longer is cut
    (made,) = show.load(str(tmp_path / "one.wav"), [], json.loads(json.dumps(spec)))
    assert made.shape == (1, 1, 10, 6) and np.allclose(made[0], SOUND(said.astype(np.float32) / 32768), atol=1e-4)


def test_a_tokenizer_travels(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with context_of(tmp_path, tmp_path / "mine.json", lambda i: np.full(4, i, np.int64)) as context:
        assert travelling.preprocessing(context.subject, tmp_path) == {
            "kind": "text",
            "tokenizer": "input/tokenizer.json",
        }
    assert (tmp_path / "input" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("layout", ["TF", "FT", "1TF", "1FT"])
def test_so_many_samples_give_that_shape(layout: Any, centred: bool) -> None:
    made = Features(rate=8000, window=200, hop=80, fft=256, mels=6, high=4000.0, layout=layout, centred=centred)
    shape = made(np.zeros(4000, np.float32)).shape
    assert made(np.zeros(made.samples(shape), np.float32)).shape == shape
    assert made(np.zeros(made.samples(shape) - 1, np.float32)).shape != shape


@pytest.mark.parametrize(
    ("given", "shape", "says"),
    [
        (PICTURE, (3, 8, 6), r"makes \[3, 6, 8\]; an example's input is \[3, 8, 6\]"),
        (SOUND, (1, 10, 7), r"never are \[1, 10, 7\]"),
        (SOUND, (10, 6), "never are"),
        ("nowhere.json", (4,), "no such file"),
        (len, (4,), "must be a model.Preprocess, Features"),
    ],
)
def test_what_would_not_make_the_input_is_refused(given: Any, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(DataError, match=says):
        workloads.check_prepare(given, Inputs((Input("x", shape),)))
