"""What a bundle carries beside the artifact: samples with their outputs, and how an input is made."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.devices import Device, Loaded, emulated_core
from edgeprune.model import Preprocess
from edgeprune.pipeline import images, reading
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.rundir import write_json
from edgeprune.pipeline.subject import Subject
from edgeprune.result import InputInfo, TaskInfo
from edgeprune.workload import KINDS, Features, Task, decoders, sources

SAMPLES = 8  # examples that travel
TESTED, TESTED_EMULATED = 256, 24  # whose statistics travel
TOKENIZER = "input/tokenizer.json"


def write(subject: Subject, bench: Bench, folder: Path, device: Device, released: Loaded) -> None:
    """samples.npz, preprocessing.json, labels.json."""
    given, _ = images.samples(subject.workload, SAMPLES)
    outputs = images.infer(device, released, subject, given)
    arrays: dict[str, Any] = {**_numbered("input", subject.ends.fed(given)), **_numbered("output", outputs)}
    np.savez(folder / "samples.npz", **arrays)
    write_json(folder / "preprocessing.json", preprocessing(subject, folder))
    write_json(folder / "selftest.json", self_test(subject, bench, device, released))
    if subject.workload.data.names:
        write_json(folder / "labels.json", list(subject.workload.data.names))


def self_test(subject: Subject, bench: Bench, device: Device, released: Loaded) -> dict[str, object]:
    """Statistics of test examples spread over the split and of what the released artifact makes of them."""
    from edgeprune import release

    work = subject.workload
    test = work.data.split("test")
    most = TESTED_EMULATED if emulated_core(bench.target, bench.name) else TESTED
    places = [int(one) for one in np.unique(np.linspace(0, len(test) - 1, min(most, len(test))))]
    given, _ = images.some(work, places)
    outputs = images.infer(device, released, subject, given)
    named = dict(zip(work.inputs.names, subject.ends.fed(given), strict=True))
    found: dict[str, object] = release.statistics(named, list(outputs), task(work.task).kind == "classification")
    return found


def preprocessing(subject: Subject, folder: Path) -> dict[str, object]:
    """From what a user has to the network's input; what only the user's own code knows is `arrays`."""
    recipe, ends = subject.recipe, subject.ends
    fed = {"layout": ends.layout, "dtype": "uint8"} if ends.layout else {}
    if subject.pictured:
        return {"kind": "image", **subject.data.preprocess.to_dict(), **fed}
    if subject.workload.data.prepare is not None:
        return _prepared(subject, folder, fed)
    known = sources.KINDS.get(recipe.data.kind) if subject.objects is None else None
    if known is None:
        return {"kind": "arrays"}
    given: Any = {**recipe.data.options, **recipe.data.splits.get("test", {})}
    if known.own == "prepare" and not isinstance(given.get("prepare"), str):
        return {"kind": "image", **reading.preprocess(recipe).to_dict(), **fed}
    if known.own == "features" and not isinstance(given.get("features"), str):
        settings = dataclasses.asdict(Features(**(given.get("features") or {})))
        return {"kind": "features", "samples": given.get("samples"), **settings}
    if known.tokenizer and recipe.resolve(str(given[known.tokenizer])).is_file():
        return _tokenizer(recipe.resolve(str(given[known.tokenizer])), folder)
    return {"kind": "arrays"}


def _prepared(subject: Subject, folder: Path, fed: dict[str, str]) -> dict[str, object]:
    """As the user's Data states it."""
    made, (part, *_) = subject.workload.data.prepare, subject.workload.inputs.parts
    if isinstance(made, Preprocess):
        return {"kind": "image", **made.to_dict(), **fed}
    if isinstance(made, Features):
        return {"kind": "features", "samples": made.samples(part.shape), **dataclasses.asdict(made)}
    return _tokenizer(Path(str(made)), folder)


def _tokenizer(file: Path, folder: Path) -> dict[str, object]:
    (folder / "input").mkdir()
    shutil.copyfile(file, folder / TOKENIZER)
    return {"kind": "text", "tokenizer": TOKENIZER}


def _numbered(name: str, arrays: tuple[Any, ...]) -> dict[str, NDArray[Any]]:
    """input, input_1, ...: in the order of the manifest."""
    return {name if number == 0 else f"{name}_{number}": array for number, array in enumerate(arrays)}


def task(given: Task) -> TaskInfo:
    """As result.json and the manifest say it; the decoder by its name and settings where it is one of ours."""
    kind = next((name for name, made in KINDS.items() if type(given) is made), "custom")
    settings: dict[str, object] = {
        key: value
        for key in ("output", "top", "ignore", "k", "alphabet", "blank")
        if isinstance(value := getattr(given, key, None), int | str) and not isinstance(value, bool)
    }
    decode = getattr(given, "decode", None)
    if dataclasses.is_dataclass(decode) and type(decode).__module__ == decoders.__name__:
        settings["decode"] = {"name": type(decode).__name__, **_plain(dataclasses.asdict(decode))}  # type: ignore[arg-type]
    return TaskInfo(
        kind=kind,
        metric=given.metric,
        unit=given.unit,
        higher_is_better=given.higher_is_better,
        settings=settings,
        distance=getattr(given, "apart", "the task's own function"),
    )


def _plain(values: dict[str, object]) -> dict[str, object]:
    return {
        key: np.asarray(value).tolist() if isinstance(value, np.ndarray) else value for key, value in values.items()
    }


def inputs(subject: Subject) -> tuple[InputInfo, ...]:
    """The tensors of an example as the artifact takes them, in the network's order."""
    ends = subject.ends
    return tuple(
        InputInfo(name=part.name, shape=ends.shape(part.shape), dtype="uint8" if ends.layout else part.dtype)
        for part in subject.workload.inputs.parts
    )
