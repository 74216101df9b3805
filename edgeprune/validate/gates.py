"""The gates: what must hold, as measured on the device's runtime, before a bundle may be written.

    measurement   the latencies are good enough to be compared
    proof         the pruned network computes what it must
    finite        no output of any artifact on any test example is NaN or infinite
    sane          the dense network and the released artifact beat chance, and depend on their input
    accuracy      below the dense FP32 network by at most [budget] max_drop, at [budget] confidence
    precision     operators run in INT8: else the artifact is not called so
    latency       never above the budget, by all validations of this artifact together
    emulation     on an emulated core: the true runtime computes what the pre-check computes, bit for bit
    faster        than dense INT8, dense FP32 and pruned FP32: else there is a better thing to ship
    size          [budget] max_bytes, where the recipe has it

Nothing here knows of classes: a task's figures come as `result.Comparison` and `result.Sanity`.

On an emulated board latency is counted in executed instructions: they stand for no time, so a budget in milliseconds
is refused there, while a speed-up over the dense INT8 artifact works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeprune import result as results
from edgeprune.recipe import BudgetSection
from edgeprune.result import Emulated, Network, Result
from edgeprune.validate import quality, speed
from edgeprune.validate.gate import Gate

DEFAULT_SPREAD = 0.15

SAME_CLASS = 0.99  # share of images with the pre-check's class, where operators are not proven to give the same bits


def gates(
    result: Mapping[str, object] | Result, budget: BudgetSection, max_spread: float = DEFAULT_SPREAD
) -> tuple[Gate, ...]:
    """Hold the figures of a result (the parts of result.json that are measured) against the budget.

    Args:
        result: typed, or as it lies in result.json.
        budget: what the recipe asks for.
        max_spread: of the round medians, as in the target's protocol; wider is too noisy to be compared.

    Raises:
        RecipeError: a budget in milliseconds where only instructions can be counted.
        RunError: a figure is missing.
    """
    read = result if isinstance(result, Result) else results.read(result)
    for name in ("dense_fp32", "dense_int8", "pruned_int8"):
        read.network(name)
    medians = {name: one.latency(read.unit).median for name, one in read.networks.items()}
    kept = speed.validations(read)
    used = medians["pruned_int8"] / speed.deadline(medians["dense_int8"], budget, read.unit)
    found = [
        speed.measurement_gate(kept, read, max_spread, speed.moments(kept, budget, read.unit, read.earlier)),
        quality.proof_gate(read.proof),
        quality.finite_gate(read),
        quality.sane_gate(read, 1 - budget.confidence),
        quality.accuracy_gate(read, budget.max_drop, used),
        quality.precision_gate(read.precision),
        speed.deadline_gate(kept, medians, budget, read.unit, read.earlier),
        speed.faster_gate(kept, medians, budget.confidence, read.unit, read.earlier),
    ]
    ours = read.network("pruned_int8")
    emulated = {name: one.emulated for name, one in read.networks.items() if one.emulated and name.endswith("int8")}
    if emulated:
        found.append(_emulation(emulated, ours))
    if budget.max_bytes is not None:
        found.append(_size(ours.bytes or 0, budget.max_bytes))
    return tuple(found)


def verdict(found: Sequence[Gate], unit: str, claim: str = "release") -> str:
    """ "release"; "unverified" when all that is open is that the target's own device has not measured; else "refused".

    Args:
        claim: the best verdict that the device allows (edgeprune.claims).
    """
    failed = [gate.name for gate in found if not gate.passed]
    if failed == ["measurement"] and (unit == "modelled ms" or claim == "unverified"):
        return "unverified"
    return "refused" if failed or claim != "release" else "release"


def _emulation(emulated: Mapping[str, Emulated], released: Network) -> Gate:
    """On an emulated core: does the true runtime compute what the pre-check does, whose examples outnumber its own?

    Every bit, where every operator was held against ARM; with others in the graph, the same class on SAME_CLASS of the
    examples, or outputs within what INT8 rounds to where the task has no class.
    """
    stated = [found.unproven for found in emulated.values()]  # an older run's result does not say
    exact = all(names is not None and not names for names in stated)
    others = ", ".join(dict.fromkeys(name for names in stated for name in names or ())) or "not recorded by this run"
    classes = all(found.same_class is not None for found in emulated.values())
    limit = 1.0 if exact else SAME_CLASS
    what = "every bit" if exact else "the same class" if classes else "outputs within what INT8 rounds to"
    shares = [one.same_bits if exact else one.same_class if classes else one.close for one in emulated.values()]
    same = min(0.0 if share is None else share for share in shares)
    ours, rated = emulated["pruned_int8"], released.rated
    total = rated.examples if rated else 0
    facts = (
        f"{ours.runtime}: {ours.images:,} of {total:,} {'images' if classes else 'examples'} of pruned INT8, "
        f"{_scored(ours)}; dense and pruned, {what} as in the pre-check on "
        f"{100 * same:.2f} %" + ("" if exact else f" (bits are not asked for; operators not proven equal: {others})")
    )
    if same >= limit:
        return Gate("emulation", True, same, limit, "share", f"{facts} (limit {100 * limit:.0f} %).")
    remedy = "The pre-check does not stand for this runtime: please report it with both versions of ONNX Runtime."
    return Gate("emulation", False, same, limit, "share", f"{facts}; wanted {100 * limit:.0f} %.", remedy)


def _scored(found: Emulated) -> str:
    rated = found.score
    if rated is None:
        network = Network(accuracy=found.accuracy, low=found.low, high=found.high, images=found.images)
        rated = network.rated
    if rated is None:
        return "no score"
    low, high = (results.quantity(one, rated.unit) for one in (rated.low, rated.high))
    return f"{rated.metric} {rated.text} (95 % interval {low} to {high})"


def _size(size: int, limit: int) -> Gate:
    facts = f"{size:,} bytes against a limit of {limit:,}"
    if size <= limit:
        return Gate("size", True, size, limit, "bytes", f"{facts}.")
    remedy = f"Ask for a larger speed-up, or allow max_bytes = {size}."
    return Gate("size", False, size, limit, "bytes", f"{facts}: {size - limit:,} too many.", remedy)
