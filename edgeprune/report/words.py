"""How figures are spelled, the same everywhere on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgeprune import runtimes
from edgeprune.result import NAMES as NETWORKS
from edgeprune.result import NONE, Result, finite, number, quantity, scale

__all__ = ["NETWORKS", "NONE", "Result", "finite", "number", "quantity", "scale"]


def latency(value: object, unit: str = "ms", *, named: bool = True) -> str:
    """0.453 ms; 1.21 M instructions."""
    number = finite(value)
    if number is None:
        return NONE
    if unit == "instructions":
        return f"{number / 1e6:.3g} M" + (f" {unit}" if named else "")
    digits = 4 if 0 < number < 0.1 else 3 if number < 10 else 2 if number < 100 else 1
    return f"{number:.{digits}f}" + (f" {unit}" if named else "")


def small(value: object) -> str:
    """A layer's time: three significant digits."""
    number = finite(value)
    return NONE if number is None else f"{number:.3g}" if number < 1e4 else f"{number:,.0f}"


def percent(value: object, digits: int = 2) -> str:
    """A fraction as per cent."""
    number = finite(value)
    return NONE if number is None else f"{100 * number:.{digits}f} %"


def size(value: object) -> str:
    """Bytes in kB or MB (decimal)."""
    number = finite(value)
    if number is None:
        return NONE
    return f"{number / 1e6:.2f} MB" if number >= 1e6 else f"{number / 1e3:.0f} kB"


def times(value: object) -> str:
    """A ratio."""
    number = finite(value)
    return NONE if number is None else f"{number:.2f}×"


def seconds(value: object) -> str:
    """A duration."""
    number = finite(value)
    if number is None:
        return NONE
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def plain(value: object) -> str:
    """Any value of a recipe or a fingerprint, in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not math.isfinite(value):
        return NONE
    return NONE if value is None or value == "" else str(value)


def runtime(result: Result) -> str:
    """The runtime's name and version, such as OpenVINO 2026.4.1."""
    found = result.runtime
    return f"{runtimes.title(found.name)} {found.version}".strip()


def examples(result: Result, count: int) -> str:
    """2,000 test images; of another task: examples."""
    what = "images" if result.task.kind == "classification" and len(result.inputs) < 2 else "examples"
    return f"{count:,} test {what}"


def forced(profile: object, result: Result) -> str:
    """What the target's options force upon float layers, in a sentence or two; empty where it is nothing."""
    for section in ("execution", "options"):
        profile = profile.get(section) if isinstance(profile, Mapping) else None
    hints = profile.items() if isinstance(profile, Mapping) else ()
    found = next((f"{key} = {value}" for key, value in hints if str(key).endswith("PRECISION_HINT")), "")
    if not found:
        return ""
    own, ours = result.float_default, result.pruned_int8
    measured = ours.measured if ours is not None else None
    if own is None or not own.dense_fp32 or not own.pruned_fp32 or measured is None or not measured.median:
        return f"FP32 rows were run with {found}; the runtime's own default may take a shorter type, and be faster."
    dense, pruned = (
        f"{latency(one, 'ms')} ({one / measured.median:.2f} times pruned INT8's)"
        for one in (own.dense_fp32, own.pruned_fp32)
    )
    told = (
        f"FP32 rows were run with {found}. By the runtime's own default, {own.type}, dense FP32 takes {dense} "
        f"and pruned FP32 {pruned}; how accurate they then are was not measured."
    )
    pays = measured.median < own.pruned_fp32
    return told if pays else f"{told} INT8 buys nothing over that: ship artifacts/pruned-fp32 where its accuracy holds."


def baseline(result: Result) -> str:
    """Where the dense INT8 network, which speed-ups are over, is far worse than the released one: in a sentence."""
    full, dense, ours = (
        one.rated if one is not None else None for one in (result.dense_fp32, result.dense_int8, result.pruned_int8)
    )
    if full is None or dense is None or ours is None or full.value is None or dense.value is None or ours.value is None:
        return ""
    side = 1 if full.higher_is_better else -1
    lost, mine = (side * (full.value - one) for one in (dense.value, ours.value))
    if lost <= mine + 2 * max(result.budget.max_drop or 0.0, abs(mine)):
        return ""
    return (
        f"Dense INT8 is {quantity(lost, full.unit, full.unit)} worse than dense FP32: nobody would ship it, and a "
        "speed-up over it says little. Compare with dense FP32."
    )
