"""A recipe made from a network and data: what can be found out is tried on the data, said, and written with comments.

What nobody states is found by its score. Pixel ranges, crops, features of sound and decoders of boxes are tried on a
few test examples, each with the dense network, and the best is taken: a network sees pixels as it was trained on, or
it is visibly worse. The recipe is then held against the network and the data as `plan` does it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgeprune import model, tasks, validate
from edgeprune import recipe as recipes
from edgeprune.config import convert
from edgeprune.errors import DataError, EdgepruneError, ModelError, RecipeError, TaskError, UsageError, did_you_mean
from edgeprune.pipeline import candidates, feasible, images, layout, layout_arrays, layout_folders, reading, workloads
from edgeprune.pipeline.draft_text import Sections, written
from edgeprune.pipeline.objects import file_name
from edgeprune.pipeline.subject import Subject
from edgeprune.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

SELECTION, CALIBRATION = 512, 256  # what a recipe takes where nothing is said
TRIED, SECONDS = 64, 30.0  # examples of one candidate, and of all of a kind
LOOK = 256  # test examples for the dense network's score
PICTURES = ("images", "coco", "yolo", "voc", "masks")
GENERIC = {"build", "make", "model", "net", "network", "get_model", "create", "factory", "load", "create_model"}
Say = Callable[[str, str], None]


@dataclass(frozen=True)
class Wanted:
    """What the user said; what is empty is found out.

    Attributes:
        factory, arguments, weights, input: as [model] has them.
        data: a folder, a file, or "file.py:function".
        task, decode, features, classes: as [task] kind and decode, and as [data] options features and classes.
        tokenizer: of texts; empty: tokenizer.json beside the data or the network.
        speedup, latency_ms, max_drop: as [budget] has them.
        sections: more keys of the recipe, by section.
    """

    factory: str
    data: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    weights: str = ""
    input: tuple[int, ...] = ()
    task: str = ""
    decode: str = ""
    features: str = ""
    tokenizer: str = ""
    classes: tuple[str, ...] = ()
    speedup: float | None = None
    latency_ms: float | None = None
    max_drop: float | None = None
    name: str = ""
    sections: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


@dataclass(frozen=True)
class Drafted:
    """The recipe's text, what was found, and what `plan` will say of the data and the dense network."""

    text: str
    recipe: Recipe
    dense: validate.Sanity
    findings: tuple[validate.Finding, ...]


def draft(wanted: Wanted, folder: Path, say: Say, again: bool = False) -> Drafted:
    """The recipe, checked as `plan` checks it; raises EdgepruneError, and then leaves nothing behind.

    Args:
        folder: of the recipe; what data has to be laid out anew goes beside it.
        say: is told what was found: about what, and a sentence.
        again: arrays that were written for an earlier recipe of this name may be written anew.
    """
    if wanted.task and ":" not in wanted.task and wanted.task not in (*tasks.KINDS, "custom"):
        raise TaskError(f"--task {wanted.task}: not built in.", did_you_mean(wanted.task, [*tasks.KINDS, "custom"]))
    name = run_name(wanted)
    base: Sections = {"model": {"factory": wanted.factory}}
    base["model"] |= {key: value for key, value in (("arguments", dict(wanted.arguments)),) if value}
    base["model"] |= {"weights": wanted.weights} if wanted.weights else {}
    function = ":" in wanted.data and not Path(wanted.data).exists()
    beside = (Path(wanted.factory.rpartition(":")[0]).parent,) if ".py" in wanted.factory else ()
    found = (
        _of_function(base, wanted)
        if function
        else layout_folders.look(Path(wanted.data), wanted.classes, wanted.tokenizer, beside)
    )
    say("data", found.said)
    network = model.load_model(_recipe(base, wanted), lambda line: say("network", line), False)
    count = sum(parameter.numel() for parameter in network.parameters())
    say("network", f"{type(network).__name__} of {wanted.factory}, {count:,} parameters")
    with _laid_out(found, folder / f"{name}-data", network, say, again) as laid:
        sections = _data(base, laid)
        if wanted.classes and laid.kind != "arrays":
            sections["data"]["classes"] = list(wanted.classes)
        sections, sketch = _task(wanted, sections, network, laid, say)
        return _budget(wanted, sections, sketch, name, say)


@contextlib.contextmanager
def _laid_out(found: layout.Layout, place: Path, network: nn.Module, say: Say, again: bool) -> Iterator[layout.Layout]:
    """The layout as a source reads it; what was made for it goes again where what follows fails."""
    archive = place.with_name(f"{place.name}.npz")
    made = place if found.links else archive
    was = os.path.lexists(made)
    try:
        if found.links:
            found = dataclasses.replace(layout_folders.laid_out(found, place), task=found.task)
            say("data", f"laid out by links in {place.name}/")
        elif isinstance(found, layout_arrays.Unwritten):
            if was and not again:
                raise DataError(
                    f"{archive} is there already; the arrays would be written to it.",
                    "Remove it, or give --name or --force.",
                )
            found = layout_arrays.written(found, archive, lambda shape: _takes(network, shape))
            say("data", found.said)
        yield found
    except BaseException:
        if not was and made.is_dir():
            _unlinked(made)
        elif not was:
            made.unlink(missing_ok=True)
        raise


def _unlinked(folder: Path) -> None:
    """Remove a folder of links; what they lead to stays."""
    if all(path.is_symlink() or path.is_dir() for path in folder.rglob("*")):
        shutil.rmtree(folder)


def _of_function(base: Sections, wanted: Wanted) -> layout.Layout:
    """What "file.py:function" gives: arrays of images and labels, or datasets. Raises DataError."""
    given = model.call_source(_recipe(base, wanted))
    if isinstance(given, Mapping) and "train_images" in given:
        counts = {split: len(given[f"{split}_labels"]) for split in ("train", "test")}
        size = tuple(int(side) for side in np.shape(given["test_images"])[1:3])
        said = f"arrays of images by {wanted.data}: {layout.told(counts)}"
        return layout.Layout("images", said, wanted.data, task="classification", counts=counts, size=size)
    splits = {name: _split(given, name) for name in ("train", "selection", "test")}
    counts = {name: len(one) for name, one in splits.items() if hasattr(one, "__len__")}
    return layout.Layout("function", f"datasets by {wanted.data}: {layout.told(counts)}", wanted.data, counts=counts)


def _split(given: Any, name: str) -> Any:
    return given.get(name) if isinstance(given, Mapping) else getattr(given, name, None)


def _data(base: Sections, found: layout.Layout) -> Sections:
    """[data], and what the sizes of the splits leave for calibration and selection."""
    data: dict[str, object] = {"source": found.source} if found.source else {}
    data |= {"kind": found.kind} if found.kind != "images" else {}
    data |= {"splits": dict(found.splits)} if found.splits else {}
    data |= {"classes": list(found.classes)} if found.kind in ("yolo", "voc", "masks") else {}
    data |= {"options": dict(found.options)} if found.options else {}
    count = found.counts.get("train", 0)
    if count and "selection" not in found.counts and count < 5 * SELECTION:
        data["selection"] = max(1, count // 5)
    if count and count < 2 * CALIBRATION:
        data["calibration"] = max(1, count // 2)
    return {**base, "data": data}


def _task(
    wanted: Wanted, sections: Sections, network: nn.Module, found: layout.Layout, say: Say
) -> tuple[Sections, Subject]:
    """[model] input, [task], and the preprocessing under which the dense network is at its best."""
    kind = str(sections["data"].get("kind", "images"))
    task = wanted.task or found.task
    shape = wanted.input
    if kind in PICTURES:
        shapes = candidates.shapes(network, found.some, found.size, wanted.input)
        taken = next((one for one in shapes if _takes(network, one)), None)
        if taken is None:
            tried = ", ".join(str(list(one)) for one in shapes[:4])
            raise ModelError(
                f"{wanted.factory}: takes none of {tried}.", "Give one example's shape: --input 3,224,224."
            )
        shape = taken
        say("network", f"input {list(shape)}" + ("" if wanted.input else ", which it takes (--input says otherwise)"))
    if len(shape) == 3 and found.size not in ((), shape[1:]):
        sections["data"]["resize"] = list(shape[1:])
    if wanted.tokenizer and kind != "text":
        raise UsageError("--tokenizer is of tables of text, which this data is not.", "Take it out.")
    if shape and kind == "text":
        if len(shape) > 1:
            raise UsageError("--input of texts is a number of tokens.", "Such as --input 64.")
        sections["data"]["options"] = {**found.options, "length": shape[0]}
    elif shape:
        sections["model"]["input"] = list(shape)
    if not task:
        task = "classification" if kind == "images" else _by_targets(wanted, sections, network)
        say("task", f"{task}, by the targets and the network's outputs (--task says otherwise)")
    elif not wanted.task:
        say("task", f"{task}, by how the data lies (--task says otherwise)")
    if task != "classification" or wanted.decode:
        sections["task"] = {"kind": task, **({"decode": wanted.decode} if wanted.decode else {})}
    if task == "segmentation" and found.classes:
        sections["task"]["arguments"] = {"classes": len(found.classes), "resize": True}
    if wanted.features:
        sections["data"]["options"] = {**found.options, "features": wanted.features}
    fitting = found.size or (found.some and candidates.all_of(found.some, shape[1:]))
    files = kind in PICTURES and not (kind == "images" and fitting)
    sections = candidates.patched(sections, wanted.sections)
    return _best(
        sections, wanted, network, candidates.trials(network, sections, kind, task, files, bool(wanted.input)), say
    )


def _by_targets(wanted: Wanted, sections: Sections, network: nn.Module) -> str:
    """The task that outputs and targets of a few examples look like; raises UsageError."""
    recipe = _recipe(sections, wanted)
    given = model.call_source(recipe) if recipe.data.kind == "function" else None
    data = reading.of_recipe(recipe, given, lambda line: None)
    inputs = data.inputs(workloads.argument_names(network))
    batch, targets = next(data.batches("test", inputs, 256, 256))
    with torch.inference_mode():
        outputs = workloads.as_outputs(inputs.call(network, [one[:2] for one in batch]))
    task = ""
    with contextlib.suppress(ValueError, TypeError):  # targets of several shapes, or of no numbers
        task = layout_arrays.guess(np.stack([np.asarray(one) for one in targets]), np.shape(outputs[0])[1:])
    if not task or len(outputs) > 1:
        shapes = ", ".join(str(list(np.shape(one))) for one in outputs)
        raise UsageError(
            f"what the network is for does not show: its outputs are {shapes}, a target is {np.shape(targets[0])}.",
            f"Say it: --task {'|'.join(tasks.KINDS)}, or file.py:MyTask.",
        )
    return task


def _best(
    sections: Sections, wanted: Wanted, network: nn.Module, trials: list[candidates.Trials], say: Say
) -> tuple[Sections, Subject]:
    """The best of each kind of candidate in turn."""
    sketch: Subject | None = None
    for kind in trials:
        rated: list[tuple[float, float, int, str, Sections, Subject]] = []
        failed: EdgepruneError = UsageError(f"{kind.what}: nothing that is built in fits the network.", kind.remedy)
        began = time.monotonic()
        for place, (label, patch) in enumerate(kind.candidates):
            if rated and (kind.first or time.monotonic() - began > SECONDS):
                break
            tried = candidates.patched(candidates.patched(sections, patch), wanted.sections)
            one = _sketch(tried, wanted, network, sketch)
            try:
                score, anyhow = _rated(one, TRIED, not wanted.classes)
            except EdgepruneError as cause:
                failed = cause if not place else failed
                continue
            sketch = one
            value = score.value if score.higher_is_better else -score.value
            text = f"{label}: {score.metric} {score.value:.4g} {score.unit}".rstrip()
            value = value if np.isfinite(value) else -np.inf
            if anyhow is not None and anyhow >= score.value + 100 * feasible.ELSEWHERE:
                text += f" ({anyhow:.4g} if the classes are in another order)"
            rated.append((value if anyhow is None else anyhow, value, -place, text, tried, one))
        if not rated:
            names = candidates.decoders_of(kind)
            raise (
                failed
                if not names
                else TaskError(
                    f"no built-in decoder fits the network's outputs (tried: {', '.join(names)}). {failed.message}",
                    "Say how outputs become boxes: --decode file.py:function (your-detector.md).",
                )
            )
        rated.sort(key=lambda entry: entry[:3], reverse=True)
        sections, sketch = rated[0][4], rated[0][5]
        if len(kind.candidates) > 1:
            others = f"; {rated[1][3]}" if len(rated) > 1 else ""
            say(kind.what, f"{rated[0][3]}{others}")
    assert sketch is not None
    return sections, sketch


def _rated(sketch: Subject, count: int, open_order: bool) -> tuple[tasks.Score, float | None]:
    """The dense network's score on some test examples, and its points in the best order of the classes.

    The second ranks where folders name the classes and nobody stated the outputs' order: in another order a network
    that is right may score less than one that says the same of all. None: there is no such order.
    """
    work = sketch.workload
    judge, given = images.judge(work), list[Any]()
    order = _drawn(work.data.split("test"), count, open_order)
    with torch.inference_mode():
        for start in range(0, len(order), 16):
            inputs, targets = images.some(work, order[start : start + 16])
            judge.add(work.inputs.call(sketch.model, inputs), targets)
            given += targets
    names, score = work.data.names, judge.score()
    if not open_order or len(names) < 2 or score.metric != "top-1" or judge.answers is None:
        return score, None
    found, _ = feasible.in_best_order(np.asarray(given, np.int64), judge.answers, len(names))
    return score, 100 * found


def _drawn(test: Any, count: int, open_order: bool) -> list[int]:
    """Places of test examples; of so few classes, where their order is open, that it shows."""
    random = np.random.default_rng(0)
    order = random.permutation(len(test))
    labels = np.asarray(getattr(getattr(test, "split", None), "labels", ()))
    if open_order and len(labels):
        some = random.permutation(np.unique(labels))[: count // feasible.ENOUGH]
        order = order[np.isin(labels[order], some)]
    return [int(place) for place in order[:count]]


def _budget(wanted: Wanted, sections: Sections, sketch: Subject, name: str, say: Say) -> Drafted:
    """[budget]: what was asked for, and a max_drop that the test split can tell; then the recipe, whole."""
    looked = feasible.look_at_dense(sketch, LOOK)
    dense = looked.sanity
    for finding in looked.order(sketch.workload.data.names):
        if wanted.classes and finding.severity != "error":
            continue
        order = finding.message.rpartition(" as ")[2].rstrip(".").replace(", ", ",")
        raise DataError(finding.message, f"If that is so: --classes {order}; else name them in the order that holds.")
    count = len(sketch.workload.data.split("test"))
    speed: dict[str, object] = (
        {"latency_ms": wanted.latency_ms} if wanted.latency_ms else {"speedup": wanted.speedup or 1.5}
    )
    drops = [wanted.max_drop] if wanted.max_drop is not None else _ladder(dense)

    def told_by(drop: float) -> bool:
        """Can the test examples tell it?"""
        asked = _recipe(_with_budget(sections, wanted, speed, drop), wanted).budget
        return all(finding.name != "accuracy" for finding in validate.ask(dense, count, asked))

    place = next((place for place, drop in enumerate(drops) if told_by(drop)), len(drops) - 1)
    tells, drop = drops[place], drops[min(place + 1, len(drops) - 1)]
    made = _with_budget(sections, wanted, speed, drop)
    recipe = _recipe(made, wanted, name)
    findings = validate.ask(dense, count, recipe.budget)
    say("dense", feasible.in_words(dense, count))
    if wanted.max_drop is None:
        told = f"{count:,} test examples can tell {tells:g}, and pruning costs something"
        say("budget", f"max_drop = {drop:g}: {told} (--max-drop says otherwise)")
    feasible.refuse(finding.to_dict() for finding in findings)
    head = f"{name}: written by edgeprune init. Every key: docs/recipe.md.\n{feasible.in_words(dense, count)}"
    return Drafted(written(recipe.name, made, head), recipe, dense, findings)


def _with_budget(sections: Sections, wanted: Wanted, speed: dict[str, object], drop: float) -> Sections:
    return candidates.patched({**sections, "budget": {**speed, "max_drop": drop}}, wanted.sections)


def _ladder(dense: validate.Sanity) -> list[float]:
    """Drops to ask for, the smallest first: 0.5, 1, 2, 5, ... points; in other units from a hundredth of the value."""
    start = 0 if dense.unit == "points" else math.floor(math.log10(max(abs(dense.value or 0) / 100, 1e-9)))
    first = [0.5] if dense.unit == "points" else []
    return first + [float(f"{step}e{start + power}") for power in range(4) for step in (1, 2, 3, 5)]


def _takes(network: nn.Module, shape: tuple[int, ...]) -> bool:
    """Does the network run on an example of this shape?"""
    try:
        with torch.inference_mode():
            network(torch.zeros(1, *shape))
    except Exception:  # whatever a user's forward raises
        return False
    return True


def run_name(wanted: Wanted) -> str:
    """The name that was given, or the factory's; its file's, where every factory is called so."""
    place, _, function = wanted.factory.rpartition(":")
    own = Path(place).stem if function in GENERIC and place else function
    return file_name(wanted.name or own or "network")


def _recipe(sections: Sections, wanted: Wanted, name: str = "draft") -> Recipe:
    """The recipe of what is known so far; raises RecipeError."""
    known: Sections = {"data": {"source": wanted.data, "kind": "function"}, "budget": {"speedup": 1.5}, **sections}
    made = convert({**known, "name": name}, Recipe, RecipeError, "the recipe")
    recipes.check(made)
    return made


def _sketch(sections: Sections, wanted: Wanted, network: nn.Module, earlier: Subject | None) -> Subject:
    """The recipe with its network; files that an earlier sketch has looked at are not looked at again."""
    made = Subject(_recipe(sections, wanted), 1, lambda about, line: None, model=network)
    if earlier is None or "data" not in earlier.__dict__:
        return made
    data, ready = earlier.data, reading.preprocess(made.recipe)
    ready = dataclasses.replace(ready, crop=made.recipe.data.crop)  # type: ignore[arg-type]
    splits = {
        name: dataclasses.replace(getattr(data, name), preprocess=ready)
        for name in ("train", "calibration", "selection", "test")
    }
    made.__dict__["data"] = dataclasses.replace(data, **splits)
    return made
