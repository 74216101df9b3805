"""[export] of a recipe: what the artifact takes and gives, and whether that fits the data, the task and the runtime."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeprune import quantize, runtimes
from edgeprune.errors import RecipeError
from edgeprune.model import Ends, suppression
from edgeprune.pipeline import images
from edgeprune.pipeline.subject import Subject
from edgeprune.runtimes import Artifact
from edgeprune.target import Target
from edgeprune.workload import Classification, Detection, Segmentation, Workload, decoders

BOX = 1e-3  # of the picture, and of a score: how far a box of the graph may be from the decoder's
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
    if ends.output == "nms":
        _check_boxes(subject, ends)
        return
    if not isinstance(task, Classification | Segmentation):
        raise RecipeError(
            f'[export] output = "{ends.output}" is for classification and segmentation; the task is {task.metric}.',
            'output = "nms" is for detection.' if isinstance(task, Detection) else "Leave it out.",
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


def _check_boxes(subject: Subject, ends: Ends) -> None:
    """The graph's boxes on a few test examples must be those of the decoder on the host."""
    import torch

    work, task = subject.workload, subject.workload.task
    if not isinstance(task, Detection):
        raise RecipeError(f'[export] output = "nms" is for detection; the task is {task.metric}.', "Leave it out.")
    suppression.check(ends.decode)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        graph = subject.export(subject.model, Path(folder) / "dense.onnx")
    session = quantize.inference_session(dataclasses.replace(ends, layout="").around(graph))
    size = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    given, _ = images.some(work, range(size))
    with torch.inference_mode():
        plain = [output.numpy() for output in work.inputs.call(subject.model, given)]
    (rows,) = session.run(None, dict(zip(work.inputs.names, given, strict=True)))
    reader = dataclasses.replace(task, decode=decoders.EndToEnd())
    for place in range(size):
        host = task.found(tuple(output[place] for output in plain), place)
        own = reader.found((rows[place],), place)
        if not same_boxes(host, own):
            raise RecipeError(
                f'[export] output = "nms": on test example {place} the graph gives {len(own[0])} boxes that are not '
                f"the {len(host[0])} of the decoder.",
                "Leave it out; the decoder then runs on the host.",
            )


def same_boxes(one: Any, other: Any) -> bool:
    """Are boxes, scores and labels the same, but for a few that are at the edge of a limit? In any order."""
    (boxes, scores, labels), (others, theirs, kinds) = one, other
    apart = np.abs(boxes[:, None] - others[None]).max(-1) > BOX * np.maximum(1, np.abs(boxes).max(-1))[:, None]
    near = ~apart & (np.abs(scores[:, None] - theirs[None]) < BOX) & (labels[:, None] == kinds[None])
    lost = int((~near.any(1)).sum() + (~near.any(0)).sum())
    return bool(lost <= max(2, 0.02 * sum(near.shape)))


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
