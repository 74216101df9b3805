"""The accuracy-latency front of one network: a plot, and the same figures as a table, one point a row."""

from __future__ import annotations

from typing import Any

from edgeprune.report import plot, words
from edgeprune.report.markup import NOTHING, Html, definitions, figure, join, legend, section, table
from edgeprune.result import Front, FrontPoint, number, quantity

KINDS = {"float": "repaired, not trained (selection split, float)", "ours": "released (test split, INT8 on the device)"}
HEAD = ("point", "latency", "speed-up", "score", "released", "loss", "agreement", "certificate", "blocks gone", "says")
SAID = {"release": "released", "refused": "refused by a gate", "unverified": "not verified"}
LEAD = (
    "Each point is the best network for its budget by one table and one set of curves, as its closure measured it. The "
    "certificate: but for this gap no network within the budget has a smaller loss by those curves and that table."
)


def section_of(found: Front) -> Html:
    """A section for front.json."""
    facts = {
        "dense INT8": f"{found.dense:.4g} {found.unit}",
        "fastest network measured": f"{found.max_speedup:.2f}x",
        f"dense {found.metric}": quantity(found.dense_score, "", found.scale),
        "time": words.seconds(found.seconds),
    }
    rows = [_row(one, found) for one in found.points]
    shown = table(HEAD, rows, range(1, 9), only_filled=True)
    return section("front", "Front", definitions(facts), _plot(found), shown, lead=LEAD)


def _row(one: FrontPoint, found: Front) -> list[Any]:
    if one.why or one.latency is None or one.measured is None:
        return [one.label, *[""] * 8, one.why]
    tried = f"measured {one.networks} network{'s' * (one.networks != 1)} in {one.seconds:.0f} s"
    return [
        one.label,
        f"{one.latency:.4g} {found.unit}",
        f"{one.measured:.3f}x",
        quantity(one.score, "", found.scale),
        "" if one.released is None else quantity(one.released, "", found.scale),
        number(one.loss, ""),
        "" if one.agreement is None else words.percent(one.agreement, 1),
        words.percent(one.gap, 2),
        str(one.removed),
        "; ".join(filter(None, [one.beaten, SAID.get(one.verdict, tried)])),
    ]


def _plot(found: Front) -> Html:
    marks, line = [], []
    for one in found.points:
        if one.latency is None or one.score is None:
            continue
        title = f"{one.label}: {one.latency:.4g} {found.unit}, score {one.score:.4g}"
        marks.append(plot.Mark(one.latency, one.score, "float", one.label, title))
        if not one.better:
            line.append((one.latency, one.score))
        if one.released is not None:
            marks.append(plot.Mark(one.latency, one.released, "ours", "", f"{one.label}: released"))
    if found.dense_score is not None:
        marks.append(plot.Mark(found.dense, found.dense_score, "before", "dense", "the dense network, in INT8's time"))
        line.append((found.dense, found.dense_score))
    if len(marks) < 2:
        return NOTHING
    name = f"{found.metric}{f', {found.scale}' if found.scale else ''}"
    text = "Score against latency, one mark a point."
    drawn = plot.scatter(marks, f"latency, {found.unit}", name, text, line=sorted(line))
    kinds = {kind: said for kind, said in KINDS.items() if any(mark.kind == kind for mark in marks)}
    return figure(join([f"The front. {text}", legend(kinds)]), drawn)
