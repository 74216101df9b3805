"""`edgeprune sweep SWEEP.toml`: many runs, what they share made once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeprune.cli import console, session
from edgeprune.cli.session import echo_json, json_option, quiet_option, verbose_option

if TYPE_CHECKING:
    from edgeprune.result import SweepReport

ENGINES = click.Choice(["auto", "ray", "order"])


@click.command("sweep")
@click.argument("path", metavar="SWEEP", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Its folder. Default: sweeps/NAME.")
@click.option("--engine", type=ENGINES, default="auto", help="auto: Ray where it is installed. order: one by one.")
@click.option(
    "--address", default="", metavar="ADDRESS", help="A Ray cluster that is there: auto, HOST:6379, ray://..."
)
@json_option
@quiet_option
@verbose_option
def command(path: Path, out: Path | None, engine: Literal["auto", "ray", "order"], address: str) -> None:
    """Do every run of SWEEP.toml: targets x budgets x recipes x seeds.

    The same command goes on where it was interrupted. A run that a gate refuses, or whose budget cannot be met, is a
    result; the exit code is 0 when every run came to its end, and 11 when one failed.
    """
    from edgeprune.cli import progress
    from edgeprune.cli.running import calm

    now = session.current()
    now.resumable = True
    with calm(now.verbose), progress.reporter(now) as events, stray_to_stderr():
        from edgeprune import scale

        made = scale.sweep(path, out, engine=engine, address=address, events=events)
        events.close()
    if now.as_json:
        import msgspec

        echo_json({"command": "sweep", **msgspec.to_builtins(made)})
    else:
        _show(made, out or Path("sweeps") / made.name)


@contextmanager
def stray_to_stderr() -> Iterator[None]:
    """What libraries below write to standard output by themselves (Ray, when a node goes) is none of the result."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _show(made: SweepReport, folder: Path) -> None:
    headings = {"run": "run", "state": "state", "score": "score", "latency": "latency", "speedup": "speed-up"}
    shown = console.table(made.name, **headings, stages="stages", right="score,latency,speedup")
    for row in made.rows:
        score = "" if row.score is None else f"{row.score:.4g}"
        latency = "" if row.latency is None else f"{row.latency:.4g} {row.unit}"
        speedup = "" if row.speedup is None else f"{row.speedup:.3f}x"
        stages = f"{len(row.made)} made, {len(row.taken)} taken over"
        shown.add_row(row.run, row.state, score, latency, speedup, stages)
    console.show(shown)
    console.say(f"  {made.engine}, {made.seconds:.0f} s")
    console.say(f"  report   {folder / 'sweep.html'}")
