"""A sweep of 2 targets x 3 budgets x 2 networks: in order, on Ray, killed and resumed, on a cluster that loses a node.

    python benchmarks/sweeps.py --out benchmarks/results/sweeps.json [--only order ray ...]

Small networks of three and two convolutions, OpenVINO and ONNX Runtime measured in a hurry, uniform search, nothing
trained: what is shown is who does what how often, and what is lost, and not how good a network gets. Everything
measures on this machine, which takes all of its CPUs by itself, so Ray can win little here.

order     one after the other in one process
ray       Ray, local
killed    Ray, local: a worker gets SIGKILL in the middle, then the command with all that it started; then it is resumed
cluster   two nodes of ray.cluster_utils.Cluster on this machine; one is removed in the middle
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import beside, save

beside("tests/scale")

from tiny_sweep import NETWORK, QUICK, RECIPE  # noqa: E402

SECOND = NETWORK.replace("nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), ", "")  # two convolutions
SWEEP = """
name = "shown"
recipes = ["one.toml", "two.toml"]
targets = ["quick-onnxruntime", "quick-openvino"]
speedups = [1.05, 1.1, 1.2]
until = "search"
[resources]
retries = 3
"""
DIALECTS = {"onnxruntime": "ort-x86", "openvino": "openvino"}


def project(folder: Path) -> None:
    """Recipes, targets, networks, data and the sweep."""
    for runtime, dialect in DIALECTS.items():
        text = QUICK.format(name=f"quick-{runtime}").replace('"onnxruntime"', f'"{runtime}"')
        place = folder / "targets" / f"quick-{runtime}"
        place.mkdir(parents=True)
        (place / "profile.toml").write_text(text.replace('"ort-x86"', f'"{dialect}"'))
    (folder / "net.py").write_text(NETWORK)
    (folder / "second.py").write_text(SECOND)
    (folder / "one.toml").write_text(RECIPE.format(name="one", method="uniform"))
    text = RECIPE.format(name="two", method="uniform")
    (folder / "two.toml").write_text(text.replace("net.py:brightest", "second.py:brightest"))
    (folder / "sweep.toml").write_text(SWEEP)
    random, arrays = np.random.default_rng(0), dict[str, Any]()
    for split, count in (("train", 240), ("test", 240)):
        labels = np.arange(count) % 4
        bright = random.random((count, 16, 16, 3)) * (labels[:, None, None, None] + 1) / 4
        arrays |= {f"{split}_labels": labels, f"{split}_images": (255 * bright).astype(np.uint8)}
    np.savez(folder / "data.npz", classes=np.array(list("abcd")), **arrays)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, in a session of its own."""
    environment = {**os.environ, "EDGEPRUNE_TARGETS": str(folder / "targets"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "edgeprune", "sweep", "sweep.toml", *arguments, "--json"]
    with (folder / "said").open("a") as said:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
        )


def made(folder: Path) -> dict[str, int]:
    """Stage -> how often it was made, over all runs."""
    found: Counter[str] = Counter()
    for log in folder.glob("sweeps/shown/runs/*/events.jsonl"):
        for line in log.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "end":
                found[event["stage"]] += 1
    return dict(found)


def until(folder: Path, process: subprocess.Popen[str], enough: Callable[[dict[str, int]], bool]) -> None:
    """Wait for as much work."""
    while process.poll() is None and not enough(made(folder)):
        time.sleep(0.5)


def ended(process: subprocess.Popen[str], began: float, folder: Path) -> dict[str, Any]:
    out, _ = process.communicate()
    row: dict[str, Any] = {"exit_code": process.returncode, "seconds": round(time.monotonic() - began, 1)}
    noise, brace, rest = out.partition("{")
    report = json.loads(brace + rest) if brace else {}
    row |= {"on_stdout_too": noise[:500]} if noise.strip() else {}
    row |= {key: report[key] for key in ("error", "message") if key in report}
    if "rows" in report:
        row["engine"], row["states"] = report["engine"], dict(Counter(one["state"] for one in report["rows"]))
        row["taken_over"] = dict(Counter(stage for one in report["rows"] for stage in one["taken"]))
    return {**row, "made": made(folder)}


def descendants(pid: int) -> list[tuple[int, str]]:
    """Processes below one, with their names."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(words[1]), []).append(int(path.parent.name))
    found, waiting = list[tuple[int, str]](), [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            waiting.append(child)
            try:
                found.append((child, Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()))
            except OSError:
                continue
    return found


def killed(folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    process = start(folder, "--engine", "ray")
    until(folder, process, lambda done: done.get("plan", 0) >= 1)
    busy: list[int] = []
    while process.poll() is None and not busy:
        busy = [pid for pid, name in descendants(process.pid) if name.startswith("ray::") and "quick-" in name]
        time.sleep(0.2)
    os.kill(busy[0], signal.SIGKILL)
    at_worker = made(folder)
    until(folder, process, lambda done: done.get("search", 0) >= 3)
    at_head, all_of_it = made(folder), [pid for pid, _ in descendants(process.pid)]
    os.kill(process.pid, signal.SIGKILL)
    for pid in all_of_it:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    first = {"worker_killed_at": at_worker, "command_killed_at": at_head, "first_s": round(time.monotonic() - began, 1)}
    began = time.monotonic()
    return {**first, **ended(start(folder, "--engine", "ray"), began, folder)}


def cluster(folder: Path) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    each: Any = {"num_cpus": 1, "resources": {"edgeprune:local": 1}, "object_store_memory": 100 << 20}
    nodes = Cluster(initialize_head=True, head_node_args={**each, "include_dashboard": False})
    second = nodes.add_node(**each)
    began = time.monotonic()
    process = start(folder, "--address", nodes.address)
    until(folder, process, lambda done: done.get("search", 0) >= 3)
    at = made(folder)
    nodes.remove_node(second, allow_graceful=False)
    row = ended(process, began, folder)
    nodes.shutdown()
    return {"node_removed_at": at, **row}


def simple(folder: Path, engine: str) -> dict[str, Any]:
    began = time.monotonic()
    return ended(start(folder, "--engine", engine), began, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["order", "ray", "killed", "cluster"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="Where the sweeps' folders are left.")
    given = parser.parse_args()
    found = json.loads(given.out.read_text()) if given.out and given.out.is_file() else {}
    for name in given.only:
        folder = Path(tempfile.mkdtemp(prefix=f"sweep-{name}-"))
        project(folder)
        work = {"killed": killed, "cluster": cluster}.get(name) or (lambda folder, name=name: simple(folder, name))
        load = os.getloadavg()[0]
        found[name] = {**work(folder), "load": [round(load, 1), round(os.getloadavg()[0], 1)]}
        print(name, json.dumps(found[name]), flush=True)
        if found[name]["exit_code"]:
            print((folder / "said").read_text()[-2000:])
        if given.keep:
            shutil.copytree(folder, given.keep / name, dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        if given.out:
            save(given.out, found)


if __name__ == "__main__":
    main()
