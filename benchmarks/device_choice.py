"""Is the choice device-specific? One network chosen for each of four devices, each measured on all four.

    python benchmarks/device_choice.py --work DIR level                    what all four networks may lose
    python benchmarks/device_choice.py --work DIR choose  [TARGET ...]     each target's fastest network, with closure
    python benchmarks/device_choice.py --work DIR measure [TARGET ...]     every network on each target
    python benchmarks/device_choice.py --work DIR report                   writes benchmarks/results/device_choice.json

ResNet-56 on CIFAR-10, untrained. A network may be faster elsewhere because it is worse, so all four lose the same: as
much as the Raspberry Pi 5's network of half the dense INT8 latency, by loss curves that are common to all and corrected
by what that network truly cost. Only the devices' latency tables and channel grids differ. Closure: a target's fastest
network of that loss is built and measured beside the dense one, the table learns from it, and it is asked again; the
fastest one measured stays. On x86 latency is time, on the emulated boards a count of instructions; all figures are
ratios to the dense INT8 artifact of the same interleaved run. A killed run goes on where it stopped; DIR may hold
tables (TARGET.jsonl) that were measured before.
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

from common import EXAMPLES, RESULTS, kept, save, with_site

TARGETS = ("intel-cpu", "x86-onnxruntime", "raspberry-pi-4", "raspberry-pi-5")
LEVEL_OF, BUDGET = "raspberry-pi-5", 0.5  # all lose what this target's network of this share of the latency loses
ROUNDS = 4  # networks that closure measures, at most


class Bench:
    """The network, its loss curves, and what each device costs; made when first asked for."""

    def __init__(self, work: Path, images: int) -> None:
        self.work, self.count = work, images

    @cached_property
    def recipe(self) -> Any:
        from edgeprune import recipe

        return recipe.load(EXAMPLES / "cifar10" / "recipe.toml")

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
    def session(self) -> Any:
        from edgeprune.engine import Session

        return Session(self.model, self.images)

    @cached_property
    def curves(self) -> Any:
        """Loss curves on the union of all devices' grids."""
        from edgeprune.search import measure

        grids = [self.grid(name) for name in TARGETS]
        union = {group: tuple(sorted({w for grid in grids for w in grid[group]})) for group in grids[0]}
        return measure(self.structure, self.session, union, cache=self.work / "curves.json")

    @cached_property
    def judge(self) -> Any:
        from edgeprune.search import Evaluator

        return Evaluator(self.structure, self.session)

    def grid(self, name: str) -> dict[str, tuple[int, ...]]:
        """Group -> widths that the target's kernels are made for."""
        from edgeprune import latency, target

        return latency.options(self.structure, target.load(name).channels)

    @cache  # noqa: B019 - one bench a process
    def maker(self, name: str) -> Any:
        from edgeprune import devices, latency, target

        reached = devices.reached(target.load(name))
        return latency.maker(self.model, self.structure, self.images[:1], reached, self.work / "variants" / name)

    def level(self) -> dict[str, Any]:
        """What all may lose, and the factors of the curves that say it."""
        from edgeprune.search import find

        predictor = self.predictor(self.table(LEVEL_OF), LEVEL_OF)
        curves = dataclasses.replace(self.curves, allowed=self.grid(LEVEL_OF))
        found = find(self.structure, predictor, BUDGET * predictor.dense, curves, judge=self.judge, rounds=2)
        factors = dict(min(found.rounds, key=lambda item: item.loss).factors)
        program = self.program(LEVEL_OF, predictor, factors)
        return {"factors": factors, "loss": solved(program, BUDGET * predictor.dense).loss}

    def table(self, name: str) -> Any:
        """A target's latency table; measured quickly unless there is one."""
        from edgeprune import devices, latency, target

        path = self.work / f"{name}.jsonl"
        if not path.exists():
            with devices.connect(target.load(name)) as device:
                unit = devices.reached(target.load(name)).protocol.unit
                empty = latency.Table(device.probe().fingerprint, unit)
                latency.quick(empty, device, self.maker(name)).table.save(path)
        return latency.Table.load(path)

    def predictor(self, table: Any, name: str) -> Any:
        from edgeprune.latency import Predictor

        return Predictor(table, self.structure, self.maker(name).network)

    def program(self, name: str, predictor: Any, factors: Mapping[str, float]) -> Any:
        """The target's program, its loss curves scaled by `factors`."""
        from edgeprune.search import formulate
        from edgeprune.search.formulate import stages

        curves = dataclasses.replace(self.curves, allowed=self.grid(name))
        times = {name: factors.get(kind, 1.0) for name, kind in stages(self.structure).items()}
        program = formulate(self.structure, predictor, curves)
        groups = [
            dataclasses.replace(one, losses=tuple(times.get(one.name, 1.0) * value for value in one.losses))
            for one in program.groups
        ]
        blocks = [dataclasses.replace(one, loss=times.get(one.name, 1.0) * one.loss) for one in program.blocks]
        return dataclasses.replace(program, groups=tuple(groups), blocks=tuple(blocks))

    def fastest(self, name: str, predictor: Any, level: Mapping[str, Any]) -> Any:
        """The network that is predicted to be fastest of those that lose no more than the level, by bisection."""
        from edgeprune.errors import BudgetError

        program = self.program(name, predictor, level["factors"])
        low, high, found = 0.25, 1.0, None
        while high - low > 0.001:
            middle = (low + high) / 2
            try:
                tried = solved(program, middle * predictor.dense)
            except BudgetError:  # under the floor of the table
                tried = None
            if tried is not None and tried.loss <= level["loss"] * (1 + 1e-6):
                high, found = min(middle, tried.ms / predictor.dense), tried
            else:
                low = middle
        return found

    def evaluate(self, network: Mapping[str, Any], kept: Mapping[str, Sequence[int]] | None = None) -> dict[str, float]:
        """KL to the dense network and agreement with it, after least-squares repair."""
        from edgeprune.search import to_plan
        from edgeprune.search.program import Assignment

        if kept is None:
            plan = to_plan(self.structure, self.curves, Assignment(network["widths"], tuple(network["removed"])))
        else:
            plan = self.structure.plan(kept)
        verdict = self.judge(plan)
        return {"kl": verdict.loss, "agreement": verdict.agreement}

    def peers(self, name: str) -> dict[str, dict[str, Any]]:
        """Torch-Pruning's networks: global, the smallest ratio that the table predicts to fit, or else the fastest."""
        import torch_pruning
        from methods import _peer_cuts

        from edgeprune.graph import Configuration

        predictor = self.predictor(self.table(name), name)
        found = {}
        for multiple in (8, 16):
            best: tuple[float, dict[str, list[int]]] = (float("inf"), {})
            for ratio in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
                kept = _peer_cuts(torch_pruning, self, ratio, "l2", multiple)
                widths = {group: len(units) for group, units in kept.items()}
                predicted = predictor.predict(Configuration(widths)) / predictor.dense
                if predicted < best[0]:
                    best = (predicted, kept)
                if predicted <= BUDGET:
                    break
            widths = {group: len(units) for group, units in best[1].items()}
            network = {"widths": widths, "removed": [], "predicted": best[0]}
            found[f"Torch-Pruning L2, rounded to {multiple}"] = {**network, **self.evaluate(network, best[1])}
        return found


def solved(program: Any, ms: float) -> Any:
    """The network that loses least within `ms`."""
    from edgeprune.search import solve

    return solve(program, [ms])[0]


def choose(bench: Bench, rows: dict[str, Any], names: Sequence[str]) -> None:
    """Each target's fastest network of the level, as measured there."""
    from edgeprune import devices, target
    from edgeprune.graph import Configuration
    from edgeprune.search import refine

    for name in names:
        table, answers = bench.table(name), {}

        def ask(predictor: Any, _: float, name: str = name, answers: dict[str, Any] = answers) -> Any:
            answer = bench.fastest(name, predictor, rows["level"]).choice
            variant = Configuration(dict(answer.widths), tuple(answer.removed))
            answers[repr(variant)] = variant
            return variant

        with devices.connect(target.load(name)) as device:
            closed = refine(ask, table, device, bench.maker(name), 1.0, rounds=ROUNDS)
        best = min(closed.steps, key=lambda step: step.measured)
        network = {"widths": dict(best.variant.widths), "removed": list(best.variant.removed)}
        steps = [{"predicted": step.predicted, "measured": step.measured} for step in closed.steps]
        rows["chosen"][name] = {
            **network,
            **bench.evaluate(network),
            "loss": loss(bench, name, network, rows["level"]),
            "predicted": best.predicted,
            "closure": steps,
        }
        print(name, {k: v for k, v in rows["chosen"][name].items() if k != "widths"}, flush=True)
        keep(bench, rows)


def loss(bench: Bench, name: str, network: Mapping[str, Any], level: Mapping[str, Any]) -> float:
    """What a network loses by the common curves."""
    from edgeprune.search.program import Assignment

    program = bench.program(name, bench.predictor(bench.table(name), name), level["factors"])
    return float(program.totals(Assignment(network["widths"], tuple(network["removed"]))).loss)


def measure(bench: Bench, rows: dict[str, Any], names: Sequence[str], peers: bool, rounds: int) -> None:
    """All chosen networks on each target, interleaved with the dense artifact; `rounds` where latency is a time."""
    import msgspec

    from edgeprune import devices, target
    from edgeprune.graph import Configuration

    for home in names:
        networks = {f"chosen for {name}": rows["chosen"][name] for name in TARGETS}
        if peers:
            networks |= bench.peers(home)
        maker, reached = bench.maker(home), devices.reached(target.load(home))
        variants = [Configuration({}), *(Configuration(n["widths"], tuple(n["removed"])) for n in networks.values())]
        built = [maker.build(variant, f"network-{index}") for index, variant in enumerate(variants)]
        with devices.connect(target.load(home)) as device:
            protocol = reached.protocol
            if protocol.unit == "ms":
                protocol = msgspec.structs.replace(protocol, rounds=rounds, max_seconds=600.0)
            timings = device.measure([device.load(one.artifact) for one in built], protocol)
            where = device.probe()
        dense, *others = timings
        rows["measured"][home] = {
            "unit": dense.unit,
            "dense": dense.median,
            "spread": max(one.spread for one in timings),
            "rounds": len(dense.rounds),
            "runtime": where.fingerprint["runtime_version"],
            "load": where.state.get("load"),
            "networks": {
                name: {**network, "ratio": timing.median / dense.median}
                for (name, network), timing in zip(networks.items(), others, strict=True)
            },
        }
        print(home, {k: round(v["ratio"], 4) for k, v in rows["measured"][home]["networks"].items()}, flush=True)
        keep(bench, rows)


def report(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The table: rows are what a network was chosen for, columns where it was measured.

    `ratio` is over the dense INT8 artifact; `advantage` how many times as long as the column's own network it takes.
    """
    ratio: dict[str, dict[str, float]] = {}
    for home, found in rows["measured"].items():
        for name in TARGETS:
            ratio.setdefault(name, {})[home] = found["networks"][f"chosen for {name}"]["ratio"]
    advantage = {name: {home: r / ratio[home][home] for home, r in row.items()} for name, row in ratio.items()}
    return {"ratio": ratio, "advantage": advantage, **rows}


def stored(work: Path) -> dict[str, Any]:
    """What earlier calls, and others that run now, have left."""
    known = work / "rows.json"
    return kept(known)


def keep(bench: Bench, rows: dict[str, Any]) -> None:
    """Keep the rows; those of a call that measures another device at the same time stay."""
    for section, found in stored(bench.work).items():
        rows[section] = {**found, **rows[section]}
    keep(bench.work / "rows.json", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="tables (TARGET.jsonl), curves and rows stay here")
    parser.add_argument("--site", default="", help="folder with torch_pruning, to measure its networks beside ours")
    parser.add_argument("--rounds", type=int, default=200, help="of a measurement in time: its scatter averages out")
    parser.add_argument("--images", type=int, default=256, help="for curves and judging")
    parser.add_argument("--out", type=Path, default=RESULTS / "device_choice.json")
    parser.add_argument("step", choices=("level", "choose", "measure", "report"))
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="TARGET")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = {"level": {}, "chosen": {}, "measured": {}} | stored(options.work)
    if unknown := set(options.targets) - set(TARGETS):
        sys.exit(f"not in the table: {', '.join(sorted(unknown))}. Known: {', '.join(TARGETS)}.")
    bench = Bench(options.work, options.images)
    if options.step == "report":
        conditions = {
            "network": "ResNet-56, CIFAR-10, untrained",
            "level": f"what the network for {LEVEL_OF} loses at {BUDGET} of its dense INT8 latency",
            "images": options.images,
            "host": platform.machine(),
            "cpus": os.cpu_count(),
            "date": datetime.now(UTC).date().isoformat(),
        }
        found = {"conditions": conditions, **report(rows)}
        save(options.out, found)
        print(json.dumps({"ratio": found["ratio"], "advantage": found["advantage"]}, indent=1))
    elif options.step == "level":
        rows["level"] = bench.level()
        keep(bench, rows)
        print(rows["level"])
    elif options.step == "choose":
        choose(bench, rows, options.targets)
    else:
        with_site(options.site)
        measure(bench, rows, options.targets, bool(options.site), options.rounds)


if __name__ == "__main__":
    main()
