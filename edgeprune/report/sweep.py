"""All runs of a sweep on one page: a plot for each network on each target, and one row a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgeprune.report import plot, words
from edgeprune.report.markup import Html, definitions, figure, join, legend, section, table, tag
from edgeprune.result import SweepReport, SweepRow, number, quantity

PLOTS = 24  # networks on targets that are drawn
HEAD = (
    "run", "budget", "state", "score", "drop, at most", "latency", "speed-up", "bytes", "time", "made", "taken over"
)  # fmt: skip
LEAD = "Time and stages of all calls; a stage that was taken over was made by a run that shares it."
KINDS = {"ours": "released", "float": "refused, or not verified"}


def sections_of(found: SweepReport, folder: Path) -> Html:
    """The sections of sweep.json; links are relative to `folder`, where the page lies."""
    states = {name: sum(row.state == name for row in found.rows) for name in dict.fromkeys(r.state for r in found.rows)}
    made, taken = (sum(len(getattr(row, name)) for row in found.rows) for name in ("made", "taken"))
    facts = {
        "runs": ", ".join(f"{count} {name}" for name, count in states.items()),
        "tasks": f"{found.done} of {found.tasks} done in this call, {found.engine}",
        "time": words.seconds(found.seconds),
        "stages": f"{made} made, {taken} taken over from runs that share them",
    }
    groups: dict[tuple[str, str], list[SweepRow]] = {}
    for row in found.rows:
        groups.setdefault((row.recipe, row.target), []).append(row)
    plots = [_plot(rows, f"{recipe} on {target}") for (recipe, target), rows in list(groups.items())[:PLOTS]]
    rows = [_cells(row, folder) for row in found.rows]
    reasons = [[row.run, row.state, row.why] for row in found.rows if row.why]
    return join(
        [
            section("sweep", "Sweep", definitions(facts), plots),
            section("runs", "Runs", table(HEAD, rows, range(3, 11), only_filled=True), lead=LEAD if rows else None),
            section("reasons", "Why not", table(("run", "state", "why"), reasons, stack=True)),
        ]
    )


def _cells(row: SweepRow, folder: Path) -> list[object]:
    page = Path(row.folder) / "report.html"
    name: object = row.run
    if page.is_file():
        name = tag("a", row.run, href=os.path.relpath(page, folder))
    drop = "" if row.drop is None else f"{number(row.drop)} ({number(row.drop_high)})"
    return [
        name,
        row.budget,
        row.state,
        quantity(row.score, "", "") if row.score is not None else "",
        drop,
        f"{row.latency:.4g} {row.unit}" if row.latency is not None else "",
        f"{row.speedup:.3f}x" if row.speedup is not None else "",
        f"{row.bytes:,}" if row.bytes is not None else "",
        words.seconds(row.seconds),
        str(len(row.made)),
        str(len(row.taken)),
    ]


def _plot(rows: Sequence[SweepRow], title: str) -> Html | None:
    marks = [
        plot.Mark(
            row.latency,
            row.score,
            "ours" if row.state == "release" else "float",
            row.budget,
            f"{row.run}: {row.score:.4g}, {row.latency:.4g} {row.unit}",
        )
        for row in rows
        if row.latency is not None and row.score is not None
    ]
    if len(marks) < 2:
        return None
    name = next(row.metric for row in rows if row.metric)
    unit = next(row.unit for row in rows if row.unit)
    line = sorted((mark.x, mark.y) for mark in marks)
    drawn = plot.scatter(marks, f"latency, {unit}", name, f"{title}: score against latency.", line=line, height=260)
    kinds = {kind: said for kind, said in KINDS.items() if any(mark.kind == kind for mark in marks)}
    return figure(join([title, legend(kinds)]), drawn)
