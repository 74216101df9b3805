"""`edgeprune table`: what a fleet has measured, looked at, sent on, fetched and joined."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option
from edgeprune.errors import RunError, TargetError, UsageError
from edgeprune.result import Facts

if TYPE_CHECKING:
    from edgeprune.latency import Table

VARIABLE = "EDGEPRUNE_TABLES"
PLACES = ("search/table.jsonl", "latency/table.jsonl")  # of a run; what closure taught comes first
INTO = click.option(
    "--into",
    default="",
    metavar="PLACE",
    help=f"A folder, or an address such as s3://BUCKET/tables. Default: {VARIABLE}.",
)


@click.group("table")
def command() -> None:
    """Latency tables: info, export, import, merge.

    \b
    A PLACE is a run, a table's file, a folder of tables, or an address that fsspec opens: s3://BUCKET/tables.
    Where EDGEPRUNE_TABLES names a place, every run finds its device's table there and adds to it.
    """


@command.command("info")
@click.argument("place")
@json_option
def info(place: str) -> None:
    """Say which devices' tables lie in PLACE, and what each knows."""
    found = list(_tables(place))
    if not found:
        raise RunError(f"{place}: no tables there.", "edgeprune table export RUN --into PLACE puts one there.")
    told = [_facts(name, table) for name, table in found]
    if current().as_json:
        echo_json({"place": place, "tables": told})
        return
    made = console.table(name="table", device="device", runtime="runtime", what="knows", last="last measured")
    for one in told:
        knows = f"{one['cells']} cells, {one['networks']} networks, {one['runs']} runs"
        made.add_row(*(str(cell) for cell in (one["name"], one["device"], one["runtime"], knows, one["last"])))
    console.show(made)


@command.command("export")
@click.argument("run")
@INTO
@json_option
def export(run: str, into: str) -> None:
    """Send the table of RUN (or of a table's file) to a place, joined with what is there of its device."""
    _send(list(_tables(run)), _into(into), run)


@command.command("import")
@click.argument("place")
@INTO
@click.option("--target", "target_name", default="", help="Only tables of this target's device as it answers now.")
@click.option("--device", default="", metavar="DEVICE", help="With --target: the board; see 'edgeprune devices list'.")
@json_option
def fetch(place: str, into: str, target_name: str, device: str) -> None:
    """Fetch tables from PLACE: all, or those of one device; a table of any other device is refused."""
    found = list(_tables(place))
    if device and not target_name:
        raise UsageError("--device needs --target: which target is it?", "Such as --target raspberry-pi-5.")
    if target_name:
        from edgeprune import devices, target
        from edgeprune.latency import check_device

        profile = devices.reached(target.load(target_name), device)
        with devices.connect(profile, device) as connected:
            fingerprint = connected.probe().fingerprint
        good = []
        refused: TargetError | None = None
        for name, table in found:
            try:
                check_device(table, fingerprint, profile.protocol.unit, name)
                good.append((name, table))
            except TargetError as cause:
                refused = cause
        if not good and refused is not None:
            raise refused
        found = good
    _send(found, _into(into), place)


@command.command("merge")
@click.argument("places", nargs=-1, required=True, metavar="PLACE...")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file to write.")
@json_option
def merge(places: tuple[str, ...], out: Path) -> None:
    """Join tables of one device into one file; those of two devices are refused."""
    from edgeprune.latency import joined

    found = [one for place in places for one in _tables(place)]
    if not found:
        raise RunError(f"{places[0]}: no tables there.")
    whole = found[0][1]
    for name, table in found[1:]:
        try:
            whole = joined(whole, table)
        except TargetError as cause:
            raise TargetError(cause.message.replace("the other table", name), cause.remedy) from None
    whole.save(out)
    if current().as_json:
        echo_json(_facts(str(out), whole))
    else:
        console.say(f"{out}: {len(whole.cells)} cells of {len(found)} tables")


def _send(found: list[tuple[str, Table]], into: str, place: str) -> None:
    from edgeprune.latency import TableStore

    if not found:
        raise RunError(f"{place}: no tables there.", "A run has one after: edgeprune TARGET profile RECIPE.")
    store = TableStore.open(into)
    written = {store.put(table) for _, table in found}
    if current().as_json:
        echo_json({"into": into, "tables": sorted(written)})
        return
    for name in sorted(written):
        console.say(name)


def _into(into: str) -> str:
    place = into or os.environ.get(VARIABLE, "")
    if not place:
        raise UsageError("where to?", f"--into PLACE, or set {VARIABLE}.")
    return place


def _tables(place: str) -> Iterator[tuple[str, Table]]:
    """The tables of a run, of a file, or of a place."""
    from edgeprune.latency import Table, TableStore, sound

    path = Path(place)
    if "://" not in place:
        files = [path / name for name in PLACES if (path / name).is_file()] if path.is_dir() else [path]
        if files:
            yield str(files[0]), sound(Table.load(files[0]), str(files[0]))
            return
    yield from TableStore.open(place).tables()


def _facts(name: str, table: Table) -> dict[str, str | int]:
    known = table.fingerprint
    cpus = known.get("cpus")
    device = str(known.get("model") or ", ".join(dict.fromkeys(map(str, cpus if isinstance(cpus, list) else ["?"]))))
    dates = [cell.date for cell in table.cells.values()]
    return {
        "name": name,
        "device": device,
        "runtime": f"{known.get('runtime', '?')} {known.get('runtime_version', '')}".strip(),
        "threads": int(Facts(known).number("threads") or 0),
        "unit": table.unit,
        "cells": len(table.cells),
        "networks": len(table.networks),
        "runs": sum(len(record.runs) for record in table.networks.values()),
        "last": max(dates, default=""),
    }
