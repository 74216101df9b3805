"""The best trial of a study as a recipe."""

from __future__ import annotations

from pathlib import Path

from edgeprune import files
from edgeprune.errors import RecipeError
from edgeprune.pipeline import toml_value
from edgeprune.recipe import Recipe
from edgeprune.result import Tuned

MARK = "# Tuned by edgeprune:"


def beside(recipe: Recipe, out: Path | None) -> Path:
    """Where the tuned recipe goes; raises RecipeError where a file of another origin lies there."""
    path = out or (Path(recipe.path).with_suffix(".tuned.toml") if recipe.path else Path("tuned.toml"))
    if path.exists() and not (path.is_file() and path.read_text("utf-8", "replace").startswith(MARK)):
        raise RecipeError(f"{path} is there, and no recipe that tune wrote.", "Give another file as --out.")
    if not path.parent.is_dir():
        raise RecipeError(f"{path.parent}: no such folder.", "Give a file in a folder that is there as --out.")
    return path


def write_recipe(recipe: Recipe, made: Tuned, path: Path) -> None:
    """The user's recipe with the best trial's settings; paths in it are relative to where the recipe lies."""
    assert made.best is not None
    given = dict(files.read_toml(Path(recipe.path), RecipeError)) if recipe.path else dict[str, object]()
    own_section = given.get("recover")
    given["recover"] = {**(own_section if isinstance(own_section, dict) else {}), **made.best.settings}
    own = f"; {made.own.score:.4g} with the recipe's own" if made.own is not None and made.own.score is not None else ""
    lines = [
        f"{MARK} trial {made.best.number} of {len(made.trials)}. {made.metric} {made.best.score:.4g} {made.unit} on",
        f"# the selection split after {made.epochs:g} epochs{own}; {made.repaired:.4g} before training.",
    ]
    lines += [f"{key} = {toml_value(value)}" for key, value in given.items() if not isinstance(value, dict)]
    for name, section in given.items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]", *(f"{toml_key(key)} = {toml_value(value)}" for key, value in section.items())]
    files.write_text(path, "\n".join(lines) + "\n")


def toml_key(key: str) -> str:
    """A key as TOML spells it."""
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else toml_value(key)
