"""What a recipe says of inputs, data and the task: the right object, or one clear error before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune import recipe, target, tasks
from edgeprune.cli import progress
from edgeprune.errors import DataError, EdgepruneError, ModelError, RecipeError, TaskError
from edgeprune.pipeline import feasible, reading, tasking, workloads
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.events import Event, silent
from edgeprune.pipeline.objects import recipe_of
from edgeprune.pipeline.rundir import RunDirectory

WORDS = 50


class Items:
    """Token ids and two numbers by name; the target is a number that the network below knows to within a little."""

    classes = ()

    def __init__(self, count: int, seed: int, **change: Any) -> None:
        self.count, self.seed, self.change = count, seed, change

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        random = np.random.default_rng([self.seed, index])
        ids, size = random.integers(0, WORDS, 6), random.normal(size=2).astype(np.float32)
        example = {"ids": ids, "size": size}
        example.update({key: change(index, example[key]) for key, change in self.change.items()})
        return example, float(ids.mean() + size.sum() + 0.1 * random.normal())


class Network(nn.Module):
    """Nearly the true number, and the numbers that it comes from."""

    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(words, 1), nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.table.weight.copy_(torch.arange(float(words))[:, None])
            self.head.weight.fill_(1.0)

    def forward(self, ids: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.cat([self.table(ids).mean(1), size], 1)
        return self.head(x), x


def error(outputs: tuple[Any, ...], targets: list[Any], power: float = 1.0) -> float:
    return float(np.mean(np.abs(outputs[0][:, 0] - np.array(targets)) ** power))


def nothing(outputs: Any, targets: Any) -> float:
    return float("nan")


def raising(outputs: Any, targets: Any) -> float:
    raise ZeroDivisionError("no examples of this kind")


def data() -> edgeprune.Data:
    return edgeprune.Data(Items(80, 0), Items(60, 1), selection_examples=20, calibration_examples=16)


def splits() -> dict[str, Any]:
    return {"train": Items(80, 0), "test": Items(60, 1)}


MINE = f"{__file__}:error"


def said(folder: Path, text: str = "", model: str = "", section: str = 'metric = "MAE"\nkind = "regression"') -> Any:
    (folder / "recipe.toml").write_text(
        f'[model]\nfactory = "{__file__}:Network"\n{model}\n'
        + (text or f'[data]\nsource = "{__file__}:splits"\nselection = 20\n')
        + f"[task]\n{section}\n[budget]\nspeedup = 1.2\n"
    )
    return recipe.load(folder / "recipe.toml")


def context_of(tmp_path: Path, asked: recipe.Recipe, given: workloads.Objects | None = None) -> Context:
    return Context(asked, target.load("x86-onnxruntime"), RunDirectory(tmp_path / "run"), "", silent, given)


def arrays(folder: Path) -> str:
    every: dict[str, Any] = {}
    for name, items in (("train", Items(80, 0)), ("test", Items(60, 1))):
        rows = [items[i] for i in range(len(items))]
        every |= {f"{name}_{key}": np.stack([row[key] for row, _ in rows]) for key in ("ids", "size")}
        every[f"{name}_targets"] = np.array([value for _, value in rows])
    np.savez(folder / "data.npz", **every)
    return '[data]\nkind = "arrays"\nsource = "data.npz"\nselection = 20\n'


@pytest.mark.long
@pytest.mark.parametrize("source", ["datasets", "a Data", "arrays", "objects"])
def test_the_same_task_from_a_recipe_and_from_objects(tmp_path: Path, source: str) -> None:
    given = None
    if source == "objects":
        asked, given = recipe_of(
            Network(), data(), tasks.Regression("MAE"), edgeprune.Budget(speedup=1.2), {"epochs": 0}
        )
    else:
        text = {"a Data": f'[data]\nsource = "{__file__}:data"\n', "arrays": arrays(tmp_path)}.get(source, "")
        asked = said(tmp_path, text)
    with context_of(tmp_path, asked, given) as context:
        assert context.subject.workload.inputs.names == ("ids", "size") and context.subject.workload.inputs.keywords
        assert [part.dtype for part in context.subject.workload.inputs.parts] == ["int64", "float32"]
        assert set(context.subject.example) == {"ids", "size"} and len(context.subject.example["ids"]) == 1
        assert context.subject.structure.layers and not context.subject.pictured
        found = feasible.dense_sanity(context.subject)
        assert found.metric == "MAE" and 0.04 < found.value < 0.15 < found.chance and found.p_value < 0.01
        session = context.subject.session
        moved = tuple(part + 1 for part in session.dense[0])
        assert (
            float(session.distance(session.dense[0], session.dense[0]).max())
            == 0
            < float(session.distance(session.dense[0], moved).min())
        )


@pytest.mark.parametrize(
    ("section", "metric", "unit", "higher"),
    [
        (f'metric = "{MINE}"\nunit = "mm"\nhigher_is_better = false', "error", "mm", False),
        (f'metric = "{MINE}"\nname = "sq"\nhigher_is_better = false\narguments = {{ power = 2.0 }}', "sq", "", False),
        (f'metric = "{MINE}"\nkind = "regression"\nhigher_is_better = false', "error", "", False),
        ('kind = "regression"\nmetric = "RMSE"\nunit = "kg"', "RMSE", "kg", False),
        ('kind = "detection"\ndecode = "FastestDet"', "mAP 50-95", "points", True),
        ('kind = "classification"\narguments = { top = 5 }', "top-5", "points", True),
        ('kind = "edgeprune.tasks:Binary"', "accuracy", "points", True),
        ("", "top-1", "points", True),
    ],
)  # fmt: skip
def test_a_recipe_names_any_task(tmp_path: Path, section: str, metric: str, unit: str, higher: bool) -> None:
    made = tasking.of_recipe(said(tmp_path, section=section))
    assert (made.metric, made.unit, made.higher_is_better) == (metric, unit, higher)


@pytest.mark.long
@pytest.mark.parametrize(
    ("section", "text"),
    [
        ('kind = "detektion"', "Did you mean 'detection'"),
        ('kind = "detection"', "needs decode"),
        ('kind = "detection"\ndecode = "FastDet"', "Did you mean 'FastestDet'"),
        ('kind = "custom"', "needs metric"),
        ('metric = "F1"', "top-1, not by 'F1'"),
        ('metric = "nowhere.py:f"', "nowhere.py: no such file"),
        ('kind = "json:dumps"', r"json:dumps\(\) failed"),
        ('kind = "builtins:dict"', "lacks metric"),
        ('kind = "regression"\nname = "x"', "name is for a metric of your own"),
        ('kind = "regression"\narguments = { colour = 1 }', "colour"),
        ('metric = "torchmetrics.classification:Nothing"', "has no Nothing"),
    ],
)
def test_what_is_no_task_is_said(tmp_path: Path, section: str, text: str) -> None:
    if "torchmetrics" in section:
        pytest.importorskip("torchmetrics", reason="the extra edgeprune[metrics] is not installed")
    with pytest.raises(TaskError, match=text):
        tasking.of_recipe(said(tmp_path, section=section))


@pytest.mark.parametrize(
    ("model", "data", "text"),
    [
        ("input = [3]\ninputs.ids = { shape = [6] }", "", "has input and inputs"),
        ("inputs.ids = { shape = [6], below = 3 }", "", "below is for whole numbers"),
        ('inputs.ids = { shape = [6], dtype = "int8" }', "", "dtype"),
        ("", '[data]\nsource = "folder"\n', "input is empty"),
        ("", '[data]\nkind = "coco"\n', "needs splits.train and splits.test"),
        ("", '[data]\nkind = "arrays"\n', "source is missing"),
        ("input = [3, 8, 8]", '[data]\nsource = "x"\nresize = 8\nfit = "letterbox"\n', "needs resize = "),
        ("input = [1, 8, 8]", '[data]\nsource = "x"\norder = "BGR"\n', "of three channels"),
        ("input = [3, 8, 8]", '[data]\nsource = "x"\noptions = { rate = 3 }\n', "of another kind than images"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(tmp_path: Path, model: str, data: str, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        said(tmp_path, data, model)


def two_shapes(index: int, value: Any) -> Any:
    return value if index % 2 else np.zeros(3, np.float32)


COUNT = iter(range(10**9))


def test_numbers_of_training_reach_a_tracker_and_the_log_and_no_line_is_printed_of_them(tmp_path: Path) -> None:
    seen: list[Event] = []
    asked = said(tmp_path)
    with RunDirectory(tmp_path / "run") as directory:
        context = Context(asked, target.load("x86-onnxruntime"), directory, "", seen.append)
        context.voice.track("recover", {"step": 3, "loss": 0.5})
    assert [(event.kind, event.numbers) for event in seen] == [("numbers", {"step": 3, "loss": 0.5})]
    logged = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert (logged["event"], logged["stage"], logged["loss"]) == ("train", "recover", 0.5)
    lines: list[str] = []
    progress.Lines(lines.append)(seen[0])
    assert not lines


def test_a_kind_of_data_that_there_is_none_of_is_named_before_anything_is_read(tmp_path: Path) -> None:
    made = said(tmp_path, '[data]\nkind = "mask"\nsplits = { train = {}, test = {} }\n')
    with pytest.raises(RecipeError, match=r"'mask' is not known.\n  Did you mean 'masks'"):
        reading.check_kind(made)


@pytest.mark.parametrize(
    ("items", "task", "kind", "text"),
    [
        ({"ids": lambda i, v: v.astype(np.float32)}, None, ModelError, "does not take its inputs"),
        ({"ids": lambda i, v: v + WORDS}, None, ModelError, "does not take its inputs"),
        ({"size": two_shapes}, None, DataError, r"must be \[3\]"),
        ({"size": lambda i, v: v + next(COUNT)}, None, DataError, "changes from one read to the next"),
        ({"size": lambda i, v: v * np.float32(np.nan)}, None, DataError, "NaN or infinity"),
        ({}, nothing, TaskError, "nan"),
        ({}, raising, TaskError, "no examples of this kind"),
        ({}, "better when wrong", TaskError, "higher_is_better"),
    ],
)
def test_bad_data_and_metrics_end_before_anything_is_measured(
    tmp_path: Path, items: Any, task: Any, kind: type[Exception], text: str
) -> None:
    metric = task if callable(task) else error
    made = tasks.Custom(metric, "mine", higher_is_better=task == "better when wrong")
    bad = edgeprune.Data(Items(80, 0), Items(60, 1, **items), selection_examples=20)
    asked, given = recipe_of(Network(), bad, made, edgeprune.Budget(speedup=1.2), {"epochs": 0})
    with context_of(tmp_path, asked, given) as context, pytest.raises(kind, match=text):
        feasible.dense_sanity(context.subject)


@pytest.mark.long
def test_token_ids_out_of_a_stated_range_and_other_types_than_stated(tmp_path: Path) -> None:
    stated = 'inputs.ids = { shape = [6], dtype = "int64", below = 20 }\ninputs.size = { shape = [2] }'
    with context_of(tmp_path, said(tmp_path, "", stated)) as context, pytest.raises(DataError, match="from 0 to 19"):
        _ = context.subject.workload
    stated = 'inputs.ids = { shape = [6], dtype = "int32" }\ninputs.size = { shape = [2] }'
    with context_of(tmp_path, said(tmp_path, "", stated)) as context, pytest.raises(DataError, match="must be int32"):
        _ = context.subject.workload
    other = said(tmp_path, "", "inputs.tokens = {}")
    with context_of(tmp_path, other) as context, pytest.raises(DataError, match="tokens; an example has ids, size"):
        _ = context.subject.workload


def pictures() -> dict[str, Any]:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    return {f"{split}_{key}": value for split in ("train", "test") for key, value in
            (("images", images), ("labels", np.arange(4) % 2))}  # fmt: skip


@pytest.mark.long
def test_images_of_a_function_need_an_input(tmp_path: Path) -> None:
    asked = said(tmp_path, f'[data]\nsource = "{__file__}:pictures"\n', section="")
    with context_of(tmp_path, asked) as context, pytest.raises(RecipeError, match="input is missing"):
        _ = context.subject.model


def test_licences_are_those_beside_what_the_recipe_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune.pipeline import licences

    (tmp_path / "here").mkdir()
    (tmp_path / "boxes").mkdir()
    for name in ("here", "boxes"):
        (tmp_path / name / "LICENSE").write_text(name)
    (tmp_path / "boxes" / "a.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "here")
    asked, _ = recipe_of(Network(), data(), "regression", edgeprune.Budget(speedup=1.2))
    assert licences(asked) == []
    split = f'{{ annotations = "{tmp_path}/boxes/a.json", images = "{tmp_path}/boxes" }}'
    found = licences(said(tmp_path, f'[data]\nkind = "coco"\nsplits.train = {split}\nsplits.test = {split}\n'))
    assert [path.read_text() for path in found] == ["boxes"]


def test_objects_that_are_none_are_refused() -> None:
    budget = edgeprune.Budget(speedup=1.2)
    for wrong, text in (
        (lambda: recipe_of(3, data(), "regression", budget), "the model is int"),  # type: ignore[arg-type]
        (lambda: recipe_of(Network(), None, "regression", budget), "data is NoneType"),
        (lambda: recipe_of(Network(), data(), "regression", None), "budget is NoneType"),
        (lambda: recipe_of(Network(), data(), "regression", budget, 3), "recover is int"),
        (lambda: recipe_of(Network(), data(), "regression", budget, {"epoch": 1}), "Did you mean 'epochs'"),
        (lambda: recipe_of(Network(), data(), "regresion", budget), "Did you mean 'regression'"),
        (lambda: recipe_of(Network(), data(), tasks.Regression, budget), "a class"),  # type: ignore[arg-type]
        (lambda: edgeprune.compress("recipe.toml", "intel-cpu", data=data()), "beside a recipe"),
    ):
        with pytest.raises(EdgepruneError, match=text):
            wrong()


def test_boxes_of_coco_by_a_recipe(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / split / "a.png")
        table = {
            "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
            "categories": [{"id": 7, "name": "thing"}],
            "annotations": [{"image_id": 1, "category_id": 7, "bbox": [5, 0, 10, 10]}],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(table))
    text = (
        '[data]\nkind = "coco"\nresize = [8, 16]\nsplits.train = { annotations = "train.json", images = "train" }\n'
        'splits.test = { annotations = "test.json", images = "test" }\n'
    )
    asked = said(tmp_path, text, "input = [3, 8, 16]", 'kind = "detection"\ndecode = "FastestDet"')
    from edgeprune.pipeline import reading

    lines: list[str] = []
    found = reading.of_recipe(asked, None, lines.append)
    picture, wanted = found.split("test")[0]
    assert (
        picture.shape == (3, 8, 16)
        and np.allclose(picture[0], 1)
        and np.allclose(wanted["boxes"], [[0.25, 0, 0.75, 1]])
    )
    boxed = said(
        tmp_path, text.replace("resize = [8, 16]", 'resize = [16, 16]\nfit = "letterbox"'), "input = [3, 16, 16]"
    )
    picture, wanted = reading.of_recipe(boxed, None, print).split("test")[0]
    assert np.allclose(wanted["boxes"], [[0.25, 0.25, 0.75, 0.75]])
    assert np.allclose(picture[0, 4:12], 1) and np.allclose(picture[0, :4], 114 / 255)
    assert found.names == ("thing",) and lines == ["train: 1 examples of 1 classes", "test: 1 examples of 1 classes"]
    with pytest.raises(DataError, match=r"'image' is not known|Did you mean 'images'"):
        reading.of_recipe(said(tmp_path, text.replace("images = ", "image = "), "input = [3, 8, 16]"), None, print)


def test_a_task_counts_as_changed_when_what_it_does_is(tmp_path: Path) -> None:
    from edgeprune.workload.workload import settings

    def other(outputs: Any, targets: Any) -> float:
        return 2 * error(outputs, targets)

    one = tasks.Custom(error, "mine")
    assert settings(one) == settings(tasks.Custom(error, "mine"))
    assert settings(one) != settings(tasks.Custom(other, "mine")) and " at 0x" not in settings(one)
    powers = [said(tmp_path, section=f'metric = "{MINE}"\narguments = {{ power = {p} }}') for p in (1.0, 2.0)]
    assert len({settings(tasking.of_recipe(asked)) for asked in powers}) == 2
