"""Seven real networks beyond image classification, pruned to a speed by the whole pipeline; its own gates judge.

    python benchmarks/tasks.py run --work DIR [--only NAME ...] [--target intel-cpu] [--speedup 1.5]
    python benchmarks/tasks.py table              # docs/tasks.md, from benchmarks/results/tasks.json

The networks and their data are those of `task_networks.py`. A run resumes where it was cut off. What a peer makes of
the same networks in INT8, without pruning, is in benchmarks/int8_tasks.py. Latencies of a busy machine are no figures;
the speed-ups are ratios of measurements that were interleaved, and the load stands beside them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from common import HERE, RESULTS, ROOT, heads, kept, line, put, save

import edgeprune
from edgeprune import recipe as recipes
from edgeprune import result as results
from edgeprune import target as targets
from edgeprune.errors import EdgepruneError, GateError

OUT, PAGE = RESULTS / "tasks.json", ROOT / "docs" / "tasks.md"
ADAM = {"optimizer": "adamw", "lr": 0.0005}
TITLES = {
    "dense_fp32": "dense FP32",
    "dense_int8": "dense INT8",
    "pruned_fp32": "pruned FP32",
    "pruned_int8": "pruned INT8",
}
CPUS = {"amx_int8": "AMX", "avx512_vnni": "VNNI", "avx_vnni": "VNNI", "avx2": "AVX2"}
CASES: dict[str, dict[str, Any]] = {
    "dscnn": {"max_drop": 2.0, "recover": {"epochs": 6, "batch": 64, "ema": 0.999, **ADAM, "lr": 0.004}},
    "kwt1": {"max_drop": 4.0, "recover": {"epochs": 3, "batch": 32, "ema": 0.995, **ADAM}},
    "bcresnet": {"max_drop": 2.0, "recover": {"epochs": 1, "batch": 64, "ema": 0.99, **ADAM, "lr": 0.002}},
    "fastestdet": {
        "max_drop": 3.0,
        "task": {"kind": "detection", "decode": "FastestDet"},
        "recover": {"epochs": 4, "batch": 16, "ema": 0.99, **ADAM, "lr": 0.002},
    },
    "segmenter": {
        "max_drop": 3.0,
        "task": {"kind": "segmentation"},
        "recover": {"epochs": 10, "batch": 16, "ema": 0.99, **ADAM, "lr": 0.001},
        "images": 64,
    },
    "rfdn": {
        "max_drop": 0.5,
        "task": {"kind": "restoration", "metric": "PSNR", "arguments": {"on": "Y", "peak": 255, "crop": 4}},
        "recover": {"epochs": 10, "batch": 8, "ema": 0.98, **ADAM},
        "images": 64,
    },
    "minilm": {"max_drop": 4.0, "recover": {"epochs": 1, "batch": 16, "ema": 0.99, **ADAM}, "images": 128},
}


def recipe(name: str, speedup: float) -> recipes.Recipe:
    """The recipe of one case, as a user would write it."""
    case, file = CASES[name], HERE / "task_networks.py"
    made = msgspec.convert(
        {
            "name": name,
            "model": {"factory": f"{file}:{name}"},
            "data": {"source": f"{file}:{name}_data", "kind": "function"},
            "task": case.get("task", {"kind": "classification"}),
            "budget": {"speedup": speedup, "max_drop": case["max_drop"]},
            "search": {"images": case.get("images", 256), "rounds": 2},
            "recover": case["recover"],
            "measure": {"patience": 60.0, "max_error": 0.3},
        },
        recipes.Recipe,
    )
    recipes.check(made)
    return made


def run(name: str, target: str, speedup: float, work: Path) -> dict[str, Any]:
    """One network on one target: its row."""
    started, refused = time.monotonic(), ""
    try:
        outcome = edgeprune.compress(recipe(name, speedup), target, work / f"{name}-{target}-{speedup:g}", events=_told)
    except GateError as error:
        outcome, refused = error.outcome, error.message  # type: ignore[attr-defined]
    except EdgepruneError as error:
        return {"ended": f"{type(error).__name__}: {error.message}", "cpu": cpu(target)}
    found = results.read(outcome.result)
    networks = {}
    for key, one in found.networks.items():
        rated, times = one.rated, one.measured
        networks[key] = {
            "score": rated.value if rated else None,
            "low": rated.low if rated else None,
            "high": rated.high if rated else None,
            "median": times.median if times else None,
            "bytes": one.bytes,
        }
    first = next(one.rated for one in found.networks.values() if one.rated)
    return {
        "metric": first.metric,
        "unit": first.unit,
        "wanted": speedup,
        "max_drop": CASES[name]["max_drop"],
        "speedup": outcome.result.get("speedup_vs_dense_int8"),
        "networks": networks,
        "gates": {gate.name: gate.passed for gate in found.gates},
        "verdict": outcome.verdict,
        "refused": refused,
        "seconds": round(time.monotonic() - started),
        "float_default": msgspec.to_builtins(found.float_default),
        "cpu": cpu(target),
        "load": round(os.getloadavg()[0], 1),
    }


def cpu(target: str) -> str:
    """The board's core, where it is emulated; else the newest instructions of this CPU for INT8."""
    core = targets.load(target).connection.cpu
    if core:
        return core.title()
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return next((title for flag, title in CPUS.items() if flag in flags), "")


def _told(event: Any) -> None:
    if event.kind != "progress":
        print(event.stage, event.message or event.kind, flush=True)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line a network and target."""
    speeds = ("times dense INT8's speed", "times dense bf16's")
    lines = heads("network on target, CPU", "metric", *TITLES.values(), *speeds, "verdict")
    for key, row in sorted(rows.items()):
        if "ended" in row:
            lines.append(line(key, *[""] * 7, row["ended"]))
            continue
        scores = [f"{row['networks'][name]['score']:.2f}" for name in TITLES]
        open_gates = [name for name, passed in row["gates"].items() if not passed]
        verdict = row["verdict"] + (f": {', '.join(open_gates)}" if open_gates else "")
        speed = f"{row['speedup']:.2f} of {row['wanted']:g} wanted"
        metric = f"{row['metric']}, {row['unit']}".rstrip(", ")
        own, ours = row.get("float_default"), row["networks"]["pruned_int8"]["median"]
        lines.append(line(key, metric, *scores, speed, f"{own['dense_fp32'] / ours:.2f}" if own else "", verdict))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for and keep the other rows; or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("run", "table"))
    parser.add_argument("--work", type=Path, default=Path("runs") / "tasks")
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--target", default="intel-cpu")
    parser.add_argument("--speedup", type=float, default=1.5)
    given = parser.parse_args(arguments)
    if given.step == "table":
        put(PAGE, "tasks.py", table(kept(OUT)))
        return
    for name in given.only:
        row = run(name, given.target, given.speedup, given.work)
        rows = kept(OUT)  # others may have been added meanwhile
        rows[f"{name} on {given.target} at {given.speedup:g}x, {row['cpu']}"] = row
        save(OUT, rows)


if __name__ == "__main__":
    main()
