"""What `tune` tries: [tune] space of a recipe, or ranges around its own settings of [recover]."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from edgeprune.config import convert
from edgeprune.errors import RecipeError, did_you_mean
from edgeprune.files import parse_json
from edgeprune.recipe import Recipe, RecoverSection

if TYPE_CHECKING:
    import optuna

FIXED = (  # of [recover]: what a trial costs, where it runs, what comes before it, and what is no setting
    "epochs", "hours", "device", "precision", "micro_batch", "sparsity", "sparsity_epochs", "sparsity_strength",
    "trainer", "trainer_hours", "seed",
)  # fmt: skip
KEYS = tuple(field for field in RecoverSection.__struct_fields__ if field not in FIXED)
LOGARITHMIC = ("lr", "weight_decay", "clip", "distill_weight", "label_weight")  # where the range has no 0
TIMES = 5.0  # the recipe's own learning rate, up and down


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def suggest(self, trial: optuna.Trial, key: str) -> Any:
        """The trial's value."""
        return read(trial.suggest_categorical(key, [told(one) for one in self.values]))

    def holds(self, value: Any) -> bool:
        """Is it one of them?"""
        return value in self.values


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included."""

    low: float
    high: float
    whole: bool
    logarithmic: bool

    def suggest(self, trial: optuna.Trial, key: str) -> Any:
        """The trial's value."""
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.logarithmic)
        return trial.suggest_float(key, self.low, self.high, log=self.logarithmic)

    def holds(self, value: Any) -> bool:
        """Does it lie within?"""
        return isinstance(value, int | float) and self.low <= value <= self.high


def read(text: str) -> object:
    """What `told` wrote."""
    return parse_json(text, RecipeError, "a choice of the study")


Space = Mapping[str, Choice | Range]


def told(value: Any) -> str:
    """A choice as the study's storage keeps it."""
    return json.dumps(value, sort_keys=True)


def space_of(recipe: Recipe, classes: bool) -> Space:
    """What the recipe's [tune] space says; without it learning rate, weight decay, averaging, and for classes how the
    dense network teaches. Raises RecipeError.

    Args:
        classes: the task is one of classes, so that `kl` and `dist` mean something.
    """
    own, stated = recipe.recover, recipe.tune.space
    where = recipe.path or "recipe"
    if stated:
        return {key: _one(recipe, key, values, where) for key, values in stated.items()}
    found: dict[str, Choice | Range] = {
        "lr": Range(own.lr / TIMES, own.lr * TIMES, False, True),
        "weight_decay": Range(1e-5, 2e-3, False, True),
        "ema": Choice((0.99, 0.999)),
    }
    if classes and own.distill in ("auto", "kl", "dist"):
        found |= {"distill": Choice(("kl", "dist")), "temperature": Range(1.0, 8.0, False, False)}
    return found


def _one(recipe: Recipe, key: str, values: list[Any], where: str) -> Choice | Range:
    """One key's values, each of which [recover] must take."""
    at = f"{where}: [tune] space.{key[:100]}"
    if key not in KEYS:
        raise RecipeError(
            f"{at}: " + ("it is the same for every trial." if key in FIXED else "no such key of [recover]."),
            f"One of {', '.join(KEYS)}." if key in FIXED else did_you_mean(key[:100], KEYS),
        )
    if len(values) < 2:
        raise RecipeError(f"{at} has {len(values)} value; it needs two or more.", "[low, high], or a list of choices.")
    for value in values:
        convert({**recipe.section("recover"), key: value}, RecoverSection, RecipeError, at)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numbers or len(values) > 2:
        return Choice(tuple(values))
    low, high = values
    if not low < high:
        raise RecipeError(f"{at} is [{low:g}, {high:g}]; the first must be the lower.")
    whole = isinstance(msgspec.structs.asdict(RecoverSection())[key], int)
    return Range(low, high, whole, key in LOGARITHMIC and low > 0)


def suggested(space: Space, trial: optuna.Trial, own: RecoverSection) -> RecoverSection:
    """[recover] with the trial's values."""
    return msgspec.structs.replace(own, **{key: one.suggest(trial, key) for key, one in space.items()})


def own_values(space: Space, own: RecoverSection) -> dict[str, object]:
    """The recipe's own settings as a trial's; those outside of the space are left to the study."""
    found: dict[str, object] = {}
    for key, one in space.items():
        value = getattr(own, key)
        value = "kl" if key == "distill" and value == "auto" else value
        if one.holds(value):
            found[key] = told(value) if isinstance(one, Choice) else value
    return found


def plain(space: Space, params: Mapping[str, object]) -> dict[str, object]:
    """A trial's parameters as a recipe has them."""
    return {key: read(str(params[key])) if isinstance(one, Choice) else params[key] for key, one in space.items()}
