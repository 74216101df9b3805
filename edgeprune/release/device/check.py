"""Is this bundle still what it was, and is what it is given still what it was made for? run.py --check [FILE...]

selftest.json has statistics of the test examples that the network was validated on: of every input and output its
range, and quantiles of each example's mean and deviation; of a classifier how often it answered which class. New
examples are held against them by tests that a chance in 10,000 fails. The runtime, the clock and the samples are looked
at too. numpy alone; Python 3.8 and up. What is found are triples: what, "ok" or "odd" or "unknown", in words.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SURE = 1e-4  # chance at which a test speaks although nothing has changed
LEAST = 20  # new examples below which nothing is said of drift
SLOWER = 1.15  # times the latency that was measured
DRAWS = 20_000  # of the histogram's test
SHIFTS = ("mean", "deviation")

Named = Any  # names and values, as JSON has them, or arrays


def statistics(inputs: Named, outputs: list[Any], classifies: bool) -> Named:
    """selftest.json of arrays [N, ...] by the inputs' names, and outputs [N, ...] in their order."""
    named = {f"output_{n}" if n else "output": one for n, one in enumerate(outputs)}
    found = {
        "version": 1,
        "examples": len(next(iter(inputs.values()))),
        "quantiles": list(QUANTILES),
        "inputs": {name: _summary(array) for name, array in inputs.items()},
        "outputs": {name: _summary(array) for name, array in named.items()},
    }
    answers = classes(outputs) if classifies else None
    if answers is not None:
        found["classes"] = np.bincount(
            answers, minlength=int(outputs[0].shape[-1]) if outputs[0].ndim > 1 else 0
        ).tolist()
    return found


def classes(outputs: list[Any]) -> Any:
    """The best class of each example; None where the first output is neither scores nor the class itself."""
    first = np.asarray(outputs[0])
    if first.ndim == 1 and first.dtype.kind in "iu":
        return first.astype(np.int64)
    return first.argmax(1) if first.ndim == 2 and first.shape[1] > 1 else None


def _summary(array: Any) -> Named:
    each = _each(array)
    flat = np.asarray(array, np.float64)
    told = {name: [float(one) for one in np.quantile(each[name], QUANTILES)] for name in SHIFTS}
    return {"low": float(flat.min()), "high": float(flat.max()), **told}


def _each(array: Any) -> Named:
    """Of each example [N]."""
    flat = np.asarray(array, np.float64).reshape(len(array), -1)
    return {"mean": flat.mean(1), "deviation": flat.std(1)}


def drift(stored: Named, inputs: Named, outputs: list[Any]) -> list[tuple[str, str, str]]:
    """What of new examples is not as the test examples were; one entry a part, and `classes`."""
    count = len(next(iter(inputs.values())))
    if count < LEAST:
        return [("drift", "unknown", f"{count} examples are too few to tell; give {LEAST} or more.")]
    named = {f"output_{n}" if n else "output": one for n, one in enumerate(outputs)}
    found = []
    for kind, given in (("inputs", inputs), ("outputs", named)):
        for name, array in given.items():
            known = stored.get(kind, {}).get(name)
            if known is not None:
                odd = _odd(known, stored["examples"], array)
                told = "; ".join(odd) or f"as the {stored['examples']} test examples"
                found.append((f"{kind[:-1]} '{name}'", "odd" if odd else "ok", told))
    answers = classes(outputs) if "classes" in stored else None
    if answers is not None:
        found.append(_histogram(stored["classes"], answers))
    return found


def _odd(known: Named, examples: int, array: Any) -> list[str]:
    """What of an array [N, ...] differs from the statistics, in words."""
    each, odd = _each(array), []
    if not np.isfinite(np.asarray(array, np.float64)).all():
        return ["values that are not finite"]
    for name in SHIFTS:
        values, (low, _, _, middle, _, _, high) = each[name], known[name]
        outside = int(((values < low) | (values > high)).sum())
        if _tail(outside, len(values), 0.02 + 3 / examples) < SURE:
            odd.append(f"the {name} is outside the usual {low:.4g} to {high:.4g} in {outside} of {len(values)}")
            continue
        above = int((values > middle).sum())
        share = above if 2 * above > len(values) else len(values) - above
        if high > low and _tail(share, len(values), 0.5 + 2 / math.sqrt(examples)) < SURE:
            side = "above" if 2 * above > len(values) else "below"
            odd.append(f"the {name} is {side} the usual {middle:.4g} in {share} of {len(values)}")
    width = known["high"] - known["low"] or abs(known["high"]) or 1.0
    flat = np.asarray(array, np.float64)
    if flat.min() < known["low"] - width or flat.max() > known["high"] + width:
        known_here = f"{known['low']:.4g} to {known['high']:.4g}"
        odd.append(f"values from {flat.min():.4g} to {flat.max():.4g}, where {known_here} is known")
    return odd


def _tail(count: int, of: int, chance: float) -> float:
    """The probability of so many or more, each with this chance."""
    chance = min(chance, 1.0)
    if count <= 0 or chance >= 1:
        return 1.0
    logs = [
        math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) + k * math.log(chance)
        + (of - k) * math.log1p(-chance)
        for k in range(count, of + 1)
    ]  # fmt: skip
    top = max(logs)
    return math.exp(top) * sum(math.exp(one - top) for one in logs)


def _histogram(known: list[int], answers: Any) -> tuple[str, str, str]:
    """Are the classes answered as often? By how far two such histograms lie apart if both are of one source."""
    new = np.bincount(answers, minlength=len(known))[: len(known)]
    pooled = np.asarray(known, np.float64) + new + 0.5
    pooled /= pooled.sum()
    random, sizes = np.random.default_rng(0), (int(sum(known)), int(new.sum()))
    drawn = [random.multinomial(size, pooled, DRAWS) / max(1, size) for size in sizes]
    usual = np.abs(drawn[0] - drawn[1]).sum(1)
    apart = float(np.abs(np.asarray(known) / max(1, sizes[0]) - new / max(1, sizes[1])).sum())
    if apart <= float(usual.max()):
        return ("classes", "ok", "answered as often as of the test examples")
    most = int(np.argmax(np.abs(np.asarray(known) / sizes[0] - new / sizes[1])))
    shares = (known[most] / sizes[0], int(new[most]) / sizes[1])
    told = f"another share of each; class {most}: {100 * shares[1]:.0f} %, was {100 * shares[0]:.0f} %"
    return ("classes", "odd", told)


def runtime(manifest: Named, version: str) -> tuple[str, str, str]:
    """Is it the version that it was measured with?"""
    made = str(manifest["runtime"].get("version", ""))
    name = str(manifest["runtime"]["name"])
    if not made:
        return ("runtime", "unknown", f"{name} {version}; the bundle does not say which it was made with")
    if made == version:
        return ("runtime", "ok", f"{name} {version}, as it was measured")
    return ("runtime", "odd", f"{name} {version} here, {made} when it was measured")


def clock(manifest: Named, result: Named, now_ms: float, state: Named) -> list[tuple[str, str, str]]:
    """Is it as fast as it was, and are the cores'? `state`: as agent/state.py gives it; {} where it cannot tell."""
    found = []
    figures = manifest["figures"].get("pruned_int8") or {}
    measured = (figures.get("latency_ms") or {}).get("median") if manifest.get("unit") == "ms" else None
    if not measured:
        found.append(("latency", "unknown", f"{now_ms:.3f} ms here; no time was measured for this bundle"))
    else:
        odd = now_ms > SLOWER * measured
        told = f"{now_ms:.3f} ms here, {measured:.3f} ms when it was measured ({now_ms / measured:.2f} times)"
        if odd and _busy(state):
            told += f"; the machine is busy (load {state['load']})"
        found.append(("latency", "odd" if odd else "ok", told))
    before = ((result.get("state") or {}).get("before") or {}).get("frequencies_khz") or {}
    now = state.get("frequencies_khz") or {}
    slow = [name for name in sorted(now) if before.get(name) and now[name] * SLOWER < before[name]]
    if slow:
        told = ", ".join(f"{name} {now[name] / 1e3:.0f} MHz, was {before[name] / 1e3:.0f}" for name in slow[:4])
        found.append(("clock", "odd", told))
    elif before and now:
        found.append(("clock", "ok", "the cores' frequencies are those of then, or higher"))
    if state.get("throttled"):
        found.append(("throttling", "odd", f"the board reports {state['throttled']:#x}"))
    return found


def _busy(state: Named) -> bool:
    try:
        return float(state.get("load") or 0) > 0.35 * float(state.get("cpus") or 1)
    except (TypeError, ValueError):
        return False
