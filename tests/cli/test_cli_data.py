"""`edgeprune data`: the sheet shows what the network gets, and the figures are those of the examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from PIL import Image

from edgeprune.report import Tile, draw, overlaid
from edgeprune.report.sheet import GAP

NORMAL = "[data]\nmean = [0.4, 0.5, 0.6]\nstd = [0.2, 0.3, 0.4]\n"
TOKENS = """
import numpy as np
import torch
from torch import nn

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 2)
        self.table.weight.data = torch.stack([torch.arange(50.0) < 25, torch.arange(50.0) >= 25], 1).float()
    def forward(self, ids):
        return self.table(ids).mean(1)

class Rows:
    classes = ("low", "high")
    def __init__(self, shift=0):
        self.shift = shift
    def __len__(self):
        return 40
    def __getitem__(self, index):
        if not 0 <= index < 40:
            raise IndexError(index)
        label = index % 2
        return np.full(6, 25 * label + index % 20, np.int64), (label + self.shift) % 2

def right():
    return {"train": Rows(), "selection": Rows(), "test": Rows()}

def shifted():
    return {"train": Rows(), "selection": Rows(), "test": Rows(1)}
"""
OF_TOKENS = """name = "words"
[model]
factory = "words.py:Words"
[data]
source = "words.py:{source}"
[budget]
speedup = 1.5
"""


@pytest.mark.long
def test_pictures_look_as_they_did_before_normalisation_and_the_figures_are_theirs(project, edgeprune_command):
    text = Path("recipe.toml").read_text()
    Path("recipe.toml").write_text(text.replace("[data]\n", NORMAL))
    done = edgeprune_command("data", "recipe.toml", "--tiles", 60, "--examples", 0, "--out", "sheet.png", "--json")
    assert done.exit_code in (0, 3), done.stderr  # the network was trained on pixels without that mean
    found = done.json
    assert found["counts"] == {"train": 140, "calibration": 32, "selection": 60, "test": 60}
    with np.load("data.npz") as arrays:
        labels, images = arrays["test_labels"], arrays["test_images"]
    assert found["shown"] == {n: int((labels == k).sum()) for k, n in enumerate(["ant", "bee", "cat", "dog"])}
    assert found["inputs"][0]["low"] == pytest.approx((images / 255 - [0.4, 0.5, 0.6]).min(0).min() / 0.3, abs=1.5)
    sheet = np.asarray(Image.open("sheet.png"))
    tile = sheet[GAP : GAP + 144, GAP : GAP + 144][4::9, 4::9]  # 16 x 16, each pixel nine times
    assert any(np.abs(tile.astype(int) - image).max() <= 1 for image in images)


@pytest.mark.long
def test_the_metric_its_interval_and_what_chance_gives_are_said(project, edgeprune_command):
    done = edgeprune_command("data", "recipe.toml")
    assert done.exit_code == 0, done.stderr
    assert "140 train, 32 calibration, 60 selection, 60 test" in done.stdout
    assert (
        "dense network, FP32: top-1 " in done.stdout and "95 % interval" in done.stdout and "by chance" in done.stdout
    )
    assert Path("tiny-test.png").is_file() and "from 0 to 0.9961" in done.stdout


@pytest.mark.long
def test_what_is_no_picture_becomes_lines_and_shifted_labels_are_an_error_after_them(project, edgeprune_command):
    Path("words.py").write_text(TOKENS)
    Path("right.toml").write_text(OF_TOKENS.format(source="right"))
    done = edgeprune_command("data", "right.toml")
    assert done.exit_code == 0, done.stderr
    lines = Path("words-test.txt").read_text().splitlines()
    assert len(lines) == 24 and lines[0] == "low: ids [6] 0, 0, 0, 0, 0, 0" and lines[-1].startswith("high: ids [6] 44")
    assert "top-1 100.00 %" in done.stdout and "low 20, high 20" in done.stdout
    Path("shifted.toml").write_text(OF_TOKENS.format(source="shifted"))
    wrong = edgeprune_command("data", "shifted.toml", "--out", "wrong.txt")
    assert wrong.exit_code == 3 and "when the targets are shuffled" in wrong.stderr and "Traceback" not in wrong.stderr
    assert Path("wrong.txt").read_text().startswith("high (network: low)")


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        (["recipe.toml", "--split", "tset"], 2, "Did you mean 'test'?"),
        (["nothing.toml"], 2, "nothing.toml"),
        (["recipe.toml", "--out", "net.py/sheet.png"], 11, "--out"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(project, edgeprune_command, arguments, code, wanted):
    failed = edgeprune_command("data", *arguments)
    assert failed.exit_code == code and wanted in failed.stderr and "Traceback" not in failed.stderr


def test_boxes_and_masks_lie_where_their_labels_say():
    tile = Tile(np.zeros((100, 200, 3), np.uint8), "x" * 200, None, (((0.25, 0.5, 0.75, 0.9), "b"),))
    page = np.asarray(draw([tile]))
    yellow = np.argwhere((page == (255, 220, 0)).all(2)) - GAP
    assert yellow.min(0).tolist() == [49, 49] and yellow.max(0).tolist() == [89, 149]
    mask = np.zeros((5, 10), np.int64)
    mask[1, 2], mask[4, 9] = 1, 255
    both = overlaid(np.zeros((50, 100, 3), np.uint8), mask, 2, 255)
    assert both.shape == (50, 200, 3) and not both[:, :100].any()
    marked = np.argwhere(both[:, 100:].any(2))
    assert marked.min(0).tolist() == [10, 20] and (both[45, 195] == int(0.65 * 128)).all() and not both[30, 150].any()
