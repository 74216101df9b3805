"""`edgeprune doctor`: what is installed, what is missing, and the command that mends it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option
from edgeprune.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from edgeprune.devices import checks


@click.command("doctor")
@click.argument("target_name", metavar="[TARGET]", default="")
@click.option("--device", default="", metavar="ADDRESS", help="The board to look at: a name, or ssh://HOST.")
@click.option("--install-emulator", is_flag=True, help="Set up ARM emulation and the emulated board, without root.")
@json_option
def command(target_name: str, device: str, install_emulator: bool) -> None:
    """What is installed, what is missing, and the command that mends it.

    With TARGET also its device: can it be reached, does its runtime start, does the version fit?
    """
    from edgeprune import runtimes
    from edgeprune import target as profiles
    from edgeprune.devices import checks
    from edgeprune.devices import install_emulator as set_up_emulator

    if device and not target_name:
        raise UsageError("--device needs a target.", f"edgeprune doctor TARGET --device {device}")
    target = profiles.load(target_name) if target_name else None
    if install_emulator:
        if target is not None and target.family != "arm":
            raise UsageError(f"{target.name} cannot be emulated.", "Only ARM targets can: edgeprune targets")
        set_up_emulator(lambda text: console.say(text, err=True))
    extras = {one.package: one.extra for one in map(runtimes.load, runtimes.names()) if one.package}
    found = list(checks.host(target, device, extras))
    missing = [check for check in found if check.state == "missing"]
    if target is not None and not missing:
        found.append(checks.device(target, device))
        missing = [check for check in found if check.state == "missing"]
    if current().as_json:
        echo_json(
            {"target": target_name, "ready": not missing, "checks": [dataclasses.asdict(check) for check in found]}
        )
    else:
        _show(found)
    if missing:
        raise MissingDependency(f"missing: {', '.join(check.what for check in missing)}.", missing[0].remedy)


def _show(found: list[checks.DeviceCheck]) -> None:
    from rich.text import Text

    marks = {"ok": "ok", "missing": "missing", "optional": "not installed (optional)"}
    made = console.table(what="", state="", found="found", remedy="what mends it")
    for check in found:
        made.add_row(*map(Text, (check.what, marks[check.state], check.found, check.remedy)))
    console.show(made)
