"""Torch-Pruning on the networks of tasks.py, at the latency of ours, with the same recovery and the same INT8.

    python benchmarks/task_peers.py run --work DIR --site SITE --only NAME [--target x86-onnxruntime] [--speedup 1.5]
    python benchmarks/task_peers.py table          # docs/tasks.md, from benchmarks/results/task_peers.json

DIR holds the runs of `tasks.py run --work DIR`; SITE has torch_pruning. Group magnitude (L2), uniform or global,
channels rounded to 8, layers that make the outputs kept; of ratios in steps of 0.05 the smallest whose INT8 artifact is
no slower than ours, each timed beside ours in interleaved rounds. Then the same training on the same examples, our
calibration for both, with the same layers in float where a runtime is faster so, and the metric of the INT8 artifact on
the test examples. "cannot" is a result.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tasks as ours
import torch
from common import RESULTS, ROOT, dialect_on, heads, kept, line, put, ratios, save, with_site
from torch import nn

import edgeprune
from edgeprune import devices, model, quantize, recover, runtimes
from edgeprune import target as targets
from edgeprune.pipeline import tasking, workloads
from edgeprune.workload import Data, Inputs, as_outputs, score_batches

OUT, PAGE = RESULTS / "task_peers.json", ROOT / "docs" / "tasks.md"
SCOPES = {"uniform": False, "global": True}
ROUNDS = 3


class Place:
    """Where artifacts are made and timed."""

    def __init__(self, name: str, target: str, folder: Path) -> None:
        import task_networks

        self.recipe = ours.recipe(name, 1.5)
        self.network: nn.Module = getattr(task_networks, name)()
        self.data: Data = getattr(task_networks, f"{name}_data")()
        self.inputs: Inputs = self.data.inputs(workloads.argument_names(self.network))
        self.task: Any = tasking.of_recipe(self.recipe)
        self.target, self.folder, self.count = targets.load(target), folder, 0
        self.dialect: Any = None  # the run's, by the CPU; before anything is built
        self.floats: list[str] = []  # layers that ours has in float, as they are faster so
        first = [self.data.split("test")[0][0]]
        self.example = workloads.tensors(self.inputs, self.inputs.batch(first, 0))

    def exported(self, network: nn.Module) -> onnx.ModelProto:
        self.count += 1
        return model.export_onnx(network.eval(), self.example, self.folder / f"{self.count}.onnx", self.inputs.names)

    def built(self, graph: onnx.ModelProto, ranges: Any) -> Any:
        there = {node.name for node in graph.graph.node}
        floats = {layer: "float" for layer in self.floats if layer in there}
        made = quantize.apply(graph, ranges, self.dialect, floats)
        path = self.folder / f"int8-{self.count}.onnx"
        onnx.save(made, path)
        return runtimes.build(path, self.folder / str(self.count), self.target, "int8", "int8")

    def score(self, device: Any, loaded: Any) -> float:
        def outputs() -> Any:
            for batch, wanted in self.data.batches("test", self.inputs, 64):
                given = batch[0] if len(batch) == 1 else dict(zip(self.inputs.names, batch, strict=True))
                yield as_outputs(tuple(device.infer(loaded, given))), wanted

        return float(score_batches(self.task, outputs()).value)


def cut(place: Place, ratio: float, everywhere: bool) -> nn.Module:
    """The dense network with this share of its channels gone, by the peer."""
    import torch_pruning as tp

    made = copy.deepcopy(place.network).eval()
    structure = edgeprune.trace(place.network, place.example)
    last = {layer.name for layer in structure.layers if all(not segment.group for segment in layer.outputs)}
    pruner = tp.pruner.BasePruner(
        made, place.example, importance=tp.importance.GroupMagnitudeImportance(), pruning_ratio=ratio,
        global_pruning=everywhere, round_to=8, ignored_layers=[m for n, m in made.named_modules() if n in last],
    )  # fmt: skip
    pruner.step()
    with torch.no_grad():
        wanted = [one.shape for one in as_outputs(place.inputs.call(place.network, _arrays(place)))]
        found = [one.shape for one in as_outputs(place.inputs.call(made, _arrays(place)))]
    if wanted != found:
        raise ValueError(f"its network gives {found}, the dense one {wanted}")
    return made


def _arrays(place: Place) -> tuple[Any, ...]:
    return place.inputs.batch([place.data.split("test")[0][0]], 0)


def fitted(place: Place, device: Any, mine: Any, everywhere: bool) -> tuple[nn.Module, float, float] | str:
    """(network, ratio, its latency over ours) of the smallest ratio that is fast enough; or why there is none."""
    fastest = float("inf")
    for ratio in np.arange(0.1, 0.96, 0.05):
        try:
            made = cut(place, float(ratio), everywhere)
            graph = place.exported(made)
            loaded = device.load(place.built(graph, quantize.dummy_ranges(graph)))
        except Exception as cause:
            return f"cannot: {type(cause).__name__}: {str(cause).splitlines()[0][:120]}"
        (_, found), _ = ratios(device, [mine, loaded], place.target.protocol, ROUNDS)
        device.unload(loaded)
        share = statistics.median(found)
        fastest = min(fastest, share)
        print(f"{'global' if everywhere else 'uniform'} {ratio:.2f}: {share:.3f} of ours", flush=True)
        if share <= 1.0:
            return made, float(ratio), share
    return f"cannot: {fastest:.2f} of ours at its fastest"


def run(name: str, target: str, speedup: float, work: Path) -> dict[str, Any]:
    """Ours and the peer's networks of one run."""
    rows: dict[str, Any] = {"load": round(os.getloadavg()[0], 1)}
    done = work / f"{name}-{target}-{speedup:g}" / "quantize"
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        place = Place(name, target, Path(folder))
        place.floats = kept(done / "precision.json").get("float", [])
        mine = runtimes.build(done / "pruned-int8.onnx", place.folder / "ours", place.target, "ours", "int8")
        with devices.connect(place.target, "local") as device:
            place.dialect = dialect_on(device, place.target)
            loaded = device.load(mine)
            rows["ours"] = {"score": place.score(device, loaded), "of_ours": 1.0}
            for scope, everywhere in SCOPES.items():
                rows[f"Torch-Pruning, {scope}"] = peer(place, device, loaded, everywhere)
                print(name, scope, rows[f"Torch-Pruning, {scope}"], flush=True)
    return rows


def peer(place: Place, device: Any, mine: Any, everywhere: bool) -> dict[str, Any]:
    """One network of the peer: cut, trained, quantised, scored and timed."""
    found = fitted(place, device, mine, everywhere)
    if isinstance(found, str):
        return {"result": found}
    student, ratio, _ = found
    started = time.process_time()
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        recover.train(
            student,
            copy.deepcopy(place.network),
            place.data.split("train"),
            place.data.split("selection"),
            place.recipe.recover,
            Path(folder),
            task=place.task,
            inputs=place.inputs,
        )
    seconds = time.process_time() - started
    graph = place.exported(student)
    batches = [
        batch[0] if len(batch) == 1 else dict(zip(place.inputs.names, batch, strict=True))
        for batch, _ in place.data.batches("calibration", place.inputs, 32, 256)
    ]
    distance = None if workloads.is_top_class(place.task) else place.task.distance
    ranges = quantize.calibrate(graph, lambda: iter(batches), place.dialect, distance=distance)
    loaded = device.load(place.built(graph, ranges))
    (_, times), _ = ratios(device, [mine, loaded], place.target.protocol, ROUNDS)
    made = {"score": place.score(device, loaded), "of_ours": statistics.median(times), "ratio": ratio}
    device.unload(loaded)
    return {**made, "cpu_seconds_of_training": round(seconds)}


def table(rows: dict[str, Any]) -> str:
    """Markdown: a line a run."""
    names = ("ours", *(f"Torch-Pruning, {scope}" for scope in SCOPES))
    lines = heads("network on target", *names)
    for key, row in rows.items():
        cells = []
        for name in names:
            one = row[name]
            cells.append(one.get("result") or f"{one['score']:.2f} ({one['of_ours']:.2f})")
        lines.append(line(key, *cells))
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for and keep the other rows; or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("run", "table"))
    parser.add_argument("--work", type=Path, default=Path("runs") / "tasks")
    parser.add_argument("--site", default="")
    parser.add_argument("--only", nargs="*", default=list(ours.CASES))
    parser.add_argument("--target", default="x86-onnxruntime")
    parser.add_argument("--speedup", type=float, default=1.5)
    given = parser.parse_args()
    if given.step == "table":
        put(PAGE, "task_peers.py", table(kept(OUT)))
        return
    with_site(given.site)
    for name in given.only:
        row = run(name, given.target, given.speedup, given.work)
        rows = kept(OUT)
        rows[f"{name} on {given.target} at {given.speedup:g}x"] = row
        save(OUT, rows)


if __name__ == "__main__":
    main()
