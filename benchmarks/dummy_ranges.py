"""Does a graph that is only timed, with dummy ranges, take what the released one takes?

    python benchmarks/dummy_ranges.py RUN [RUN ...]

Each RUN is the directory of a whole run on a device with a clock. Its released INT8 artifacts, dense and pruned, are
measured interleaved with the same float graphs quantised with `quantize.dummy_ranges`, and with one range for all
tensors (`same`), which is what edgeprune did before. Writes results/dummy_ranges.json: each one's latency over that of
the released artifact; 1 is right, and the load at which it was made.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
from common import RESULTS, kept, save

from edgeprune import devices, quantize, runtimes, target
from edgeprune.devices import Artifact
from edgeprune.quantize.ranges.ranges import TensorRange

NETWORKS = ("dense", "pruned")


def same(graph: onnx.ModelProto) -> quantize.Ranges:
    """Ranges right in sign, all of one size."""
    found = quantize.dummy_ranges(graph).tensors
    made = {name: TensorRange(0.0 if one.low == 0 else -4.0, 4.0, "dummy") for name, one in found.items()}
    return quantize.Ranges(made)


def row(run: Path, folder: Path) -> tuple[str, dict[str, object]]:
    """One run."""
    result = json.loads((run / "result.json").read_text())
    goal = target.load(result["target"])
    released = json.loads((run / "artifacts" / "artifacts.json").read_text())
    kept_in_float = set(json.loads((run / "quantize" / "precision.json").read_text())["float"])
    made: dict[str, Artifact] = {}
    for name in NETWORKS:
        entry = released[f"{name}-int8"]
        files = {key: run / "artifacts" / file for key, file in entry["files"].items()}
        made[name] = Artifact(name, goal.runtime, "int8", files, entry["options"])
        graph = onnx.load(run / "quantize" / f"{name}-fp32.onnx")
        floats = {node.name: "float" for node in graph.graph.node if node.name in kept_in_float}
        for kind, ranges in (("dummy", quantize.dummy_ranges(graph)), ("same", same(graph))):
            source = folder / f"{name}-{kind}.source.onnx"
            onnx.save(quantize.apply(graph, ranges, runtimes.DIALECTS[goal.dialect], floats), source)
            made[f"{name}-{kind}"] = runtimes.build(source, folder, goal, f"{name}-{kind}", "int8")
    with devices.connect(goal) as device:
        loaded = [device.load(one) for one in made.values()]
        found = dict(zip(made, device.measure(loaded, goal.protocol), strict=True))
    ratios = {
        f"{name}-{kind}": round(found[f"{name}-{kind}"].median / found[name].median, 4)
        for name in NETWORKS
        for kind in ("dummy", "same")
    }
    return f"{result['name']} on {goal.name}", {
        **ratios,
        "ms": {name: found[name].median for name in NETWORKS},
        "spread": max(float(np.float64(one.spread)) for one in found.values()),
        "features": result["device"].get("features", []),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """All runs that are asked for; the other rows stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    given = parser.parse_args()
    out = RESULTS / "dummy_ranges.json"
    for run in given.runs:
        with tempfile.TemporaryDirectory() as folder:
            name, found = row(run, Path(folder))
        print(name, found, flush=True)
        save(out, {**kept(out), name: found})


if __name__ == "__main__":
    main()
