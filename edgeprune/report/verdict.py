"""First of all: release or refused, the four figures that matter, each gate, and the networks side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeprune.report import plot, words
from edgeprune.report.markup import NOTHING, Html, figure, join, legend, section, table, tag

COUNTED = {
    "instructions": " Instructions of an emulated board stand for no time.",
    "modelled ms": " Latency is a model, not measured; outputs are ONNX Runtime's, not the device's.",
}


def head(result: Mapping[str, Any]) -> Html:
    """The verdict and the four tiles."""
    return join([_verdict(result), _tiles(result)])


def _verdict(result: Mapping[str, Any]) -> Html:
    failed = [gate for gate in result.get("gates") or () if not gate.get("passed")]
    word = result.get("verdict")
    if word == "release" and not failed:
        return tag("div", tag("strong", "Release"), tag("p", _in_a_sentence(result)), cls="verdict release")
    if word == "unverified":
        hint = " ".join(f"{gate.get('message')} {gate.get('remedy')}" for gate in failed)
        sentence = _in_a_sentence(result).replace("measured on", "modelled for")
        return tag("div", tag("strong", "Unverified"), tag("p", hint), tag("p", sentence), cls="verdict open")
    if word in ("refused", "release"):
        reasons = tag(
            "ul", [tag("li", f"{gate.get('name')}: {gate.get('message')} {gate.get('remedy')}") for gate in failed]
        )
        title = f"Refused: {len(failed)} of {len(result.get('gates') or ())} gates failed"
        return tag("div", tag("strong", title), tag("p", _in_a_sentence(result)), reasons, cls="verdict refused")
    hint = "The run has not come to its validation: edgeprune TARGET run RECIPE goes on with it."
    return tag("div", tag("strong", "No verdict yet"), tag("p", hint), cls="verdict open")


def _in_a_sentence(result: Mapping[str, Any]) -> str:
    faster, unit = words.finite(result.get("speedup_vs_dense_int8")), str(result.get("unit", "ms"))
    drop, wanted = _drop(result), words.budget(result)
    parts = []
    if faster is not None:
        parts.append(f"{words.times(faster)} the speed of the dense INT8 network")
    if drop is not None:
        side = "below" if drop > 0 else "above"
        parts.append(f"{abs(drop):.2f} points {side} the dense FP32 network")
    if wanted is not None:
        parts.append(
            f"{words.latency(words.median(result.get('pruned_int8')), unit)} of {words.latency(wanted, unit)} allowed"
        )
    where = f"measured on {words.runtime(result)}"
    return f"{', '.join(parts)}; {where}." if parts else ""


def _drop(result: Mapping[str, Any]) -> float | None:
    dense = words.finite((result.get("dense_fp32") or {}).get("accuracy"))
    pruned = words.finite((result.get("pruned_int8") or {}).get("accuracy"))
    return None if dense is None or pruned is None else 100 * (dense - pruned)


def _tiles(result: Mapping[str, Any]) -> Html:
    ours, dense = result.get("pruned_int8") or {}, result.get("dense_int8") or {}
    full, unit = result.get("dense_fp32") or {}, str(result.get("unit", "ms"))
    if not ours:
        return NOTHING
    small, large = words.finite(ours.get("bytes")), words.finite(dense.get("bytes"))
    saved = f"dense INT8 {words.size(large)}" if small is not None and large else ""
    budget = words.budget(result)
    tiles = [
        ("Speed-up", words.times(result.get("speedup_vs_dense_int8")), _wanted_speed(result)),
        (
            "Latency, median",
            words.latency(words.median(ours), unit),
            budget and f"budget {words.latency(budget, unit)}",
        ),
        ("Accuracy, top-1", words.percent(ours.get("accuracy")), f"dense FP32 {words.percent(full.get('accuracy'))}"),
        ("Size", words.size(small), saved),
    ]
    made = [
        tag("div", tag("dt", name), tag("dd", value, cls="big"), tag("dd", hint or "", cls="hint"), cls="tile")
        for name, value, hint in tiles
    ]
    return tag("dl", made, cls="tiles")


def _wanted_speed(result: Mapping[str, Any]) -> str:
    wanted = words.finite((result.get("budget") or {}).get("speedup"))
    dense = words.latency(words.median(result.get("dense_int8")), str(result.get("unit", "ms")))
    return f"over dense INT8; asked for {words.times(wanted)}" if wanted else f"over dense INT8 at {dense}"


def gates(result: Mapping[str, Any]) -> Html:
    """Each gate with what was found; a failed one with what would help."""
    rows = []
    for gate in result.get("gates") or ():
        good = bool(gate.get("passed"))
        mark = tag("span", "✓ passed" if good else "✗ failed", cls="ok" if good else "no")
        helps = tag("span", gate["remedy"], cls="remedy") if gate.get("remedy") and not good else None
        rows.append([gate.get("name"), mark, [str(gate.get("message", "")), helps]])
    lead = "What must hold on the device's own runtime before a bundle is written."
    return section("gates", "Gates", table(["gate", "", "found"], rows, stack=True), lead=lead)


def networks(result: Mapping[str, Any]) -> Html:
    """The table and the plot of accuracy against latency."""
    unit = str(result.get("unit", "ms"))
    shown = {key: result[key] for key in words.NETWORKS if result.get(key)}
    base = words.median(result.get("dense_int8"))
    rows = []
    for key, figures in shown.items():
        times = words.latency_of(figures)
        middle = words.median(figures)
        rows.append(
            [
                words.NETWORKS[key],
                words.percent(figures.get("accuracy")),
                words.latency(middle, unit, named=False),
                words.times(base / middle if base and middle else None),
                words.size(figures.get("bytes")),
                words.latency(times.get("p90"), unit, named=False),
                words.latency(times.get("p99"), unit, named=False),
                words.percent(times.get("spread"), 1),
                words.percent(figures.get("agreement"), 1),
            ]
        )
    head = ["network", "top-1", f"median, {unit}", "speed-up", "size", "p90", "p99", "spread", "agrees"]
    made = table(head, rows, range(1, 9), _how_measured(result), strong=words.NETWORKS["pruned_int8"])
    return section("networks", "Accuracy and latency", _scatter(result, shown, unit), made, _difference(result))


def _how_measured(result: Mapping[str, Any]) -> str:
    images = (result.get("pruned_int8") or {}).get("images")
    unit = str(result.get("unit", "ms"))
    counted = COUNTED.get(unit, "")
    return (f"{images:,} test images on the device's runtime; " if isinstance(images, int) else "") + (
        f"latencies measured interleaved. Agrees: predicts the same class as dense FP32.{counted}"
    )


def _scatter(result: Mapping[str, Any], shown: Mapping[str, Any], unit: str) -> Html:
    points, scale = [], 1e-6 if unit == "instructions" else 1.0
    for key, figures in shown.items():
        x, y = words.median(figures), words.finite(figures.get("accuracy"))
        if x is None or y is None:
            continue
        kind = "ours" if key == "pruned_int8" else "float" if key.endswith("fp32") else "dense"
        title = f"{words.NETWORKS[key]}: {words.percent(y)}, {words.latency(x, unit)}"
        points.append(plot.Point(x * scale, 100 * y, kind, words.NETWORKS[key], title))
    budget, dense = words.budget(result), words.finite((result.get("dense_fp32") or {}).get("accuracy"))
    allowed = words.finite((result.get("budget") or {}).get("max_drop"))
    wanted = None
    if budget is not None and dense is not None and allowed is not None:
        wanted = (budget * scale, 100 * dense - allowed)
    name = f"million {unit}" if unit == "instructions" else f"median latency, {unit}"
    description = "Accuracy against latency: " + "; ".join(point.title for point in points)
    drawn = plot.scatter(points, name, "top-1, %", description, wanted=wanted)
    return figure(legend({"wanted": "what the recipe asks for", "limit": "budget, and lowest accuracy"}), drawn)


def _difference(result: Mapping[str, Any]) -> Html:
    """How sure the accuracy difference is, on the same images."""
    found = result.get("difference") or {}
    points, low, high = (words.finite(found.get(key)) for key in ("points", "low", "high"))
    p_value = words.finite(found.get("p_value"))
    if points is None or low is None or high is None or p_value is None:
        return NOTHING
    text = (
        f"Pruned INT8 minus dense FP32 on the same images: {points:+.2f} points, 95 % interval {low:+.2f} to "
        f"{high:+.2f} (McNemar's exact test: p = {p_value:.2g}). Dense alone is right on {found.get('only_second')} "
        f"images, pruned alone on {found.get('only_first')}. The gate judges the measured figure; the interval says "
        "how much of it may be chance."
    )
    return tag("p", text, cls="lead")
