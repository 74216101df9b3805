"""Networks and test sets that can never be released end in `plan`, before anything is trained, by the right word."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune import latency, pipeline, recipe, target, validate
from edgeprune.errors import DataError, ModelError
from edgeprune.pipeline import feasible

CLASSES = 4


class Colours(nn.Module):
    """Knows the class of an image by its colour, but for what a test breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CLASSES, 1, bias=False)
        self.head = nn.Linear(CLASSES, CLASSES, bias=False)
        with torch.no_grad():
            self.stem.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0]])[..., None, None])
            self.head.weight.copy_(torch.eye(CLASSES))
            self.head.weight[3, 3] = 1.2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).mean((2, 3)))


def good() -> nn.Module:
    return Colours()


def nan_on_real_images() -> nn.Module:
    """Finite on the random example, whose mean is 0.5; NaN on every real image."""

    class Sometimes(Colours):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0 * torch.sqrt(x.mean((1, 2, 3), keepdim=True).flatten(1) - 0.4)

    return Sometimes()


def nan_on_one_class() -> nn.Module:
    class Sometimes(Colours):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = super().forward(x)
            return found + 0 * torch.log((0.8 - found[:, 2:3]).clamp(min=-1))

    return Sometimes()


def zero_weights() -> nn.Module:
    model = Colours()
    for weight in model.parameters():
        nn.init.zeros_(weight)
    return model


def dead_stem() -> nn.Module:
    model = Colours()
    nn.init.zeros_(model.stem.weight)
    model.head = nn.Linear(CLASSES, CLASSES)
    return model


def one_answer() -> nn.Module:
    model = Colours()
    model.head.bias = nn.Parameter(torch.tensor([0.0, 0, 50, 0]))
    return model


def labels(count: int) -> Any:
    return np.arange(count) % CLASSES


def pixels(given: Any) -> Any:
    colours = np.array([[200, 10, 10], [10, 200, 10], [10, 10, 210], [120, 120, 10]])[given]
    noise = np.random.default_rng(0).integers(-8, 8, (len(given), 8, 8, 3))
    return np.clip(colours[:, None, None] + noise, 0, 255).astype(np.uint8)


def project(folder: Path, factory: str, test: Any, shown: Any = None, **budget: Any) -> recipe.Recipe:
    """A recipe on images of `shown` (the true classes) that are labelled `test`."""
    train = labels(80)
    shown = test if shown is None else shown
    np.savez(
        folder / "data.npz", train_images=pixels(train), train_labels=train, test_images=pixels(shown),
        test_labels=test, classes=np.array(["red", "green", "blue", "olive"]),
    )  # fmt: skip
    asked = {"speedup": 1.2, "max_drop": 5.0, **budget}
    lines = [f"{key} = {value}" for key, value in asked.items()]
    (folder / "recipe.toml").write_text(
        f'[model]\nfactory = "{__file__}:{factory}"\ninput = [3, 8, 8]\n'
        '[data]\nsource = "data.npz"\ncalibration = 16\nselection = 20\n[budget]\n' + "\n".join(lines) + "\n"
    )
    return recipe.load(folder / "recipe.toml")


def looked_at(tmp_path: Path, asked: recipe.Recipe, monkeypatch: pytest.MonkeyPatch) -> tuple[validate.Finding, ...]:
    """The findings of a run up to its plan, without the timing (which these do not depend on)."""
    from edgeprune.pipeline.context import Context
    from edgeprune.pipeline.events import silent
    from edgeprune.pipeline.rundir import RunDirectory

    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    device = target.load("x86-onnxruntime")
    with RunDirectory(tmp_path / "run") as directory, Context(asked, device, directory, "", silent) as context:
        found = feasible.dense_sanity(context.subject)
        return validate.ask(found, len(context.subject.data.test), asked.budget)


BAD = {
    "all outputs tie": ("zero_weights", labels(200), None, "the same for every example", "model"),
    "dead stem": ("dead_stem", labels(200), None, "the same for every example", "model"),
    "one answer": ("one_answer", labels(200), None, "it answers 'blue' for every example", "model"),
    "random labels": ("good", np.random.default_rng(1).integers(0, 4, 200), labels(200), "not better than", "model"),
    "permuted labels": ("good", (labels(200) + 1) % CLASSES, labels(200), "not better than", "model"),
    "one class": ("good", np.zeros(200, int), None, "always answering 'red' scores 100.00 %", "data"),
    "one class, all tie": ("zero_weights", np.zeros(200, int), None, "always answering 'red' scores 100", "data"),
    "one image": ("good", np.zeros(1, int), None, "not better than chance", "data"),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", BAD)
def test_what_computes_nothing_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factory, test, shown, says, about = BAD[kind]
    found = looked_at(tmp_path, project(tmp_path, factory, test, shown), monkeypatch)
    first = found[0]
    assert (first.name, first.severity, first.about) == ("sane", "error", about)
    assert says in first.message and first.remedy


def test_an_honest_network_on_enough_images_has_nothing_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked_at(tmp_path, project(tmp_path, "good", labels(200)), monkeypatch) == ()


@pytest.mark.parametrize("factory", ["nan_on_real_images", "nan_on_one_class"])
def test_nan_on_real_images_is_refused(factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"NaN or infinite on \d+ of"):
        looked_at(tmp_path, project(tmp_path, factory, labels(200)), monkeypatch)


def test_classes_without_a_test_image_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = looked_at(tmp_path, project(tmp_path, "good", labels(200) % 2), monkeypatch)
    assert found.severity == "warning" and "No test example shows 'blue', 'olive'" in found.message


@pytest.mark.parametrize(
    ("count", "max_drop", "says", "helps"),
    [
        (60, 0.5, "needs 598", "max_drop = 4.9"),
        (100, 1.0, "needs 299", "max_drop = 3"),
        (60, 0.0, "cannot be shown by any number of examples", "max_drop = 4.9"),
    ],
)
def test_a_max_drop_that_the_images_cannot_tell_is_refused_with_what_they_can(
    count: int, max_drop: float, says: str, helps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = looked_at(tmp_path, project(tmp_path, "good", labels(count), max_drop=max_drop), monkeypatch)
    assert (found.name, found.severity, found.about) == ("accuracy", "error", "data")
    assert says in found.message and helps in found.remedy
    can = project(tmp_path, "good", labels(count), max_drop=float(helps.split("= ")[1]))
    assert not [one for one in looked_at(tmp_path, can, monkeypatch) if one.severity == "error"]


def test_little_room_is_a_warning_with_a_realistic_number() -> None:
    dense = validate.Sanity(
        metric="top-1",
        scale="%",
        examples=512,
        broken=0,
        value=94.0,
        chance=10.0,
        blind="always answering 'cat'",
        p_value=0.0,
        errors=0.06,
    )
    (found,) = validate.ask(dense, 2000, recipe.BudgetSection(speedup=2.0, max_drop=0.5))
    assert found.severity == "warning" and "needs about 10,193" in found.message
    assert validate.ask(dense, 2000, recipe.BudgetSection(speedup=2.0, max_drop=4.0)) == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "count", "max_drop", "error", "says"),
    [
        ("dead_stem", 200, 5.0, ModelError, "computes nothing"),
        ("good", 60, 0.5, DataError, "cannot be told with 60 test examples"),
        ("nan_on_one_class", 200, 5.0, ModelError, "NaN or infinite"),
    ],
)
def test_a_run_ends_before_it_trains(
    factory: str, count: int, max_drop: float, error: type[Exception], says: str, tmp_path: Path
) -> None:
    asked = project(tmp_path, factory, labels(count), max_drop=max_drop)
    with pytest.raises(error, match=says):
        pipeline.run(asked, target.load("x86-onnxruntime"), tmp_path / "run")
    assert not any((tmp_path / "run" / stage).exists() for stage in ("latency", "search", "recover", "release"))


@pytest.mark.slow
def test_a_no_that_the_noise_left_open_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    asked, device = project(tmp_path, "good", labels(200), speedup=50.0), target.load("x86-onnxruntime")
    calls, measured = [0], latency.feasibility

    def counted(*given: Any, **options: Any) -> latency.Feasibility:
        calls[0] += 1
        return dataclasses.replace(measured(*given, **options), unsure=calls[0] == 1)

    monkeypatch.setattr(latency, "feasibility", counted)
    for often in (1, 2, 2):  # the second answer is sure, and stays
        assert not pipeline.plan(asked, device, tmp_path / "run")["feasible"]
        assert calls[0] == often
