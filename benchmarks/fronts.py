"""The front of ResNet-56 (CIFAR-10) on both runtimes, six points, against six separate runs: time, loss and accuracy.

    python benchmarks/fronts.py --out benchmarks/results/front.json [--targets intel-cpu ...] [--minutes 60]
    python benchmarks/fronts.py --out benchmarks/results/front.json --draw docs/front-resnet56.svg

A separate run is the same command with one budget, in a folder of its own: nothing is shared, nothing warm started.
Every second point first (1, 3, 5), so that `--minutes` cuts between whole sets. Nothing is trained; scores are those
of the repaired network in float on the selection split. What is in the file already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "examples/cifar10/recipe.toml"
TARGETS = {"intel-cpu": "OpenVINO", "x86-onnxruntime": "ONNX Runtime"}
KEPT = ("speedup", "measured", "latency", "loss", "score", "gap", "removed", "networks", "seconds", "why")


def front(target: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """The command, with its wall time, the load, and the seconds of each stage over all points."""
    command = [sys.executable, "-m", "edgeprune", target, "front", RECIPE, "--run-dir", str(folder), "--json"]
    load, began = os.getloadavg()[0], time.monotonic()
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    row: dict[str, Any] = {
        "wall_s": round(time.monotonic() - began, 1),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "exit_code": done.returncode,
    }
    if done.returncode:
        return {**row, "said": done.stderr[-1000:]}
    made = json.loads(done.stdout)
    spent: Counter[str] = Counter()
    for log in (folder / "events.jsonl", *folder.glob("front/*/events.jsonl")):
        for line in log.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "end":
                spent[event["stage"]] += event.get("seconds") or 0
    row["stages_s"] = {stage: round(seconds, 1) for stage, seconds in spent.items()}
    row |= {key: made[key] for key in ("unit", "dense", "max_speedup", "dense_score")}
    row["points"] = {one["label"]: {key: one[key] for key in KEPT if one[key] != ""} for one in made["points"]}
    return row


def measure(found: dict[str, Any], targets: list[str], minutes: float, out: Path) -> None:
    """Fill in what is missing: both fronts first, then separate runs for as long as there is time."""
    end = time.monotonic() + 60 * minutes

    def keep(target: str, name: str, row: dict[str, Any]) -> None:
        found[target][name] = row
        out.write_text(json.dumps(found, indent=1) + "\n")
        print(target, name, json.dumps(row), flush=True)

    with tempfile.TemporaryDirectory(prefix="fronts-") as place:
        for target in targets:
            found.setdefault(target, {})
            if "front" not in found[target]:
                keep(target, "front", front(target, Path(place) / target, "--points", "6"))
        labels = {target: list(found[target]["front"].get("points", {})) for target in targets}
        for first in (0, 1):
            for target in targets:
                for label in labels[target][first::2]:
                    name = f"alone {label}"
                    if name in found[target] or time.monotonic() > end:
                        continue
                    folder = Path(place) / f"{target}-{label}"
                    keep(target, name, front(target, folder, "--speedup", label.removesuffix("x")))


def draw(found: dict[str, Any], path: Path) -> None:
    """Score against latency, both ways."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "font.size": 9, "svg.hashsalt": "front", "font.family": "sans-serif"})
    figure, axes = plt.subplots(1, len(TARGETS), figsize=(9.0, 3.4), sharey=True)
    for axis, (target, title) in zip(axes, TARGETS.items(), strict=True):
        whole = found[target]["front"]
        line = [(1.0, whole["dense_score"]), *((1 / p["measured"], p["score"]) for p in whole["points"].values())]
        axis.plot(*zip(*line, strict=True), color="#0b6e4f", marker="o", linewidth=2.2, label="front, six points")
        alone = [next(iter(row["points"].values())) for key, row in found[target].items() if key.startswith("alone")]
        marks = sorted((1 / p["measured"], p["score"]) for p in alone)
        if marks:
            axis.plot(*zip(*marks, strict=True), "s", color="#c0392b", fillstyle="none", label="each budget alone")
        axis.set_title(f"ResNet-56, {title}", fontsize=10)
        axis.set_xlabel("latency, dense INT8 = 1")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("top-1 in %, without training")
    axes[0].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": "benchmarks/fronts.py"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--minutes", type=float, default=1e6, help="No separate run begins later than this.")
    parser.add_argument("--draw", type=Path, metavar="SVG", help="Draw the file; run nothing.")
    given = parser.parse_args()
    found = json.loads(given.out.read_text()) if given.out.is_file() else {}
    if given.draw:
        draw(found, given.draw)
    else:
        measure(found, given.targets, given.minutes, given.out)


if __name__ == "__main__":
    main()
