"""`edgeprune init`: what nobody states is found by the dense network's score, and what is written is a recipe."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgeprune import pipeline, recipe, target
from edgeprune.errors import DataError, ModelError, TaskError, UsageError
from edgeprune.pipeline import Wanted
from edgeprune.pipeline.draft import _drawn

COLOURS = """
import torch
from torch import nn

def net(scale=4.0):
    '''Tells red from green from blue: class 0 is blue, by the folders' names.'''
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)]
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *head)
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
        for c in range(3):
            model[0].weight[c, c, 1, 1] = 1.0
            model[4].weight[2 - c, c] = scale
        model[0].bias[:3] = 0.0
    return model.eval()

def windows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 8, 3), nn.Flatten(), nn.Linear(80, 1)).eval()
    with torch.no_grad():
        model[0].weight.zero_(); model[0].bias.zero_(); model[2].weight.zero_(); model[2].bias.zero_()
        model[0].weight[0, 0, 1] = 1.0
        model[2].weight[0, :10] = 0.1
    return model
"""


def colours(folder, split="", count=12, dimmest=135):
    """Noisy pictures that are brighter in one channel."""
    rng = np.random.default_rng(0)
    for number, kind in enumerate(("blue", "green", "red")):
        place = folder / split / kind
        place.mkdir(parents=True)
        for n in range(count):
            pixels = rng.integers(0, 120, (24, 20, 3))
            pixels[..., 2 - number] = rng.integers(dimmest, 255, (24, 20))
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{n}.png")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(COLOURS)
    return tmp_path


@pytest.mark.long
def test_class_folders_become_a_recipe_that_holds(here):
    colours(Path("photos"))
    said = []
    made = pipeline.draft(
        Wanted("nets.py:net", "photos", {"scale": 5.0}, name="tones"), Path(), lambda about, text: said.append(text)
    )
    Path("recipe.toml").write_text(made.text)
    read = recipe.load("recipe.toml")
    assert (read.name, read.model.arguments, read.budget.speedup) == ("tones", {"scale": 5.0}, 1.5)
    assert read.model.input == (3, 24, 20)  # as the pictures are
    assert read.data.source == "tones-data"
    assert Path("tones-data/test/red").is_dir()
    assert any("36 images in 3 class folders" in text for text in said)
    assert made.dense.value is not None
    assert not [finding for finding in made.findings if finding.severity == "error"]


@pytest.mark.long
def test_arrays_and_a_regression_are_recognised(here):
    rng = np.random.default_rng(0)
    inputs = rng.random((200, 12))
    np.savez("windows.npz", x=inputs, y=inputs[:, 1:11].mean(1) + 0.01 * rng.standard_normal(200))
    made = pipeline.draft(Wanted("nets.py:windows", "windows.npz"), Path(), lambda about, text: None)
    assert made.recipe.task.kind == "regression"
    assert np.load("windows-data.npz")["train_inputs"].shape == (160, 1, 12)
    assert made.recipe.budget.max_drop > 0
    assert made.dense.metric == "MAE"


@pytest.mark.long
def test_a_network_that_knows_nothing_leaves_nothing_behind(here):
    colours(Path("photos"))
    Path("nets.py").write_text(COLOURS.replace("model[4].weight[2 - c, c] = scale", "pass"))
    with pytest.raises(ModelError):
        pipeline.draft(Wanted("nets.py:net", "photos"), Path(), lambda about, text: None)
    assert sorted(path.name for path in here.iterdir() if path.name != "__pycache__") == ["nets.py", "photos"]
    assert len(list(Path("photos").rglob("*.png"))) == 36


@pytest.mark.long
def test_targets_that_say_nothing_are_asked_for(here):
    np.savez("odd.npz", x=np.ones((30, 12)), y=np.ones((30, 5, 5)))
    with pytest.raises(UsageError, match=r"a target is \(5, 5\)"):
        pipeline.draft(Wanted("nets.py:windows", "odd.npz"), Path(), lambda about, text: None)


@pytest.mark.long
def test_outputs_in_another_order_than_the_folders_are_noticed(here):
    colours(Path("photos"), count=24)
    Path("nets.py").write_text(COLOURS.replace("[2 - c, c]", "[c, c]"))
    with pytest.raises(DataError, match=r"33\.3 % right as they are, 100\.0 % as red, green, blue") as told:
        pipeline.draft(Wanted("nets.py:net", "photos"), Path(), lambda about, text: None)
    assert "--classes red,green,blue" in told.value.remedy
    assert not Path("net-data").exists()
    made = pipeline.draft(
        Wanted("nets.py:net", "photos", classes=("red", "green", "blue")), Path(), lambda about, text: None
    )
    assert made.dense.value == 100
    assert made.recipe.data.classes == ("red", "green", "blue")


@pytest.mark.long
def test_a_stated_order_that_another_one_beats_is_no_release(here):
    """A third right of what would be 100 %: no gate would see it, as dense and pruned are equally wrong."""
    colours(Path("photos"), count=60)
    wrong = Wanted("nets.py:net", "photos", classes=("red", "green", "blue"), speedup=1.2)
    beaten = r"another order than the classes: 33\.3 % right as they are, 100\.0 % as blue, green, red"
    with pytest.raises(DataError, match=beaten) as told:
        pipeline.draft(wrong, Path(), lambda about, text: None)
    assert "--classes blue,green,red" in told.value.remedy
    right = Wanted("nets.py:net", "photos", classes=("blue", "green", "red"), speedup=1.2)
    made = pipeline.draft(right, Path(), lambda about, text: None)
    data = msgspec.structs.replace(made.recipe.data, classes=("red", "green", "blue"))
    with pytest.raises(DataError, match=beaten) as told:
        pipeline.run(msgspec.structs.replace(made.recipe, data=data), target.load("x86-onnxruntime"), Path("run"))
    assert "State the order" in told.value.remedy
    assert not Path("run/latency").exists()


@pytest.mark.long
def test_without_a_decode_the_decoders_that_were_tried_are_named(here):
    colours(Path("photos"), count=12)
    for number, picture in enumerate(sorted(Path("photos").rglob("*.png"))):
        split = "val" if number % 3 == 0 else "train"
        place = Path("shapes", "images", split, f"{number}.png")
        label = Path("shapes", "labels", split, f"{number}.txt")
        place.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        picture.rename(place)
        label.write_text("0 0.5 0.5 0.4 0.4\n")
    Path("shapes/data.yaml").write_text("names: [disc]\ntrain: images/train\nval: images/val\n")
    with pytest.raises(TaskError, match=r"no built-in decoder fits the network's outputs \(tried: .*Yolo") as told:
        pipeline.draft(Wanted("nets.py:net", "shapes"), Path(), lambda about, text: None)
    assert "--decode file.py:function" in told.value.remedy
    wanted = Wanted("nets.py:net", "shapes", decode="boxes")
    with pytest.raises(TaskError, match="'boxes' is no built-in decoder") as told:
        pipeline.draft(wanted, Path(), lambda about, text: None)
    assert 'decode = "file.py:boxes"' in told.value.remedy and "ModelError" not in told.value.remedy


BRIGHT = """
import torch
from torch import nn

class Bright(nn.Module):
    '''Counts the pixels of each channel in 0.52..1.02, so that it tells colours of pixels as 0..1 alone.'''
    def __init__(self, order):
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            for conv, bound in ((self.low, 0.52), (self.high, 1.02)):
                conv.weight.copy_(50 * torch.eye(3)[order][:, :, None, None]); conv.bias.fill_(-50 * bound)
    def forward(self, x):
        return 20 * (self.low(x).sigmoid() - self.high(x).sigmoid()).mean((2, 3)) + torch.tensor([0.1, 0, 0])

def shifted():
    return Bright([0, 2, 1]).eval()  # red, blue, green: no folder stands where the output does
"""


@pytest.mark.long
def test_pixels_are_ranked_whatever_the_order_of_the_classes(here):
    """As they are, the right pixels score 0 points here, and ImageNet's, of which the network says one thing, 33."""
    colours(Path("photos"), count=60, dimmest=200)
    Path("nets.py").write_text(BRIGHT)
    said = []
    with pytest.raises(DataError, match=r" 0\.0 % right as they are, 100\.0 % as red, blue, green") as told:
        pipeline.draft(Wanted("nets.py:shifted", "photos"), Path(), lambda about, text: said.append(text))
    assert "--classes red,blue,green" in told.value.remedy
    assert any(
        text.startswith("pixels as 0..1: top-1 0 points (100 if the classes are in another order)") for text in said
    )
    stated = Wanted("nets.py:shifted", "photos", classes=("red", "blue", "green"))
    made = pipeline.draft(stated, Path(), lambda about, text: None)
    assert made.dense.value == 100 and made.recipe.data.mean == (0.0,)


def test_the_order_of_many_classes_shows_on_a_few_of_them():
    """64 of 200 classes' examples would suit any order; of 16 classes there are four each."""
    labels = np.repeat(np.arange(200), 5)
    split = type("Split", (), {"labels": labels})()
    test = type("Test", (), {"split": split, "__len__": lambda self: len(labels)})()
    drawn = labels[_drawn(test, 64, True)]
    assert (len(drawn), len(np.unique(drawn))) == (64, 16)
    assert len(np.unique(labels[_drawn(test, 64, False)])) > 40
