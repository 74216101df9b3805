"""The front of ResNet-56 (CIFAR-10) on both runtimes, six points, against six separate runs: time, loss and accuracy.

    python benchmarks/fronts.py --out benchmarks/results/front.json [--targets intel-cpu ...] [--minutes 60]
    python benchmarks/fronts.py --out benchmarks/results/front.json --draw docs/front-resnet56.svg

A separate run is the same command with one budget, in a folder of its own: nothing is shared, nothing warm started.
Every second point first (2, 4, 6), so that `--minutes` cuts between whole sets. Nothing is trained; scores are those
of the repaired network in float on the selection split. What is in the file already is not run again.

The recipe is the demo's with `[measure] patience = 0`: what the first measurements tell is taken, or else the time
would be that of waiting for a quiet machine. The target's protocol is shortened likewise, to 20 rounds in one process
(not 40 in four). Seconds of CPU are those of the command and all below it, its device's
agent too: they depend less on what else runs than wall time does. At the end all networks of a target, from the
front and from separate runs, are measured once more in one interleaved run, by the target's own protocol ("together").
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from head_to_head import measured_together
from sweeps import descendants

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "examples" / "cifar10" / "recipe.toml"
TICKS = os.sysconf("SC_CLK_TCK")
TARGETS = {"intel-cpu": "OpenVINO", "x86-onnxruntime": "ONNX Runtime"}
KEPT = ("speedup", "measured", "latency", "loss", "score", "gap", "removed", "networks", "seconds", "why")


class Cpu(threading.Thread):
    """Seconds of CPU of a process and of all that it starts, looked at every half second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.seen, self.over = pid, dict[int, float](), threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.5):
            for pid in (self.pid, *(pid for pid, _ in descendants(self.pid))):
                try:
                    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                self.seen[pid] = (int(words[11]) + int(words[12])) / TICKS

    def seconds(self) -> float:
        self.over.set()
        self.join()
        return round(sum(self.seen.values()), 1)


def front(target: str, recipe: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    """The command, with its time, the load, and the seconds of each stage over all points."""
    command = [sys.executable, "-m", "edgeprune", target, "front", str(recipe), "--run-dir", str(folder), "--json"]
    load, began = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        environment = {**os.environ, "EDGEPRUNE_TARGETS": str(recipe.parent / "targets")}
        process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
        )
        cpu = Cpu(process.pid)
        cpu.start()
        out, _ = process.communicate()
        said.seek(0)
        words = said.read()
    row: dict[str, Any] = {
        "wall_s": round(time.monotonic() - began, 1),
        "cpu_s": cpu.seconds(),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    if process.returncode:
        return {**row, "exit_code": process.returncode, "said": words[-1000:]}
    made = json.loads(out)
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


def measure(found: dict[str, Any], given: argparse.Namespace, work: Path) -> None:
    """Fill in what is missing: both fronts first, then separate runs for as long as there is time."""
    end = time.monotonic() + 60 * given.minutes
    recipe = work / "recipe.toml"
    recipe.write_text(RECIPE.read_text() + "\n[measure]\npatience = 0\n")
    for target in given.targets:
        text = (ROOT / "targets" / target / "profile.toml").read_text()
        (work / "targets" / target).mkdir(parents=True, exist_ok=True)
        short = text.replace("\nprocesses = 4 ", "\nprocesses = 1 ").replace("\nrounds = 40 ", "\nrounds = 20 ")
        assert short != text, target
        (work / "targets" / target / "profile.toml").write_text(short)

    def run(target: str, name: str, *arguments: str) -> None:
        if name not in found.setdefault(target, {}) and time.monotonic() < end:
            folder = work / target / name
            found[target][name] = front(target, recipe, folder, *arguments)
            print(target, name, json.dumps(found[target][name]), flush=True)
            for plan in folder.glob("front/*/search/plan.json"):
                shutil.copy(plan, work / f"{target}+{name}+{plan.parts[-3]}.json")
            keep(found, given.out)

    for target in given.targets:
        run(target, "front", "--points", "6")
    for first in (1, 0):
        for target in given.targets:
            for label in list(found.get(target, {}).get("front", {}).get("points", {}))[first::2]:
                if not given.alone or label in given.alone:
                    run(target, label, "--speedup", label.removesuffix("x"))


def together(found: dict[str, Any], target_name: str, work: Path) -> dict[str, float]:
    """Latency over the dense one's of all networks of a target whose plan is in `work`, in one interleaved run."""
    from edgeprune import devices, pipeline
    from edgeprune import recipe as recipes
    from edgeprune import target as targets
    from edgeprune.graph import Plan
    from edgeprune.latency import maker
    from edgeprune.pipeline import Context, RunDirectory

    recipe, target = recipes.load(work / "recipe.toml"), targets.load(target_name)
    files = sorted(work.glob(f"{target_name}+*.json"))
    plans = {path.stem.partition("+")[2].replace("+", " "): Plan.load(path) for path in files}
    with (
        RunDirectory(work / target_name / "front") as run,
        Context(recipe, target, run, "", pipeline.silent) as context,
    ):
        subject = context.subject
        example = pipeline.workloads.examples(subject.workload, "train", 1)
        with tempfile.TemporaryDirectory() as folder, devices.connect(target) as device:
            made = maker(subject.model, subject.structure, example, target, Path(folder))
            return {name: round(ratio, 4) for name, ratio in measured_together(made, device, target, plans).items()}


def keep(found: dict[str, Any], out: Path) -> None:
    out.write_text(json.dumps(found, indent=1) + "\n")


def draw(found: dict[str, Any], path: Path) -> None:
    """Score against latency, both ways."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "font.size": 9, "svg.hashsalt": "front", "font.family": "sans-serif"})
    shown = {target: title for target, title in TARGETS.items() if "together" in found.get(target, {})}
    figure, panels = plt.subplots(1, len(shown), figsize=(4.5 * len(shown), 3.4), sharey=True, squeeze=False)
    axes = list(panels[0])
    for axis, (target, title) in zip(axes, shown.items(), strict=True):
        whole = found[target]["front"]
        ratios = found[target]["together"]
        line = [
            (ratios[f"front {label}"], point["score"]) for label, point in whole["points"].items() if "why" not in point
        ]
        line = [(1.0, whole["dense_score"]), *line]
        axis.plot(*zip(*line, strict=True), color="#0b6e4f", marker="o", linewidth=2.2, label="front")
        marks = [
            (ratios.get(f"{key} {key}", 1 / row["points"][key]["measured"]), row["points"][key]["score"])
            for key, row in found[target].items()
            if key[0].isdigit()
        ]
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
    parser.add_argument("--work", type=Path, help="Where runs and plans are kept; default: a folder that is removed.")
    parser.add_argument("--minutes", type=float, default=1e6, help="No separate run begins later than this.")
    parser.add_argument("--alone", nargs="+", default=[], metavar="LABEL", help="Only these by themselves: 2.02x ...")
    parser.add_argument("--draw", type=Path, metavar="SVG", help="Draw the file; run nothing.")
    given = parser.parse_args()
    found = json.loads(given.out.read_text()) if given.out.is_file() else {}
    if given.draw:
        draw(found, given.draw)
        return
    with tempfile.TemporaryDirectory(prefix="fronts-") as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        measure(found, given, work)
        for target in given.targets:
            if target in found and "together" not in found[target]:
                found[target]["together"] = together(found, target, work)
                keep(found, given.out)


if __name__ == "__main__":
    main()
