"""What a finished command prints: the plan, or one table, the verdict and the paths; or the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import result as results
from edgeprune import stage
from edgeprune.cli import console
from edgeprune.cli.session import Invocation, echo_json
from edgeprune.errors import GateError
from edgeprune.recipe import Recipe
from edgeprune.result import NAMES as NETWORKS
from edgeprune.result import Network, Result
from edgeprune.target import Target

if TYPE_CHECKING:
    from rich.table import Table

    from edgeprune.pipeline import Outcome

MEANING = {
    "instructions": "Instructions of an emulated board: they stand for no time.",
    "modelled ms": "No device: latency is a model, not measured. Give yours: --device ssh://NAME",
}
ACCURACY = "Nothing is said of accuracy yet: plan --accuracy tells what is left before training, in minutes."
BUSY = 1.2  # processes that share each core
MISSING = "-"


def show(outcome: Outcome, step: str, session: Invocation) -> None:
    """Print what a step left behind."""
    show_result(outcome.result, step, session, outcome.run_dir, outcome.report, outcome.bundle)


def show_refused(refused: GateError, step: str, session: Invocation) -> None:
    """Print what a run measured before a gate refused it; the pipeline has written result.json and the report."""
    outcome: Outcome | None = getattr(refused, "outcome", None)
    if outcome is not None:
        show(outcome, step, session)


def show_result(
    result: Mapping[str, object],
    step: str,
    session: Invocation,
    run_dir: Path,
    report: Path | None,
    bundle: Path | None,
) -> None:
    """Print a result as far as it goes: an early step has no figures yet, only its run directory."""
    paths = {"run_dir": run_dir, "report": report, "bundle": bundle}
    if session.as_json:
        known = {name: str(path) if path else None for name, path in paths.items()}
        echo_json({"command": step, **known, "result": result})
        return
    read = results.read(result)
    if read.networks:
        console.show(results_table(read))
        from edgeprune.report import baseline, forced

        for told in filter(None, (forced(result.get("profile"), read), baseline(read))):
            console.say(f"  {told}")
    if read.gates:
        for line in verdict(read):
            console.say(*line)
    for name, path in paths.items():
        if path is not None:
            console.say(f"  {name.replace('_', ' '):<8} {path}")


def show_end(outcome: Outcome, until: str, target: str, recipe: Path, session: Invocation) -> None:
    """Say what `--until` left, and how to go on."""
    if session.as_json or session.quiet:
        return
    kept = [one.name for one in stage.until(until) if (outcome.run_dir / one.name).is_dir()]
    goes_on = f"edgeprune {target} run {recipe}"
    if until == "recover":
        folder = outcome.run_dir / until
        console.say(f"  {'yours':<8} {folder}: repaired, not trained; rebuild.py has the network as your own class.")
        goes_on += " --weights trained.safetensors"
    console.say(f"  {'kept':<8} {', '.join(kept)}; go on with: {goes_on}")


def results_table(result: Result) -> Table:
    """Each network: score, latency, size, speed-up over dense INT8."""
    title = f"{result.name} on {result.target}, {f'{result.runtime.name} {result.runtime.version}'.strip()}"
    rated = next((one.rated for one in result.networks.values() if one.rated), None)
    score = "score" if rated is None else "accuracy" if rated.metric == "top-1" else rated.metric
    if rated is not None and not rated.higher_is_better:
        score += " (lower is better)"
    headings = {"network": "network", "score": score, "latency": f"latency, {result.unit}", "p90": "p90"}
    made = console.table(title, **headings, size="size", speedup="speed-up", right="score,latency,p90,size,speedup")
    base = result.dense_int8.measured if result.dense_int8 else None
    for key, figures in result.networks.items():
        row = _row(figures, base.median if base else None)
        made.add_row(NETWORKS[key], *row, style="bold" if key == "pruned_int8" else None)
    return made


def _row(figures: Network, base: float | None) -> list[str]:
    times, rated = figures.measured, figures.rated
    return [
        MISSING if rated is None else rated.text,
        number(times.median if times else None),
        number(times.p90 if times else None),
        MISSING if figures.bytes is None else f"{figures.bytes / 1e6:.2f} MB",
        MISSING if not (base and times and times.median) else f"{base / times.median:.2f}x",
    ]


def median(figures: Any) -> float | None:
    """The median latency of a plan's entry, which may be a bare number; None when it was not measured."""
    if isinstance(figures, int | float):
        return float(figures)
    value = figures.get("median") if isinstance(figures, Mapping) else None
    return None if value is None else float(value)


def number(value: float | None) -> str:
    """Three significant places of a time; whole instructions in millions."""
    if value is None:
        return MISSING
    if value >= 1e5:
        return f"{value / 1e6:.2f} M"
    return f"{value:.{4 if 0 < value < 0.1 else 3 if value < 100 else 1}f}"


def verdict(result: Result) -> list[tuple[str, ...]]:
    """One line that says release or refused, then a line for each gate; parts as console.say takes them."""
    gates = result.gates
    failed = [gate for gate in gates if not gate.passed]
    if result.verdict == "unverified":
        by = "another device" if result.claim.answer == "another core" else "no device"
        head, colour, facts = "UNVERIFIED", "yellow", f"  {by} has measured; {len(failed)} gate open"
    elif failed:
        head, colour, facts = "REFUSED", "red", f"  {len(failed)} of {len(gates)} gates failed"
    else:
        head, colour, facts = "RELEASE", "green", f"  all {len(gates)} gates hold"
    lines: list[tuple[str, ...]] = [(console.style(head, fg=colour, bold=True), facts)]
    for gate in gates:
        mark = console.style("✓", fg="green") if gate.passed else console.style("✗", fg="red")
        lines.append(("  ", mark, f" {gate.name}: {gate.message}"))
        if not gate.passed and gate.remedy:
            lines.append((f"      {gate.remedy}",))
    return lines


def show_plan(plan: Mapping[str, Any], recipe: Recipe, target: Target, session: Invocation) -> None:
    """Print whether the budget can be met, where the time goes, and what is frozen."""
    if session.as_json:
        echo_json({"command": "plan", "plan": plan})
        return
    unit = str(plan.get("unit", "ms"))
    console.say(f"{recipe.name} on {target.name}", console.NEWLINE)
    rows = {
        "dense FP32": plan.get("dense_fp32"),
        "dense INT8": plan.get("dense_int8"),
        "budget": plan.get("budget"),
        "narrowest widths": plan.get("floor"),
        "... and blocks removed": plan.get("floor_with_blocks"),
    }
    for label, value in rows.items():
        if value is not None:
            console.say(f"  {label:<24}{number(median(value)):>10} {unit}")
    claim = plan.get("claim") or {}
    if claim.get("why"):
        console.say(console.NEWLINE, f"  Nothing here will be released: {claim['why']} {claim['remedy']}")
    elif unit in MEANING:
        console.say(console.NEWLINE, f"  {MEANING[unit]}")
    if plan.get("dense"):
        console.say(console.NEWLINE, f"  {plan['dense']}")
    _layers(plan.get("layers", ()), unit)
    _frozen(plan.get("frozen", ()))
    _estimate(plan.get("estimate") or {})
    findings = list(plan.get("findings") or ())
    hopeless = any(finding["severity"] == "error" for finding in findings)
    for finding in findings:
        error = finding["severity"] == "error"
        mark = console.style("✗" if error else "!", fg="red" if error else "yellow")
        console.say(console.NEWLINE, "  ", mark, f" {finding['name']}: {finding['message']}")
        if finding.get("remedy"):
            console.say(f"      {finding['remedy']}")
    if plan.get("feasible") and hopeless:
        says = "  The budget can be met, but whatever is trained, a gate will refuse it."
        console.say(console.NEWLINE, console.style("NOT RELEASABLE", fg="red", bold=True), says)
    elif plan.get("feasible"):
        advice = f"  {plan.get('advice', '')}".rstrip()
        console.say(console.NEWLINE, console.style("FEASIBLE IN LATENCY", fg="green", bold=True), advice)
        console.say(f"  {(plan.get('accuracy') or {}).get('says') or ACCURACY}")
    else:
        console.say(console.NEWLINE, console.style("NOT FEASIBLE", fg="red", bold=True))


def _estimate(found: Any) -> None:
    """What `run` will take, by what was measured."""
    if not found:
        return
    steps = [f"{_with_stages(name)} {duration(value)}" for name, value in found["seconds"].items() if value >= 1]
    load = found.get("load") or 0.0
    now = f" (measured with {load:.1f} busy processes a core; a quiet machine takes less)" if load > BUSY else ""
    console.say(console.NEWLINE, f"  run will take about {duration(found['total'])}{now}: {', '.join(steps)};")
    size = {name: _size(found[name]) for name in ("memory", "disk", "free")}
    console.say(f"  about {size['memory']} of memory, and {size['disk']} of disk ({size['free']} are free)")
    if found["disk"] > found["free"]:
        console.say("  ", console.style("!", fg="yellow"), " the disk is too small: choose another with --run-dir")


def _with_stages(step: str) -> str:
    """A step and, where they are called otherwise, its stages, as the run will show them."""
    names = [one.name for one in stage.PIPELINE if one.step == step and one.work]
    return step if not names or step in names else f"{step} ({', '.join(names)})"


def _size(count: float) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """40 s; 12 min; 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
            MISSING if share is None else f"{100 * share:.1f} %",
            Text("yes" if frozen is True else str(frozen)),
        )
    console.say()
    console.show(made)


def _frozen(frozen: Any) -> None:
    if not frozen:
        return
    console.say(console.NEWLINE, "Frozen, and why:")
    for entry in frozen:
        what, why = (entry.get("what"), entry.get("why")) if isinstance(entry, Mapping) else (entry, "")
        console.say(f"  {what}: {why}".rstrip(": "))
