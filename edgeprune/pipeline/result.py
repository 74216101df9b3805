"""result.json: every figure of the run in one place. The report, the bundle and the command line show nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgeprune import result as results
from edgeprune import runtimes, validate
from edgeprune.graph import Plan, option_of, sliced, width
from edgeprune.pipeline import flavours
from edgeprune.pipeline.bench import Bench, environment
from edgeprune.pipeline.rundir import RunDirectory, read_json
from edgeprune.pipeline.subject import Subject
from edgeprune.recipe import SECTIONS
from edgeprune.target import Target, latency_key

MEASURED = (
    "unit", "device", "state", "task", "inputs", "difference", "comparison", "sanity", "precision", "validations",
    "earlier", "fleet", "postprocessing", "float_default",
)  # fmt: skip


def assemble(subject: Subject, bench: Bench, run: RunDirectory) -> dict[str, object]:
    """The result as far as the run has come."""
    recipe, target = subject.recipe, bench.target
    result: dict[str, Any] = {
        "version": results.VERSION,
        "name": recipe.name,
        "target": target.name,
        "runtime": {"name": target.runtime, "version": bench.probe.fingerprint.get("runtime_version", "")},
        "device": bench.probe.fingerprint,
        "unit": target.protocol.unit,
        "claim": bench.claim(bench.probe.fingerprint).to_dict(),
        "profile": target.to_dict(),
        "recipe": {name: recipe.section(name) for name in SECTIONS},
        "frozen": _read(run, "graph/structure.json").get("frozen", []),
        "evidence": msgspec.to_builtins(target.evidence),
        "environment": environment(),
        "stages": run.timings,
    }
    for stage in ("search", "recover"):
        result[stage] = _read(run, f"{stage}/{stage}.json")
    if result["search"].get("method") in ("joint", "learned"):
        result["search"].update(curves=_read(run, "search/curves.json"), table=_table(run))
    result["proof"] = _read(run, "search/proof.json")
    result["quantize"] = _quantization(bench, run)
    measured = _read(run, "validate/measured.json")
    if measured:
        _add_measured(subject, bench, run, result, measured)
    return result


def _read(run: RunDirectory, name: str) -> Any:
    path = run.path / name
    return read_json(path) if path.is_file() else {}


def _add_measured(
    subject: Subject, bench: Bench, run: RunDirectory, result: dict[str, Any], measured: dict[str, Any]
) -> None:
    unit, budget = measured["unit"], subject.recipe.budget
    result.update(measured["networks"])
    result.update({key: measured[key] for key in MEASURED if key in measured})
    result["claim"] = bench.claim(measured["device"]).to_dict()
    result["budget"] = subject.recipe.section("budget")
    read = results.read(result)
    result["speedup_vs_dense_int8"] = validate.speedup(read, budget.confidence)
    dense = read.network("dense_int8").latency(unit).median
    result[latency_key(unit, "budget")] = validate.deadline(dense, budget, unit)
    gates = validate.gates(read, budget, bench.target.protocol.max_spread)
    result["gates"] = [gate.to_dict() for gate in gates]
    result["verdict"] = validate.verdict(gates, unit, read.claim.verdict)
    result["layers"] = layers(subject, run, read, measured["kernels"])
    second = {"optimised": measured["optimised"]} if "optimised" in measured else {}
    result["artifact"] = {**_artifact(bench.target, run), **second}


def _artifact(target: Target, run: RunDirectory) -> dict[str, object]:
    """The released files, and those of the other flavours with what opens them."""
    listed = read_json(run.folder("artifacts") / "artifacts.json")
    released = listed["pruned-int8"]
    others: dict[str, object] = {}
    for dialect in runtimes.flavours(target)[1:]:
        entry = listed[flavours.artifact(dialect, target)]
        others[dialect] = {"files": _files(entry), "options": entry["options"]}
    found: dict[str, object] = {"files": _files(released), "sha256": dict(released["sha256"])}
    return {**found, "flavours": others} if others else found


def _files(entry: Mapping[str, object]) -> dict[str, str]:
    return {name: f"artifacts/{file}" for name, file in results.Facts(entry).part("files")}


def layers(
    subject: Subject, run: RunDirectory, read: results.Result, kernels: Mapping[str, list[dict[str, object]]]
) -> list[dict[str, object]]:
    """Each layer's channels and time, dense and pruned; kernels that belong to no layer are summed as '(other)'.

    The profiler says how a network's time divides among its kernels, the interleaved measurement how much it is: the
    times of each network add up to its median latency, as those of the plan do.
    """
    plan = Plan.load(run.folder("search") / "plan.json")
    units = {name: len(kept) for name, kept in plan.kept.items()}
    known = {layer.name: layer.name for layer in subject.structure.layers}
    for layer_name, text in plan.options.items():
        option, setting = option_of(text)
        known |= {f"{layer_name}.{part}": layer_name for part in option.parts(1, 1, setting)}
    dense, pruned = (
        by_layer(kernels[name], known, read.network(name.replace("-", "_")).latency(read.unit).median)
        for name in ("dense-int8", "pruned-int8")
    )
    rows: list[dict[str, object]] = []
    gone = subject.structure.gone(plan)
    for layer in subject.structure.layers:
        removed = any(block.holds(layer.name) for block in gone)
        groups = [segment.group for segment in layer.outputs if segment.group]
        reads = width(layer.inputs, units) - sliced(gone, layer.name, units)
        rows.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "before": [width(layer.inputs, {}), width(layer.outputs, {})],
                "after": [0, 0] if removed else [reads, width(layer.outputs, units)],
                "dense_ms": dense.get(layer.name, 0.0),
                "pruned_ms": pruned.get(layer.name, 0.0),
                "group": groups[0] if groups else None,
                "removed": removed,
                **({"option": plan.options[layer.name]} if layer.name in plan.options else {}),
            }
        )
    rows.append({"name": "(other)", "dense_ms": dense.get("", 0.0), "pruned_ms": pruned.get("", 0.0), "removed": False})
    return rows


def by_layer(kernels: Sequence[Mapping[str, object]], known: Mapping[str, str], latency: float) -> dict[str, float]:
    """Kernel times by the layer whose weights they use, '' for the rest; they add up to `latency`.

    Args:
        known: a name in the artifact -> the layer that it belongs to.
    """
    total: dict[str, float] = {}
    for kernel in map(results.Facts, kernels):
        layer = next((known[str(name)] for name in kernel.listed("layers") if name in known), "")
        total[layer] = total.get(layer, 0.0) + (kernel.number("median") or 0.0)
    scale = latency / whole if (whole := sum(total.values())) else 0.0
    return {layer: time * scale for layer, time in total.items()}


def _table(run: RunDirectory) -> dict[str, object]:
    """The latency table's own account: its error on networks that it had not seen."""
    found = _read(run, "latency/profile.json")
    errors = found.get("errors", {})
    known = {"cells": found.get("cells"), "networks": found.get("networks"), "seconds": found.get("seconds")}
    unseen = {key: found[key] for key in ("measured", "predicted", "predicted_by_macs") if key in found}
    error = {"median_error": errors.get("median"), "p90_error": errors.get("p90"), "n": errors.get("count")}
    return {**error, **known, "unseen": unseen}


def _quantization(bench: Bench, run: RunDirectory) -> dict[str, object]:
    path = run.path / "quantize" / "pruned-ranges.json"
    if not path.is_file():
        return {}
    lint = read_json(path.with_name("pruned-lint.json"))
    precision = _read(run, "quantize/precision.json")
    found = {"dialect": bench.dialect.name, "ranges": read_json(path), "lint": lint, "precision": precision}
    trained = _read(run, "quantize/qat.json")
    if trained:
        found["training"] = trained
    checked = flavours.facts(run)
    return {**found, "flavours": checked} if checked else found
