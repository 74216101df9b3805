"""How good the latency table is: networks that it had not seen, as predicted and as measured."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.report import plot, words
from edgeprune.report.markup import NOTHING, Html, definitions, figure, join, legend, section, table
from edgeprune.result import Facts

KINDS = {"ours": "the table", "before": "a model that knows only MACs"}


def account(found: Facts) -> Html:
    """A section for `profile.json`: the errors, the plot, and the same figures as a table."""
    columns = [_numbers(found, key) for key in ("measured", "predicted", "predicted_by_macs")]
    rows = [
        [str(index + 1), *(f"{value:.3f}" for value in values)]
        for index, values in enumerate(zip(*columns, strict=False))
    ]
    facts = {
        "cells": words.plain(found.get("cells")),
        "networks measured": words.plain(found.get("networks")),
        "time": words.seconds(found.get("seconds")),
        "error on unseen networks": _errors(found.part("errors")),
        "by MACs alone": _errors(found.part("by_macs")),
    }
    return section(
        "table",
        "Latency table",
        definitions(facts),
        predicted(found),
        table(["unseen network", "measured", "predicted", "by MACs"], rows, range(1, 4), "Latency over dense INT8."),
    )


def predicted(unseen: Facts, steps: Sequence[tuple[float, float]] = ()) -> Html:
    """Predicted against measured latency, both over dense INT8.

    Args:
        unseen: has equally long `measured`, `predicted` and `predicted_by_macs`.
        steps: closure's networks, (measured, predicted): those were predicted first, too.
    """
    points = []
    for key, kind in (("predicted_by_macs", "before"), ("predicted", "ours")):
        for x, y in zip(_numbers(unseen, "measured"), _numbers(unseen, key), strict=False):
            points.append(plot.Mark(x, y, kind, "", f"measured {x:.3f}, {KINDS[kind]} said {y:.3f}"))
    for x, y in steps:
        points.append(plot.Mark(x, y, "ours", "", f"closure: measured {x:.3f}, predicted {y:.3f}"))
    if len(points) < 2:
        return NOTHING
    most = max(max(point.x, point.y) for point in points)
    drawn = plot.scatter(
        points,
        "measured / dense INT8",
        "predicted / dense INT8",
        "Predicted against measured latency.",
        line=[(0.0, 0.0), (most, most)],
        height=280,
    )
    kinds = {kind: text for kind, text in KINDS.items() if any(point.kind == kind for point in points)}
    text = "Networks that the latency table had not seen when it predicted them; on the line they would be exact."
    return figure(join([text, legend(kinds)]), drawn)


def _errors(errors: Facts) -> str:
    return f"{words.percent(errors.get('median'), 1)} (median), {words.percent(errors.get('p90'), 1)} (p90)"


def _numbers(found: Facts, name: str) -> list[float]:
    """A list of numbers; raises TypeError where one is none."""
    values = [words.finite(value) for value in found.listed(name)]
    if None in values:
        raise TypeError(f"{name} is not all numbers")
    return [value for value in values if value is not None]
