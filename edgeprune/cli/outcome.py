"""What a finished command prints: the plan, or one table, the verdict and the paths; or the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli import console
from edgeprune.cli.session import Session, echo_json
from edgeprune.errors import GateError
from edgeprune.recipe import Recipe
from edgeprune.target import Target, latency_key

if TYPE_CHECKING:
    from rich.table import Table

    from edgeprune.pipeline import Outcome

NETWORKS = {
    "dense_fp32": "dense FP32",
    "dense_int8": "dense INT8",
    "pruned_fp32": "pruned FP32",
    "pruned_int8": "pruned INT8",
}
LATENCIES = tuple(map(latency_key, ("ms", "instructions", "modelled ms")))
MEANING = {
    "instructions": "Instructions of an emulated board: they stand for no time.",
    "modelled ms": "No device: latency is a model, not measured. Give yours: --device ssh://NAME",
}
MISSING = "-"


def show(outcome: Outcome, step: str, session: Session) -> None:
    """Print what a step left behind."""
    show_result(outcome.result, step, session, outcome.run_dir, outcome.report, outcome.bundle)


def show_refused(refused: GateError, step: str, session: Session) -> None:
    """Print what a run measured before a gate refused it; the pipeline has written result.json and the report."""
    outcome: Outcome | None = getattr(refused, "outcome", None)
    if outcome is not None:
        show(outcome, step, session)


def show_result(
    result: Mapping[str, Any], step: str, session: Session, run_dir: Path, report: Path | None, bundle: Path | None
) -> None:
    """Print a result as far as it goes: an early step has no figures yet, only its run directory."""
    paths = {"run_dir": run_dir, "report": report, "bundle": bundle}
    if session.as_json:
        known = {name: str(path) if path else None for name, path in paths.items()}
        echo_json({"command": step, **known, "result": result})
        return
    if any(name in result for name in NETWORKS):
        console.show(results_table(result))
    if result.get("gates"):
        click.echo(verdict(result))
    for name, path in paths.items():
        if path is not None:
            click.echo(f"  {name.replace('_', ' '):<8} {path}")


def results_table(result: Mapping[str, Any]) -> Table:
    """Dense FP32, dense INT8, pruned INT8: accuracy, latency, size, speed-up over dense INT8."""
    unit, runtime = str(result.get("unit", "ms")), result.get("runtime", {})
    on = f"{runtime.get('name', '')} {runtime.get('version', '')}".strip()
    title = f"{result.get('name', '')} on {result.get('target', '')}, {on}"
    headings = {"network": "network", "accuracy": "accuracy", "latency": f"latency, {unit}", "p90": "p90"}
    made = console.table(title, **headings, size="size", speedup="speed-up", right="accuracy,latency,p90,size,speedup")
    base = median(result.get("dense_int8"))
    for key, label in NETWORKS.items():
        figures = result.get(key)
        if figures:
            made.add_row(label, *_row(figures, base), style="bold" if key == "pruned_int8" else None)
    return made


def _row(figures: Mapping[str, Any], base: float | None) -> list[str]:
    accuracy, size, middle = figures.get("accuracy"), figures.get("bytes"), median(figures)
    p90 = _latency(figures).get("p90")
    return [
        MISSING if accuracy is None else f"{100 * accuracy:.2f} %",
        number(middle),
        number(p90),
        MISSING if size is None else f"{size / 1e6:.2f} MB",
        MISSING if not (base and middle) else f"{base / middle:.2f}x",
    ]


def _latency(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    found = next((figures[key] for key in LATENCIES if figures.get(key)), None) or {}
    return found if isinstance(found, Mapping) else {"median": found}


def median(figures: Any) -> float | None:
    """The median latency of one network of a result (or of a bare number); None when it was not measured."""
    if isinstance(figures, int | float):
        return float(figures)
    if not isinstance(figures, Mapping):
        return None
    value = _latency(figures).get("median", figures.get("median"))
    return None if value is None else float(value)


def number(value: float | None) -> str:
    """Three significant places of a time; whole instructions in millions."""
    if value is None:
        return MISSING
    if value >= 1e5:
        return f"{value / 1e6:.2f} M"
    return f"{value:.3f}" if value < 100 else f"{value:.1f}"


def verdict(result: Mapping[str, Any]) -> str:
    """One line that says release or refused, then a line for each gate."""
    gates = result["gates"]
    failed = [gate for gate in gates if not gate["passed"]]
    if result.get("verdict") == "unverified":
        head = click.style("UNVERIFIED", fg="yellow", bold=True) + f"  no device has measured; {len(failed)} gate open"
    elif failed:
        head = click.style("REFUSED", fg="red", bold=True) + f"  {len(failed)} of {len(gates)} gates failed"
    else:
        head = click.style("RELEASE", fg="green", bold=True) + f"  all {len(gates)} gates hold"
    lines = [head]
    for gate in gates:
        mark = click.style("✓", fg="green") if gate["passed"] else click.style("✗", fg="red")
        lines.append(f"  {mark} {gate['name']}: {gate['message']}")
        if not gate["passed"] and gate.get("remedy"):
            lines.append(f"      {gate['remedy']}")
    return "\n".join(lines)


def show_plan(plan: Mapping[str, Any], recipe: Recipe, target: Target, session: Session) -> None:
    """Print whether the budget can be met, where the time goes, and what is frozen."""
    if session.as_json:
        echo_json({"command": "plan", "plan": plan})
        return
    unit = str(plan.get("unit", "ms"))
    click.echo(f"{recipe.name} on {target.name}\n")
    rows = {
        "dense FP32": plan.get("dense_fp32"),
        "dense INT8": plan.get("dense_int8"),
        "budget": plan.get("budget"),
        "narrowest widths": plan.get("floor"),
        "... and blocks removed": plan.get("floor_with_blocks"),
    }
    for label, value in rows.items():
        if value is not None:
            click.echo(f"  {label:<24}{number(median(value)):>10} {unit}")
    if unit in MEANING:
        click.echo(f"\n  {MEANING[unit]}")
    _layers(plan.get("layers", ()), unit)
    _frozen(plan.get("frozen", ()))
    if plan.get("feasible"):
        click.echo(f"\n{click.style('FEASIBLE', fg='green', bold=True)}  {plan.get('advice', '')}".rstrip())
    else:
        click.echo(f"\n{click.style('NOT FEASIBLE', fg='red', bold=True)}")


def _layers(layers: Any, unit: str) -> None:
    if not layers:
        return
    from rich.text import Text

    slowest = sorted(layers, key=lambda layer: -float(layer.get("ms") or 0))[:10]
    title = f"The {len(slowest)} slowest of {len(layers)} layers"
    made = console.table(title, layer="layer", time=unit, share="share", frozen="frozen", right="time,share")
    for layer in slowest:
        share, frozen = layer.get("share"), layer.get("frozen") or ""
        made.add_row(
            Text(str(layer["name"])),
            number(layer.get("ms")),
            MISSING if share is None else f"{share:.1%}",
            Text("yes" if frozen is True else str(frozen)),
        )
    click.echo()
    console.show(made)


def _frozen(frozen: Any) -> None:
    if not frozen:
        return
    click.echo("\nFrozen, and why:")
    for entry in frozen:
        what, why = (entry.get("what"), entry.get("why")) if isinstance(entry, Mapping) else (entry, "")
        click.echo(f"  {what}: {why}".rstrip(": "))
