"""What `tune` tries: [tune] space of a recipe, or ranges around its own settings of [recover]."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from edgeprune.config import convert
from edgeprune.errors import InputError, RecipeError, did_you_mean
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
COMBINED = 64  # settings that are looked through for one that a value goes with
TIMES = 5.0  # the recipe's own learning rate, up and down


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def suggest(self, trial: optuna.Trial, key: str) -> Any:
        """The trial's value."""
        return read(trial.suggest_categorical(key, [told(one) for one in self.values]))

    @property
    def ends(self) -> tuple[Any, ...]:
        """What is looked at beforehand: all of it."""
        return self.values

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

    @property
    def ends(self) -> tuple[Any, ...]:
        """What is looked at beforehand: its ends."""
        return self.low, self.high

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


def possible(recipe: Recipe, space: Space, check: Callable[[RecoverSection], None]) -> None:
    """Every value goes with the recipe's own other settings, or with some of the space: said before any work.

    Args:
        check: raises where settings do not fit the network, the task or each other.

    Raises:
        RecipeError: a value goes with none.
    """
    for key, one in space.items():
        others = {name: other for name, other in space.items() if name != key}
        for value in one.ends:
            first: RecipeError | InputError | None = None
            for settings in itertools.islice(_beside(recipe.recover, others), COMBINED):
                try:
                    check(msgspec.structs.replace(recipe.recover, **{**settings, key: _typed(value)}))
                except (RecipeError, InputError) as cause:
                    first = first or cause
                else:
                    first = None
                    break
            if first is not None:
                at = f"{recipe.path or 'recipe'}: [tune] space.{key} = {told(value)[:100]}"
                raise RecipeError(f"{at}: {first.message}", first.remedy)


def _beside(own: RecoverSection, others: Space) -> Iterator[dict[str, object]]:
    """The recipe's own settings, then those of the space, near ones first."""
    yield {}
    for values in itertools.product(*((getattr(own, key), *one.ends) for key, one in others.items())):
        yield {key: _typed(value) for key, value in zip(others, values, strict=True)}


def _typed(value: Any) -> Any:
    """A value as [recover] holds it: a list as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def suggested(space: Space, trial: optuna.Trial, own: RecoverSection) -> RecoverSection:
    """[recover] with the trial's values."""
    return msgspec.structs.replace(own, **{key: _typed(one.suggest(trial, key)) for key, one in space.items()})


def own_values(space: Space, own: RecoverSection, classes: bool) -> dict[str, object]:
    """The recipe's own settings as a trial's; those outside of the space are left to the study.

    Args:
        classes: as for `space_of`: what `distill = "auto"` means.
    """
    found: dict[str, object] = {}
    for key, one in space.items():
        value = getattr(own, key)
        value = list(value) if isinstance(value, tuple) else value
        if key == "distill" and value == "auto" and not one.holds(value):
            value = "kl" if classes else "distance"
        if one.holds(value):
            found[key] = told(one.values[one.values.index(value)]) if isinstance(one, Choice) else value  # 0 for 0.0
    return found


def plain(space: Space, params: Mapping[str, object]) -> dict[str, object]:
    """A trial's parameters as a recipe has them."""
    return {key: read(str(params[key])) if isinstance(one, Choice) else params[key] for key, one in space.items()}
