"""The task that a recipe's [task] means: built in, a metric by its name, or a class of the user's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeprune import tasks
from edgeprune.errors import EdgepruneError, TaskError, did_you_mean
from edgeprune.model import load_callable
from edgeprune.recipe import Recipe
from edgeprune.workload import Task

OWN_ONLY = {"name": "", "unit": "", "higher_is_better": True}  # keys of [task] that only a metric of one's own has


def of_recipe(recipe: Recipe) -> Task:
    """The task; raises TaskError, MissingDependency."""
    section = recipe.task
    arguments = dict(section.arguments)
    named = ":" in section.metric
    kind = section.kind or ("custom" if named else "classification")
    if ":" in kind:
        return _own(recipe, kind, arguments)
    if kind != "custom" and kind not in tasks.KINDS:
        raise TaskError(f"[task] kind: '{kind[:100]}' is not built in.", did_you_mean(kind, [*tasks.KINDS, "custom"]))
    base = (
        None
        if kind == "custom"
        else _built_in(recipe, kind, {} if named else arguments, "" if named else section.metric)
    )
    if named or base is None:
        return _metric(recipe, base, arguments)
    stray = [key for key in ("distance", "loss") if getattr(section, key)]
    stray += [key for key, default in OWN_ONLY.items() if getattr(section, key) != default and key != "unit"]
    if section.unit and kind != "regression":
        stray.append("unit")
    if stray:
        raise TaskError(
            f"[task] {stray[0]} is for a metric of your own; {kind} has its own.",
            'Remove it, or give metric = "mymetric.py:function".',
        )
    return base


def of_name(task: str | Task) -> Task:
    """A task as `compress` takes it: an object, or the name of a built-in one; raises TaskError."""
    if isinstance(task, str):
        return tasks.create(task)
    return checked(task, "the task")


def checked(task: Any, what: str) -> Task:
    """`task`, which must have what every stage asks for; raises TaskError."""
    lacking = [
        name
        for name in ("metric", "unit", "higher_is_better", "check", "distance", "loss", "measure", "score", "collate")
        if not hasattr(task, name)
    ]
    if isinstance(task, type) or lacking:
        raise TaskError(
            f"{what} is {task!r}"[:200] + (", a class." if isinstance(task, type) else f": it lacks {lacking[0]}."),
            "Give an object of edgeprune.tasks, or of a class that derives from edgeprune.tasks.BaseTask.",
        )
    found: Task = task
    return found


def _base(recipe: Recipe) -> Path | None:
    return Path(recipe.path).parent if recipe.path else None


def _callable(recipe: Recipe, key: str, name: str) -> Callable[..., Any] | None:
    return load_callable(name, f"[task] {key}", _base(recipe), TaskError) if name else None


def _own(recipe: Recipe, kind: str, arguments: dict[str, Any]) -> Task:
    """A class, or a function that makes a task."""
    make = _callable(recipe, "kind", kind)
    assert make is not None
    try:
        return checked(make(**arguments), f"[task] kind: {kind}()")
    except EdgepruneError:
        raise
    except Exception as cause:
        raise TaskError(f"[task] kind: {kind}() failed: {type(cause).__name__}: {cause}.") from cause


def _built_in(recipe: Recipe, kind: str, arguments: dict[str, Any], metric: str) -> Task:
    section = recipe.task
    if metric:
        if kind == "classification":
            raise TaskError(
                f"[task] metric: classification is measured by top-1, not by '{metric}'.",
                "arguments = { top = 5 } gives top-5.",
            )
        arguments["metric"] = metric
    if section.unit and kind == "regression":
        arguments["unit"] = section.unit
    if kind == "detection":
        arguments["decode"] = _decode(recipe, section.decode, arguments.pop("decode", {}))
    elif section.decode:
        raise TaskError(f"[task] decode is for detection, not for {kind}.", "Remove it.")
    if "thresholds" in arguments:
        arguments["thresholds"] = tuple(arguments["thresholds"])
    return tasks.create(kind, **arguments)


def _decode(recipe: Recipe, name: str, arguments: Any) -> Callable[..., Any]:
    """A built-in decoder with its arguments, or the user's function."""
    if not name:
        raise TaskError(
            "[task] detection needs decode: what turns one picture's outputs into boxes, scores and labels.",
            'decode = "mynet.py:boxes", or a built-in decoder such as "FastestDet".',
        )
    if ":" in name:
        function = _callable(recipe, "decode", name)
        assert function is not None
        return functools.partial(function, **arguments) if arguments else function
    own = {key: value for key, value in vars(tasks.decoders).items() if isinstance(value, type) and key[0] != "_"}
    known = {key: value for key, value in own.items() if value.__module__ == tasks.decoders.__name__}
    made = known.get(name)
    if made is None:
        remedy = f'{did_you_mean(name, known)} A function of your own: decode = "file.py:{name[:100]}".'
        raise TaskError(f"[task] decode: '{name[:100]}' is no built-in decoder.", remedy)
    try:
        decoder: Callable[..., Any] = made(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
    except TypeError as cause:
        raise TaskError(f"[task] decode: {name}: {cause}.", "Its settings are arguments.decode = { ... }.") from None
    return decoder


def _metric(recipe: Recipe, base: Task | None, arguments: dict[str, object]) -> Task:
    """A metric by name, of torchmetrics or of the user; what it lacks is taken from `base`."""
    section = recipe.task
    if not section.metric:
        raise TaskError('[task] kind = "custom" needs metric.', '"mymetric.py:function", or "torchmetrics.x:Y".')
    distance, loss = (_callable(recipe, key, getattr(section, key)) for key in ("distance", "loss"))
    if base is not None:
        distance, loss = distance or base.distance, loss or base.loss
    said = {"unit": section.unit, "higher_is_better": section.higher_is_better, "distance": distance, "loss": loss}
    if section.metric.startswith("torchmetrics"):
        return tasks.Custom(section.metric, section.name, arguments=arguments, **said)  # type: ignore[arg-type]
    function = _callable(recipe, "metric", section.metric)
    assert function is not None
    name = section.name or section.metric.rpartition(":")[2]
    return tasks.Custom(functools.partial(function, **arguments) if arguments else function, name, **said)  # type: ignore[arg-type]
