"""Does closure land on the budget, as measured, before any training?

    python benchmarks/budget.py --site DIR [--tables DIR] [--only resnet56/intel-cpu/2.0 ...]

Ten runs over four networks and two runtimes, INT8, one thread. A table is built first (or read from `--tables`, where
benchmarks/prediction.py leaves them). The solver is a plain one, so that what is tested is latency alone: it removes as
few blocks as it must, evenly, keeps one fraction of every group, then widens single groups while the prediction still
fits. After closure the chosen network is built once more and measured against the dense one with the target's own
protocol; `of_budget` is that independent figure (medians), `of_budget_at_pace` the same rounds, those at the device's
fastest pace alone, `of_budget_in_closure` what closure ended with. Wanted: 0.97 - 1.00. Writes results/budget.json,
a row a run.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from common import RESULTS
from prediction import keep_row, patiently, workplace

RUNS = (
    ("resnet56", "x86-onnxruntime", 1.5),
    ("resnet56", "x86-onnxruntime", 2.0),
    ("resnet56", "intel-cpu", 1.5),
    ("resnet56", "intel-cpu", 2.0),
    ("vgg16", "x86-onnxruntime", 2.0),
    ("vgg16", "intel-cpu", 3.0),
    ("resnet18", "x86-onnxruntime", 2.0),
    ("resnet18", "intel-cpu", 1.5),
    ("mobilenetv2", "x86-onnxruntime", 1.3),
    ("mobilenetv2", "intel-cpu", 1.3),
)


def plain_solver(made: Any) -> Any:
    """(predictor, latency) -> a variant predicted to be as slow as it may be."""
    from edgeprune.errors import BudgetError
    from edgeprune.graph import Configuration
    from edgeprune.latency import options

    allowed = options(made.structure, made.target.channels)
    blocks = [block.module for block in made.structure.blocks]

    def at(fraction: float) -> dict[str, int]:
        return {
            name: max((u for u in widths if u <= fraction * widths[-1]), default=widths[0])
            for name, widths in allowed.items()
        }

    def solve(predictor: Any, latency: float) -> Any:
        fractions = [step / 40 for step in range(1, 41)]
        for count in range(len(blocks) + 1):
            gone = tuple(blocks[int((i + 0.5) * len(blocks) / count)] for i in range(count)) if count else ()
            fits = [f for f in fractions if predictor.predict(Configuration(at(f), gone)) <= latency]
            if fits and (fits[-1] >= 0.5 or count == len(blocks)):
                return widen(predictor, latency, at(fits[-1]), gone)
        raise BudgetError(f"no network of the plain solver is predicted to take {latency:.4g}.")

    def widen(predictor: Any, latency: float, widths: dict[str, int], gone: tuple[str, ...]) -> Any:
        changed = True
        while changed:
            changed = False
            for name in sorted(allowed, key=lambda name: widths[name] / allowed[name][-1]):
                wider = next((u for u in allowed[name] if u > widths[name]), None)
                if wider and predictor.predict(Configuration({**widths, name: wider}, gone)) <= latency:
                    widths, changed = {**widths, name: wider}, True
        return Configuration(widths, gone)

    return solve


def measure(name: str, target_name: str, speedup: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    from edgeprune.errors import BudgetError
    from edgeprune.graph import DENSE
    from edgeprune.latency import profile
    from edgeprune.latency.rounds import Measured, Pace
    from edgeprune.search import refine

    began = time.monotonic()
    with workplace(name, target_name, arguments.site, arguments.tables) as (made, device, table, keep):
        row: dict[str, Any] = {"network": name, "target": target_name, "speedup": speedup}
        if made.network not in table.networks or len(table.networks[made.network].runs) < arguments.count:
            table = profile(table, device, made, arguments.count, 4, keep=keep).table
        row["table_seconds"] = round(time.monotonic() - began, 1)
        try:
            closed = refine(plain_solver(made), table, device, made, 1 / speedup)
            keep(closed.table)
        except BudgetError as error:
            return {**row, "of_budget": None, "error": error.message, "load_average": os.getloadavg()[1]}
        dense, pruned = made.build(DENSE, "dense"), made.build(closed.variant, "chosen")
        loaded = [device.load(dense.artifact), device.load(pruned.artifact)]
        first, second = device.measure(loaded, made.target.protocol)
        apart = Pace().mark(
            [Measured(one, (), t.rounds, first.rounds) for one, t in ((dense, first), (pruned, second))]
        )
        return {
            **row,
            "of_budget": second.median / first.median * speedup,
            "of_budget_at_pace": apart[1].ratio * speedup,
            "of_budget_in_closure": closed.of_budget,
            "dense_median": first.median,
            "pruned_median": second.median,
            "unit": first.unit,
            "spread": max(first.spread, second.spread),
            "rounds": len(closed.steps),
            "steps": [
                {"asked": s.asked, "predicted": s.predicted, "measured": s.measured, "spread": s.spread}
                for s in closed.steps
            ],
            "removed_blocks": len(closed.variant.removed),
            "widths": dict(closed.variant.widths),
            "closure_seconds": round(time.monotonic() - began - row["table_seconds"], 1),
            "load_average": os.getloadavg()[1],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", default="", help="folder with torchvision")
    parser.add_argument("--only", nargs="*", default=[], help="network/target/speedup")
    parser.add_argument("--count", type=int, default=20, help="variants in a table that has to be built")
    parser.add_argument("--tables", type=Path, help="folder of tables")
    parser.add_argument("--out", type=Path, default=RESULTS / "budget.json")
    arguments = parser.parse_args()
    for name, target, speedup in RUNS:
        if arguments.only and f"{name}/{target}/{speedup}" not in arguments.only:
            continue
        row = patiently(lambda one=(name, target, speedup): measure(*one, arguments))
        print(json.dumps({key: value for key, value in row.items() if key not in ("widths", "steps")}), flush=True)
        keep_row(arguments.out, row, ("network", "target", "speedup"))


if __name__ == "__main__":
    main()
