"""`edgeprune TARGET quick FACTORY --data FOLDER --speedup 2`: a recipe and its run in one, with little training."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edgeprune import files
from edgeprune.cli import console, init, session
from edgeprune.cli.running import run_step
from edgeprune.errors import RunError, UsageError
from edgeprune.recipe import load
from edgeprune.target import Target

TEXT = "A network and data instead of a recipe: init and run in one, with little training."
MINUTES = 3.0
WISH = "quick.json"
BEFORE = "recipe.before.toml"  # it may have been edited
AGAIN = {"speedup", "latency_ms", "max_drop", "sections"}  # of a wish: what one asks for differently the second time
SHORT: dict[str, dict[str, object]] = {  # of the recipe: the least of everything
    "search": {"images": 128, "rounds": 1, "trials": 2},
    "quantize": {"images": 128, "effort": "fast"},
    "measure": {"patience": 60.0},
}


def quick_command(target: Target) -> click.Command:
    """The command of one target."""

    @click.command(
        "quick", help=f"{TEXT}\n\nFACTORY is what `edgeprune init` takes. The run directory keeps the recipe."
    )
    @click.argument("factory", default="")
    @init.given_options
    @click.option("--minutes", type=click.FloatRange(0), default=MINUTES, help="Of training at most; 0: none. [3]")
    @click.option("--run-dir", type=click.Path(path_type=Path, file_okay=False), help="Where the run is kept.")
    @click.option(
        "--device", default="", metavar="DEVICE", help="A board from 'edgeprune devices list', or ssh://HOST."
    )
    @session.json_option
    @session.quiet_option
    @session.verbose_option
    def quick(factory: str, minutes: float, run_dir: Path | None, device: str, **given: Any) -> None:
        training: dict[str, object] = {"epochs": 10.0, "hours": round(minutes / 60, 4)} if minutes else {"epochs": 0.0}
        from edgeprune import pipeline

        wanted = init.wish(factory, **given)
        wanted = dataclasses.replace(wanted, sections=pipeline.patched({**SHORT, "recover": training}, wanted.sections))
        folder = run_dir or Path("runs") / f"{pipeline.run_name(wanted)}-{target.name}"
        recipe = folder / "recipe.toml"
        if not _known(folder, wanted):
            with _new_folder(folder):
                made = init.drafted(wanted, folder, again=True)
            if recipe.is_file():
                files.write_text(folder / BEFORE, recipe.read_text())
                console.say(f"{'recipe':<9}for what is asked now; the one before is {folder / BEFORE}", err=True)
            files.write_text(recipe, made.text)
            files.write_json(folder / WISH, dataclasses.asdict(wanted))
        console.say(f"{'recipe':<9}{recipe}: edgeprune {target.name} run {recipe} goes on from here", err=True)
        run_step("run", target, recipe, run_dir=folder, device=device)
        if wanted.max_drop is None and not (session.current().as_json or session.current().quiet):
            drop = load(recipe).budget.max_drop
            console.say(f"  {'max_drop':<8} {drop:g} is what the test split can tell; --max-drop asks for less.")

    return quick


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """The folder is there; where what follows fails, it goes again, as far as it and its parents are new and empty."""
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for one in new:
                one.rmdir()
        raise


def _known(folder: Path, wanted: object) -> bool:
    """Was this very wish drafted there before? Raises UsageError where it was of another network or of other data.

    Another budget or other minutes of training are drafted again; the run keeps what they leave as it is.
    """
    if not (folder / "recipe.toml").is_file() or not (folder / WISH).is_file():
        return False
    said = json.dumps(dataclasses.asdict(wanted), default=files.plain)  # type: ignore[call-overload]
    mine = files.parse_json(said, RunError, WISH)
    before = files.read_json(folder / WISH, RunError)
    other = sorted(key for key in mine if (before.get(key) or None) != (mine[key] or None))  # a later key is empty
    if set(other) - AGAIN:
        raise UsageError(
            f"{folder} holds a quick run that was asked for otherwise: {', '.join(sorted(set(other) - AGAIN))}.",
            "Give --name or --run-dir to keep both, or delete that folder.",
        )
    return not other
