"""result.json: every figure of the run in one place. The report, the bundle and the command line show nothing else."""

from __future__ import annotations

from typing import Any

import msgspec

from edgeprune import runtimes, validate
from edgeprune.graph import Plan, width
from edgeprune.pipeline import flavours
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.rundir import read_json
from edgeprune.target import latency_key


def assemble(context: Context) -> dict[str, Any]:
    """The result as far as the run has come."""
    recipe, target = context.recipe, context.target
    result: dict[str, Any] = {
        "version": 1,
        "name": recipe.name,
        "target": target.name,
        "runtime": {"name": target.runtime, "version": context.probe.fingerprint.get("runtime_version", "")},
        "device": context.probe.fingerprint,
        "unit": target.protocol.unit,
        "profile": target.to_dict(),
        "recipe": {name: recipe.section(name) for name in ("model", "data", "budget", "search", "recover", "quantize")},
        "frozen": _read(context, "graph/structure.json").get("frozen", []),
        "evidence": msgspec.to_builtins(target.evidence),
        "environment": context.environment(),
        "stages": context.run.timings,
    }
    for stage in ("search", "recover"):
        result[stage] = _read(context, f"{stage}/{stage}.json")
    if result["search"].get("method") == "joint":
        result["search"].update(curves=_read(context, "search/curves.json"), table=_table(context))
    result["proof"] = _read(context, "search/proof.json")
    result["quantize"] = _quantization(context)
    measured = _read(context, "validate/measured.json")
    if measured:
        _add_measured(context, result, measured)
    return result


def _read(context: Context, name: str) -> Any:
    path = context.run.path / name
    return read_json(path) if path.is_file() else {}


def _add_measured(context: Context, result: dict[str, Any], measured: dict[str, Any]) -> None:
    unit = measured["unit"]
    result.update(measured["networks"])
    result.update(unit=unit, device=measured["device"], difference=measured["difference"], state=measured["state"])
    dense, pruned = (result[name][latency_key(unit)]["median"] for name in ("dense_int8", "pruned_int8"))
    result["speedup_vs_dense_int8"] = dense / pruned
    deadline = validate.deadline(dense, context.recipe.budget, unit)
    result[latency_key(unit, "budget")] = deadline
    result["budget"] = context.recipe.section("budget")
    gates = validate.gates(result, context.recipe.budget, context.target.protocol.max_spread)
    result["gates"] = [gate.to_dict() for gate in gates]
    result["verdict"] = validate.verdict(gates, unit)
    result["layers"] = layers(context, measured["kernels"])
    result["artifact"] = _artifact(context)
    if "optimised" in measured:
        result["artifact"]["optimised"] = measured["optimised"]


def _artifact(context: Context) -> dict[str, Any]:
    """The released files, and those of the other flavours with what opens them."""
    listed = read_json(context.folder("artifacts") / "artifacts.json")
    found: dict[str, Any] = {"files": _files(listed["pruned-int8"])}
    for dialect in runtimes.flavours(context.target)[1:]:
        entry = listed[flavours.artifact(dialect, context.target)]
        found.setdefault("flavours", {})[dialect] = {"files": _files(entry), "options": entry["options"]}
    return found


def _files(entry: dict[str, Any]) -> dict[str, str]:
    return {name: f"artifacts/{file}" for name, file in entry["files"].items()}


def layers(context: Context, kernels: dict[str, Any]) -> list[dict[str, Any]]:
    """Each layer's channels and time, dense and pruned; kernels that belong to no layer are summed as '(other)'."""
    plan = Plan.load(context.folder("search") / "plan.json")
    units = {name: len(kept) for name, kept in plan.kept.items()}
    known = {layer.name for layer in context.structure.layers}
    dense, pruned = (by_layer(kernels[name], known) for name in ("dense-int8", "pruned-int8"))
    rows = []
    for layer in context.structure.layers:
        removed = any(layer.name == block or layer.name.startswith(f"{block}.") for block in plan.removed)
        groups = [segment.group for segment in layer.outputs if segment.group]
        rows.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "before": [width(layer.inputs, {}), width(layer.outputs, {})],
                "after": [0, 0] if removed else [width(layer.inputs, units), width(layer.outputs, units)],
                "dense_ms": dense.get(layer.name, 0.0),
                "pruned_ms": pruned.get(layer.name, 0.0),
                "group": groups[0] if groups else None,
                "removed": removed,
            }
        )
    rows.append({"name": "(other)", "dense_ms": dense.get("", 0.0), "pruned_ms": pruned.get("", 0.0), "removed": False})
    return rows


def by_layer(kernels: list[dict[str, Any]], known: set[str]) -> dict[str, float]:
    """Kernel times summed by the layer whose weights they use; '' for the rest."""
    total: dict[str, float] = {}
    for kernel in kernels:
        layer = next((name for name in kernel["layers"] if name in known), "")
        total[layer] = total.get(layer, 0.0) + kernel["median"]
    return total


def _table(context: Context) -> dict[str, Any]:
    """The latency table's own account: its error on networks that it had not seen."""
    found = _read(context, "latency/profile.json")
    errors = found.get("errors", {})
    known = {"cells": found.get("cells"), "networks": found.get("networks"), "seconds": found.get("seconds")}
    unseen = {key: found[key] for key in ("measured", "predicted", "predicted_by_macs") if key in found}
    error = {"median_error": errors.get("median"), "p90_error": errors.get("p90"), "n": errors.get("count")}
    return {**error, **known, "unseen": unseen}


def _quantization(context: Context) -> dict[str, Any]:
    path = context.run.path / "quantize" / "pruned-ranges.json"
    if not path.is_file():
        return {}
    lint = read_json(path.with_name("pruned-lint.json"))
    precision = _read(context, "quantize/precision.json")
    found = {"dialect": context.dialect.name, "ranges": read_json(path), "lint": lint, "precision": precision}
    checked = flavours.facts(context)
    return {**found, "flavours": checked} if checked else found
