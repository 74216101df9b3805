"""`edgeprune devices`: the boards that this user owns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option
from edgeprune.errors import DeviceUnreachable, UsageError

if TYPE_CHECKING:
    from edgeprune.devices import BoardStatus


@click.group("devices", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """The boards that you own: add, list, probe, status.

    A board that is written down can be named: edgeprune TARGET run recipe.toml --device NAME
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_boards)


@command.command("list")
@json_option
def list_boards() -> None:
    """List the boards."""
    from edgeprune.devices import book

    known = book.read()
    if current().as_json:
        echo_json(
            {
                "devices": {
                    name: {"address": e.address, "python": e.python, "target": e.target} for name, e in known.items()
                }
            }
        )
        return
    if not known:
        console.say("No boards yet. Add one: edgeprune devices add pi5 ssh://pi@HOST --target raspberry-pi-5")
        return
    made = console.table(name="board", address="address", python="python there", target="target")
    for name, entry in known.items():
        made.add_row(name, entry.address, entry.python or "python3", entry.target or "-")
    console.show(made)


@command.command("add")
@click.argument("name")
@click.argument("address")
@click.option("--python", default="", metavar="PATH", help="The interpreter there that has numpy and the runtime.")
@click.option("--target", "target_name", default="", metavar="TARGET", help="What the board is.")
def add_board(name: str, address: str, python: str, target_name: str) -> None:
    """Write down a board: ADDRESS is ssh://user@host[:port], or ssh://NAME of your ~/.ssh/config."""
    from edgeprune import target
    from edgeprune.devices import book

    if target_name:
        target.load(target_name)
    book.add(name, book.BoardEntry(address, python, target_name))
    console.say(f"{name} is in {book.path()}. Look at it: edgeprune devices probe {name}")


@command.command("remove")
@click.argument("name")
def remove_board(name: str) -> None:
    """Forget a board."""
    from edgeprune.devices import book

    book.remove(name)


@command.command("probe")
@click.argument("name")
@click.option("--target", "target_name", default="", metavar="TARGET", help="What the board is.")
@json_option
def probe_board(name: str, target_name: str) -> None:
    """Log in, start the agent and say what the board is and how it is doing."""
    from edgeprune import devices, target
    from edgeprune.devices import book

    target_name = target_name or book.find(name).target
    if not target_name:
        raise UsageError(f"what is {name}?", "Say it: --target raspberry-pi-5. See: edgeprune targets")
    profile = target.load(target_name)
    with devices.connect(profile, name) as device:
        probe = device.probe()
    claim = devices.judge(profile, name, probe.fingerprint)
    if current().as_json:
        echo_json({"fingerprint": probe.fingerprint, "state": probe.state, "claim": claim.to_dict()})
        return
    from rich.text import Text

    made = console.table(name="", value="")
    for key, value in {**probe.state, **probe.fingerprint}.items():
        if value not in ("", [], {}, None):
            made.add_row(key, Text(_words(value)))
    console.show(made)
    if claim.why:
        console.say(f"{claim.verdict.upper()} at best: {claim.why} {claim.remedy}")


@command.command("status")
@click.option("--target", "target_name", default="", metavar="TARGET", help="What boards without a target are.")
@json_option
def status(target_name: str) -> None:
    """Look at all boards at once: which answer, what they are, how they are doing, and which are of one kind.

    The exit code is 0 when every board answers, and 6 when one does not.
    """
    from edgeprune import target
    from edgeprune.devices import book
    from edgeprune.devices import status as looking

    if target_name:
        target.load(target_name)
    known = book.read()
    if not known:
        raise UsageError("no board is written down.", "Add one: edgeprune devices add pi5 ssh://pi@HOST")
    found = looking.look(known, target_name)
    if current().as_json:
        echo_json({"devices": [one.to_dict() for one in found]})
    else:
        _show_status(found)
    away = [one for one in found if one.state != "answers"]
    if away:
        raise DeviceUnreachable(
            f"{len(away)} of {len(found)} boards cannot be used: {away[0].name}: {away[0].message}",
            "A fleet goes on without them.",
        )


def _show_status(found: Sequence[BoardStatus]) -> None:
    from rich.text import Text

    made = console.table(name="board", kind="kind", state="state", runtime="runtime", load="load", hot="°C", what="")
    for one in found:
        what = ", ".join(filter(None, [one.message, *one.notes]))
        cells = (one.name, one.kind or "-", one.state, one.runtime or "-", one.load or "-", one.hottest or "-", what)
        made.add_row(*(Text(str(cell)) for cell in cells))
    console.show(made)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
