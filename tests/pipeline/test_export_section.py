"""[export]: what is fed on the device, what travels, and what is refused before anything is measured."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from small_run import run_of
from test_plan_refuses import labels, project

from edgeprune import recipe, target
from edgeprune.errors import DataError, EdgepruneError, RecipeError
from edgeprune.pipeline import ends, images, travelling
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.events import silent
from edgeprune.pipeline.facts import StageKeys
from edgeprune.pipeline.rundir import RunDirectory
from edgeprune.release.device import show


@contextlib.contextmanager
def opened(folder: Path, name: str = "x86-onnxruntime", task: Any = None, **export: str) -> Iterator[Context]:
    """The network that knows colours, with these ends."""
    asked = project(folder, "good", labels(80))
    data = msgspec.structs.replace(asked.data, mean=(0.5, 0.25, 0.125), std=(0.5,))
    section = recipe.TaskSection(kind="classification", arguments=task or {})
    asked = msgspec.structs.replace(asked, export=recipe.ExportSection(**export), data=data, task=section)
    with RunDirectory(folder / "run") as directory, Context(asked, target.load(name), directory, "", silent) as context:
        yield context


@pytest.mark.long
def test_the_device_is_fed_the_bytes_and_gives_what_the_network_does(tmp_path: Path) -> None:
    with opened(tmp_path, input="uint8 NHWC", output="argmax") as context:
        ends.check(context.subject, context.target)
        context.subject.export(context.subject.model, tmp_path / "dense.onnx")
        artifact = ends.build(
            tmp_path / "dense.onnx", tmp_path / "out", context.target, "dense", "fp32", context.subject.ends
        )
        given, _ = images.some(context.subject.workload, range(12))
        loaded = context.bench.device.load(artifact)
        (found,) = images.infer(context.bench.device, loaded, context.subject, given)
        with torch.no_grad():
            assert np.array_equal(found, context.subject.model(torch.from_numpy(given[0])).argmax(1).numpy())
        shape = onnx.load(next(iter(artifact.files.values()))).graph.input[0].type.tensor_type
        assert shape.elem_type == onnx.TensorProto.UINT8 and [d.dim_value for d in shape.shape.dim] == [1, 8, 8, 3]
        folder = tmp_path / "validate"
        folder.mkdir()
        travelling.write(context.subject, context.bench, folder, context.bench.device, loaded)
        (part,) = travelling.inputs(context.subject)
        assert (part.shape, part.dtype) == ((8, 8, 3), "uint8")
        samples = np.load(folder / "samples.npz")
        assert samples["input"].dtype == np.uint8 and samples["input"].shape[1:] == part.shape
        pixels = context.subject.data.test.pixels(0)
        np.save(tmp_path / "picture.npy", pixels)  # what run.py feeds of a picture is the picture
        spec = json.loads((folder / "preprocessing.json").read_text())
        fed = show.load_image(str(tmp_path / "picture.npy"), spec)
        assert fed.dtype == np.uint8 and np.array_equal(fed, pixels)


@pytest.mark.long
def test_a_run_without_it_feeds_what_the_network_takes(tmp_path: Path) -> None:
    with opened(tmp_path) as context:
        ends.check(context.subject, context.target)
        given, _ = images.some(context.subject.workload, range(3))
        assert not context.subject.ends and context.subject.ends.fed(given) is given
        assert travelling.inputs(context.subject)[0].dtype == "float32"
        assert "dtype" not in travelling.preprocessing(context.subject, tmp_path)


@pytest.mark.long
def test_what_is_measured_and_exported_depends_on_it_and_what_is_trained_does_not_by_itself(tmp_path: Path) -> None:
    found = []
    for number, export in enumerate([{}, {"output": "softmax"}]):
        (tmp_path / str(number)).mkdir()
        with opened(tmp_path / str(number), **export) as context:
            keys = StageKeys(context)
            found.append({name: keys[name] for name in ("graph", "plan", "latency", "artifacts")})
    one, other = found
    assert one["graph"] == other["graph"]
    assert all(one[name] != other[name] for name in ("plan", "latency", "artifacts"))


BAD: dict[str, tuple[dict[str, Any], type[EdgepruneError], str]] = {
    "a GPU": ({"name": "jetson-orin-nano", "input": "uint8 NHWC"}, RecipeError, "jetson-orin-nano runs TensorRT"),
    "top-2": ({"output": "argmax", "task": {"top": 2}}, RecipeError, "needs the scores"),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    asked, error, says = BAD[kind]
    with opened(tmp_path, **asked) as context, pytest.raises(error, match=says) as caught:
        ends.check(context.subject, context.target)
    assert caught.value.remedy


def test_data_that_are_no_pictures_of_bytes_are_refused(tmp_path: Path) -> None:
    with (
        run_of(tmp_path, export={"input": "uint8 NHWC"}) as context,
        pytest.raises(DataError, match=r"\[export\] input: the data has a pixel of"),
    ):
        ends.check(context.subject, context.target)


def test_a_word_that_is_none_is_refused_with_the_recipe(tmp_path: Path) -> None:
    asked = project(tmp_path, "good", labels(80))
    path = Path(asked.path)
    path.write_text(path.read_text() + '[export]\ninput = "uint8"\n')
    with pytest.raises(RecipeError, match=r"export\S* input|export\.input"):
        recipe.load(path)
