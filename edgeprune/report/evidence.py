"""Why it can be believed, where it ran, how long it took, and what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeprune.report import words
from edgeprune.report.markup import Html, definitions, fold, section, table, tag
from edgeprune.result import Facts

LEVELS = {
    "device": "measured on the device",
    "emulated": "true binary, emulated",
    "compiler": "compiler only",
    "none": "not verified",
}


def evidence(result: Facts) -> Html:
    """The proof, and what the target's profile was verified on."""
    proof = result.part("proof")
    facts: dict[str, object] = {}
    if proof:
        good = bool(proof.get("passed"))
        facts["proof"] = [tag("span", "✓ " if good else "✗ ", cls="ok" if good else "no"), proof.text("method")]
        if (largest := proof.number("max_error")) is not None:
            facts["largest error"] = f"{largest:.2g}"
        if proof.get("detail"):
            facts["detail"] = proof.get("detail")
    keys = ("on", "runtime", "date", "what")
    rows = [
        [LEVELS.get(str(entry.get("level")), entry.get("level")), *(entry.get(key) for key in keys)]
        for entry in result.parts("evidence")
    ]
    made = table(["target verified", "on", "runtime", "date", "what"], rows, stack=True)
    lead = "The proof: the pruned network computes what the original would if the removed channels did not exist."
    return section("evidence", "Evidence", definitions(facts), made, lead=lead if proof else None)


def environment(result: Facts) -> Html:
    """The device's fingerprint and state, the host, and the time of each stage."""
    device = _filled(result.part("device"))
    host = _filled(result.part("environment"))
    state = _filled(result.part("state"))
    rows = [
        [entry.get("name"), words.seconds(entry.get("seconds")), "kept from before" if entry.get("reused") else ""]
        for entry in result.parts("stages")
    ]
    return section(
        "environment",
        "Environment",
        device and [tag("h3", "Device"), definitions(device)],
        fleet(result),
        state and fold("Its state before and after measuring", definitions(state)),
        host and [tag("h3", "Host"), definitions(host)],
        tag("h3", "Stages") if rows else None,
        table(["stage", "time", ""], rows, numbers=(1,)),
    )


def fleet(result: Facts) -> Any:
    """The boards that measured, where there were several."""
    found = result.part("fleet")
    if not found:
        return None
    unit = result.text("unit", "ms")
    rows = []
    for one in found.parts("boards"):
        dense, pruned = one.number("dense_int8"), one.number("pruned_int8")
        latencies = [words.latency(value, unit) for value in (dense, pruned)]
        ratio = words.times(dense / pruned) if dense and pruned else words.NONE
        state = "it counts" if one.get("valid") else one.text("why", "it does not count")
        rows.append([one.text("name"), one.text("where"), *latencies, ratio, state])
    made = table(["board", "where", "dense INT8", "pruned INT8", "speed-up", ""], rows, numbers=(2, 3, 4), stack=True)
    return [tag("h3", "Fleet"), tag("p", f"Validated on {found.text('validated_on')}."), made]


def _filled(values: Facts) -> dict[str, str]:
    """Names and values in words, without those that say nothing."""
    found = {str(key): words.plain(value) for key, value in values}
    return {key: value for key, value in found.items() if value != words.NONE}


def recipe(result: Facts) -> Html:
    """What was asked for, section by section."""
    parts: list[Any] = []
    for name, values in result.part("recipe"):
        if isinstance(values, Mapping) and values:
            parts += [
                tag("h3", f"[{name}]"),
                definitions({str(key): words.plain(value) for key, value in values.items()}),
            ]
        elif not isinstance(values, Mapping):
            parts.append(definitions({str(name): words.plain(values)}))
    return section("recipe", "Recipe", fold("What was asked for, with every default", parts) if parts else None)
