"""The tables of benchmarks/int8_tasks.py in docs/int8.md, from benchmarks/results/int8_tasks.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import heads, put

TITLES = {"ort": "ONNX Runtime, x86", "openvino": "OpenVINO", "arm": "ONNX Runtime, ARM64, by the pre-check"}
MAKERS = (
    *("edgeprune", "edgeprune-task", "ort-minmax", "ort-percentile", "ort-entropy", "nncf", "nncf-transformer"),
    *("modelopt-max", "modelopt-entropy"),
)
Row = dict[str, Any]


def write(found: Row, path: Path) -> None:
    """Put the tables between the marks of a Markdown file."""
    put(path, "int8_tasks.py", tables(found))


def tables(found: Row) -> str:
    """A table a runtime, and the verdict."""
    parts = []
    for runtime, title in TITLES.items():
        rows = {key.split()[0]: row for key, row in found.items() if key.endswith(f" {runtime}")}
        if rows:
            parts.append(table(title if runtime == "arm" else f"{title} ({found['cpu']})", rows))
    if any(key.endswith(" tensorrt") for key in found):
        parts.append(compiler({key.split()[0]: row for key, row in found.items() if key.endswith(" tensorrt")}))
    return "\n\n".join([*parts, verdict(found)])


def table(title: str, rows: dict[str, Row]) -> str:
    """A line a graph: metric, drop from FP32 with its interval, FP32's time over its own, KB, CPU seconds."""
    lines = [
        f"**{title}**",
        "",
        *heads("network", "graph", "metric", "lost to FP32 (95 %)", "times FP32's speed", "KB", "CPU seconds"),
    ]
    for name, row in rows.items():
        unit = f", {row['unit']}" if row["unit"] else ""
        first = f"{name} ({row['metric']}{unit}, n = {row['examples']:,})"
        lines.append(f"| {first} | FP32 | {row['float']['value']:.2f} | | | {row['float']['bytes'] / 1e3:,.0f} | |")
        for maker in MAKERS:
            if maker in row:
                lines.append(f"| | {maker} | {cells(row[maker])} |")
    return "\n".join(lines)


def compiler(rows: dict[str, Row]) -> str:
    """What TensorRT-RTX made of both flavours."""
    version = next(iter(rows.values()))["a"]["version"]
    lines = [f"**TensorRT-RTX {version} for SM86: layers in INT8 / intended**", "", *heads("network", "A", "B")]
    for name, row in rows.items():
        told = [f"{row[f]['int8']} / {row[f]['intended']}" if row[f]["accepted"] else "refused" for f in ("a", "b")]
        lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines)


def cells(row: Row) -> str:
    """One graph's figures."""
    if "failed" in row:
        return f"failed: {row['failed'].replace('|', '/')} | | | |"
    drop, low, high = row["drop"]
    faster = "{:.2f} ({:.2f} to {:.2f})".format(*row["faster"]) if "faster" in row else ""
    lost = f"{drop:.2f} ({low:.2f} to {high:.2f})"
    return f"{row['value']:.2f} | {lost} | {faster} | {row['bytes'] / 1e3:,.0f} | {row['cpu_seconds']:.0f}"


def verdict(found: Row) -> str:
    """Where a peer of at least our metric is faster by more than 2 %, or its metric better beyond both intervals."""
    slower, worse = [], []
    for key, row in found.items():
        if not isinstance(row, dict) or key.endswith(" tensorrt"):
            continue
        ours = best(row)
        for maker in MAKERS:
            peer = row.get(maker, {})
            if maker.startswith("edgeprune") or "drop" not in peer or "drop" not in ours:
                continue
            place = f"{key} {maker}"
            if ours["drop"][1] > peer["drop"][2]:
                worse.append(place)
            if (
                "faster" in peer
                and "faster" in ours
                and peer["faster"][0] > 1.02 * ours["faster"][0]
                and peer["drop"][0] <= ours["drop"][0] + noise(ours)
            ):
                slower.append(f"{place} ({ours['faster'][0] / peer['faster'][0]:.2f} of its speed)")
    return (
        f"Behind a peer's metric beyond both intervals: {said(worse)}. More than 2 % slower than a peer that loses no "
        f"more: {said(slower)}."
    )


def best(row: Row) -> Row:
    """What a user of the task gets."""
    found: Row = row.get("edgeprune-task", row["edgeprune"])
    return found


def noise(row: Row) -> float:
    """Half of the interval of what is lost."""
    return float(row["drop"][2] - row["drop"][1]) / 2


def said(places: Sequence[str]) -> str:
    """Them, or none."""
    return "; ".join(places) or "none"
