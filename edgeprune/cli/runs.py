"""`edgeprune runs [FOLDER]`: the runs that lie there, with verdict, size and age; `--clean` removes some."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from edgeprune import files, stage
from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option
from edgeprune.errors import RunError, UsageError

LOCK, EVENTS, RECIPE = ".lock", "events.jsonl", "recipe.lock.toml"
DAY = 86400.0
LINE = 1 << 16  # bytes of the last line, at most


@dataclass(frozen=True)
class ListedRun:
    """One run directory.

    Attributes:
        verdict: "release", "refused", "unverified"; before that, the last stage that is whole, or "nothing yet".
        size: bytes of all its files.
        age: seconds since something in it was written.
        busy: an edgeprune is at work in it.
        bundles: names of the bundles in release/.
    """

    path: Path
    target: str
    verdict: str
    size: int
    age: float
    busy: bool
    bundles: tuple[str, ...]


@click.command("runs")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"))
@click.option("--clean", is_flag=True, help="Remove runs that hold no release; asks first.")
@click.option("--older", type=click.FloatRange(0), metavar="DAYS", default=0.0, help="With --clean: only these.")
@click.option("--released", is_flag=True, help="With --clean: runs with a release too.")
@click.option("--yes", is_flag=True, help="With --clean: do not ask.")
@json_option
def command(folder: Path, clean: bool, older: float, released: bool, yes: bool) -> None:
    """List the runs in FOLDER (runs/ where nothing is said), the newest first; or clean up.

    --clean removes whole run directories: those that were refused or never came to a verdict. A run with a release,
    one that is under way, and what is no run of edgeprune are never touched; --released takes the first of these too.
    """
    if not clean and (yes or older or released):
        raise UsageError("--yes, --older and --released belong to --clean.", f"edgeprune runs {folder} --clean")
    found = listed(folder)
    gone = [one for one in found if _may_go(one, older, released)] if clean else []
    if clean and gone and not yes:
        if current().as_json or not sys.stdin.isatty():
            raise UsageError(f"--clean would remove {len(gone)} runs.", "On no terminal it needs --yes.")
        _show(gone)
        total = f"{len(gone)} runs, {_size(sum(one.size for one in gone))}"
        click.confirm(f"Remove these {total}?", abort=True, err=True)
    for one in gone:
        _remove(one)
    if current().as_json:
        key = "removed" if clean else "runs"
        echo_json({key: [asdict(one) for one in (gone if clean else found)]})
    elif clean:
        freed = _size(sum(one.size for one in gone))
        console.say(f"removed {len(gone)} of {len(found)} runs, {freed}" if gone else "nothing to remove")
    else:
        _show(found)


def listed(folder: Path) -> list[ListedRun]:
    """The runs in a folder, or the folder itself where it is one; the newest first. Raises RunError."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder.", "Runs are kept in runs/ where --run-dir says nothing else.")
    paths = [folder] if _is_run(folder) else sorted(folder.iterdir())
    found = [_look(path) for path in paths if _is_run(path) and not path.is_symlink()]
    return sorted(found, key=lambda one: one.age)


def _is_run(path: Path) -> bool:
    """`plan` alone leaves no recipe there, but its lock and its events."""
    return (path / RECIPE).is_file() or all((path / name).is_file() for name in (LOCK, EVENTS))


def _look(path: Path) -> ListedRun:
    size, newest = 0, path.stat().st_mtime
    for place, _, names in os.walk(path):
        for name in names:
            about = (Path(place) / name).lstat()
            size, newest = size + about.st_size, max(newest, about.st_mtime)
    bundles = tuple(sorted(one.name for one in (path / "release").glob("*.tar")))
    known = files.read_toml(path / RECIPE, RunError) if (path / RECIPE).is_file() else {}
    return ListedRun(
        path, str(known.get("target", "")), _verdict(path), size, max(0.0, time.time() - newest), _busy(path), bundles
    )


def _verdict(path: Path) -> str:
    if (path / "result.json").is_file():
        try:
            given = files.read_json(path / "result.json", RunError)
        except RunError:
            return "result.json is damaged"
        if isinstance(given, dict) and given.get("verdict"):
            return str(given["verdict"])
    whole = [name for name in stage.NAMES if (path / name / "stage.json").is_file()]
    ended = f" ({error})" if (error := _stopped(path)) else ""
    return f"until {whole[-1]}{ended}" if whole else f"nothing yet{ended}"


def _stopped(path: Path) -> str:
    """The error that the last command there ended with; empty: none."""
    try:
        with (path / EVENTS).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LINE))
            line = log.read().splitlines()[-1]
        last = files.parse_json(line, RunError, EVENTS)
    except (OSError, IndexError, RunError):
        return ""
    return str(last.get("error", ""))[:40] if isinstance(last, dict) and last.get("event") == "stopped" else ""


def _busy(path: Path) -> bool:
    """Does another process hold the run?"""
    try:
        with (path / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _may_go(one: ListedRun, older: float, released: bool) -> bool:
    return not one.busy and one.age >= older * DAY and (released or not one.bundles)


def _remove(one: ListedRun) -> None:
    """The whole directory, while holding its lock, so that no run begins in it meanwhile."""
    with (one.path / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{one.path} is in use by another edgeprune.", "Wait for it; the others are done.") from None
        shutil.rmtree(one.path)


def _show(found: list[ListedRun]) -> None:
    if not found:
        console.say("no runs")
        return
    made = console.table(
        run="run", target="target", verdict="verdict", size="size", age="age", bundle="bundle", right="size,age"
    )
    for one in found:
        verdict = f"{one.verdict} (under way)" if one.busy else one.verdict
        made.add_row(str(one.path), one.target, verdict, _size(one.size), _age(one.age), ", ".join(one.bundles))
    console.show(made)
    console.say(f"{len(found)} run{'s'[: len(found) > 1]}, {_size(sum(one.size for one in found))}")


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def _age(seconds: float) -> str:
    for unit, length in (("days", DAY), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            return f"{seconds / length:.0f} {unit}"
    return "now"
