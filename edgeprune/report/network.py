"""What became of the network: time and width of each layer, before and after, and what could not be touched and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeprune.report import plot, words
from edgeprune.report.markup import NOTHING, Html, fold, join, legend, section, table, tag
from edgeprune.result import Facts

DEPTH = "layers, from input to output"


def latency(result: Facts) -> Html:
    """Time of each layer's kernels in the runtime's own profile, dense and pruned INT8."""
    unit = result.text("unit", "ms")
    timed = [layer for layer in result.parts("layers") if layer.number("dense_ms") is not None]
    bars, scale = [], 1e-3 if unit == "instructions" else 1000.0
    drawn = [layer for layer in timed if layer.get("before")]  # the rest belongs to no layer: it is in the table
    for layer in drawn:
        before, after = layer.number("dense_ms") or 0.0, layer.number("pruned_ms")
        after_text = "removed" if layer.get("removed") else words.small((after or 0.0) * scale)
        title = f"{layer.get('name')}: {words.small(before * scale)} → {after_text}"
        bars.append(plot.Bar(title, before * scale, (after or 0.0) * scale, bool(layer.get("removed"))))
    name = f"thousand {unit}" if unit == "instructions" else unit.replace("ms", "µs")
    description = f"Time of each of {len(bars)} layers, dense and pruned; the figures are in the table below."
    rows = [_row(layer, scale) for layer in timed]
    head = ["layer", f"dense, {name}", f"pruned, {name}", "saved"]
    made = table(head, [*rows, _total(timed, scale)] if rows else [], numbers=(1, 2, 3))
    marks = {"before": "dense INT8", "after": "pruned INT8"}
    return section(
        "layers",
        "Latency by layer",
        plot.columns(bars, name, DEPTH, description),
        bars and legend({**marks, "gone": "removed"} if any(bar.gone for bar in bars) else marks),
        fold(f"All {len(bars)} layers as a table", made),
        lead="How the runtime's own profile of the very artifacts divides their latency; a kernel counts for the layer "
        "whose weights it uses; those that use none are in the table, as (other). The sum is the measured median."
        + _behind(result.part("postprocessing"), unit),
    )


def _behind(found: Facts, unit: str) -> str:
    """What the operators behind the last weights cost."""
    counts = found.part("operators")
    if not counts:
        return ""
    named = ", ".join(f"{count} {kind}" if count != 1 else str(kind) for kind, count in counts)
    took, share = words.latency(found.get("latency"), unit), words.percent(found.get("share"), 1)
    return f" Behind the last weights, in float: {named}; {took} of pruned INT8, {share}."


def _row(layer: Facts, scale: float) -> list[Any]:
    before, after = layer.number("dense_ms") or 0.0, layer.number("pruned_ms") or 0.0
    saved = words.percent(1 - after / before, 0) if before > 0 else words.NONE
    shown = "removed" if layer.get("removed") else words.small(after * scale)
    return [tag("code", layer.get("name")), words.small(before * scale), shown, saved]


def _total(layers: Sequence[Facts], scale: float) -> list[Any]:
    sums = {key: sum(layer.number(key) or 0.0 for layer in layers) for key in ("dense_ms", "pruned_ms")}
    return _row(Facts({"name": "sum", **sums}), scale)


def widths(result: Facts) -> Html:
    """Output channels of each layer, before and after."""
    layers = [layer for layer in result.parts("layers") if _has_widths(layer)]
    bars = []
    for layer in layers:
        before, after, gone = _width(layer, "before"), _width(layer, "after"), bool(layer.get("removed"))
        form = f", {layer.get('option')}" if layer.get("option") else ""
        change = "removed" if gone else f"{after} of {before} channels{form}"
        bars.append(plot.Bar(f"{layer.get('name')}: {change}", float(before), float(after), gone))
    rows = [
        [
            tag("code", layer.get("name")),
            _change(layer, 0),
            _change(layer, 1),
            tag("code", layer.get("group")) if layer.get("group") else words.NONE,
        ]
        for layer in layers
    ]
    removed = [str(layer.get("name")) for layer in layers if layer.get("removed")]
    lead = f"{len(removed)} of {len(layers)} layers are gone with their blocks." if removed else None
    description = f"Output channels of each of {len(bars)} layers before and after; the table below has the numbers."
    marks = {"before": "before", "after": "after"}
    return section(
        "widths",
        "Widths before and after",
        plot.columns(bars, "output channels", DEPTH, description),
        bars and legend({**marks, "gone": "removed"} if removed else marks),
        fold(f"All {len(rows)} layers as a table", table(["layer", "in", "out", "group"], rows, numbers=(1, 2))),
        lead=lead,
    )


def _has_widths(layer: Facts) -> bool:
    return all(len(layer.listed(side)) == 2 for side in ("before", "after"))


def _width(layer: Facts, when: str, side: int = 1) -> int:
    """Channels that go in (side 0) or come out; raises TypeError where that is no number."""
    found = layer.listed(when)[side]
    if not isinstance(found, int | float):
        raise TypeError(f"{type(found).__name__} where a number of channels belongs")
    return int(found)


def _change(layer: Facts, side: int) -> str:
    before, after = _width(layer, "before", side), _width(layer, "after", side)
    if layer.get("removed"):
        return f"{before} → removed"
    return f"{before}" if before == after else f"{before} → {after}"


def frozen(result: Facts) -> Html:
    """What could not be narrowed, and why."""
    rows = []
    for entry in result.parts("frozen"):
        where = join([tag("code", text) for text in (entry.get("operator"), entry.get("source")) if text], " ")
        held = [str(name) for name in entry.listed("blocks")]
        rows.append([entry.text("what"), entry.text("why"), where, _names(held)])
    lead = "These widths stay as they are, whatever the budget."
    return section(
        "frozen", "Frozen, and why", table(["what", "why", "operator, source", "holds"], rows, stack=True), lead=lead
    )


def _names(names: Sequence[str]) -> Html:
    if not names:
        return NOTHING
    shown = join([tag("code", name) for name in names[:3]], ", ")
    return join([shown, f" and {len(names) - 3} more"]) if len(names) > 3 else shown
