"""The first hour: time a stage beside what `plan` estimated, the table's error, and the claims by plain runtime code.

    python benchmarks/first_hour.py [--networks resnet56 ...] [--targets x86-onnxruntime ...] [--loaded] [--epochs 0]

Each network is run from its recipe to a bundle in a folder of its own, without training where `--epochs` is 0. Then
`benchmarks/plain.py`, which imports nothing of edgeprune, measures the dense and the pruned INT8 artifact again, for as
many `--repeats` as asked: accuracy must be the claim's to the example, the speed-up within 3 % quiet and 6 % loaded
(there by the CPU time that runs had: by the clock a run of 3 ms has waited 4 for its turn, whatever the network).
Where the network is no classifier, the outputs of that plain code are scored by the task's own metric.
What others do on the machine is in the row's name: quiet, busy. `--loaded`: all of it beside one busy process on each
core (`benchmarks/load.py`; or, with `--beside`, what runs there already). The figures go to
`benchmarks/results/first_hour.json`, each with the load average at which it was made.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import first_hour_cases
import numpy as np
from common import HERE, RESULTS, kept

from edgeprune import pipeline, recipe, target
from edgeprune.errors import EdgepruneError

NETWORKS = {  # name -> its recipe
    "resnet56": "examples/cifar10/recipe.toml",
    "keywords": "examples/keywords/recipe.toml",
    "mobilenet-v2": "examples/transfer/recipe.toml",
    "minilm": "examples/text/recipe.toml",
    "detector": "examples/detection/recipe.toml",
    **dict.fromkeys(first_hour_cases.CASES, "benchmarks/first_hour_cases.py"),
}
FOUR = ("mobilenet-v2", "resnet18", "fastestdet", "minilm-128")
QUIET, LOADED = 0.03, 0.06  # relative, of the speed-up
CALM = 0.35  # share of all cores that others may keep busy on a quiet machine
STEP_OF = {"dense": "profile", "latency": "profile", "search": "prune", "recover": "prune", "quantize": "calibrate"}
STEP_OF |= {"artifacts": "export", "validate": "validate"}


def asked(name: str) -> recipe.Recipe:
    """The network's recipe."""
    return first_hour_cases.load(name) if name in first_hour_cases.CASES else recipe.load(NETWORKS[name])


def busy(seconds: float = 3.0) -> float:
    """The share of all cores that is at work while this process waits; a load average still has its own last run."""

    def read() -> tuple[int, int]:
        times = [int(one) for one in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return times[3] + times[4], sum(times)

    before = read()
    time.sleep(seconds)
    idle, every = (now - then for now, then in zip(read(), before, strict=True))
    return 1 - idle / max(1, every)


def run(name: str, where: str, epochs: float | None, folder: Path) -> dict[str, Any]:
    """From the recipe to the verdict; a refusal is a result too."""
    wanted, device = asked(name), target.load(where)
    if epochs is not None:
        wanted = pipeline.override(wanted, "recover", epochs=epochs)
    began = time.monotonic()
    plan = pipeline.plan(wanted, device, folder)
    planned = time.monotonic() - began
    refused = ""
    try:
        pipeline.run(wanted, device, folder)
    except EdgepruneError as error:
        refused = f"{type(error).__name__}: {error.message}"
    whole = time.monotonic() - began
    row: dict[str, Any] = {
        "recipe": NETWORKS[name],
        "epochs": wanted.recover.epochs,
        "dense": plan["dense"],
        "seconds": {"plan": round(planned, 1), "all": round(whole, 1)},
        "estimate": {step: round(value, 1) for step, value in plan["estimate"]["seconds"].items() if value},
        "memory": plan["estimate"]["memory"],
        "disk": {"estimate": plan["estimate"]["disk"], "used": used(folder)},
        "refused": refused,
    }
    row["estimate"]["all"] = round(plan["estimate"]["total"], 1)
    for stage, step in STEP_OF.items():
        sealed = folder / stage / "stage.json"
        if sealed.is_file():
            row["seconds"][step] = round(row["seconds"].get(step, 0.0) + json.loads(sealed.read_text())["seconds"], 1)
    profile = folder / "latency" / "profile.json"
    if profile.is_file():
        table = json.loads(profile.read_text())
        row["table"] = {key: table[key] for key in ("networks", "cells", "seconds", "good", "verdict")}
        row["table"]["errors"], row["table"]["by_macs"] = table["errors"], table["by_macs"]
    if (folder / "result.json").is_file():
        row["result"] = claims(json.loads((folder / "result.json").read_text()))
    return row


def used(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def claims(result: dict[str, Any]) -> dict[str, Any]:
    """What the run says of itself."""
    names = ("dense_fp32", "dense_int8", "pruned_fp32", "pruned_int8")
    latency = f"latency_{result['unit']}"
    networks = {n: {"score": result[n].get("score"), "median": result[n][latency]["median"]} for n in names}
    right = {n: result[n].get("correct") for n in names}
    gates = {gate["name"]: gate["message"] for gate in result["gates"] if not gate["passed"]}
    spent = {"speedup": result["speedup_vs_dense_int8"], "verdict": result["verdict"], "failed": gates}
    return {**spent, "networks": networks, "correct": right, "budget": result["budget"]}


def again(name: str, where: str, folder: Path, repeats: int, loaded: bool) -> dict[str, Any]:
    """The claims by plain runtime code."""
    held, outputs, device = folder / "examples.npz", folder / "outputs.npz", target.load(where)
    if not held.is_file():
        examples(name, where, held)
    precision = str(device.execution.options.get("INFERENCE_PRECISION_HINT", ""))
    call = [sys.executable, str(HERE / "plain.py"), str(folder / "artifacts"), str(held), "--runtime", device.runtime]
    call += ["--precision", precision, "--outputs", str(outputs)]
    result = json.loads((folder / "result.json").read_text())
    claimed, rows = claims(result), []
    for _ in range(repeats):
        found = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
        seen = found["undisturbed"] if loaded else found
        apart = seen["speedup"] / claimed["speedup"] - 1
        same = True
        for network, figures in found["networks"].items():
            key = network.replace("-", "_")
            if "right" in figures:
                same &= figures["right"] == claimed["correct"][key]
            else:
                figures["score"] = scored(name, where, outputs, network)
                same &= abs(figures["score"] - claimed["networks"][key]["score"]["value"]) < 1e-6
        rows.append({**found, "load": os.getloadavg()[0], "speedup_off_by": apart, "accuracy_equal": same})
    limit = LOADED if loaded else QUIET
    good = sum(row["accuracy_equal"] and abs(row["speedup_off_by"]) <= limit for row in rows)
    return {"limit": limit, "held": f"{good} of {repeats}", "measurements": rows}


@contextlib.contextmanager
def reading(name: str, where: str, folder: Path) -> Iterator[Any]:
    """The workload of a network's recipe."""
    from edgeprune.pipeline.context import Context
    from edgeprune.pipeline.events import silent
    from edgeprune.pipeline.rundir import RunDirectory

    wanted, device = asked(name), target.load(where)
    with RunDirectory(folder / "reading") as directory, Context(wanted, device, directory, "", silent) as context:
        yield context.subject.workload


def examples(name: str, where: str, path: Path) -> None:
    """The test split as the network takes it: preprocessing is edgeprune's, everything after it is not."""
    from edgeprune.pipeline import images

    with reading(name, where, path.parent) as work:
        parts = [(inputs, targets) for inputs, targets in images.batches(work)]
    stored = {f"input{k}": np.concatenate([inputs[k] for inputs, _ in parts]) for k in range(len(parts[0][0]))}
    targets = [target for _, targets in parts for target in targets]
    if np.ndim(targets[0]) == 0 and not isinstance(targets[0], dict):
        stored["labels"] = np.array(targets)
    np.savez(path, **stored)


def scored(name: str, where: str, outputs: Path, network: str) -> float:
    """The task's metric of outputs that plain code found."""
    from edgeprune.pipeline import images

    with reading(name, where, outputs.parent) as work, np.load(outputs) as held:
        found = tuple(held[key] for key in sorted(held) if key.startswith(f"{network}/"))
        targets = [target for _, targets in images.batches(work) for target in targets]
        return float(work.task.score(found, targets).value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=list(FOUR))
    parser.add_argument("--targets", nargs="+", default=["intel-cpu", "x86-onnxruntime"])
    parser.add_argument("--epochs", type=float, help="Instead of the recipe's; 0: no training.")
    parser.add_argument("--loaded", action="store_true")
    parser.add_argument("--beside", default="", help="One busy process on each core that runs already, and what it is.")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=Path("runs/first-hour"))
    parser.add_argument("--out", type=Path, default=RESULTS / "first_hour.json")
    given = parser.parse_args()
    rows: dict[str, Any] = kept(given.out)
    own = given.loaded and not given.beside
    load = subprocess.Popen([sys.executable, str(HERE / "load.py"), "--seconds", "7200"]) if own else None
    try:
        for name in given.networks:
            for where in given.targets:
                before = os.getloadavg()[0]
                state = "loaded" if given.loaded or given.beside else "quiet" if busy() < CALM else "busy"
                folder = given.runs / f"{name}-{where}"
                row = run(name, where, given.epochs, folder)
                row["load_average"] = {"before": before, "after": os.getloadavg()[0]}
                if state == "loaded":
                    row["load"] = given.beside or "benchmarks/load.py"
                if "result" in row:
                    row["plain"] = again(name, where, folder, given.repeats, state != "quiet")
                rows[f"{name} {where} {state}"] = row
                given.out.write_text(json.dumps(rows, indent=1, default=str) + "\n")
                print(
                    f"{name} {where} {state}: {row['seconds']} estimated {row['estimate']} {row['refused']}", flush=True
                )
    finally:
        if load is not None:
            load.terminate()


if __name__ == "__main__":
    main()
