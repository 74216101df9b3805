"""Figures and tables of benchmarks/int8.py, from what its steps left in the folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import heads, put
from numpy.typing import NDArray

TITLES = {
    "openvino": "OpenVINO",
    "ort-x86": "ONNX Runtime, x86",
    "ort-arm64": "ONNX Runtime, ARM64",
    "tensorrt-a": "TensorRT A, simulated",
    "tensorrt-b": "TensorRT B, simulated",
}
OWN = ("fp32", "edgeprune", "edgeprune-reconstruct", "edgeprune-fallback", "edgeprune-again")
SCORES = "top-1 (points lost to FP32, two standard errors of that, paired) / agreement with FP32, %"
SLOWER = 1.02  # a ratio beyond this is a difference in latency
Row = dict[str, Any]


def collect(cases: Sequence[Any], environment: Row) -> Row:
    """Everything that was measured, as plain data."""
    accuracy = [row for case in cases for runtime in TITLES for row in rows(case, runtime)]
    timed = [row for case in cases for runtime in TITLES for row in latency(case, runtime)]
    return {
        "environment": environment,
        "verdict": verdict(accuracy, timed),
        "accuracy": accuracy,
        "latency": timed,
        "compiler": gathered(cases, "compiler"),
        "fallback": gathered(cases, "fallback"),
        "emulator": gathered(cases, "emulator"),
    }


def merged(before: Row, now: Row) -> Row:
    """What was measured now, and of earlier runs what was not run again, with their date as `earlier`.

    A network on a runtime is of one run: where it was run again, no row of before stands beside the new ones.
    """
    date = before.get("environment", {}).get("date", "an earlier version")
    found = {**now}
    for part in ("accuracy", "latency", "compiler", "fallback", "emulator"):
        there = {keyed(row) for row in now[part]}
        old = [{"earlier": date, **row} for row in before.get(part, []) if keyed(row) not in there]
        found[part] = sorted([*now[part], *old], key=keyed)
    found["verdict"] = verdict(found["accuracy"], found["latency"])
    return found


def keyed(row: Row) -> tuple[str, str]:
    """Which network on which runtime a row is of."""
    return row["network"], row["runtime"]


def gathered(cases: Sequence[Any], kind: str) -> list[Row]:
    """What a step wrote as it will be shown."""
    found = []
    for case in cases:
        for path in sorted((case.folder / kind).glob(f"{case.name}.*.json")):
            place = {"network": case.name, "runtime": path.stem.removeprefix(f"{case.name}.")}
            found.append({**place, **json.loads(path.read_text())})
    return found


def rows(case: Any, runtime: str) -> list[Row]:
    """A row a graph: top-1, agreement with FP32, noise at the logits, and the comparison with edgeprune's graph."""
    paths = {maker: case.outputs(runtime, maker) for maker in ("fp32", *case.makers(runtime))}
    outputs = {maker: np.load(path) for maker, path in paths.items() if path.exists()}
    if "fp32" not in outputs or len(outputs) < 2:
        return []
    count = min(len(values) for values in outputs.values())  # the same images for all
    outputs = {maker: values[:count] for maker, values in outputs.items()}
    labels, held_out = case.data["labels"][:count], int(case.data["held_out"])
    reference = outputs["fp32"]
    classes = {maker: values.argmax(1) for maker, values in outputs.items()}
    found = []
    for maker, values in outputs.items():
        right, same = classes[maker] == labels, classes[maker] == classes["fp32"]
        noise = float(((values - reference) ** 2).sum())
        row: Row = {"network": case.name, "runtime": runtime, "artifact": maker, "images": len(labels)}
        row |= {"top1": percent(right), "agreement": percent(same)}
        if maker != "fp32":
            row["lost"] = paired(classes["fp32"] == labels, right)
        if held_out:
            row |= {"held_out": len(labels) - held_out, "held_out_top1": percent(right[held_out:])}
            row |= {"held_out_agreement": percent(same[held_out:])}
        row["sqnr_db"] = round(10 * float(np.log10((reference**2).sum() / noise)), 2) if noise else None
        if maker not in ("fp32", "edgeprune") and "edgeprune" in classes:
            best = classes["edgeprune"]
            row["edgeprune_top1"] = paired(best == labels, right)
            row["edgeprune_agreement"] = paired(best == classes["fp32"], same)
        found.append(row)
    return found


def percent(values: NDArray[np.bool_]) -> float:
    """A share in percent."""
    return round(100 * float(values.mean()), 2)


def paired(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Row:
    """By how many points the first is ahead on the same images, and two standard errors of that (McNemar's)."""
    differ = float((ours != theirs).sum())
    ahead = float(ours.sum()) - float(theirs.sum())
    return {"points": round(100 * ahead / len(ours), 2), "noise": round(200 * differ**0.5 / len(ours), 2)}


def latency(case: Any, runtime: str) -> list[Row]:
    """A row a graph: milliseconds, and the median over rounds of its time over edgeprune's in the same round."""
    path = case.folder / "latency" / f"{case.name}.{runtime}.json"
    if not path.exists():
        return []
    measured = {maker: np.asarray(rounds) for maker, rounds in json.loads(path.read_text()).items()}
    ours = measured["edgeprune"]
    return [
        {
            "network": case.name,
            "runtime": runtime,
            "artifact": maker,
            "date": time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime)),
            "ms": round(float(np.median(rounds)), 4),
            "ms_min": round(float(rounds.min()), 4),
            "over_edgeprune": round(float(np.median(rounds / ours)), 3),
            "rounds": len(rounds),
        }
        for maker, rounds in measured.items()
    ]


def verdict(accuracy: Sequence[Row], timed: Sequence[Row]) -> Row:
    """How edgeprune's default stands against every peer's graph."""
    against = [row for row in accuracy if row["artifact"] not in OWN and "edgeprune_top1" in row]
    found: Row = {"rows": len(against)}
    for key in ("top1", "agreement"):
        gaps = [row[f"edgeprune_{key}"] for row in against]
        found[key] = {
            "ahead": sum(gap["points"] > 0 for gap in gaps),
            "equal": sum(gap["points"] == 0 for gap in gaps),
            "behind": sum(gap["points"] < 0 for gap in gaps),
            "ahead_beyond_noise": [place(r) for r, g in zip(against, gaps, strict=True) if g["points"] > g["noise"]],
            "behind_beyond_noise": [place(r) for r, g in zip(against, gaps, strict=True) if -g["points"] > g["noise"]],
        }
    peers = [row for row in timed if row["artifact"] not in OWN]
    found["latency"] = {
        "rows": len(peers),
        "faster": sum(row["over_edgeprune"] > SLOWER for row in peers),
        "within": sum(1 / SLOWER <= row["over_edgeprune"] <= SLOWER for row in peers),
        "slower": [place(row) for row in peers if row["over_edgeprune"] < 1 / SLOWER],
        "twice_the_same": [row["over_edgeprune"] for row in timed if row["artifact"] == "edgeprune-again"],
    }
    return found


def place(row: Row) -> str:
    """Where a row stands."""
    return f"{row['network']} {row['runtime']} {row['artifact']}"


def write(found: Row, path: Path) -> None:
    """Put the tables between the marks of a Markdown file."""
    put(path, "int8.py", tables(found))


def tables(found: Row) -> str:
    """All tables."""
    parts = []
    for runtime, title in TITLES.items():
        body = [row for row in found["accuracy"] if row["runtime"] == runtime]
        if any(row["artifact"] != "fp32" for row in body):
            parts.append(grid(f"{title}: {SCORES}", body, scores, "FP32 top-1"))
        speed = [row for row in found["latency"] if row["runtime"] == runtime]
        if speed:
            parts.append(grid(f"{title}: ms, one thread (ratio to edgeprune)", speed, milliseconds, "FP32"))
    if found["compiler"]:
        parts.append(compiled(found["compiler"]))
    parts += [fell_back(row) for row in found["fallback"]]
    parts.append(summary(found["verdict"]))
    return "\n\n".join(parts)


def grid(title: str, body: Sequence[Row], cell: Any, dense: str) -> str:
    """Networks down, makers across."""
    seen = dict.fromkeys(row["artifact"] for row in body if row["artifact"] != "fp32")
    makers = [*(maker for maker in OWN if maker in seen), *(maker for maker in seen if maker not in OWN)]
    old = {row["network"] for row in body if "earlier" in row}
    lines = [f"**{title}{age(body)}**", "", *heads("network", dense, *makers)]
    for network in dict.fromkeys(row["network"] for row in body):
        cells = {row["artifact"]: row for row in body if row["network"] == network}
        images = cells["fp32"].get("images")
        name = f"{network} (n = {images:,})" if images else network
        name += ", of an earlier version" if network in old and not age(body) else ""
        shown = [cell(cells[maker]) if maker in cells else "-" for maker in ("fp32", *makers)]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def age(body: Sequence[Row]) -> str:
    """What a title says where nothing below it was run again."""
    return "; of an earlier version" if all("earlier" in row for row in body) else ""


def scores(row: Row) -> str:
    """top-1 / agreement."""
    lost = f" ({row['lost']['points']:.2f} ± {row['lost']['noise']:.2f})" if "lost" in row else ""
    agrees = "" if row["artifact"] == "fp32" else f" / {row['agreement']:.2f}"
    return f"{row['top1']:.2f}{lost}{agrees}"


def milliseconds(row: Row) -> str:
    """Milliseconds and the ratio."""
    ratio = "" if row["artifact"] == "edgeprune" else f" ({row['over_edgeprune']:.2f})"
    return f"{row['ms']:.3f}{ratio}"


def compiled(body: Sequence[Row]) -> str:
    """What TensorRT-RTX made of the graphs."""
    version = body[0]["version"]
    lines = [
        f"**TensorRT-RTX {version} for SM86: convolutions in INT8 / intended{age(body)}**",
        "",
        *heads("network", "A", "B"),
    ]
    for network in dict.fromkeys(row["network"] for row in body):
        cells = {row["runtime"]: row for row in body if row["network"] == network}
        shown = [
            f"{row['int8']} / {row['intended']}" if row["accepted"] else "rejected"
            for row in (cells.get("tensorrt-a"), cells.get("tensorrt-b"))
            if row
        ]
        lines.append(f"| {network} | {' | '.join(shown)} |")
    return "\n".join(lines)


def fell_back(row: Row) -> str:
    """What the program and the greedy baseline leave in float."""
    place = f"Fallback, {row['network']}, {TITLES[row['runtime']]}"
    lines = [
        f"**{place}: sum of profiled kernels, noise over signal{age([row])}**",
        "",
        *heads("", "layers in float", "ms", "noise"),
    ]
    for kind, name in (("none", "all INT8"), ("auto", "program"), ("greedy", "greedy")):
        part = row[kind]
        lines.append(f"| {name} | {len(part['float'])} | {part['ms']:.3f} | {part['noise']:.5f} |")
    return "\n".join(lines)


def summary(found: Row) -> str:
    """The verdict in words."""
    lines = [f"Against {found['rows']} graphs of other tools:", ""]
    for key, name in (("agreement", "agreement with FP32"), ("top1", "top-1")):
        part = found[key]
        lines.append(
            f"- {name}: ahead in {part['ahead']}, equal in {part['equal']}, behind in {part['behind']}; "
            f"beyond noise (two standard errors, paired) ahead in {len(part['ahead_beyond_noise'])}, "
            f"behind in {named(part['behind_beyond_noise'])}."
        )
    part = found["latency"]
    lines.append(
        f"- latency, {part['rows']} graphs: 2 % or more faster than {part['faster']}, within 2 % of {part['within']}, "
        f"slower than {named(part['slower'])}. The same graph loaded twice: "
        f"{', '.join(f'{ratio:.2f}' for ratio in part['twice_the_same']) or 'not measured'} of its own time."
    )
    return "\n".join(lines)


def named(places: Sequence[str]) -> str:
    """How many, and which."""
    return f"{len(places)} ({'; '.join(places)})" if places else "none"
