"""`edgeprune compare OLD.tar NEW.tar`: is the newer release worse, and is that more than noise?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option, verbose_option
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from edgeprune.compare import Compared

LOOK = {"better": ("✓", "green"), "same": ("✓", "green"), "worse": ("!", "yellow"), "unknown": ("·", "yellow")}
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("compare")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--key", type=FILE, help="The public key (PEM) that must have signed both.")
@click.option("--device", default="", metavar="DEVICE", help="Measure there; see 'edgeprune devices list'.")
@click.option("--no-rerun", is_flag=True, help="Open nothing: compare what is recorded.")
@click.option("--max-drop", type=click.FloatRange(0), default=0.0, help="Of the metric, in its own unit. Default 0.")
@click.option("--max-slower", type=click.FloatRange(0), default=0.0, help="Of latency, in percent. Default 0.")
@click.option("--max-larger", type=click.FloatRange(0), default=1.0, help="Of bytes, in percent. Default 1.")
@click.option("--confidence", type=click.FloatRange(0.5, 0.9999), default=0.95, help="One-sided. Default 0.95.")
@click.option("--repeats", type=click.IntRange(3, 1000), default=5, help="Measurements side by side. Default 5.")
@click.option("--strict", is_flag=True, help="Fail also where metric or latency could not be compared.")
@click.option("--junit", type=FILE, metavar="FILE", help="Write a JUnit report for a build server.")
@json_option
@verbose_option
def command(
    old: Path,
    new: Path,
    key: Path | None,
    device: str,
    no_rerun: bool,
    max_drop: float,
    max_slower: float,
    max_larger: float,
    confidence: float,
    repeats: int,
    strict: bool,
    junit: Path | None,
) -> None:
    """Compare two bundles of one target, the older one first.

    Both are verified. The metric is compared on the same examples, latency side by side on the device, then size,
    operators and what they were made from. The exit code is 0 where the newer one is as good or better, and 13 where
    it is worse by more than is allowed and more than noise explains.
    """
    from edgeprune import compare

    tolerance = compare.Tolerance(max_drop, max_slower / 100, max_larger / 100, confidence)
    suite = f"edgeprune compare {new.name}"
    try:
        found = compare.compare(
            old, new, tolerance, key=key, device=device, rerun=not no_rerun, repeats=repeats, progress=_progress
        )
    except EdgepruneError as error:
        if junit is not None:
            compare.junit(junit, (), suite=suite, error=error)
        raise
    if junit is not None:
        compare.junit(junit, found.aspects, suite=suite, strict=strict)
    _github(compare.github_annotations(found), compare.github_summary(found))
    _show(found)
    found.check(strict)


def _progress(done: int, total: int) -> None:
    if not current().as_json and done < total:
        console.say(f"measuring side by side, {done + 1} of {total}", err=True)


def _github(annotations: list[str], summary: str) -> None:
    """Workflow commands go to standard error, which GitHub reads too; standard output may be JSON."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    for line in annotations:
        console.say(line, err=True)
    page = os.environ.get("GITHUB_STEP_SUMMARY", "")
    if page:
        with Path(page).open("a", encoding="utf-8") as stream:
            stream.write(summary)


def _show(found: Compared) -> None:
    if current().as_json:
        echo_json(found.to_dict())
        return
    console.say(f"{found.new} against {found.old}: {found.name} on {found.target}")
    for one in found.aspects:
        mark, colour = LOOK.get(one.word, ("✗", "red"))
        console.say("  ", console.style(mark, fg=colour), f" {one.name}: {one.message}")
    if found.regressions:
        names = ", ".join(one.name for one in found.regressions)
        console.say(console.style("REGRESSION", fg="red", bold=True), f"  {names}")
    else:
        better = ", ".join(one.name for one in found.aspects if one.word == "better")
        word = f"BETTER ({better})" if better else "NO REGRESSION"
        console.say(console.style(word, fg="green", bold=True))
