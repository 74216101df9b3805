"""Peers beside a finished run: at the measured latency of its network, with the same repair, training and INT8.

    python benchmarks/recovered_peers.py RUN --recipe RECIPE --site SITE [--methods "FLOPs-driven" ...]
    python benchmarks/recovered_peers.py --table         # docs/recovery.md, from results/recovered_peers.json

RUN is RECIPE's finished run, of a classifier, whose artifacts are used; SITE has torch_pruning. Torch-Pruning by
group L2, uniform or global, channels rounded to 8; and our own program with multiply-accumulates in place of latencies,
without blocks. Of each method's ratios, in steps of 0.025, the smallest whose INT8 artifact is no slower than ours,
each timed beside ours in interleaved rounds (all of them, in order: below 16 channels a network may be slower the more
is cut). Then the recipe's
repair, training and calibration, with the layers in float that ours has in float; accuracy is of the INT8 artifact on
the test images, its lead over the peer paired, image by image. "cannot" is a result.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from common import EXAMPLES, RESULTS, ROOT, dialect_on, heads, kept, line, put, ratios, save, with_site
from methods import Macs, _peer_cuts
from task_peers import ROUNDS
from tasks import cpu

from edgeprune import devices, quantize, runtimes, validate
from edgeprune import recipe as recipes
from edgeprune import target as targets
from edgeprune.latency import options as grid
from edgeprune.pipeline import recovery, workloads
from edgeprune.pipeline.events import untold
from edgeprune.pipeline.subject import Subject
from edgeprune.search import formulate, measure, solve, to_plan

OUT, PAGE = RESULTS / "recovered_peers.json", ROOT / "docs" / "recovery.md"
RATIOS = tuple(round(0.05 + 0.025 * step, 3) for step in range(37))
NAMES = ("Torch-Pruning, uniform", "Torch-Pruning, global", "FLOPs-driven")


class Place:
    """A finished run, and where networks are made and timed as it made and timed its own."""

    def __init__(self, run: Path, folder: Path, device: Any, target: Any, recipe: Any) -> None:
        self.run, self.folder, self.device, self.target, self.recipe = run, folder, device, target, recipe
        self.subject = Subject(recipe, target.execution.batch, lambda *_: None)
        self.structure, self.work = self.subject.structure, self.subject.workload
        self.dialect = dialect_on(device, target)
        self.floats = kept(run / "quantize" / "precision.json").get("float", [])
        self.count = 0
        examples = workloads.examples(self.work, "train", max(recovery.REPAIR_EXAMPLES, recipe.search.images))
        self.seen = SimpleNamespace(model=self.subject.model, images=examples, structure=self.structure)
        made = runtimes.build(run / "quantize" / "pruned-int8.onnx", folder / "ours", target, "ours", "int8")
        self.mine = device.load(made)

    def artifact(self, network: torch.nn.Module, calibrated: bool) -> Any:
        """The INT8 artifact of a network, loaded."""
        self.count += 1
        path = self.folder / f"{self.count}.onnx"
        self.subject.export(network.eval(), path)
        graph = onnx.load(path)
        ranges = quantize.dummy_ranges(graph)
        if calibrated:
            count = self.recipe.quantize.images
            given = [batch[0] for batch, _ in self.work.data.batches("calibration", self.work.inputs, 32, count)]
            ranges = quantize.calibrate(graph, lambda: iter(given), self.dialect, self.recipe.quantize)
        there = {node.name for node in graph.graph.node}
        floats = {layer: "float" for layer in self.floats if layer in there}
        onnx.save(quantize.apply(graph, ranges, self.dialect, floats), self.folder / f"{self.count}-int8.onnx")
        return self.device.load(
            runtimes.build(
                self.folder / f"{self.count}-int8.onnx", self.folder / str(self.count), self.target, "peer", "int8"
            )
        )

    def share(self, loaded: Any, rounds: int) -> float:
        """Latency over ours."""
        (_, found), _ = ratios(self.device, [self.mine, loaded], self.target.protocol, rounds)
        return statistics.median(found)

    def outputs(self, loaded: Any) -> tuple[np.ndarray, np.ndarray]:
        """Logits and labels of all test images."""
        logits, labels = [], []
        for batch, wanted in self.work.data.batches("test", self.work.inputs, 64):
            logits.append(self.device.infer(loaded, batch[0])[0])
            labels.extend(int(one) for one in wanted)
        return np.concatenate(logits), np.array(labels)


def plan_of(place: Place, name: str, ratio: float, memory: dict[str, Any]) -> Any:
    """The network of a method at a ratio, as a plan."""
    if name == "FLOPs-driven":
        structure = place.structure
        if "curves" not in memory:
            widths = grid(structure, place.target.channels)
            memory["curves"] = measure(structure, place.subject.session, widths, blocks=False)
            memory["program"] = formulate(structure, Macs(structure), memory["curves"], blocks=False)
        program = memory["program"]
        asked = (1 - ratio) * program.totals(program.dense()).ms
        return to_plan(structure, memory["curves"], solve(program, [asked])[0].choice)
    import torch_pruning as tp

    return place.structure.plan(_peer_cuts(tp, place.seen, ratio, "l2", 8, name.endswith("global")))


def fitted(place: Place, name: str) -> tuple[Any, float] | str:
    """(plan, ratio) of the smallest ratio that is fast enough; or why there is none."""
    memory: dict[str, Any] = {}
    fastest, seen = float("inf"), set[str]()
    for ratio in RATIOS:
        try:
            plan = plan_of(place, name, ratio, memory)
            if str(plan.configuration) in seen:  # rounded to the same widths
                continue
            seen.add(str(plan.configuration))
            loaded = place.artifact(plan.apply(place.subject.model), calibrated=False)
        except Exception as cause:
            print(f"{name} {ratio}: {type(cause).__name__}: {str(cause).splitlines()[0][:120]}", flush=True)
            continue
        share = place.share(loaded, 1)
        place.device.unload(loaded)
        fastest = min(fastest, share)
        print(f"{name} {ratio}: {share:.3f} of ours", flush=True)
        if share <= 1.0:
            return plan, ratio
    return f"cannot: {fastest:.2f} of ours at its fastest"


def peer(place: Place, name: str, ours: np.ndarray) -> dict[str, Any]:
    """One network of a peer: cut, repaired, trained, quantised, judged beside ours (`ours`: its logits)."""
    found = fitted(place, name)
    if isinstance(found, str):
        return {"result": found}
    plan, ratio = found
    student = recovery.repaired(place.subject, plan, plan.apply(place.subject.model))
    repaired, started = recovery.score(place.work, student), time.process_time()
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        recovery.trained(place.subject, place.recipe.recover, untold, None, student, Path(folder))
    seconds = time.process_time() - started
    loaded = place.artifact(student, calibrated=True)
    share = place.share(loaded, ROUNDS)
    logits, labels = place.outputs(loaded)
    place.device.unload(loaded)
    mine, theirs = (judged(place, one, labels) for one in (ours, logits))
    lead = validate.comparison(theirs, mine, 0.95)
    return {
        "accuracy": 100 * float((logits.argmax(1) == labels).mean()),
        "of_ours": share,
        "ratio": ratio,
        "repaired": repaired,
        "selection": recovery.score(place.work, student),
        "lead": {"points": lead.drop, "low": lead.low, "high": lead.high, "method": lead.method},
        "cpu_seconds_of_training": round(seconds),
    }


def judged(place: Place, logits: np.ndarray, labels: np.ndarray) -> Any:
    """The score of outputs that are all there."""
    judge = validate.Judge(place.work.task)
    judge.add(logits, labels)
    return judge.score()


def run(done: Path, recipe: Any, methods: list[str]) -> dict[str, Any]:
    """Ours and the peers of one run, as far as they were not kept."""
    result = kept(done / "result.json")
    target = targets.load(result["target"])
    key = f"{recipe.name} on {target.name}, {recipe.recover.epochs:g} epochs, {cpu(target.name)}"
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder, devices.connect(target, "local") as device:
        place = Place(done, Path(folder), device, target, recipe)
        ours, labels = place.outputs(place.mine)
        for name in methods:
            rows = kept(OUT)
            row = rows.setdefault(key, {})
            row["ours"] = {
                "accuracy": 100 * float((ours.argmax(1) == labels).mean()),
                "of_ours": 1.0,
                "repaired": kept(done / "recover" / "recover.json")["selection_accuracy"]["repaired"] * 100,
                "speedup": result["speedup_vs_dense_int8"],
            }
            found = peer(place, name, ours)
            rows = kept(OUT)
            rows[key] = {**rows.get(key, {}), "ours": row["ours"]}
            rows[key][name] = {**found, "load": round(os.getloadavg()[0], 1)}
            print(name, rows[key][name], flush=True)
            save(OUT, rows)
    return kept(OUT)


def table(rows: dict[str, Any]) -> str:
    """Markdown: a line a run."""
    lines = heads("run", "ours", *NAMES)
    for key, row in rows.items():
        cells = []
        for name in ("ours", *NAMES):
            one = row.get(name)
            cells.append(cell(one) if one else "")
        lines.append(line(key, *cells))
    return "\n".join(lines)


def cell(one: dict[str, Any]) -> str:
    """Accuracy and latency over ours; of a peer by how much ours is ahead, with 95 % limits."""
    if "result" in one:
        return str(one["result"])
    told = f"{one['accuracy']:.2f} % ({one['of_ours']:.2f})"
    lead = one.get("lead")
    return f"{told}, behind by {lead['points']:.2f} ({lead['low']:.2f} to {lead['high']:.2f})" if lead else told


def main() -> None:
    """Run what is asked for and keep the other rows; or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--recipe", type=Path, default=EXAMPLES / "cifar10" / "recipe.toml")
    parser.add_argument("--site", default="")
    parser.add_argument("--methods", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.run:
        with_site(given.site)
        run(given.run, recipes.load(given.recipe), given.methods)
    if given.table:
        put(PAGE, "recovered_peers.py", table(kept(OUT)))


if __name__ == "__main__":
    main()
