"""Is the choice device-specific? One network chosen for each of four devices, each measured on all four.

    python benchmarks/device_choice.py --work DIR choose  [TARGET ...]     a latency table and a network for each target
    python benchmarks/device_choice.py --work DIR measure [TARGET ...]     every network on each target
    python benchmarks/device_choice.py --work DIR report                   writes benchmarks/results/device_choice.json

ResNet-56 on CIFAR-10, untrained, twice the speed of the dense INT8 artifact. One set of loss curves for all: only the
devices' latency tables and channel grids differ. A network may be faster elsewhere because it is worse, so each is also
held against the *home* device's own network of the same loss: `advantage` is how many times as long the foreign network
takes. On x86 latency is time, on the emulated boards a count of instructions; all figures are ratios to the dense INT8
artifact of the same interleaved run. A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TARGETS = ("intel-cpu", "x86-onnxruntime", "raspberry-pi-4", "raspberry-pi-5")
BUDGET = 0.5  # of the dense INT8 artifact's latency


class Bench:
    """The network, its loss curves, and what each device costs; made when first asked for."""

    def __init__(self, work: Path, images: int) -> None:
        self.work, self.count = work, images

    @cached_property
    def recipe(self) -> Any:
        from edgeprune import recipe

        return recipe.load(HERE.parent / "examples" / "cifar10" / "recipe.toml")

    @cached_property
    def model(self) -> Any:
        import torch

        from edgeprune.model import load_model

        torch.set_num_threads(1)
        return load_model(self.recipe)

    @cached_property
    def images(self) -> Any:
        import torch

        from edgeprune.model import load_data

        return torch.from_numpy(load_data(self.recipe).train.take(self.count).arrays())

    @cached_property
    def structure(self) -> Any:
        from edgeprune.graph import trace

        return trace(self.model, self.images[:1])

    @cached_property
    def curves(self) -> Any:
        """Loss curves on the union of all devices' grids."""
        from edgeprune.search import measure

        grids = [self.grid(name) for name in TARGETS]
        union = {group: tuple(sorted({w for grid in grids for w in grid[group]})) for group in grids[0]}
        return measure(self.model, self.structure, self.images, union, cache=self.work / "curves.json")

    @cached_property
    def judge(self) -> Any:
        from edgeprune.search import Stitcher

        return Stitcher(self.model, self.structure, self.images)

    def grid(self, name: str) -> dict[str, tuple[int, ...]]:
        """Group -> widths that the target's kernels are made for."""
        from edgeprune import latency, target

        return latency.options(self.structure, target.load(name).channels)

    @cache  # noqa: B019 - one bench a process
    def maker(self, name: str) -> Any:
        from edgeprune import latency, target

        return latency.maker(
            self.model, self.structure, self.images[:1], target.load(name), self.work / "variants" / name
        )

    @cache  # noqa: B019
    def program(self, name: str) -> tuple[Any, float]:
        """A target's program, and its dense latency as the table predicts it."""
        from edgeprune.latency import Predictor, Table
        from edgeprune.search import formulate

        predictor = Predictor(Table.load(self.work / f"{name}.jsonl"), self.structure, self.maker(name).network)
        curves = dataclasses.replace(self.curves, allowed=self.grid(name))
        return formulate(self.structure, predictor, curves), predictor.dense

    def best(self, name: str, ratio: float) -> dict[str, Any]:
        """A target's best network that is predicted to take `ratio` of the dense latency."""
        from edgeprune.search import solve

        program, dense = self.program(name)
        answer = solve(program, [ratio * dense])[0]
        return {
            "widths": dict(answer.choice.widths),
            "removed": list(answer.choice.removed),
            "loss": answer.loss,
            "predicted": answer.ms / dense,
        }

    def best_of_loss(self, name: str, loss: float) -> dict[str, Any]:
        """A target's fastest network that loses no more than `loss`, by bisection over its front."""
        from edgeprune.errors import BudgetError

        low, high = 0.02, 1.0
        found = self.best(name, high)
        for _ in range(12):
            middle = (low + high) / 2
            try:
                tried = self.best(name, middle)
            except BudgetError:  # under the floor of the table
                tried = None
            if tried is not None and tried["loss"] <= loss * (1 + 1e-6):
                high, found = middle, tried
            else:
                low = middle
        return found

    def evaluate(self, network: Mapping[str, Any], kept: Mapping[str, Sequence[int]] | None = None) -> dict[str, float]:
        """KL to the dense network and agreement with it, after least-squares repair."""
        from edgeprune.search import to_plan
        from edgeprune.search.program import Choice

        if kept is None:
            plan = to_plan(self.structure, self.curves, Choice(network["widths"], tuple(network["removed"])))
        else:
            plan = self.structure.plan(kept)
        verdict = self.judge(plan)
        return {"kl": verdict.loss, "agreement": verdict.agreement}

    def peers(self, name: str) -> dict[str, dict[str, Any]]:
        """Torch-Pruning's networks: global, the smallest ratio that the table predicts to fit, or else the fastest."""
        import torch_pruning
        from head_to_head import _peer_cuts

        from edgeprune.latency import Predictor, Table, Variant

        predictor = Predictor(Table.load(self.work / f"{name}.jsonl"), self.structure, self.maker(name).network)
        found = {}
        for multiple in (8, 16):
            best: tuple[float, dict[str, list[int]]] = (float("inf"), {})
            for ratio in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
                kept = _peer_cuts(torch_pruning, self, ratio, "l2", multiple)
                widths = {group: len(units) for group, units in kept.items()}
                predicted = predictor.predict(Variant(widths)) / predictor.dense
                if predicted < best[0]:
                    best = (predicted, kept)
                if predicted <= BUDGET:
                    break
            widths = {group: len(units) for group, units in best[1].items()}
            network = {"widths": widths, "removed": [], "predicted": best[0]}
            found[f"Torch-Pruning L2, rounded to {multiple}"] = {**network, **self.evaluate(network, best[1])}
        return found


def choose(bench: Bench, rows: dict[str, Any], names: Sequence[str]) -> None:
    """A latency table for each target unless there is one, and the network that it leads to."""
    from edgeprune import devices, latency, target

    for name in names:
        path = bench.work / f"{name}.jsonl"
        if not path.exists():
            with devices.connect(target.load(name)) as device:
                unit = devices.reached(target.load(name)).protocol.unit
                empty = latency.Table(device.probe().fingerprint, unit)
                made = latency.quick(empty, device, bench.maker(name))
            made.table.save(path)
            rows["tables"][name] = {"errors": dataclasses.asdict(made.errors), "networks": made.networks}
        network = bench.best(name, BUDGET)
        rows["chosen"][name] = {**network, **bench.evaluate(network)}
        print(name, {k: v for k, v in rows["chosen"][name].items() if k != "widths"}, flush=True)
        save(bench, rows)


def measure(bench: Bench, rows: dict[str, Any], names: Sequence[str], peers: bool, equal_loss: bool) -> None:
    """All chosen networks on each target, beside its own of equal loss, interleaved with the dense artifact."""
    from edgeprune import devices, target
    from edgeprune.latency import Variant

    for home in names:
        networks = {f"chosen for {name}": rows["chosen"][name] for name in TARGETS}
        for name in TARGETS if equal_loss else ():
            if name != home:
                own = bench.best_of_loss(home, rows["chosen"][name]["loss"])
                networks[f"own, of the loss of {name}"] = {**own, **bench.evaluate(own)}
        if peers:
            networks |= bench.peers(home)
        maker, reached = bench.maker(home), devices.reached(target.load(home))
        variants = [Variant({}), *(Variant(n["widths"], tuple(n["removed"])) for n in networks.values())]
        built = [maker.build(variant, f"network-{index}") for index, variant in enumerate(variants)]
        with devices.connect(target.load(home)) as device:
            timings = device.measure([device.load(one.artifact) for one in built], reached.protocol)
            where = device.probe()
        dense, *others = timings
        rows["measured"][home] = {
            "unit": dense.unit,
            "dense": dense.median,
            "spread": max(one.spread for one in timings),
            "runtime": where.fingerprint["runtime_version"],
            "load": where.state.get("load"),
            "networks": {
                name: {**network, "ratio": timing.median / dense.median}
                for (name, network), timing in zip(networks.items(), others, strict=True)
            },
        }
        print(home, {k: round(v["ratio"], 4) for k, v in rows["measured"][home]["networks"].items()}, flush=True)
        save(bench, rows)


def report(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The table: rows are what a network was chosen for, columns where it was measured."""
    ratio, advantage = {}, {}
    for home, found in rows["measured"].items():
        networks = found["networks"]
        for name in TARGETS:
            ratio.setdefault(name, {})[home] = networks[f"chosen for {name}"]["ratio"]
            own = networks.get(f"chosen for {home}" if name == home else f"own, of the loss of {name}")
            if own is not None:
                advantage.setdefault(name, {})[home] = networks[f"chosen for {name}"]["ratio"] / own["ratio"]
    return {"ratio": ratio, "advantage": advantage, **rows}


def stored(work: Path) -> dict[str, Any]:
    """What earlier calls, and others that run now, have left."""
    known = work / "rows.json"
    return json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}


def save(bench: Bench, rows: dict[str, Any]) -> None:
    """Keep the rows; those of a call that measures another device at the same time stay."""
    for section, found in stored(bench.work).items():
        rows[section] = {**found, **rows[section]}
    part = bench.work / "rows.part"
    part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    part.replace(bench.work / "rows.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="tables (TARGET.jsonl), curves and rows stay here")
    parser.add_argument("--site", default="", help="folder with torch_pruning, to measure its networks beside ours")
    parser.add_argument("--quick", action="store_true", help="measure the four networks alone, none of equal loss")
    parser.add_argument("--images", type=int, default=256, help="for curves and judging")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "device_choice.json")
    parser.add_argument("step", choices=("choose", "measure", "report"))
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="TARGET")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = {"tables": {}, "chosen": {}, "measured": {}} | stored(options.work)
    if unknown := set(options.targets) - set(TARGETS):
        sys.exit(f"not in the table: {', '.join(sorted(unknown))}. Known: {', '.join(TARGETS)}.")
    bench = Bench(options.work, options.images)
    if options.step == "report":
        conditions = {
            "network": "ResNet-56, CIFAR-10, untrained",
            "budget": BUDGET,
            "images": options.images,
            "host": platform.machine(),
            "cpus": os.cpu_count(),
            "date": datetime.now(UTC).date().isoformat(),
        }
        found = {"conditions": conditions, **report(rows)}
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({"ratio": found["ratio"], "advantage": found["advantage"]}, indent=1))
    elif options.step == "choose":
        choose(bench, rows, options.targets)
    else:
        sys.path += [options.site, str(HERE)] if options.site else []
        measure(bench, rows, options.targets, bool(options.site), not options.quick)


if __name__ == "__main__":
    main()
