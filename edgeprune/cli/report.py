"""`edgeprune report RUN`: the report page of a run, written again from its result.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgeprune.cli.session import current, echo_json, json_option
from edgeprune.errors import RunError


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to write it; RUN/report.html.")
@json_option
def command(run: Path, out: Path | None) -> None:
    """Write a run's report page again from its result.json.

    RUN is a run directory, such as runs/cifar10. The page is one file and needs no network.
    """
    from edgeprune import report

    result = read_result(run)
    path = out or run / "report.html"
    report.write(result, path)
    if current().as_json:
        echo_json({"report": str(path), "verdict": result.get("verdict")})
    else:
        click.echo(str(path))


def read_result(run: Path) -> dict[str, Any]:
    """The result.json of a run directory; raises RunError."""
    file = run / "result.json"
    try:
        data = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        remedy = "Give a run directory, such as runs/cifar10; it appears with: edgeprune TARGET run RECIPE."
        raise RunError(f"{file}: no such file.", remedy) from None
    except ValueError as cause:
        raise RunError(f"{file}: damaged ({cause}).", "Make it again: edgeprune TARGET validate RECIPE.") from None
    if not isinstance(data, dict):
        raise RunError(f"{file}: not a result.", "Make it again: edgeprune TARGET validate RECIPE.")
    return data
