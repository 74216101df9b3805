"""How it was found: the search and its certificate, the recovery of accuracy, and the INT8 calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgeprune import result as results
from edgeprune.report import latency, plot, words
from edgeprune.report.markup import NOTHING, Html, definitions, figure, fold, join, legend, section, table, tag
from edgeprune.result import Facts

MOST_CURVES = 24
MOST_POINTS = 200  # of one curve


def search(result: Facts) -> Html:
    """Method, certificate, front, tried widths, curves, and how good the latency table was."""
    found, unit = result.part("search"), result.text("unit", "ms")
    return section(
        "search",
        "Search",
        definitions(_certificate(found, unit)),
        _tried(found),
        _front(found, unit),
        latency.predicted(
            found.part("table").part("unseen"), found.part("closure").points("steps", "measured", "predicted")
        ),
        _rounds(found, unit),
        _curves(found),
    )


def _certificate(found: Facts, unit: str) -> dict[str, object]:
    facts: dict[str, object] = {}
    if found.get("method"):
        facts["method"] = found.get("method")
    gap = found.number("gap")
    if gap is not None:
        facts["certificate"] = (
            f"no network in the table within the budget has a loss more than {words.percent(gap, 3)} smaller. "
            "This certifies the table and the loss curves, not the accuracy."
        )
    options = [number for number in found.listed("options") if isinstance(number, int)]
    if len(options) == 2:
        facts["options"] = f"{options[0]:,}, of which {options[1]:,} could win"
    for key, label in (("predicted", "predicted"), ("floor", "floor: all widths at their narrowest")):
        if found.number(key) is not None:
            facts[label] = words.latency(found.get(key), unit)
    measured, budget = found.number("measured_ratio"), found.number("budget_ratio")
    if measured is not None and budget is not None:
        facts["measured before training"] = f"{measured:.3f} of dense INT8; the budget is {budget:.3f}"
    error = found.part("table")
    if error.number("median_error") is not None:
        facts["latency table"] = (
            f"{error.text('cells', '?')} cells; on {error.text('n', '?')} networks that it had not seen it errs by "
            f"{words.percent(error.get('median_error'), 1)} (median), {words.percent(error.get('p90_error'), 1)} (p90)"
        )
    if found.get("removed"):
        facts["blocks removed"] = words.plain(found.get("removed"))
    for key, label in (("fraction", "removed everywhere"), ("agreement", "same class as dense, after repair")):
        if found.number(key) is not None:
            facts[label] = words.percent(found.get(key), 0 if key == "fraction" else 1)
    if found.number("seconds") is not None:
        took = words.seconds(found.get("seconds"))
        facts["time"] = f"{took} {words.plain(found.get('solver') or '')}".rstrip(f" {words.NONE}")
    return facts


def _tried(found: Facts) -> Html:
    """Uniform widths that were built and measured."""
    tried = found.points("tried", "fraction", "ratio")
    if len(tried) < 2:
        return NOTHING
    chosen = found.number("fraction")
    points = [
        plot.Mark(
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


def _front(found: Facts, unit: str) -> Html:
    """The program's best network for each budget, and the one that was chosen."""
    scale, name = (
        (1e-6, f"predicted, million {unit}") if unit == "instructions" else (1.0, f"predicted latency, {unit}")
    )
    line = sorted(found.points("front", "ms", "loss"))
    points = [plot.Mark(x * scale, y, "before", "", f"{words.latency(x, unit)}: loss {y:.3g}") for x, y in line]
    x, y = found.number("predicted"), found.number("surrogate")
    if x is not None and y is not None:
        points.append(plot.Mark(x * scale, y, "ours", "chosen", f"chosen: {words.latency(x, unit)}, loss {y:.3g}"))
    if len(line) < 2:
        return NOTHING
    budget = found.number("budget")
    within = f" The budget is {words.latency(budget, unit)}." if budget is not None else ""
    trend = [(x * scale, y) for x, y in line]
    drawn = plot.scatter(points, name, "loss", "The front of loss against latency.", line=trend, height=260)
    return figure(f"The best network for each budget: predicted loss against predicted latency.{within}", drawn)


def _rounds(found: Facts, unit: str) -> Html:
    """Every answer of the program that was truly evaluated."""
    rows = [
        [
            str(number),
            words.latency(entry.get("ms"), unit, named=False),
            _loss(entry.get("predicted")),
            _loss(entry.get("loss")),
            words.percent(entry.get("agreement"), 1),
            len(entry.listed("removed")),
        ]
        for number, entry in enumerate(found.parts("rounds"), start=1)
    ]
    head = ["round", f"predicted, {unit}", "loss, curves", "loss, evaluated", "agrees", "blocks removed"]
    return table(head, rows, range(1, 6), "Answers that were repaired and evaluated; curves know no interactions.")


def _loss(value: object) -> str:
    """Three significant digits, the last zeros too: they stand below each other."""
    number = words.finite(value)
    return words.small(value) if number is None or abs(number) >= 100 else f"{number:#.3g}"


def _curves(found: Facts) -> Html:
    """What narrowing each group and removing each block costs; one small picture a group."""
    curves = found.part("curves")
    widths, losses = curves.part("widths"), curves.part("losses")
    drawn = []
    for name, _ in widths:
        pairs = zip(map(words.finite, widths.listed(name)), map(words.finite, losses.listed(name)), strict=False)
        points = [(width, loss) for width, loss in pairs if width is not None and loss is not None]
        if len(points) > 1:
            drawn.append(tag("div", _small(points), tag("p", f"{name}, to {points[-1][0]:.0f} channels")))
    more = f" The first {MOST_CURVES} of {len(drawn)} groups." if len(drawn) > MOST_CURVES else ""
    hint = tag("p", f"Measured loss (up) against channels kept (right).{more}", cls="lead")
    pictures = [hint, tag("div", drawn[:MOST_CURVES], cls="small-plots")] if drawn else []
    blocks = [[tag("code", name), words.small(loss)] for name, loss in curves.part("blocks")]
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


def recovery(result: Facts) -> Html:
    """Accuracy on held-out training images: dense, pruned, repaired, trained; and while training."""
    found, task = result.part("recover"), results.glance(result.data).task
    factor = 100.0 if (task.kind, task.metric) == ("classification", "top-1") else 1.0  # fractions, as they always were
    what, unit = task.metric, results.scale(task.unit)
    held, training = found.part("selection_accuracy"), found.part("training")
    names = {"dense": "dense", "pruned": "pruned", "repaired": "repaired by least squares", "trained": "fine-tuned"}
    held_out = [
        [names[key], results.quantity(factor * value, task.unit)]
        for key in names
        if (value := held.number(key)) is not None
    ]
    history = [(epoch, factor * value) for epoch, value in training.points("history", "epoch", "accuracy")]
    history = history or training.points("history", "epoch", "score")
    history = history[:: math.ceil(len(history) / MOST_POINTS) or 1]
    dense = held.number("dense")
    drawn = plot.lines(
        [("after", history)],
        "epochs",
        f"{what} on held-out examples" + (f", {unit}" if unit else ""),
        f"{what} while training, {len(history)} evaluations.",
        level=None if dense is None else factor * dense,
    )
    facts = {"distance to the dense network": task.distance} if task.distance else {}
    if steps := training.number("steps"):
        facts["training"] = (
            f"{words.plain(training.get('epochs'))} epochs, {steps:,.0f} steps, "
            f"{words.seconds(training.get('seconds'))}, {training.text('precision')}"
        )
    if training.text("trainer"):
        facts["trainer"] = training.text("trainer")
    accuracy, score = training.number("best_accuracy"), training.number("best_score")
    if steps and (kept := score if accuracy is None else factor * accuracy) is not None:
        best = results.quantity(kept, task.unit)
        facts["kept"] = f"the weights of epoch {words.plain(training.get('best_epoch'))}: {best}"
    if resumed := training.number("resumed"):
        facts["resumed"] = f"at step {resumed:,.0f}, after an interruption"
    return section(
        "recovery",
        "Recovery",
        table(["network in float", f"{what}, held-out examples"], held_out, numbers=(1,)),
        figure(legend({"after": "while training", "limit": "dense"}) if dense else NOTHING, drawn)
        if drawn
        else NOTHING,
        _losses(training, "Training loss"),
        definitions(facts),
        lead="Measured on training examples that are held out to choose by; the test split is only for the gates.",
    )


def _losses(training: Facts, what: str) -> Html:
    """The loss while training, where it was written down more than once."""
    points = training.points("history", "epoch", "loss")
    points = points[:: math.ceil(len(points) / MOST_POINTS) or 1]
    if len(points) < 2:
        return NOTHING
    drawn = plot.lines([("before", points)], "epochs", "loss", f"{what}, {len(points)} figures.")
    return figure(f"{what}: each the mean since the one before.", drawn)


def calibration(result: Facts) -> Html:
    """Signal to noise of each layer in INT8, the ranges, and whatever looked wrong."""
    found = result.part("quantize")
    ranges = found.part("ranges")
    layers, tensors = ranges.part("layers").entries(), ranges.part("tensors").entries()
    noise = [(name, entry.number("sqnr_db")) for name, entry in layers.items()]
    bars = [plot.Bar(f"{name}: {value:.1f} dB", max(0.0, value), None) for name, value in noise if value is not None]
    description = f"Signal to quantisation noise of {len(bars)} layers in decibels; the table below has the numbers."
    facts: dict[str, object] = {}
    if images := ranges.number("images"):
        facts["examples"] = f"{images:,.0f}, from the training split"
    if found.get("dialect"):
        facts["scheme"] = found.get("dialect")
    asked = {name for name, kind in ranges.part("precision") if kind == "float"}
    floats = sorted({*asked, *(str(name) for name in found.part("precision").listed("float"))})
    if floats:
        facts["left in float"] = ", ".join(floats)
    if alone := sorted(name for name, kind in ranges.part("precision") if str(kind).endswith("-weights")):
        facts["weights alone in integers"] = ", ".join(alone)
    trained = found.part("training")
    if (before := trained.number("before")) is not None and (after := trained.number("after")) is not None:
        task = results.glance(result.data).task
        scores = " before, ".join(results.quantity(one, task.unit) for one in (before, after))
        kept = "" if trained.get("kept") else "; it is not kept"
        facts["trained in INT8"] = f"held-out {task.metric} {scores} after{kept}"
    lint = [f"{entry.text('node')}: {entry.text('why')}" for entry in found.parts("lint")]
    warnings = [tag("p", text, cls="warning") for text in (*ranges.listed("warnings"), *lint)]
    return section(
        "calibration",
        "Calibration",
        definitions(facts),
        warnings,
        _losses(trained, "Loss while training in INT8"),
        plot.columns(bars, "SQNR, dB", DEPTH, description, height=200),
        fold(f"Signal to noise of {len(layers)} layers", _noise(layers)),
        fold(f"Ranges of {len(tensors)} tensors", _ranges(tensors)),
        lead="Signal to quantisation noise at each layer's output, with every layer before it in INT8 too."
        if bars
        else None,
    )


DEPTH = "layers, from input to output"


def _noise(layers: Mapping[str, Facts]) -> Html:
    keys = ("weight_sqnr_db", "input_sqnr_db", "sqnr_db")
    rows = [[tag("code", name), *(_decibels(entry.get(key)) for key in keys)] for name, entry in layers.items()]
    return table(["layer", "weights alone, dB", "input alone, dB", "all before it, dB"], rows, numbers=(1, 2, 3))


def _decibels(value: object) -> str:
    number = words.finite(value)
    return words.NONE if number is None else f"{number:.1f}"


def _ranges(tensors: Mapping[str, Facts]) -> Html:
    rows = []
    for name, entry in tensors.items():
        counts = [value for one in entry.listed("counts") if (value := words.finite(one)) is not None]
        seen = f"{words.small(entry.get('minimum'))} … {words.small(entry.get('maximum'))}"
        chosen = f"{words.small(entry.get('low'))} … {words.small(entry.get('high'))}"
        rows.append(
            [tag("code", name), chosen, seen, entry.text("method"), _decibels(entry.get("sqnr_db")), _fewer(counts)]
        )
    return table(["tensor", "range", "seen", "method", "SQNR, dB", "values seen"], rows, numbers=(1, 2, 4))


def _fewer(counts: Sequence[float], most: int = 32) -> Html:
    """A histogram of at most `most` bars."""
    if not counts:
        return NOTHING
    size = -(-len(counts) // most)
    return plot.spark([sum(counts[start : start + size]) for start in range(0, len(counts), size)])
