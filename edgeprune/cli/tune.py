"""`edgeprune TARGET tune RECIPE`: settings of the training by trial, the best of them a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgeprune.cli import console, session
from edgeprune.cli.session import echo_json
from edgeprune.errors import UsageError

if TYPE_CHECKING:
    from edgeprune.result import Trial, Tuned
    from edgeprune.target import Target

TEXT = "Try settings of [recover] on the pruned network, by Optuna; the best become a recipe. The same command resumes."
SHOWN = 10  # trials
OPTIONS = (
    click.option("--trials", type=click.IntRange(1, 10**9), help="How many in all, instead of the recipe's [tune]."),
    click.option("--hours", type=click.FloatRange(0, 8760), help="After which no trial begins."),
    click.option("--epochs", type=click.FloatRange(0, 10**6), help="Of one trial. Default: those of [recover]."),
    click.option("--workers", type=click.IntRange(1, 1024), default=1, help="Trials side by side, through Ray."),
    click.option("--cpus", type=click.FloatRange(0.1, 4096), default=1.0, help="Cores of a worker."),
    click.option("--gpus", type=click.FloatRange(0, 64), default=0.0, help="GPUs of a worker; 0.5: two share one."),
    click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Default: RECIPE.tuned.toml."),
)


def run(target: Target, recipe_path: Path, values: Any) -> None:
    """Tune, and show what was found; `values`: the command's options."""
    from edgeprune import recipe as recipes
    from edgeprune.cli import progress
    from edgeprune.cli.running import calm

    now = session.current()
    recipe = recipes.load(recipe_path)
    asked = {key: values.pop(key) for key in ("trials", "hours", "epochs")}
    section = msgspec.structs.replace(recipe.tune, **{key: one for key, one in asked.items() if one is not None})
    recipe = msgspec.structs.replace(recipe, tune=section)
    taken = {key: values.pop(key) for key in ("workers", "cpus", "gpus")}
    if taken["workers"] == 1 and (taken["cpus"] != 1.0 or taken["gpus"]):
        raise UsageError("--cpus and --gpus are of several workers.", "Give --workers too, or leave them out.")
    now.resumable = True
    with calm(now.verbose), progress.reporter(now) as events:
        from edgeprune import scale

        tune = scale.tune_side_by_side if taken["workers"] > 1 else scale.tune
        given = taken if taken["workers"] > 1 else {}
        made = tune(recipe, target, values.pop("run_dir"), events=events, **given, **values)
        events.close()
    if now.as_json:
        echo_json({"command": "tune", **msgspec.to_builtins(made)})
    else:
        _show(made, recipe.budget.fastest)


def _show(made: Tuned, fastest: bool) -> None:
    """`fastest`: max_drop stands alone, so that other settings of [recover] are another search."""
    keys = list(dict.fromkeys(key for row in made.trials for key in row.settings))
    title = f"{made.name} on {made.target}: {len(made.trials)} trials of {made.epochs:g} epochs"
    score = f"{made.metric}, {made.unit}" if made.unit else made.metric
    headings = {"trial": "trial", "score": score, **{key: key for key in keys}, "state": "", "time": "time"}
    table = console.table(title, **headings, right=",".join(["trial", "score", "time"]))
    for row in made.trials[:SHOWN]:
        table.add_row(
            str(row.number), _number(row.score), *(_number(row.settings.get(k)) for k in keys), *_how(made, row)
        )
    console.show(table)
    if len(made.trials) > SHOWN:
        console.say(f"and {len(made.trials) - SHOWN} more, in {Path(made.weights).parent / 'tune.csv'}")
    if made.best is None:
        console.say("No trial came to its end.")
        return
    console.say(f"Scores are of the selection split, in float; {made.repaired:.4g} before training.")
    console.say(f"  recipe   {made.recipe}")
    use = "the tuned recipe searches and trains anew" if fastest else "run --weights"
    console.say(f"  weights  {made.weights}/weights.safetensors, of the best trial ({use})")


def _how(made: Tuned, row: Trial) -> tuple[str, str]:
    own = "the recipe's own" if row == made.own else ""
    return " ".join(filter(None, [own, "" if row.state == "done" else row.state])), f"{row.seconds:.0f} s"


def _number(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
