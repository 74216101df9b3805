"""`edgeprune report RUN`: the report page of a run, written again from its result.json."""

from __future__ import annotations

from pathlib import Path

import click

from edgeprune import files
from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option
from edgeprune.errors import RunError


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to write it; RUN/report.html.")
@click.option(
    "--sarif",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the linter's findings on the INT8 graph too.",
)
@json_option
def command(run: Path, out: Path | None, sarif: Path | None) -> None:
    """Write a run's report page again from its result.json.

    RUN is a run directory, such as runs/cifar10. The page is one file and needs no network.
    """
    from edgeprune import report

    result = read_result(run)
    path = out or run / "report.html"
    report.write(result, path)
    if sarif is not None:
        made = report.sarif(result, (run / "quantize" / "pruned-int8.onnx").as_posix())
        try:
            sarif.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(sarif, made)
        except OSError as cause:
            raise RunError(f"{sarif}: cannot be written ({files.reason(cause)}).", "Choose another file.") from None
    if current().as_json:
        written = {} if sarif is None else {"sarif": str(sarif)}
        echo_json({"report": str(path), "verdict": result.get("verdict"), **written})
    else:
        console.say(path)


def read_result(run: Path) -> dict[str, object]:
    """The result.json of a run directory; raises RunError."""
    file = run / "result.json"
    missing = "Give a run directory, such as runs/cifar10; it appears with: edgeprune TARGET run RECIPE."
    data = files.read_json(file, RunError, "Make it again: edgeprune TARGET validate RECIPE.", missing=missing)
    if not isinstance(data, dict):
        raise RunError(f"{file}: not a result.", "Make it again: edgeprune TARGET validate RECIPE.")
    return data
