"""The gates that ask what the artifacts compute: proof, finite, sane, accuracy, precision."""

from __future__ import annotations

import math

from edgeprune.result import NAMES, Comparison, Precision, ProofInfo, Result, Sanity, number, quantity
from edgeprune.validate.gate import ROUNDING, Gate, up

SPARE = 0.9  # a network that uses less of its budget could have kept more
SANE = ("dense_fp32", "pruned_int8")  # the networks whose sanity a result holds
INSANE = "Check [model] weights, the order of the classes, and [data] scale, mean and std."


def proof_gate(proof: ProofInfo | None) -> Gate:
    if proof is None:
        return Gate("proof", False, None, None, "error", "there is no proof.", "Repeat the step: --from prune.")
    value = proof.max_error
    if proof.passed:
        size = "" if value is None else f" (largest error {value:.2g})"
        message = f"the pruned network computes what it must{size}: {proof.method}."
        return Gate("proof", True, value, None, "error", message)
    message = f"the pruned network does not compute what it must: error {value if value is not None else 'unknown'}."
    return Gate("proof", False, value, None, "error", message, "This is a defect; please report the network's graph.")


def finite_gate(result: Result) -> Gate:
    """NaN or infinity, in any artifact, on any example."""
    broken = {name: found.broken for name, found in result.validated.items() if found.rated}
    bad = {name: count for name, count in broken.items() if count}
    if not bad:
        message = f"the outputs of all {len(broken)} artifacts are finite on every test example."
        return Gate("finite", True, 0.0, 0.0, "examples", message)
    rated = result.network("pruned_int8").rated
    told = ", ".join(f"{NAMES.get(name, name)} on {count:,}" for name, count in bad.items())
    message = f"outputs are NaN or infinite on some of {rated.examples if rated else 0:,} test examples: {told}."
    remedy = (
        "The dense network fails already: check [data] scale, mean and std, and its weights."
        if "dense_fp32" in bad
        else "Pruning or INT8 broke it: look at the report's layers; [quantize.layers] keeps a layer in float."
    )
    return Gate("finite", False, float(max(bad.values())), 0.0, "examples", message, remedy)


def sane_gate(result: Result, chance: float) -> Gate:
    """`chance`: that of a network that knows nothing, to pass by luck."""
    found = {name: result.sane(name) for name in SANE}
    worst = max(one.p_value for one in found.values())
    bad = [f"{NAMES[name]}: {words}" for name, one in found.items() if (words := not_sane(one, chance))]
    if bad:
        first = next(name for name, one in found.items() if not_sane(one, chance))
        remedy = INSANE if first == "dense_fp32" else "Ask for less speed-up, or train longer ([recover] epochs)."
        return Gate("sane", False, worst, chance, "p-value", "; ".join(bad) + ".", remedy)
    dense = found["dense_fp32"]
    facts = ", ".join(f"{NAMES[name]} {_shown(one.value, one)}" for name, one in found.items())
    lacking = missing_classes(dense)
    blind = (
        "nobody knows what chance scores"
        if dense.chance is None
        else (f"{dense.blind} scores {_shown(dense.chance, dense)}")
    )
    message = f"{facts}, where {blind}."
    return Gate("sane", True, worst, chance, "p-value", message + (f" {lacking}" if lacking else ""))


def not_sane(found: Sanity, chance: float) -> str:
    """Why a network computes nothing, in words; empty where it does. `chance`: of a blind one to pass by luck."""
    if found.broken == found.examples:
        return f"its outputs are NaN or infinite on all {found.examples:,} examples"
    reasons = [found.constant] if found.constant else []
    if found.value is None:
        reasons.append(f"{found.metric} has no value on {found.examples:,} examples")
    elif not found.p_value <= chance:
        reasons.append(
            f"{_shown(found.value, found)} {found.metric} on {found.examples:,} examples is not better than "
            f"chance: {found.blind} scores {_shown(found.chance, found)}"
        )
    return ", and ".join(reasons)


def _shown(value: float | None, of: Sanity) -> str:
    return quantity(value, of.unit, of.scale)


def missing_classes(found: Sanity) -> str:
    """One sentence on the classes that no test example shows; empty where all are there."""
    count = len(found.missing)
    if not count:
        return ""
    some = ", ".join(found.missing[:5]) + (f" and {count - 5} more" if count > 5 else "")
    return f"No test example shows {some}: nothing is known of the network there."


def accuracy_gate(result: Result, max_drop: float, used: float) -> Gate:
    """`used`: the share of the latency budget that the pruned network takes."""
    found = result.compared
    drop, high = found.drop, found.high
    if not all(one is not None and math.isfinite(one) for one in (drop, found.value, found.reference)):
        return Gate("accuracy", False, None, max_drop, found.unit, "there is no accuracy.", "Repeat: --from validate.")
    assert drop is not None
    sure = f"{100 * found.confidence:g} %"
    side = f"{_of(abs(drop), found)} {found.worse if drop > 0 else found.better}"
    if high is None or not math.isfinite(high):
        message = f"{side} the dense FP32 network; {found.examples:,} examples set no limit to it."
        return Gate("accuracy", False, None, max_drop, found.unit, message, "Give more test examples.")
    most = f"at most {number(high, found.unit)} {found.worse}"
    if high < 0:  # better for certain
        most = f"at least {number(-high, found.unit)} {found.better}"
    facts = (
        f"{quantity(found.value, found.unit, found.scale)} against "
        f"{quantity(found.reference, found.unit, found.scale)} of the dense FP32 network on "
        f"{found.examples:,} examples: {side}; with {sure} confidence {most} "
        f"(limit {number(max_drop, found.unit)})"
    )
    if found.metric != "top-1":
        facts = f"{found.metric} {facts}"
    if high <= max_drop + 100 * ROUNDING:
        return Gate("accuracy", True, high, max_drop, found.unit, f"{facts}.")
    if drop > max_drop:
        remedy = _accuracy_remedy(result, found, drop, high)
        if used < SPARE and result.search.method == "uniform":
            remedy = (
                f"Only {100 * used:.0f} % of the latency budget is used, as uniform widths come in large steps: "
                '[search] method = "joint" keeps more; or train longer ([recover] epochs).'
            )
        message = f"{facts}: {number(drop - max_drop, found.unit)} more than the limit."
        return Gate("accuracy", False, high, max_drop, found.unit, message, remedy)
    message = f"{facts}: within it as measured, but {found.examples:,} examples cannot tell."
    remedy = f"Give more test examples, train longer ([recover] epochs), or allow max_drop = {up(high, found.unit)}."
    return Gate("accuracy", False, high, max_drop, found.unit, message, remedy)


def _of(value: float, found: Comparison) -> str:
    return f"{number(value, found.unit)} {found.unit}".strip()


def _accuracy_remedy(result: Result, found: Comparison, drop: float, high: float) -> str:
    """Where it went: quantisation or pruning."""
    before, after = (one.rated if one else None for one in (result.pruned_fp32, result.pruned_int8))
    if before and after and before.value is not None and after.value is not None:
        by_int8 = before.value - after.value if before.higher_is_better else after.value - before.value
        if by_int8 > drop / 2:
            these = "these points" if found.unit == "points" else "this"
            return (
                f"INT8 costs {number(by_int8, found.unit)} of {these}: try [quantize] reconstruct = true, more images, "
                "or qat_epochs = 1."
            )
    return f"Train longer ([recover] epochs), ask for less speed-up, or allow max_drop = {up(high, found.unit)}."


def precision_gate(found: Precision | None) -> Gate:
    """An artifact without one INT8 operator is not called INT8."""
    if found is None:
        return Gate(
            "precision", False, None, None, "operators", "nothing tells what runs in INT8.", "Repeat: --from validate."
        )
    count, total = found.int8, found.operators
    by = "by the runtime's own profile" if found.by == "profiler" else "by the graph's Q/DQ pairs"
    if not count:
        message = f"none of {total} operators with weights runs in INT8, {by}: this is no INT8 artifact."
        remedy = (
            "Remove what keeps its layers in float ([quantize.layers] precision, [quantize] fallback), or release the "
            "pruned FP32 artifact by other means: edgeprune releases INT8."
        )
        return Gate("precision", False, 0.0, 1.0, "operators", message, remedy)
    message = f"{count} of {total} operators with weights run in INT8, {by}"
    if floats := found.floats:
        message += f" ({100 * found.share:.0f} % of their time)" if found.share is not None else ""
        whole = [name for name in floats if name not in found.weights]
        for what, names in (("in float", whole), ("with weights alone in integers", found.weights)):
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            message += f"; {what}: {', '.join(names[:5])}{more}" if names else ""
    return Gate("precision", True, float(count), 1.0, "operators", f"{message}.")
