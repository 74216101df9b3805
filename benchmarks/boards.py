"""What runs without a device at hand came to, side by side: figures, closure, and how far the chosen networks differ.

    edgeprune raspberry-pi-4 run examples/cifar10/recipe.toml
    edgeprune raspberry-pi-5 run examples/cifar10/recipe.toml
    edgeprune jetson-orin-nano run examples/cifar10/jetson.toml
    python benchmarks/boards.py runs/resnet56-cifar10-raspberry-pi-4 runs/resnet56-cifar10-raspberry-pi-5
    python benchmarks/boards.py runs/resnet56-cifar10-jetson-orin-nano --out benchmarks/results/jetson.json

Reads each run's result.json, search.json and plan.json; measures nothing itself. Latencies are in the run's own unit:
on emulated boards executed instructions, never times; for a Jetson milliseconds of a model that nobody measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from common import RESULTS, save

NETWORKS = ("dense_fp32", "dense_int8", "pruned_fp32", "pruned_int8", "pruned_int8_b")  # the last: flavour B


def account(run: Path) -> dict[str, Any]:
    """One run's figures."""
    result, search = (json.loads((run / name).read_text("utf-8")) for name in ("result.json", "search/search.json"))
    table = result["search"]["table"]
    return {
        "target": result["target"],
        "device": {
            key: result["device"].get(key) for key in ("cpus", "features", "kernel", "emulation", "runtime_version")
        },
        "verdict": result["verdict"],
        "unit": result["unit"],
        "networks": {name: _network(result[name], result["unit"]) for name in NETWORKS if name in result},
        "speedup_vs_dense_int8": result["speedup_vs_dense_int8"],
        "drop_points": -result["difference"]["points"],
        "closure_of_budget": search["closure"]["of_budget"],
        "closure_measurements": len(search["closure"]["steps"]),
        "table": {key: table[key] for key in ("median_error", "p90_error", "n", "cells", "networks")},
        "optimised": result["artifact"].get("optimised"),
        "flavours": result["quantize"].get("flavours"),
        "gates": {gate["name"]: gate["passed"] for gate in result["gates"]},
        "recover_epochs": result["recipe"]["recover"]["epochs"],
        "seconds": {stage["name"]: stage["seconds"] for stage in result["stages"]},
        "removed": json.loads((run / "search/plan.json").read_text("utf-8"))["removed"],
        "widths": {layer["name"]: layer["after"][1] for layer in result["layers"] if layer.get("after")},
    }


def _network(figures: Mapping[str, Any], unit: str) -> dict[str, Any]:
    latency = figures[f"latency_{unit.replace(' ', '_')}"]
    kept = {key: figures[key] for key in ("accuracy", "correct", "images", "bytes")}
    return {**kept, unit: latency["median"], "spread": latency["spread"], "emulated": figures.get("emulated")}


def differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """In which blocks and widths two chosen networks differ."""
    changed = {name: [width, other["widths"][name]] for name, width in one["widths"].items()}
    return {
        "between": [one["target"], other["target"]],
        "blocks_only_in_one": sorted(set(one["removed"]) ^ set(other["removed"])),
        "layers": len(changed),
        "layers_of_other_width": {name: pair for name, pair in changed.items() if pair[0] != pair[1]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=RESULTS / "boards.json")
    options = parser.parse_args()
    runs = [account(run) for run in options.runs]
    found = {"runs": runs, "differences": [differ(*pair) for pair in combinations(runs, 2)]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save(options.out, found)
    for run in runs:
        int8 = run["networks"]["pruned_int8"]
        images = (int8["emulated"] or {"images": 0})["images"]
        print(
            f"{run['target']}: {run['verdict']}, {run['speedup_vs_dense_int8']:.3f}x, top-1 {int8['accuracy']:.2%} "
            f"({images} of {int8['images']} images on the true runtime), {len(run['removed'])} blocks removed"
        )


if __name__ == "__main__":
    main()
