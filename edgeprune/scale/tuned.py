"""The best trial of a study as a recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgeprune import files
from edgeprune.errors import RecipeError
from edgeprune.pipeline import toml_value
from edgeprune.recipe import SECTIONS, Recipe
from edgeprune.result import Tuned

MARK = "# Tuned by edgeprune:"


def beside(recipe: Recipe, out: Path | None) -> Path:
    """Where the tuned recipe goes; raises RecipeError where a file of another origin lies there, and where the
    recipe's paths would lead nowhere.
    """
    path = out or (Path(recipe.path).with_suffix(".tuned.toml") if recipe.path else Path("tuned.toml"))
    if path.exists() and not (path.is_file() and path.read_text("utf-8", "replace").startswith(MARK)):
        raise RecipeError(f"{path} is there, and no recipe that tune wrote.", "Give another file as --out.")
    if not path.parent.is_dir():
        raise RecipeError(f"{path.parent}: no such folder.", "Give a file in a folder that is there as --out.")
    lost = next(_only_beside(recipe, path.parent), "") if recipe.path else ""
    if lost:
        raise RecipeError(
            f"--out {path}: the recipe's '{lost[:100]}' lies beside the recipe, and is not found from there.",
            f"Give a file in {Path(recipe.path).parent.resolve()}.",
        )
    return path


def _only_beside(recipe: Recipe, folder: Path) -> Iterator[str]:
    """What in the recipe names a file beside it that is neither here nor in `folder`."""
    own = Path(recipe.path).parent
    for text in _texts(files.read_toml(Path(recipe.path), RecipeError)):
        name = text.rpartition(":")[0] or text
        with contextlib.suppress(OSError, ValueError):  # no path at all
            if name.strip() and (own / name).exists() and not Path(name).exists() and not (folder / name).exists():
                yield name


def _texts(value: object) -> Iterator[str]:
    """Every text in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def write_recipe(recipe: Recipe, made: Tuned, path: Path) -> None:
    """The user's recipe with the best trial's settings, of the same name: its run goes on in the same directory."""
    assert made.best is not None
    given = dict(files.read_toml(Path(recipe.path), RecipeError)) if recipe.path else _stated(recipe)
    given = {"name": made.name, **given} if made.name else given
    own_section = given.get("recover")
    given["recover"] = {**(own_section if isinstance(own_section, Mapping) else {}), **made.best.settings}
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


def _stated(recipe: Recipe) -> dict[str, object]:
    """What a recipe that Python made says, with every default."""
    sections = {name: recipe.section(name) for name in SECTIONS}
    return {name: {k: v for k, v in section.items() if v is not None} for name, section in sections.items()}


def toml_key(key: str) -> str:
    """A key as TOML spells it."""
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else toml_value(key)
