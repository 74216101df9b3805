"""`edgeprune TARGET front RECIPE`: the best network for each of several budgets, in one table and one plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli import console, session
from edgeprune.cli.session import echo_json
from edgeprune.errors import GateError

if TYPE_CHECKING:
    from edgeprune.result import Front
    from edgeprune.target import Target

TEXT = "The whole accuracy-latency front: a network for each of several budgets, measured, nothing trained."
OPTIONS = (
    click.option("--points", type=click.IntRange(1, 100), default=6, help="How many budgets. Default 6."),
    click.option("--speedup", "speedups", type=float, multiple=True, metavar="X", help="This budget; may be repeated."),
    click.option(
        "--pick", type=float, multiple=True, metavar="X", help="Make a bundle of this point; may be repeated."
    ),
)


def run(target: Target, recipe_path: Path, values: Any) -> None:
    """Make the front, show it, and make bundles of the points that were picked.

    `values`: the command's options, as `scale.front` takes them.
    """
    from edgeprune import recipe as recipes
    from edgeprune.cli import progress
    from edgeprune.cli.running import calm

    now = session.current()
    recipe = recipes.load(recipe_path)
    now.resumable = True
    with calm(now.verbose), progress.reporter(now) as events:
        from edgeprune import scale

        made = scale.front(recipe, target, values.pop("run_dir"), events=events, **values)
        events.close()
    folder = Path(made.points[0].run_dir).parent
    if now.as_json:
        import msgspec

        echo_json({"command": "front", "report": str(folder / "front.html"), **msgspec.to_builtins(made)})
    else:
        _show(made, folder)
    picked = {round(value, 2) for value in values["pick"]}
    refused = [one for one in made.points if one.speedup in picked and one.verdict and one.verdict != "release"]
    if refused:
        raise GateError(
            f"{refused[0].label}: this point was picked, and is {refused[0].verdict}.",
            f"Its report says which gate, and what would help: {refused[0].run_dir}/report.html",
        )


def _show(made: Front, folder: Path) -> None:
    headings = {"point": "point", "latency": f"latency, {made.unit}", "speedup": "speed-up"}
    title = f"{made.name} on {made.target}: dense INT8 {made.dense:.4g} {made.unit}"
    score = f"{made.metric}{f', {made.scale}' if made.scale else ''}"
    made_table = console.table(
        title, **headings, score=score, loss="loss", gap="certificate", says="", right="latency,speedup,score,loss,gap"
    )
    for one in made.points:
        if one.why:
            made_table.add_row(one.label, "-", "-", "-", "-", "-", one.why)
            continue
        says = " ".join(filter(None, [one.beaten, one.verdict, one.bundle]))
        cells = f"{one.latency:.4g}", f"{one.measured:.3f}x", f"{one.score:.4g}", f"{one.loss:.4g}"
        gap = "-" if one.gap is None else f"{100 * one.gap:.2f} %"
        made_table.add_row(one.label, *cells, gap, says)
    console.show(made_table)
    if made.dense_score is not None:
        text = "Scores: repaired, not trained, in float on the selection split; dense"
        console.say(f"{text} {made.dense_score:.4g} {made.scale}".rstrip())
    console.say(f"  report   {folder / 'front.html'}")
    console.say("  A bundle of a point: the same command with --pick, such as --pick ", made.points[0].label[:-1])
