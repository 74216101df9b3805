"""Why it can be believed, where it ran, how long it took, and what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeprune.report import words
from edgeprune.report.markup import Html, definitions, fold, section, table, tag

LEVELS = {
    "device": "measured on the device",
    "emulated": "true binary, emulated",
    "compiler": "compiler only",
    "none": "not verified",
}


def evidence(result: Mapping[str, Any]) -> Html:
    """The proof, and what the target's profile was verified on."""
    proof = result.get("proof") or {}
    facts: dict[str, Any] = {}
    if proof:
        good = bool(proof.get("passed"))
        facts["proof"] = [tag("span", "✓ " if good else "✗ ", cls="ok" if good else "no"), str(proof.get("method", ""))]
        if words.finite(proof.get("max_error")) is not None:
            facts["largest error"] = f"{proof['max_error']:.2g}"
        if proof.get("detail"):
            facts["detail"] = proof["detail"]
    keys = ("on", "runtime", "date", "what")
    rows = [
        [LEVELS.get(str(entry.get("level")), entry.get("level")), *(entry.get(key) for key in keys)]
        for entry in result.get("evidence") or ()
    ]
    made = table(["target verified", "on", "runtime", "date", "what"], rows, stack=True)
    lead = "The proof: the pruned network computes what the original would if the removed channels did not exist."
    return section("evidence", "Evidence", definitions(facts), made, lead=lead if proof else None)


def environment(result: Mapping[str, Any]) -> Html:
    """The device's fingerprint and state, the host, and the time of each stage."""
    device = _filled(result.get("device"))
    host = _filled(result.get("environment"))
    state = _filled(result.get("state"))
    rows = [
        [entry.get("name"), words.seconds(entry.get("seconds")), "kept from before" if entry.get("reused") else ""]
        for entry in result.get("stages") or ()
    ]
    return section(
        "environment",
        "Environment",
        device and [tag("h3", "Device"), definitions(device)],
        state and fold("Its state before and after measuring", definitions(state)),
        host and [tag("h3", "Host"), definitions(host)],
        tag("h3", "Stages") if rows else None,
        table(["stage", "time", ""], rows, numbers=(1,)),
    )


def _filled(values: Any) -> dict[str, str]:
    """Names and values in words, without those that say nothing."""
    found = {str(key): words.plain(value) for key, value in (values or {}).items()}
    return {key: value for key, value in found.items() if value != words.NONE}


def recipe(result: Mapping[str, Any]) -> Html:
    """What was asked for, section by section."""
    parts: list[Any] = []
    for name, values in (result.get("recipe") or {}).items():
        if isinstance(values, Mapping) and values:
            parts += [
                tag("h3", f"[{name}]"),
                definitions({str(key): words.plain(value) for key, value in values.items()}),
            ]
        elif not isinstance(values, Mapping):
            parts.append(definitions({str(name): words.plain(values)}))
    return section("recipe", "Recipe", fold("What was asked for, with every default", parts) if parts else None)
