"""A run of Python objects in place of names in a file: the recipe that says the rest."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgeprune import recipe as recipes
from edgeprune.errors import UsageError
from edgeprune.pipeline import tasking
from edgeprune.pipeline.workloads import Objects
from edgeprune.recipe import Recipe
from edgeprune.workload import Budget, Data, Task

if TYPE_CHECKING:
    from torch import nn

HANDED = "<objects>"  # what stands where a recipe names a factory and a source


def recipe_of(
    model: nn.Module | Callable[[], nn.Module],
    data: Data | None,
    task: str | Task,
    budget: Budget | None,
    recover: Any = None,
    search: Mapping[str, object] | None = None,
    quantize: Mapping[str, object] | None = None,
    name: str = "",
) -> tuple[Recipe, Objects]:
    """The recipe, and the objects beside it.

    Args:
        recover: an `edgeprune.Recover`, or a trainer: a callable that takes a `Job`.
        search, quantize: keys of those sections of a recipe.
        name: of the run; empty: of the network's class.

    Raises:
        UsageError: something is missing or of another kind than it must be.
        RecipeError: a value that no recipe may have.
        TaskError: no such task.
    """
    if not callable(model):
        raise UsageError(
            f"compress: the model is {type(model).__name__}.", "Give a torch.nn.Module, or a function that makes one."
        )
    if not isinstance(data, Data):
        raise UsageError(f"compress: data is {type(data).__name__}.", "data=edgeprune.Data(train=..., test=...).")
    if not isinstance(budget, Budget):
        raise UsageError(f"compress: budget is {type(budget).__name__}.", "budget=edgeprune.Budget(speedup=2.0).")
    factory: Any = functools.partial(copy.deepcopy, model) if hasattr(model, "state_dict") else model
    trainer = None if recover is None or isinstance(recover, recipes.RecoverSection | Mapping) else recover
    if trainer is not None and not callable(trainer):
        raise UsageError(
            f"compress: recover is {type(recover).__name__}.", "edgeprune.Recover(...), or a callable trainer."
        )
    given = tasking.of_name(task)
    sections = {
        "model": {"factory": HANDED},
        "data": {"source": HANDED, "kind": "function"},
        "task": {"kind": task if isinstance(task, str) else HANDED},
        "budget": {key: value for key, value in asdict(budget).items() if value is not None},
        "search": dict(search or {}),
        "recover": {} if trainer is not None or recover is None else recover,
        "quantize": dict(quantize or {}),
        "name": file_name(name or _called(model)),
    }
    return recipes.of_python(sections, "compress"), Objects(factory, data, given, trainer)


def _called(model: Any) -> str:
    kind = type(model) if hasattr(model, "state_dict") else model
    return str(getattr(kind, "__name__", type(model).__name__))


def file_name(name: str) -> str:
    """The name as one that a folder may have."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "network"
