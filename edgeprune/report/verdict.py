"""First of all: release or refused, the four figures that matter, each gate, and the networks side by side."""

from __future__ import annotations

from edgeprune import result as results
from edgeprune.report import plot, words
from edgeprune.report.markup import NOTHING, Html, figure, join, legend, section, table, tag
from edgeprune.result import Facts, Network, Result, number, quantity

COUNTED = {
    "instructions": " Instructions of an emulated board stand for no time.",
    "modelled ms": " Latency is a model, not measured; outputs are ONNX Runtime's, not the device's.",
}


def head(result: Facts) -> Html:
    """The verdict and the four tiles."""
    read = results.glance(result.data)
    return join([_verdict(result, read), _tiles(read)])


def _verdict(result: Facts, read: Result) -> Html:
    every = result.parts("gates")
    failed = [gate for gate in every if gate.get("passed") is not True]
    word = result.get("verdict")
    if word == "release" and every and not failed:
        return tag("div", tag("strong", "Release"), tag("p", _in_a_sentence(read)), cls="verdict release")
    if word == "unverified":
        hint = " ".join(f"{gate.get('message')} {gate.get('remedy')}" for gate in failed)
        sentence = _in_a_sentence(read)
        if result.get("unit") == "modelled ms":
            sentence = sentence.replace("measured on", "modelled for")
        return tag("div", tag("strong", "Unverified"), tag("p", hint), tag("p", sentence), cls="verdict open")
    if word in ("refused", "release"):
        reasons = tag(
            "ul", [tag("li", f"{gate.get('name')}: {gate.get('message')} {gate.get('remedy')}") for gate in failed]
        )
        title = f"Refused: {len(failed)} of {len(every)} gates failed"
        return tag("div", tag("strong", title), tag("p", _in_a_sentence(read)), reasons, cls="verdict refused")
    hint = "The run has not come to its validation: edgeprune TARGET run RECIPE goes on with it."
    return tag("div", tag("strong", "No verdict yet"), tag("p", hint), cls="verdict open")


def _in_a_sentence(result: Result) -> str:
    faster, compared = words.finite(result.speedup_vs_dense_int8), _drop(result)
    parts = []
    if faster is not None:
        parts.append(f"{words.times(faster)} the speed of the dense INT8 network")
    if compared:
        parts.append(f"{compared} the dense FP32 network")
    if result.allowed is not None and result.pruned_int8 is not None:
        mine, allowed = (
            words.latency(_median(result.pruned_int8), result.unit),
            words.latency(result.allowed, result.unit),
        )
        parts.append(f"{mine} of {allowed} allowed")
    where = f"measured on {words.runtime(result)}"
    return f"{', '.join(parts)}; {where}." if parts else ""


def _drop(result: Result) -> str:
    """0.35 points below; 0.12 mm above."""
    dense, pruned = (_rated(one) for one in (result.dense_fp32, result.pruned_int8))
    if dense is None or pruned is None or dense.value is None or pruned.value is None:
        return ""
    apart = abs(dense.value - pruned.value)
    side = "below" if pruned.value < dense.value else "above"
    return " ".join(filter(None, (number(apart, dense.unit), dense.unit, side)))


def _rated(network: Network | None) -> results.ScoreInfo | None:
    return network.rated if network else None


def _median(network: Network | None) -> float | None:
    return words.finite(network.measured.median) if network and network.measured else None


def _title(result: Result) -> str:
    """The metric, with the unit of its values."""
    rated = next((one.rated for one in result.networks.values() if one.rated), None)
    return rated.title if rated else "score"


def _tiles(result: Result) -> Html:
    ours, dense, full = result.pruned_int8, result.dense_int8, result.dense_fp32
    if ours is None:
        return NOTHING
    saved = f"dense INT8 {words.size(dense.bytes)}" if dense and ours.bytes is not None and dense.bytes else ""
    rated, reference = _rated(ours), _rated(full)
    tiles = [
        ("Speed-up", words.times(result.speedup_vs_dense_int8), _wanted_speed(result)),
        (
            "Latency, median",
            words.latency(_median(ours), result.unit),
            result.allowed is not None and f"budget {words.latency(result.allowed, result.unit)}",
        ),
        (
            ("Accuracy, " if result.task.kind == "classification" else "") + (rated.metric if rated else "score"),
            rated.text if rated else words.NONE,
            f"dense FP32 {reference.text}" if reference else "",
        ),
        ("Size", words.size(ours.bytes), saved),
    ]
    made = [
        tag("div", tag("dt", name), tag("dd", value, cls="big"), tag("dd", hint or "", cls="hint"), cls="tile")
        for name, value, hint in tiles
    ]
    return tag("dl", made, cls="tiles")


def _wanted_speed(result: Result) -> str:
    wanted = words.finite(result.budget.speedup)
    dense = words.latency(_median(result.dense_int8), result.unit)
    return f"over dense INT8; asked for {words.times(wanted)}" if wanted else f"over dense INT8 at {dense}"


def gates(result: Facts) -> Html:
    """Each gate with what was found; a failed one with what would help."""
    rows = []
    for gate in result.parts("gates"):
        good = bool(gate.get("passed"))
        mark = tag("span", "✓ passed" if good else "✗ failed", cls="ok" if good else "no")
        helps = tag("span", gate.get("remedy"), cls="remedy") if gate.get("remedy") and not good else None
        rows.append([gate.get("name"), mark, [gate.text("message"), helps]])
    lead = "What must hold on the device's own runtime before a bundle is written."
    return section("gates", "Gates", table(["gate", "", "found"], rows, stack=True), lead=lead)


def networks(found: Facts) -> Html:
    """The table and the plot of the score against latency."""
    result = results.glance(found.data)
    base, unit, answers = _median(result.dense_int8), result.unit, _agreements(result)
    rows = []
    for key, figures in result.networks.items():
        times, middle = figures.measured, _median(figures)
        rated = figures.rated
        row = [
            words.NETWORKS[key],
            rated.text if rated else words.NONE,
            words.latency(middle, unit, named=False),
            words.times(base / middle if base and middle else None),
            words.size(figures.bytes),
            words.latency(times.p90 if times else None, unit, named=False),
            words.latency(times.p99 if times else None, unit, named=False),
            words.percent(times.spread if times else None, 1),
        ]
        rows.append([*row, words.percent(figures.agreement, 1)] if answers else row)
    rated = next((one.rated for one in result.networks.values() if one.rated), None)
    head = [
        "network",
        rated.metric if rated else "score",
        f"median, {unit}",
        "speed-up",
        "size",
        "p90",
        "p99",
        "spread",
    ]
    head += ["agrees"] if answers else []
    strong = words.NETWORKS["pruned_int8"]
    floats = words.forced(found.get("profile"), result)
    note = f"{_how_measured(result)}{_fed(found)} {floats} {words.baseline(result)}".strip()
    made = table(head, rows, range(1, len(head)), note, strong=strong)
    return section("networks", "Accuracy and latency", _scatter(result), made, _difference(result))


def _fed(found: Facts) -> str:
    """What [export] has put before and behind the network."""
    asked = found.part("recipe").part("export")
    given = asked.text("output")
    said = {"is fed": asked.text("input"), "gives": "boxes, already suppressed" if given == "nms" else given}
    told = " and ".join(f"{verb} {what}" for verb, what in said.items() if what)
    return f" Every artifact {told}: that is in its latency." if told else ""


def _agreements(result: Result) -> bool:
    return any(one.agreement is not None for one in result.networks.values())


def _how_measured(result: Result) -> str:
    rated = _rated(result.pruned_int8)
    measured = f"{words.examples(result, rated.examples)} on the device's runtime; " if rated and rated.examples else ""
    better = "" if rated is None or rated.higher_is_better else f" Lower {rated.metric} is better."
    agrees = " Agrees: predicts the same class as dense FP32." if _agreements(result) else ""
    return f"{measured}latencies measured interleaved.{better}{agrees}{COUNTED.get(result.unit, '')}"


def _scatter(result: Result) -> Html:
    points, unit, scale = [], result.unit, 1e-6 if result.unit == "instructions" else 1.0
    for key, figures in result.networks.items():
        rated, x = figures.rated, _median(figures)
        y = words.finite(rated.value) if rated else None
        if x is None or y is None or rated is None:
            continue
        kind = "ours" if key == "pruned_int8" else "float" if key.endswith("fp32") else "dense"
        title = f"{words.NETWORKS[key]}: {rated.text}, {words.latency(x, unit)}"
        points.append(plot.Mark(x * scale, y, kind, words.NETWORKS[key], title))
    dense, allowed = _rated(result.dense_fp32), words.finite(result.budget.max_drop)
    wanted = None
    if result.allowed is not None and dense is not None and dense.value is not None and allowed is not None:
        worst = dense.value - allowed if dense.higher_is_better else dense.value + allowed
        wanted = (result.allowed * scale, worst)
    name = f"million {unit}" if unit == "instructions" else f"median latency, {unit}"
    description = f"{_title(result)} against latency: " + "; ".join(point.title for point in points)
    drawn = plot.scatter(points, name, _title(result), description, wanted=wanted)
    what = "accuracy" if result.task.kind == "classification" else result.task.metric
    end = "lowest" if result.task.higher_is_better else "highest"
    return figure(legend({"wanted": "what the recipe asks for", "limit": f"budget, and {end} {what}"}), drawn)


def _difference(result: Result) -> Html:
    """How sure the difference is, on the same examples."""
    found, judged = result.difference, result.comparison
    text = ""
    if found is not None:
        text = (
            f"Pruned INT8 minus dense FP32 on the same images: {found.points:+.2f} points, 95 % interval "
            f"{found.low:+.2f} to {found.high:+.2f} (McNemar's exact test: p = {found.p_value:.2g}). Dense alone is "
            f"right on {found.only_second} images, pruned alone on {found.only_first}."
        )
    elif judged is not None and judged.drop is not None:
        side = judged.worse if judged.drop > 0 else judged.better
        text = (
            f"Pruned INT8 is {_amount(abs(judged.drop), judged.unit)} {side} dense FP32 in {judged.metric} on the same "
            f"{judged.examples:,} examples ({judged.method})."
        )
    if judged is not None and judged.high is not None and text:
        kind = "exact upper limit" if found is not None else "upper limit"
        text += f" The gate judges the drop's {kind}: with {100 * judged.confidence:g} % confidence " + (
            f"at most {_amount(judged.high, judged.unit)} {judged.worse}."
            if judged.high >= 0
            else f"at least {_amount(-judged.high, judged.unit)} {judged.better}."
        )
    return tag("p", text, cls="lead") if text else NOTHING


def _amount(value: float, unit: str) -> str:
    return quantity(value, unit, unit)
