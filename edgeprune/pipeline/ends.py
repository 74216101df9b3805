"""[export] of a recipe: what the artifact takes and gives, and whether that fits the data, the task and the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeprune import runtimes
from edgeprune.errors import RecipeError
from edgeprune.model import Ends
from edgeprune.pipeline import images
from edgeprune.pipeline.subject import Subject
from edgeprune.runtimes import Artifact
from edgeprune.target import Target
from edgeprune.workload import Classification, Segmentation, Workload

LOOK = 64  # examples of each split whose pixels are taken back to bytes before anything is measured


def check(subject: Subject, target: Target) -> None:
    """Before any work: can the artifact be fed bytes, and give what is asked for?

    Raises:
        RecipeError: the target's runtime, the network's inputs or its task do not allow it.
        DataError: the data are not pictures of 8 bits, as [data] scale, mean and std say.
    """
    ends = subject.ends
    if not ends:
        return
    if not runtimes.load(target.runtime).ends:
        named = " and ".join(runtimes.title(name) for name in runtimes.names() if runtimes.load(name).ends)
        raise RecipeError(
            f"[export] is for {named}; {target.name} runs {runtimes.title(target.runtime)}.",
            "Leave [export] out: the device's program scales the pixels, as preprocessing.json says.",
        )
    if ends.layout:
        _check_input(subject, ends)
    if ends.output:
        _check_output(subject, ends)


def _check_input(subject: Subject, ends: Ends) -> None:
    parts = subject.workload.inputs.parts
    given = ", ".join(f"{part.name} {part.dtype} {list(part.shape)}" for part in parts)
    if len(parts) != 1 or parts[0].dtype != "float32" or len(parts[0].shape) != 3:
        raise RecipeError(
            f"[export] input: bytes are fed to a network of one picture [C, H, W] of float32; this one takes {given}.",
            "Leave it out.",
        )
    channels = parts[0].shape[0]
    if not {len(ends.mean), len(ends.std)} <= {1, channels}:
        raise RecipeError(f"[data] mean and std need 1 or {channels} values, as a picture has {channels} channels.")
    for name in ("train", "selection", "test"):
        count = len(subject.workload.data.split(name))
        places = np.random.default_rng(0).permutation(count)[:LOOK].tolist()
        ends.fed(images.some(subject.workload, places, name)[0])


def _check_output(subject: Subject, ends: Ends) -> None:
    task = subject.workload.task
    if not isinstance(task, Classification | Segmentation):
        raise RecipeError(
            f'[export] output = "{ends.output}" is for classification and segmentation; the task is {task.metric}.',
            "Leave it out.",
        )
    if ends.output == "argmax" and isinstance(task, Classification) and task.top > 1:
        raise RecipeError(f'[export] output = "argmax" gives one class; {task.metric} needs the scores.', "softmax?")
    if ends.output == "argmax" and isinstance(task, Segmentation) and not task.classes:
        raise RecipeError('[export] output = "argmax": [task] must say how many classes there are.', "classes = 21")
    scores = _scores(subject.workload, subject.model, ends.place)
    if scores.ndim < 2 or scores.shape[1] < 2 or scores.dtype.kind != "f":
        raise RecipeError(
            f"[export] output: the network gives {scores.dtype} {list(scores.shape)}; scores are [N, classes, ...]."
        )
    if ends.output == "softmax" and scores.min() >= 0 and np.abs(scores.sum(1) - 1).max() < 1e-3:
        raise RecipeError('[export] output = "softmax": the network gives probabilities already.', "Leave it out.")


def _scores(work: Workload, network: Any, place: int) -> Any:
    """Of a few test examples."""
    import torch

    given, _ = images.some(work, range(min(2, len(work.data.split("test")))))
    with torch.inference_mode():
        found = work.inputs.call(network, given)
    return found[min(place, len(found) - 1)].numpy()


def build(source: Path, folder: Path, target: Target, name: str, precision: str, ends: Ends) -> Artifact:
    """The runtime's own file of a graph, with its ends; raises as `runtimes.build`."""
    if not ends:
        return runtimes.build(source, folder, target, name, precision)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ends.onnx"
    onnx.save(ends.around(onnx.load(source)), path)
    try:
        return runtimes.build(path, folder, target, name, precision)
    finally:
        path.unlink(missing_ok=True)
