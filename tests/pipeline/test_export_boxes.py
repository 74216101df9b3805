"""[export] output = "nms": the artifact gives boxes, and everything behind it reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgeprune import Budget, Data, target, tasks
from edgeprune import recipe as recipes
from edgeprune.errors import EdgepruneError, RecipeError
from edgeprune.model import Preprocess
from edgeprune.pipeline import ends, images, objects, travelling
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.events import silent
from edgeprune.pipeline.rundir import RunDirectory
from edgeprune.release.device import show
from edgeprune.tasks import decoders

DECODE = decoders.FastestDet(score=0.2, most=20)


class Head(nn.Module):
    """[N, 3, 16, 16] -> [N, 7, 4, 4], a head of two classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Conv2d(3, 12, 4, 4), nn.Conv2d(12, 7, 1)
        nn.init.normal_(self.head.weight, std=2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.head(torch.relu(self.body(x)))
        return torch.cat([made[:, :1].sigmoid(), made[:, 1:5], made[:, 5:].softmax(1)], 1)


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (48, 3, 16, 16), generator=torch.Generator().manual_seed(2)) / 255


def data() -> Data:
    """Pictures whose boxes are what the network sees."""
    with torch.no_grad():
        heads = Head().eval()(pictures()).numpy()
    found = [DECODE((head,)) for head in heads]
    items = [(x, {"boxes": b, "labels": k}) for x, (b, _, k) in zip(pictures(), found, strict=True)]
    prepare = Preprocess((16, 16), 0, 1 / 255, (0.0,), (1.0,), (3, 16, 16))
    return Data(train=items[:24], test=items[24:40], selection=items[40:], classes=("a", "b"), prepare=prepare)


@contextlib.contextmanager
def opened(folder: Path, task: Any = None, name: str = "x86-onnxruntime", **export: str) -> Iterator[Context]:
    made, handed = objects.recipe_of(Head().eval(), data(), task or tasks.Detection(DECODE), Budget(speedup=1.5), None)
    made = recipes.of_python({**msgspec.to_builtins(made), "export": export}, "recipe")
    with (
        RunDirectory(folder / "run") as run,
        Context(made, target.load(name), run, "", silent, handed) as context,
    ):
        yield context


@pytest.mark.long
@pytest.mark.parametrize("name", ["x86-onnxruntime", "intel-cpu"])
def test_the_artifact_gives_the_boxes_that_are_judged_and_drawn(tmp_path: Path, name: str, capsys: Any) -> None:
    if name == "intel-cpu":
        pytest.importorskip("openvino", reason="the extra edgeprune[openvino] is not installed")
    with opened(tmp_path, name=name, output="nms", input="uint8 NHWC") as context:
        subject, device = context.subject, context.bench.device
        ends.check(subject, context.target)
        subject.export(subject.model, tmp_path / "dense.onnx")
        artifact = ends.build(tmp_path / "dense.onnx", tmp_path / "out", context.target, "d", "fp32", subject.ends)
        loaded = device.load(artifact)
        given, _ = images.some(subject.workload, range(16))
        (rows,) = images.infer(device, loaded, subject, given)
        assert rows.shape == (16, 20, 6)
        judge = images.judge(subject.workload, subject.ends)
        for inputs, targets in images.batches(subject.workload):
            judge.add(images.infer(device, loaded, subject, inputs), targets)
        assert judge.score().value == pytest.approx(100.0, abs=1e-6) and judge.score().broken == 0
        said = travelling.task(images.read_as(subject.task, subject.ends))
        assert said.settings["decode"] == {"name": "EndToEnd", "size": None, "score": 0.0}
        known = travelling.task(subject.task).settings["decode"]
        assert isinstance(known, dict) and known["name"] == "FastestDet"
        spec = travelling.preprocessing(subject, tmp_path)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.chdir(tmp_path)
        patched.setitem(__import__("sys").modules, "decoders", decoders)
        np.save("picture.npy", (pictures()[24] * 255).round().byte().permute(1, 2, 0).numpy())
        show.answer("picture.npy", [rows[0]], msgspec.to_builtins(said), spec, ["a", "b"])
    sure = sum(one[4] >= show.SURE for one in rows[0])
    assert capsys.readouterr().out.count(" at ") == sure > 0


@pytest.mark.long
def test_boxes_that_are_not_the_decoders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "same_boxes", lambda *_: False)
    with (
        opened(tmp_path, output="nms") as context,
        pytest.raises(RecipeError, match=r"on test example 0 the graph gives \d+ boxes that are not"),
    ):
        ends.check(context.subject, context.target)


def own(outputs: Any) -> Any:
    """A decode of the user's own."""
    return DECODE(outputs)


BAD: dict[str, tuple[dict[str, Any], type[EdgepruneError], str]] = {
    "a decode of one's own": ({"task": tasks.Detection(own), "output": "nms"}, RecipeError, "this task has another"),
    "a class of boxes": ({"output": "argmax"}, RecipeError, "is for classification and segmentation"),
    "a GPU": ({"name": "jetson-orin-nano", "output": "nms"}, RecipeError, "jetson-orin-nano runs TensorRT"),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    asked, error, says = BAD[kind]
    with opened(tmp_path, **asked) as context, pytest.raises(error, match=says) as caught:
        ends.check(context.subject, context.target)
    assert caught.value.remedy


def test_boxes_are_for_detection(tmp_path: Path) -> None:
    from small_run import run_of

    with run_of(tmp_path, export={"output": "nms"}) as context, pytest.raises(RecipeError, match="is for detection"):
        ends.check(context.subject, context.target)
