"""`edgeprune data RECIPE`: the examples as the network gets them, and the dense network's metric on them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeprune import files
from edgeprune import result as results
from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option, verbose_option
from edgeprune.errors import RunError

if TYPE_CHECKING:
    from edgeprune.pipeline import look

PRINTED, NAMED = 6, 40  # rows of text and names of classes on the terminal; the file has all rows


@click.command("data")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--split", default="test", metavar="SPLIT", help="train, calibration, selection or test.")
@click.option("--examples", type=click.IntRange(0), default=500, help="Spread over the split; 0: all of it.")
@click.option("--tiles", type=click.IntRange(1, 600), default=24, help="Examples on the sheet.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The sheet; NAME-SPLIT.png, or .txt.")
@json_option
@verbose_option
def command(recipe: Path, split: str, examples: int, tiles: int, out: Path | None) -> None:
    """Show the data of a recipe as the network gets it, with labels, and the dense network's metric on it.

    Writes a contact sheet: pictures after preprocessing with their labels, boxes or masks, or a line of text for each
    example of anything else. No target is needed, and nothing is measured on a device.
    """
    from edgeprune import recipe as recipes

    read = recipes.load(recipe)
    with warnings.catch_warnings():
        if not current().verbose:
            warnings.simplefilter("ignore")
        from edgeprune.pipeline import look

        found = look.look(read, split, examples, tiles)
    path = out or Path(f"{read.name}-{split}.{'png' if found.tiles else 'txt'}")
    _write(found, path)
    if current().as_json:
        echo_json({"sheet": str(path), **look.as_dict(found)})
    else:
        _show(found, path)
    if found.fault is not None:
        raise found.fault


def _write(found: look.Looks, path: Path) -> None:
    """The sheet, whole or not at all; pictures as PNG whatever the name says, rows as text."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if found.tiles:
            from edgeprune import report

            held = io.BytesIO()
            report.draw(found.tiles).save(held, "PNG")
            files.write_bytes(path, held.getvalue())
        else:
            files.write_text(path, "\n".join(found.rows) + "\n")
    except OSError as cause:
        raise RunError(f"{path} cannot be written: {cause.strerror}.", "Give another --out.") from None


def _show(found: look.Looks, path: Path) -> None:
    console.say("found: ", ", ".join(f"{count:,} {name}" for name, count in found.counts.items()))
    for note in found.notes:
        console.say("  ", note)
    for one in found.inputs:
        span = f"from {one.low:.4g} to {one.high:.4g}, mean {one.mean:.4g}"
        console.say(f"input {one.name}: {one.dtype} {list(one.shape)}, {span}")
    score = found.score
    if found.shown:
        every = [f"{name} {count:,}" for name, count in found.shown.items()]
        rest = f" and {len(every) - NAMED:,} more" if len(every) > NAMED else ""
        console.say(f"classes on {score.examples:,} {found.split} examples: ", ", ".join(every[:NAMED]), rest)
        lacking = [name for name in found.classes if name not in found.shown]
        if lacking:
            console.say(f"  on none of them: {', '.join(lacking[:NAMED])}", " ..." if len(lacking) > NAMED else "")
    for row in found.rows[:PRINTED] if not found.tiles else ():
        console.say("  ", row)
    low, high, value = (results.quantity(one, score.unit) for one in (score.low, score.high, score.value))
    chance = "" if found.chance is None else f"; by chance {results.quantity(found.chance, score.unit)}"
    console.say(f"dense network, FP32: {score.metric} {value}, 95 % interval {low} to {high}{chance}")
    if score.broken:
        console.say(f"  {score.broken:,} examples give NaN or infinity")
    what = f"{len(found.tiles)} examples; {found.how}" if found.tiles else f"{len(found.rows)} examples"
    console.say(f"{path}  ({what})")
