"""How figures are spelled, the same everywhere on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgeprune.target import latency_key

NETWORKS = {
    "dense_fp32": "dense FP32",
    "dense_int8": "dense INT8",
    "pruned_fp32": "pruned FP32",
    "pruned_int8": "pruned INT8",
}
RUNTIMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}
UNITS = ("ms", "instructions", "modelled ms")
NONE = "–"


def finite(value: Any) -> float | None:
    """The number, or None when there is none or it is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def latency(value: Any, unit: str = "ms", *, named: bool = True) -> str:
    """0.453 ms; 1.21 M instructions."""
    number = finite(value)
    if number is None:
        return NONE
    if unit == "instructions":
        return f"{number / 1e6:.3g} M" + (f" {unit}" if named else "")
    digits = 3 if number < 10 else 2 if number < 100 else 1
    return f"{number:.{digits}f}" + (f" {unit}" if named else "")


def small(value: Any) -> str:
    """A layer's time: three significant digits."""
    number = finite(value)
    return NONE if number is None else f"{number:.3g}" if number < 1e4 else f"{number:,.0f}"


def percent(value: Any, digits: int = 2) -> str:
    """A fraction as per cent."""
    number = finite(value)
    return NONE if number is None else f"{100 * number:.{digits}f} %"


def size(value: Any) -> str:
    """Bytes in kB or MB (decimal)."""
    number = finite(value)
    if number is None:
        return NONE
    return f"{number / 1e6:.2f} MB" if number >= 1e6 else f"{number / 1e3:.0f} kB"


def times(value: Any) -> str:
    """A ratio."""
    number = finite(value)
    return NONE if number is None else f"{number:.2f}×"


def seconds(value: Any) -> str:
    """A duration."""
    number = finite(value)
    if number is None:
        return NONE
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def plain(value: Any) -> str:
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


def entries(value: Any) -> dict[str, Mapping[str, Any]]:
    """The entries of a mapping that are mappings themselves."""
    found = value if isinstance(value, Mapping) else {}
    return {str(name): entry for name, entry in found.items() if isinstance(entry, Mapping)}


def points(items: Any, x: str, y: str) -> list[tuple[float, float]]:
    """(x, y) of those entries of a list that have both as finite numbers."""
    pairs = [(finite(entry.get(x)), finite(entry.get(y))) for entry in items or () if isinstance(entry, Mapping)]
    return [(first, second) for first, second in pairs if first is not None and second is not None]


def runtime(result: Mapping[str, Any]) -> str:
    """The runtime's name and version, such as OpenVINO 2026.4.1."""
    found = result.get("runtime") or {}
    name = str(found.get("name") or "")
    return f"{RUNTIMES.get(name, name)} {found.get('version') or ''}".strip()


def latency_of(figures: Any) -> Mapping[str, Any]:
    """The latency of one network of a result: median, p90, ..."""
    if not isinstance(figures, Mapping):
        return {}
    found = next((figures[key] for key in map(latency_key, UNITS) if figures.get(key)), None) or {}
    return found if isinstance(found, Mapping) else {"median": found}


def median(figures: Any) -> float | None:
    """Median latency of one network of a result; None when it was not measured."""
    return finite(latency_of(figures).get("median"))


def budget(result: Mapping[str, Any]) -> float | None:
    """The latency that was asked for, in the result's unit."""
    return finite(result.get(latency_key(str(result.get("unit", "ms")), "budget")))
