"""Torch-Pruning's networks on an emulated board beside ours, at equal accuracy.

    edgeprune raspberry-pi-5 run examples/cifar10/recipe.toml
    python benchmarks/board_peers.py RUN --work DIR --site DIR [--shares 0.8 0.65 0.5] [--multiple 16]

RUN is the finished run, whose table, recipe, dense and pruned artifacts are used. Torch-Pruning cuts the same dense
network globally by group L2 norm, its channels rounded to `--multiple`; of its ratios the smallest that the table
predicts to take no more than each share of the dense INT8 latency. Its cuts become a plan of ours and go through the
same repair, training, calibration and Q/DQ scheme. Accuracy is on all test images by the exact pre-check; latency is
instructions, all artifacts in one interleaved run on the board. `--site` has torch_pruning. A killed run goes on where
it stopped. Writes benchmarks/results/board_peers.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import EXAMPLES, RESULTS, save, with_site

RATIOS = tuple(step / 40 for step in range(2, 38))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="cuts, weights and graphs stay here")
    parser.add_argument("--site", default="", help="folder with torch_pruning")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.8, 0.65, 0.5], help="of the dense INT8 latency")
    parser.add_argument("--multiple", type=int, default=16, help="Torch-Pruning's round_to")
    parser.add_argument("--images", type=int, default=512, help="for the repair")
    parser.add_argument("--out", type=Path, default=RESULTS / "board_peers.json")
    options = parser.parse_args()
    with_site(options.site)
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.run, options.work, options.images)
    plans = bench.plans(options.shares, options.multiple)
    graphs = {
        "dense": options.run / "artifacts" / "dense-int8.onnx",
        "ours": options.run / "artifacts/pruned-int8.onnx",
    }
    facts: dict[str, dict[str, Any]] = {"dense": {}, "ours": {}}
    for name, (plan, fact) in plans.items():
        graphs[name], trained = bench.train(name, plan)
        facts[name] = {**fact, **trained}
    rows = bench.measure(graphs)
    found = {
        "target": bench.target.name,
        "network": bench.recipe.name,
        "unit": "instructions",
        "accuracy": "top-1 of the INT8 artifact on the test images, exact pre-check",
        "rows": {name: {**facts[name], **row} for name, row in rows.items()},
    }
    save(options.out, found)
    for name, row in found["rows"].items():
        print(f"{name:32} {row['accuracy']:.2%} {row['instructions'] / 1e6:8.3f} M {row['speedup']:.3f}x", flush=True)


class Bench:
    """A run's network, data, table and target."""

    def __init__(self, run: Path, work: Path, images: int) -> None:
        import torch

        from edgeprune import recipe, target
        from edgeprune.graph import trace
        from edgeprune.model import load_data, load_model

        torch.set_num_threads(1)
        self.run, self.work = run, work
        self.recipe = recipe.load(EXAMPLES / "cifar10" / "recipe.toml")
        self.target = target.load(json.loads((run / "result.json").read_text("utf-8"))["target"])
        self.model, self.data = load_model(self.recipe), load_data(self.recipe)
        self.images = torch.from_numpy(self.data.train.take(images).arrays())
        self.structure = trace(self.model, self.images[:1])

    def plans(self, shares: list[float], multiple: int) -> dict[str, tuple[Any, dict[str, Any]]]:
        """Torch-Pruning's network for each share, as plans of ours."""
        import torch_pruning
        from methods import _peer_cuts

        from edgeprune.latency import Predictor, Table

        table = Table.load(self.run / "search" / "table.jsonl")
        (network,) = table.networks
        predictor = Predictor(table, self.structure, network)
        seen = SimpleNamespace(model=self.model, images=self.images, structure=self.structure)
        found: dict[str, tuple[Any, dict[str, Any]]] = {}
        fastest: tuple[float, Any] = (float("inf"), None)
        for ratio in RATIOS:
            kept = _peer_cuts(torch_pruning, seen, ratio, "l2", multiple)
            plan = self.structure.plan(kept)
            share = predictor.predict(plan) / predictor.dense
            print(f"  Torch-Pruning, ratio {ratio:.3f}: predicted to take {share:.3f}", flush=True)
            name = f"Torch-Pruning L2 to {multiple}, ratio {ratio:.3f}"
            if share < fastest[0]:
                fastest = (share, (name, plan, ratio))
            while shares and share <= max(shares):
                shares = sorted(shares)[:-1]
                found[name] = (plan, {"ratio": ratio, "predicted": share})
            if not shares:
                return found
        name, plan, ratio = fastest[1]
        found[name] = (plan, {"ratio": ratio, "predicted": fastest[0], "fastest": True})
        return found

    def train(self, name: str, plan: Any) -> tuple[Path, dict[str, Any]]:
        """Repair, train and quantise as the recipe says; the Q/DQ graph, and held-out accuracies on the way."""
        import copy

        import onnx

        from edgeprune import quantize
        from edgeprune.model import export_onnx
        from edgeprune.recover import evaluate, repair, train
        from edgeprune.runtimes import DIALECTS

        folder = self.work / name.replace(" ", "-").replace(",", "")
        folder.mkdir(exist_ok=True)
        graph, kept = folder / "int8.onnx", folder / "facts.json"
        if graph.exists():
            return graph, json.loads(kept.read_text("utf-8"))
        student, data, dialect = plan.apply(self.model), self.data, DIALECTS[self.target.dialect]
        repair(self.model, student, self.structure, plan, self.images)
        facts = {"repaired": evaluate(student, data.selection)}
        training = train(
            student,
            copy.deepcopy(self.model),
            data.train,
            data.selection,
            self.recipe.recover,
            folder,
            augment=self.recipe.data.augment,
        )
        facts |= {"trained": evaluate(student, data.selection), "train_seconds": training.seconds}
        print(f"  {name}: {facts}", flush=True)
        export_onnx(student.eval(), self.images[:1], folder / "fp32.onnx")
        network, images = onnx.load(folder / "fp32.onnx"), data.calibration.take(self.recipe.quantize.images)
        ranges = quantize.calibrate(network, lambda: images.batches(32), dialect, self.recipe.quantize, None)
        onnx.save(quantize.apply(network, ranges, dialect, {}), graph)
        kept.write_text(json.dumps(facts), encoding="utf-8")
        return graph, facts

    def measure(self, graphs: dict[str, Path]) -> dict[str, dict[str, Any]]:
        """Accuracy by the pre-check, instructions on the board."""
        from edgeprune import devices, runtimes, tasks, validate

        artifacts = {
            name: runtimes.build(path, self.work / "artifacts", self.target, f"network-{index}", "int8")
            for index, (name, path) in enumerate(graphs.items())
        }
        test, rows = self.data.test, {}
        with devices.connect(self.target, "local") as here:
            for name, artifact in artifacts.items():
                (outputs,) = here.infer(here.load(artifact), test.arrays())
                scored = validate.network(tasks.Classification(), outputs, test.labels)
                rows[name] = {"accuracy": scored.accuracy, "correct": scored.correct, "images": scored.images}
        with devices.connect(self.target) as board:
            protocol = devices.reached(self.target).protocol
            timings = board.measure([board.load(one) for one in artifacts.values()], protocol)
        dense = timings[0].median
        for row, timing in zip(rows.values(), timings, strict=True):
            row |= {"instructions": timing.median, "spread": timing.spread, "speedup": dense / timing.median}
        return rows


if __name__ == "__main__":
    main()
