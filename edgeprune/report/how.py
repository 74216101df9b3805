"""How it was found: the search and its certificate, the recovery of accuracy, and the INT8 calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeprune.report import latency, plot, words
from edgeprune.report.markup import NOTHING, Html, definitions, figure, fold, join, legend, section, table, tag

MOST_CURVES = 24


def search(result: Mapping[str, Any]) -> Html:
    """Method, certificate, front, tried widths, curves, and how good the latency table was."""
    found = result.get("search") or {}
    return section(
        "search",
        "Search",
        definitions(_certificate(found, str(result.get("unit", "ms")))),
        _tried(found),
        _front(found, str(result.get("unit", "ms"))),
        latency.predicted(found.get("table") or {}, (found.get("closure") or {}).get("steps")),
        _rounds(found, str(result.get("unit", "ms"))),
        _curves(found),
    )


def _certificate(found: Mapping[str, Any], unit: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if found.get("method"):
        facts["method"] = found["method"]
    gap = words.finite(found.get("gap"))
    if gap is not None:
        facts["certificate"] = (
            f"no network in the table within the budget has a loss more than {words.percent(gap, 3)} smaller. "
            "This certifies the table and the loss curves, not the accuracy."
        )
    if len(found.get("options") or ()) == 2:
        facts["options"] = f"{found['options'][0]:,}, of which {found['options'][1]:,} could win"
    for key, label in (("predicted", "predicted"), ("floor", "floor: all widths at their narrowest")):
        if words.finite(found.get(key)) is not None:
            facts[label] = words.latency(found[key], unit)
    ratios = [words.finite(found.get(key)) for key in ("measured_ratio", "budget_ratio")]
    if None not in ratios:
        facts["measured before training"] = f"{ratios[0]:.3f} of dense INT8; the budget is {ratios[1]:.3f}"
    error = found.get("table") or {}
    if words.finite(error.get("median_error")) is not None:
        facts["latency table"] = (
            f"{error.get('cells', '?')} cells; on {error.get('n', '?')} networks that it had not seen it errs by "
            f"{words.percent(error['median_error'], 1)} (median), {words.percent(error.get('p90_error'), 1)} (p90)"
        )
    if found.get("removed"):
        facts["blocks removed"] = words.plain(found["removed"])
    for key, label in (("fraction", "removed everywhere"), ("agreement", "same class as dense, after repair")):
        if words.finite(found.get(key)) is not None:
            facts[label] = words.percent(found[key], 0 if key == "fraction" else 1)
    if words.finite(found.get("seconds")) is not None:
        facts["time"] = f"{words.seconds(found['seconds'])} {words.plain(found.get('solver') or '')}".rstrip(
            f" {words.NONE}"
        )
    return facts


def _tried(found: Mapping[str, Any]) -> Html:
    """Uniform widths that were built and measured."""
    tried = words.points(found.get("tried"), "fraction", "ratio")
    if len(tried) < 2:
        return NOTHING
    chosen = words.finite(found.get("fraction"))
    points = [
        plot.Point(
            100 * fraction,
            ratio,
            "ours" if fraction == chosen else "dense",
            "chosen" if fraction == chosen else "",
            f"{words.percent(fraction, 0)} removed: {ratio:.3f} of dense INT8",
        )
        for fraction, ratio in tried
    ]
    line = sorted((point.x, point.y) for point in points)
    drawn = plot.scatter(
        points, "removed, %", "latency / dense INT8", "Uniform widths as measured.", line=line, height=240
    )
    return figure("Each point is a network that was built and measured on the device.", drawn)


def _front(found: Mapping[str, Any], unit: str) -> Html:
    """The program's best network for each budget, and the one that was chosen."""
    scale, name = (
        (1e-6, f"predicted, million {unit}") if unit == "instructions" else (1.0, f"predicted latency, {unit}")
    )
    line = sorted(words.points(found.get("front"), "ms", "loss"))
    points = [plot.Point(x * scale, y, "before", "", f"{words.latency(x, unit)}: loss {y:.3g}") for x, y in line]
    chosen = words.points([found], "predicted", "surrogate")
    for x, y in chosen:
        points.append(plot.Point(x * scale, y, "ours", "chosen", f"chosen: {words.latency(x, unit)}, loss {y:.3g}"))
    if len(line) < 2:
        return NOTHING
    budget = words.finite(found.get("budget"))
    within = f" The budget is {words.latency(budget, unit)}." if budget is not None else ""
    trend = [(x * scale, y) for x, y in line]
    drawn = plot.scatter(points, name, "loss", "The front of loss against latency.", line=trend, height=260)
    return figure(f"The best network for each budget: predicted loss against predicted latency.{within}", drawn)


def _rounds(found: Mapping[str, Any], unit: str) -> Html:
    """Every answer of the program that was truly evaluated."""
    rows = [
        [
            str(number),
            words.latency(entry.get("ms"), unit, named=False),
            words.small(entry.get("predicted")),
            words.small(entry.get("loss")),
            words.percent(entry.get("agreement"), 1),
            len(entry.get("removed") or ()),
        ]
        for number, entry in enumerate(found.get("rounds") or (), start=1)
        if isinstance(entry, Mapping)
    ]
    head = ["round", f"predicted, {unit}", "loss, curves", "loss, evaluated", "agrees", "blocks removed"]
    return table(head, rows, range(1, 6), "Answers that were repaired and evaluated; curves know no interactions.")


def _curves(found: Mapping[str, Any]) -> Html:
    """What narrowing each group and removing each block costs; one small picture a group."""
    curves = found.get("curves") or {}
    widths, losses = curves.get("widths") or {}, curves.get("losses") or {}
    drawn = []
    for name, kept in widths.items():
        pairs = zip(map(words.finite, kept or ()), map(words.finite, losses.get(name) or ()), strict=False)
        points = [(width, loss) for width, loss in pairs if width is not None and loss is not None]
        if len(points) > 1:
            drawn.append(tag("div", _small(points), tag("p", f"{name}, to {points[-1][0]:.0f} channels")))
    more = f" The first {MOST_CURVES} of {len(drawn)} groups." if len(drawn) > MOST_CURVES else ""
    hint = tag("p", f"Measured loss (up) against channels kept (right).{more}", cls="lead")
    pictures = [hint, tag("div", drawn[:MOST_CURVES], cls="small-plots")] if drawn else []
    blocks = [[tag("code", name), words.small(loss)] for name, loss in (curves.get("blocks") or {}).items()]
    return join(
        [
            fold(f"What each group's width costs ({len(drawn)} groups)", pictures),
            fold(f"What each block costs ({len(blocks)} blocks)", table(["without", "loss"], blocks, numbers=(1,))),
        ]
    )


def _small(points: Sequence[tuple[float, float]]) -> Html:
    frame = plot.Frame(150, 70, plot.padded([x for x, _ in points]), plot.padded([y for _, y in points]), 4, 6, 6, 4)
    line = tag("polyline", points=" ".join(f"{frame.px(x)},{frame.py(y)}" for x, y in points), cls="line after")
    marks = [
        tag(
            "circle",
            tag("title", f"{x:.0f} channels: {y:.3g}"),
            cx=frame.px(x),
            cy=frame.py(y),
            r=2.5,
            cls="mark after",
        )
        for x, y in points
    ]
    base = tag("line", x1=4, x2=146, y1=64, y2=64, cls="axis")
    return plot.svg(150, 70, base, line, *marks)


def recovery(result: Mapping[str, Any]) -> Html:
    """Accuracy on held-out training images: dense, pruned, repaired, trained; and while training."""
    found = result.get("recover") or {}
    held, training = found.get("selection_accuracy") or {}, found.get("training") or {}
    names = {"dense": "dense", "pruned": "pruned", "repaired": "repaired by least squares", "trained": "fine-tuned"}
    steps = [[names[key], words.percent(held[key])] for key in names if words.finite(held.get(key)) is not None]
    history = [(epoch, 100 * value) for epoch, value in words.points(training.get("history"), "epoch", "accuracy")]
    dense = words.finite(held.get("dense"))
    drawn = plot.lines(
        [("after", history)],
        "epochs",
        "top-1 on held-out images, %",
        f"Accuracy while training, {len(history)} evaluations.",
        level=None if dense is None else 100 * dense,
    )
    facts = {}
    if training.get("steps"):
        facts["training"] = (
            f"{words.plain(training.get('epochs'))} epochs, {training['steps']:,} steps, "
            f"{words.seconds(training.get('seconds'))}, {training.get('precision', '')}"
        )
    if words.finite(training.get("best_accuracy")) is not None:
        best = words.percent(training["best_accuracy"])
        facts["kept"] = f"the weights of epoch {words.plain(training.get('best_epoch'))}: {best}"
    if training.get("resumed"):
        facts["resumed"] = f"at step {training['resumed']:,}, after an interruption"
    return section(
        "recovery",
        "Recovery",
        table(["network in float", "top-1, held-out images"], steps, numbers=(1,)),
        figure(legend({"after": "while training", "limit": "dense"}) if dense else NOTHING, drawn)
        if drawn
        else NOTHING,
        definitions(facts),
        lead="Measured on training images that are held out to choose by; the test images are only for the gates.",
    )


def calibration(result: Mapping[str, Any]) -> Html:
    """Signal to noise of each layer in INT8, the ranges, and whatever looked wrong."""
    found = result.get("quantize") or {}
    ranges = found.get("ranges") or {}
    layers, tensors = words.entries(ranges.get("layers")), words.entries(ranges.get("tensors"))
    noise = [(str(name), words.finite(entry.get("sqnr_db"))) for name, entry in layers.items()]
    bars = [plot.Bar(f"{name}: {value:.1f} dB", max(0.0, value), None) for name, value in noise if value is not None]
    description = f"Signal to quantisation noise of {len(bars)} layers in decibels; the table below has the numbers."
    facts: dict[str, Any] = {}
    if ranges.get("images"):
        facts["images"] = f"{ranges['images']:,}, from the training split"
    if found.get("dialect"):
        facts["scheme"] = found["dialect"]
    floats = sorted(name for name, kind in (ranges.get("precision") or {}).items() if kind == "float")
    if floats:
        facts["left in float"] = ", ".join(floats)
    lint = [f"{entry.get('node', '')}: {entry.get('why', '')}" for entry in found.get("lint") or ()]
    warnings = [tag("p", text, cls="warning") for text in (*(ranges.get("warnings") or ()), *lint)]
    return section(
        "calibration",
        "Calibration",
        definitions(facts),
        warnings,
        plot.columns(bars, "SQNR, dB", DEPTH, description, height=200),
        fold(f"Signal to noise of {len(layers)} layers", _noise(layers)),
        fold(f"Ranges of {len(tensors)} tensors", _ranges(tensors)),
        lead="Signal to quantisation noise at each layer's output, with every layer before it in INT8 too."
        if bars
        else None,
    )


DEPTH = "layers, from input to output"


def _noise(layers: Mapping[str, Any]) -> Html:
    keys = ("weight_sqnr_db", "input_sqnr_db", "sqnr_db")
    rows = [[tag("code", name), *(_decibels(entry.get(key)) for key in keys)] for name, entry in layers.items()]
    return table(["layer", "weights alone, dB", "input alone, dB", "all before it, dB"], rows, numbers=(1, 2, 3))


def _decibels(value: Any) -> str:
    number = words.finite(value)
    return words.NONE if number is None else f"{number:.1f}"


def _ranges(tensors: Mapping[str, Any]) -> Html:
    rows = []
    for name, entry in tensors.items():
        counts = [float(value) for value in entry.get("counts") or ()]
        seen = f"{words.small(entry.get('minimum'))} … {words.small(entry.get('maximum'))}"
        chosen = f"{words.small(entry.get('low'))} … {words.small(entry.get('high'))}"
        rows.append(
            [tag("code", name), chosen, seen, entry.get("method", ""), _decibels(entry.get("sqnr_db")), _fewer(counts)]
        )
    return table(["tensor", "range", "seen", "method", "SQNR, dB", "values seen"], rows, numbers=(1, 2, 4))


def _fewer(counts: Sequence[float], most: int = 32) -> Html:
    """A histogram of at most `most` bars."""
    if not counts:
        return NOTHING
    size = -(-len(counts) // most)
    return plot.spark([sum(counts[start : start + size]) for start in range(0, len(counts), size)])
