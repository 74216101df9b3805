"""The gates: what must hold, as measured on the device's runtime, before a bundle may be written.

    measurement   the latencies are good enough to be compared
    proof         the pruned network computes what it must
    accuracy      points of top-1 below the dense FP32 network, at most [budget] max_drop
    latency       never above the budget
    emulation     on an emulated core: the true runtime computes what the pre-check computes, bit for bit
    faster        than the dense INT8 artifact: else there is no reason to prune
    size          [budget] max_bytes, where the recipe has it

On an emulated board latency is counted in executed instructions: they stand for no time, so a budget in milliseconds
is refused there, while a speed-up over the dense INT8 artifact works.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeprune.errors import RecipeError, RunError
from edgeprune.recipe import BudgetSection
from edgeprune.target import latency_key

DEFAULT_SPREAD = 0.15
SPARE = 0.9  # a network that uses less of its budget could have kept more
SAME_CLASS = 0.99  # share of images with the pre-check's class, where operators are not proven to give the same bits
UNMEASURED = "no device has run this: latency is a model, not measured, and outputs are ONNX Runtime's."
ROUNDING = 1e-9  # relative; a float's own error is no reason to refuse


@dataclass(frozen=True)
class Gate:
    """One gate's answer.

    Attributes:
        value, limit: in `unit`; None where it cannot be told (then the gate has not passed).
        message: what was found against what was wanted, and by how much it fails.
        remedy: what would help; empty when it passed.
    """

    name: str
    passed: bool
    value: float | None
    limit: float | None
    unit: str
    message: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As in result.json."""
        return asdict(self)


def gates(result: Mapping[str, Any], budget: BudgetSection, max_spread: float = DEFAULT_SPREAD) -> tuple[Gate, ...]:
    """Hold the figures of a result (the parts of result.json that are measured) against the budget.

    Args:
        result: `unit`, `dense_fp32`, `dense_int8`, `pruned_int8`, `proof`, as docs/doors.md says.
        budget: what the recipe asks for.
        max_spread: of the round medians, as in the target's protocol; wider is too noisy to be compared.

    Raises:
        RecipeError: a budget in milliseconds where only instructions can be counted.
        RunError: a figure is missing.
    """
    unit = str(result.get("unit", "ms"))
    missing = [name for name in ("dense_fp32", "dense_int8", "pruned_int8") if not result.get(name)]
    if missing:
        raise RunError(f"result.json has no {missing[0]}.", "Run the step again: edgeprune TARGET validate RECIPE.")
    dense, pruned = _latency(result["dense_int8"], unit), _latency(result["pruned_int8"], unit)
    limit = deadline(float(dense["median"]), budget, unit)
    found = [
        _measurement(result, unit, max_spread),
        _proof(result.get("proof") or {}),
        _accuracy(result, budget.max_drop, float(pruned["median"]) / limit),
        _deadline(float(pruned["median"]), limit, unit),
        _faster(float(dense["median"]), float(pruned["median"]), unit),
    ]
    emulated = {
        name: result[name]["emulated"] for name in ("dense_int8", "pruned_int8") if result[name].get("emulated")
    }
    if emulated:
        found.append(_emulation(emulated, int(result["pruned_int8"]["images"])))
    if budget.max_bytes is not None:
        found.append(_size(int(result["pruned_int8"]["bytes"]), budget.max_bytes))
    return tuple(found)


def verdict(found: Sequence[Gate], unit: str) -> str:
    """ "release"; "unverified" when all that is open is the measurement, as there was no device; else "refused"."""
    failed = [gate.name for gate in found if not gate.passed]
    if failed == ["measurement"] and unit == "modelled ms":
        return "unverified"
    return "refused" if failed else "release"


def deadline(dense_int8: float, budget: BudgetSection, unit: str = "ms") -> float:
    """The latency that must not be exceeded, in `unit`; `dense_int8` is the dense INT8 artifact's median.

    Raises:
        RecipeError: [budget] latency_ms on a target that counts instructions.
    """
    if budget.latency_ms is None:
        if budget.speedup is None:
            raise RecipeError("[budget] needs exactly one of speedup and latency_ms.")
        return dense_int8 / budget.speedup
    if unit == "instructions":
        raise RecipeError(
            f"[budget] latency_ms = {budget.latency_ms:g} cannot be held here: this target is emulated, and counts "
            f"{unit}, which are no time.",
            "Ask for a speed-up instead, such as speedup = 2.0; or measure on a real board with --device.",
        )
    return budget.latency_ms


def _measurement(result: Mapping[str, Any], unit: str, max_spread: float) -> Gate:
    if unit == "modelled ms":
        return Gate(
            "measurement", False, None, max_spread, "spread", UNMEASURED, "Run it on the device: --device ssh://NAME"
        )
    worst, reasons = 0.0, []
    for name in ("dense_int8", "pruned_int8"):
        latency = _latency(result[name], unit)
        label = name.replace("_", " ").replace("int", "INT")
        spread = float(latency.get("spread", 0.0))
        worst = max(worst, spread) if math.isfinite(spread) else math.inf
        if not latency.get("valid", True):
            reasons.append(f"{label}: {', '.join(latency.get('reasons', ())) or 'marked as not valid'}")
        elif not spread <= max_spread:
            reasons.append(f"{label}: the rounds' medians spread by {spread:.1%}, more than {max_spread:.1%}")
    if reasons:
        remedy = "Close what else runs on the device, fix its clocks, let it cool, and repeat: --from validate."
        return Gate("measurement", False, worst, max_spread, "spread", "; ".join(reasons) + ".", remedy)
    message = f"the rounds' medians spread by at most {worst:.1%} (limit {max_spread:.1%})."
    return Gate("measurement", True, worst, max_spread, "spread", message)


def _proof(proof: Mapping[str, Any]) -> Gate:
    error, method = proof.get("max_error"), proof.get("method", "")
    value = None if error is None else float(error)
    if proof.get("passed") is True:
        size = "" if value is None else f" (largest error {value:.2g})"
        return Gate("proof", True, value, None, "error", f"the pruned network computes what it must{size}: {method}.")
    if not proof:
        return Gate("proof", False, None, None, "error", "there is no proof.", "Repeat the step: --from prune.")
    message = f"the pruned network does not compute what it must: error {value if value is not None else 'unknown'}."
    return Gate("proof", False, value, None, "error", message, "This is a defect; please report the network's graph.")


def _accuracy(result: Mapping[str, Any], max_drop: float, used: float) -> Gate:
    """`used`: the share of the latency budget that the pruned network takes."""
    dense, pruned = float(result["dense_fp32"]["accuracy"]), float(result["pruned_int8"]["accuracy"])
    drop = 100 * (dense - pruned)
    if not math.isfinite(drop):
        return Gate("accuracy", False, None, max_drop, "points", "there is no accuracy.", "Repeat: --from validate.")
    facts = f"{100 * pruned:.2f} % against {100 * dense:.2f} % of the dense FP32 network"
    if drop <= max_drop + 100 * ROUNDING:
        word = f"{drop:.2f} points below" if drop > 0 else f"{-drop:.2f} points above"
        return Gate("accuracy", True, drop, max_drop, "points", f"{facts}: {word} (limit {max_drop:.2f}).")
    message = f"{facts}: {drop:.2f} points below, {drop - max_drop:.2f} more than the limit of {max_drop:.2f}."
    return Gate("accuracy", False, drop, max_drop, "points", message, _accuracy_remedy(result, drop, used))


def _accuracy_remedy(result: Mapping[str, Any], drop: float, used: float) -> str:
    """Where the points went: quantisation, a search that cut more than it was asked to, or pruning."""
    float_pruned = (result.get("pruned_fp32") or {}).get("accuracy")
    if float_pruned is not None:
        by_int8 = 100 * (float(float_pruned) - float(result["pruned_int8"]["accuracy"]))
        if by_int8 > drop / 2:
            return (
                f"INT8 costs {by_int8:.2f} of these points: try [quantize] reconstruct = true, more images, or "
                "qat_epochs = 1."
            )
    uniform = (result.get("search") or {}).get("method") == "uniform"
    if used < SPARE and uniform:
        return (
            f"Only {used:.0%} of the latency budget is used, as uniform widths come in large steps: "
            '[search] method = "joint" keeps more; or train longer ([recover] epochs).'
        )
    return f"Train longer ([recover] epochs), ask for less speed-up, or allow max_drop = {_up(drop)}."


def _deadline(pruned: float, limit: float, unit: str) -> Gate:
    facts = f"{_quantity(pruned, unit)} against a budget of {_quantity(limit, unit)}"
    if pruned <= limit * (1 + ROUNDING):
        return Gate("latency", True, pruned, limit, unit, f"{facts}: {pruned / limit:.1%} of it.")
    remedy = "Search again with what was measured: --from prune; or ask for less: see edgeprune TARGET plan RECIPE."
    return Gate("latency", False, pruned, limit, unit, f"{facts}: {pruned / limit - 1:.1%} too slow.", remedy)


def _faster(dense: float, pruned: float, unit: str) -> Gate:
    facts = f"{_quantity(pruned, unit)} against {_quantity(dense, unit)} of the dense INT8 artifact"
    if pruned < dense:
        return Gate("faster", True, pruned, dense, unit, f"{facts}: {dense / pruned:.2f} times as fast.")
    remedy = "Pruning buys nothing here: ship the dense INT8 artifact, or ask for a larger speed-up."
    return Gate("faster", False, pruned, dense, unit, f"{facts}: not faster ({dense / pruned:.2f} times).", remedy)


def _emulation(emulated: Mapping[str, Mapping[str, Any]], images: int) -> Gate:
    """On an emulated core: does the true runtime compute what the pre-check does, whose images outnumber its own?

    Every bit, where every operator was held against ARM; with others in the graph, the same class on SAME_CLASS.
    """
    stated = [found.get("unproven") for found in emulated.values()]  # an older run's result does not say
    exact = all(names is not None and not names for names in stated)
    others = ", ".join(dict.fromkeys(name for names in stated for name in names or ())) or "not recorded by this run"
    key, limit, what = ("same_bits", 1.0, "every bit") if exact else ("same_class", SAME_CLASS, "the same class")
    same = min(float(found[key]) for found in emulated.values())
    ours = emulated["pruned_int8"]
    facts = (
        f"{ours['runtime']}: {ours['images']:,} of {images:,} images of pruned INT8, top-1 {ours['accuracy']:.2%} "
        f"(95 % interval {ours['low']:.2%} to {ours['high']:.2%}); dense and pruned, {what} as in the pre-check on "
        f"{same:.2%}" + ("" if exact else f" (bits are not asked for; operators not proven equal: {others})")
    )
    if same >= limit:
        return Gate("emulation", True, same, limit, "share", f"{facts} (limit {limit:.0%}).")
    remedy = "The pre-check does not stand for this runtime: please report it with both versions of ONNX Runtime."
    return Gate("emulation", False, same, limit, "share", f"{facts}; wanted {limit:.0%}.", remedy)


def _size(size: int, limit: int) -> Gate:
    facts = f"{size:,} bytes against a limit of {limit:,}"
    if size <= limit:
        return Gate("size", True, size, limit, "bytes", f"{facts}.")
    remedy = f"Ask for a larger speed-up, or allow max_bytes = {size}."
    return Gate("size", False, size, limit, "bytes", f"{facts}: {size - limit:,} too many.", remedy)


def _latency(figures: Mapping[str, Any], unit: str) -> Mapping[str, Any]:
    key = latency_key(unit)
    found = figures.get(key)
    if not isinstance(found, Mapping) or not math.isfinite(found.get("median", math.nan)) or found["median"] <= 0:
        raise RunError(f"result.json has no {key}.", "Run the step again: edgeprune TARGET validate RECIPE.")
    return found


def _quantity(value: float, unit: str) -> str:
    if unit != "instructions":
        return f"{value:.3f} {unit}"
    return f"{value / 1e6:.3f} million {unit}"


def _up(points: float) -> float:
    """Rounded up to one decimal, so that the advice would be enough."""
    return math.ceil(points * 10 - 1e-9) / 10
