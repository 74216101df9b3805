"""`edgeprune targets`: every known target, and how it was verified."""

from __future__ import annotations

import click

from edgeprune import claims
from edgeprune import target as profiles
from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option
from edgeprune.errors import TargetError
from edgeprune.target import EVIDENCE_LEVELS, Target


@click.command("targets")
@json_option
def command() -> None:
    """List the targets: runtime, precision, channel step, how each was verified.

    Below them: what a run may claim of a target, by what answers on the way to its device.
    A target is a folder with a profile.toml. Add your own with --targets DIR or EDGEPRUNE_TARGETS.
    """
    good: list[Target] = []
    bad: list[TargetError] = []
    for name in profiles.names():
        try:
            good.append(profiles.load(name))
        except TargetError as error:  # one broken profile must not hide the others
            bad.append(error)
    if current().as_json:
        named = ("families", "ways", "answer", "unit", "verdict", "because")
        rows = [{name: getattr(row, name) for name in named} for row in claims.ROWS]
        echo_json({"targets": [{**item.to_dict(), "verified": item.level} for item in good], "claims": rows})
    else:
        _show(good)
        _show_claims()
    if bad:
        raise bad[0]


def _show(targets: list[Target]) -> None:
    headings = {"name": "target", "what": "what", "runtime": "runtime", "scheme": "INT8 scheme"}
    made = console.table(**headings, step="step", verified="verified", right="step")
    for item in targets:
        runtime = f"{item.runtime} {item.requires}".rstrip()
        dates = [one.date for one in item.evidence if one.level == item.level]
        verified = f"{EVIDENCE_LEVELS[item.level]} {max(dates, default='')}".rstrip()
        made.add_row(item.name, item.title, runtime, item.dialect, str(item.channels.step), verified)
    console.show(made)


def _show_claims() -> None:
    headings = {"family": "target's family", "way": "--device", "answer": "what answers there"}
    made = console.table("What may be claimed", **headings, unit="latency", verdict="at best")
    for row in claims.ROWS:
        made.add_row(*claims.in_words(row))
    console.show(made)
