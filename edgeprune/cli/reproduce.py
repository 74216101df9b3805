"""`edgeprune reproduce BUNDLE`: the locked recipe again, and what came out differently."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeprune.cli import console, session
from edgeprune.cli.session import echo_json, json_option, quiet_option, verbose_option

if TYPE_CHECKING:
    from edgeprune.scale import Reproduction

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
MARKS = {True: ("=", "green"), False: ("≠", "yellow"), None: ("·", "yellow")}


@click.command("reproduce")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--in", "source", type=FOLDER, default=Path(), help="Where the recipe lay. Default: here.")
@click.option("--run-dir", type=FOLDER, help="Of the new run. Default: runs/NAME-TARGET-again.")
@click.option("--key", type=FILE, help="The public key (PEM) that must have signed it.")
@click.option("--unsigned", is_flag=True, help="Run what the bundle's recipe names, though no key says whose it is.")
@click.option("--device", default="", metavar="DEVICE", help="Measure there; see 'edgeprune devices list'.")
@click.option("--strict", is_flag=True, help="Fail unless the artifact is the same, byte for byte.")
@json_option
@quiet_option
@verbose_option
def command(
    bundle: Path, source: Path, run_dir: Path | None, key: Path | None, unsigned: bool, device: str, strict: bool
) -> None:
    """Run the recipe that a bundle was made by again, and say what differs: inputs, the network, bytes, figures.

    The recipe's code, weights and data must lie where it names them. Exit code 0: the same bytes, or a release that is
    as good; 13: a worse one (with --strict: another one); 8: the new run was refused; 12: no key, and no --unsigned.
    """
    from edgeprune.cli import progress
    from edgeprune.cli.running import calm

    now = session.current()
    now.resumable = True
    with calm(now.verbose), progress.reporter(now) as events:
        from edgeprune import scale

        made = scale.reproduce(bundle, source, run_dir, key=key, trusted=unsigned, device=device, events=events)
        events.close()
    if now.as_json:
        echo_json({"command": "reproduce", **made.to_dict()})
    else:
        _show(made)
    made.check(strict)


def _show(made: Reproduction) -> None:
    for one in made.parts:
        mark, colour = MARKS[one.same]
        console.say("  ", console.style(mark, fg=colour), f" {one.name}: {one.message}")
    for aspect in made.compared.aspects if made.compared is not None else ():
        console.say(f"    {aspect.name}: {aspect.message}")
    console.say(f"  the new run  {made.run_dir}")
    if made.identical:
        console.say(console.style("REPRODUCED, byte for byte", fg="green", bold=True))
    elif made.compared is not None and not made.compared.regressions:
        console.say(console.style("REPRODUCED: another artifact, as good", fg="green", bold=True))
    else:
        console.say(console.style("NOT REPRODUCED", fg="red", bold=True))
