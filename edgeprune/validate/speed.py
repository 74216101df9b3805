"""The gates that ask how fast it is: measurement, latency, faster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from edgeprune.errors import RecipeError
from edgeprune.recipe import BudgetSection
from edgeprune.result import NAMES, Result, Validation
from edgeprune.validate import timing
from edgeprune.validate.gate import Gate, quantity

UNMEASURED = "no device has run this: latency is a model, not measured, and outputs are ONNX Runtime's."


def deadline(dense_int8: float, budget: BudgetSection, unit: str = "ms") -> float:
    """The latency that must not be exceeded, in `unit`; `dense_int8` is the dense INT8 artifact's median.

    Raises:
        RecipeError: [budget] latency_ms on a target that counts instructions.
    """
    if budget.latency_ms is None:
        return dense_int8 / (budget.speedup or 1.0)  # the fastest within max_drop has to be no slower
    if unit == "instructions":
        raise RecipeError(
            f"[budget] latency_ms = {budget.latency_ms:g} cannot be held here: this target is emulated, and counts "
            f"{unit}, which are no time.",
            "Ask for a speed-up instead, such as speedup = 2.0; or measure on a real board with --device.",
        )
    return budget.latency_ms


def validations(result: Result) -> tuple[Validation, ...]:
    """All validations of this artifact that a result holds; at least the one whose figures it shows."""
    found = {name: one.latency(result.unit) for name, one in result.networks.items()}
    return result.validations or (timing.entry(found),)


def latency_share(
    kept: Sequence[Validation], budget: BudgetSection, unit: str = "ms", earlier: Sequence[Validation] = ()
) -> timing.Pooled | None:
    """The released artifact's latency over the budget, by all validations that count together.

    Args:
        earlier: the same network as the search measured it; counts where no validation was quiet, and where it says
            something else.
    """

    def share(medians: Mapping[str, float]) -> float:
        return medians["pruned_int8"] / deadline(medians["dense_int8"], budget, unit)

    return timing.together(timing.counted(kept, earlier), share, unit, budget.confidence)


def disagreement(
    kept: Sequence[Validation], budget: BudgetSection, unit: str, earlier: Sequence[Validation]
) -> tuple[float, float] | None:
    """Shares of the budget, by the validations and as the search measured it, where these do not say the same."""
    now, then = latency_share(kept, budget, unit), latency_share(earlier, budget, unit)
    return (now.ratio, then.ratio) if now and then and timing.apart(now, then) else None


def speedup(result: Result, confidence: float) -> float | None:
    """How many times as fast as dense INT8, by all valid validations together: what the gates use."""

    def ratio(medians: timing.Medians) -> float:
        return medians["pruned_int8"] / medians["dense_int8"]

    kept = timing.counted(validations(result), result.earlier) or _valid(validations(result))
    found = timing.together(kept, ratio, result.unit, confidence)
    return 1 / found.ratio if found else None


def measurement_gate(kept: Sequence[Validation], result: Result, max_spread: float, told: str = "") -> Gate:
    """Were these artifacts measured on the device, and quietly enough? `told`: what else the reader should know."""
    claim, unit = result.claim, result.unit
    if unit == "modelled ms" or claim.verdict != "release" or (claim.unit or unit) != unit:
        message = claim.why or UNMEASURED
        remedy = claim.remedy or "Run it on the device: --device ssh://NAME"
        return Gate("measurement", False, None, max_spread, "spread", message, remedy)
    worst, reasons = 0.0, []
    for name in ("dense_int8", "pruned_int8"):
        latency = result.network(name).latency(unit)
        worst = max(worst, latency.spread) if math.isfinite(latency.spread) else math.inf
        if not latency.valid:
            reasons.append(f"{NAMES[name]}: {', '.join(latency.reasons) or 'marked as not valid'}")
        elif not latency.spread <= max_spread:
            reasons.append(
                f"{NAMES[name]}: the rounds' medians spread by {100 * latency.spread:.1f} %, "
                f"more than {100 * max_spread:.1f} %"
            )
    others = [one for one in kept[:-1] if one.valid]
    if reasons and others:
        worst = max(one.networks[name].spread for one in others for name in ("dense_int8", "pruned_int8"))
        message = f"{len(others)} of {len(kept)} validations count; this one does not ({'; '.join(reasons)})."
        return Gate("measurement", True, worst, max_spread, "spread", f"{message}{told}")
    if reasons:
        remedy = "Close what else runs on the device, fix its clocks, let it cool, and repeat: --from validate."
        return Gate("measurement", False, worst, max_spread, "spread", "; ".join(reasons) + ".", remedy)
    message = f"the rounds' medians spread by at most {100 * worst:.1f} % (limit {100 * max_spread:.1f} %).{told}"
    return Gate("measurement", True, worst, max_spread, "spread", message)


def moments(kept: Sequence[Validation], budget: BudgetSection, unit: str, earlier: Sequence[Validation]) -> str:
    """Was the device busy with other work, do the validations and the search disagree? Sentences; "" for neither."""
    found = []
    valid = [one for one in kept if one.valid]
    if valid and all(one.others > timing.BUSY for one in valid):
        least = min(one.others for one in valid)
        beside = ", so the search's own measurements count too" if any(one.valid for one in earlier) else ""
        found.append(f"Other work took {100 * least:.0f} % of the device's CPUs or more{beside}.")
    if shares := disagreement(kept, budget, unit, earlier):
        now, then = (f"{100 * share:.1f} %" for share in shares)
        found.append(
            f"The search had measured this network at {then} of the latency budget, these validations at {now}: "
            "both count."
        )
    return "".join(f" {sentence}" for sentence in found)


def deadline_gate(
    kept: Sequence[Validation],
    medians: Mapping[str, float],
    budget: BudgetSection,
    unit: str,
    earlier: Sequence[Validation] = (),
) -> Gate:
    limit = deadline(medians["dense_int8"], budget, unit)
    pooled = latency_share(kept, budget, unit, earlier) or latency_share(_valid(kept), budget, unit)
    assert pooled is not None
    value = pooled.ratio * limit
    what = "validations" if pooled.count <= len(kept) else "measurements"
    times = "one validation" if pooled.count == 1 else f"{pooled.count} {what} together"
    facts = f"{quantity(value, unit)} against a budget of {quantity(limit, unit)}"
    sure = f"at most {100 * pooled.high:.1f} % of it with {100 * budget.confidence:g} % confidence, by {times}"
    if pooled.passed:
        return Gate("latency", True, value, limit, unit, f"{facts}: {100 * pooled.ratio:.1f} % of it; {sure}.")
    if pooled.open:
        remedy = (
            "Each further validation counts: --from validate; or search again with what was measured: --from prune."
        )
        message = f"{facts}: {100 * pooled.ratio:.1f} % of it, but {sure}: too near to tell."
        return Gate("latency", False, value, limit, unit, message, remedy)
    remedy = "Search again with what was measured: --from prune; or ask for less: see edgeprune TARGET plan RECIPE."
    message = f"{facts}: {100 * (pooled.ratio - 1):.1f} % too slow, by {times}."
    return Gate("latency", False, value, limit, unit, message, remedy)


def _valid(kept: Sequence[Validation]) -> list[Validation]:
    """Where none is valid (the measurement gate says so): all of them, for the figures alone."""
    return [msgspec.structs.replace(one, valid=True) for one in kept]


def faster_gate(
    kept: Sequence[Validation],
    medians: Mapping[str, float],
    confidence: float,
    unit: str,
    earlier: Sequence[Validation] = (),
) -> Gate:
    """Than every other artifact, by more than the noise; the gate's figures are those of the fastest other."""
    fastest = min((name for name in medians if name != "pruned_int8"), key=lambda name: medians[name])
    names, pruned = [name for name in NAMES if name in medians and name != "pruned_int8"], medians["pruned_int8"]
    searched = {"dense_int8": earlier}  # the search measures no other beside
    pooled = {name: _ratio(kept, name, unit, confidence, searched.get(name, ())) for name in names}
    told = ", ".join(
        f"{1 / found.ratio:.2f} times as fast as {NAMES[name]}{_between(found) if name == 'dense_int8' else ''}"
        for name, found in pooled.items()
    )
    facts = f"{quantity(pruned, unit)}: {told}"
    slow = [name for name, found in pooled.items() if not found.passed]
    value = pooled[fastest].ratio * medians[fastest]
    if not slow:
        return Gate("faster", True, value, medians[fastest], unit, f"{facts}.")
    message = f"{facts}: not faster than {', '.join(NAMES[name] for name in slow)} beyond the noise."
    floats = [name for name in slow if name.endswith("fp32")]
    remedy = (
        f"INT8 buys nothing here: {NAMES[floats[-1]]} is as fast. Ship artifacts/{floats[-1].replace('_', '-')} of "
        "the run directory, or choose a runtime with INT8 kernels for this processor."
        if floats
        else "Pruning buys nothing here: ship the dense INT8 artifact, or ask for a larger speed-up."
    )
    return Gate("faster", False, value, medians[fastest], unit, message, remedy)


def _between(found: timing.Pooled) -> str:
    """The limits of a speed-up, each as sure as the gate is."""
    return f" ({1 / found.high:.2f} to {1 / found.low:.2f})" if 0 < found.low < found.high < math.inf else ""


def _ratio(
    kept: Sequence[Validation], other: str, unit: str, confidence: float, earlier: Sequence[Validation]
) -> timing.Pooled:
    def ratio(medians: Mapping[str, float]) -> float:
        return medians["pruned_int8"] / medians[other]

    found = timing.together(timing.counted(kept, earlier) or _valid(kept), ratio, unit, confidence)
    assert found is not None
    return found
