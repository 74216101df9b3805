"""Our search against simpler ones and against Torch-Pruning, at equal measured INT8 latency, with the same repair.

    python benchmarks/head_to_head.py --data cifar10.npz --tables DIR --work DIR [--site DIR] [--only
    resnet56/intel-cpu/2.0]

Every method gets the same dense network, the same table of measured kernels, and the same closure: it is asked again
until its network, built and measured beside the dense INT8 one, lies just within the budget (`of_budget`). Then all
networks of one budget are measured once more in one interleaved run (`of_budget_together`). Repair is least squares on
the same training images; accuracy is on the test images, in FP32, before any training. "cannot reach" is a result.
`--data` is an .npz as `examples/cifar10/fetch.py` writes it; `--tables` holds what benchmarks/prediction.py left there;
`--site` has torch_pruning (without it those rows are left out).

Rows are kept as they come: a killed run goes on where it stopped. Writes benchmarks/results/head_to_head.json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import EXAMPLES, RESULTS, beside, kept, save, with_site
from methods import EVALUATED, METHODS, Bench

RUNS = (
    ("resnet56", "intel-cpu", (1.5, 2.0, 3.0)),
    ("resnet56", "x86-onnxruntime", (1.5, 2.0, 3.0)),
    ("vgg16", "intel-cpu", (2.0, 3.0, 4.0)),
    ("vgg16", "x86-onnxruntime", (2.0, 4.0)),
)


def load(name: str, weights: Path | None) -> Any:
    """The trained network."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    beside("examples/cifar10")
    import resnet
    import vgg

    model = resnet.resnet56() if name == "resnet56" else vgg.vgg16_bn()
    file = weights or EXAMPLES / "cifar10" / f"{name}.safetensors"
    model.load_state_dict(load_file(file))
    return model.eval()


def accuracy(model: Any, images: Any, labels: Any) -> float:
    """Percent of right top answers."""
    import torch

    model = model.eval().to(memory_format=torch.channels_last)
    right = 0
    with torch.no_grad():
        for part, wanted in zip(torch.split(images, 250), torch.split(labels, 250), strict=True):
            right += int((model(part.contiguous(memory_format=torch.channels_last)).argmax(1) == wanted).sum())
    return 100 * right / len(images)


def splits(path: Path, fit: int, test: int) -> tuple[Any, ...]:
    """Training images to search and repair by, test images to report; pixels / 255."""
    import torch

    data = np.load(path)
    picked = np.random.default_rng(0).permutation(len(data["train_images"]))[:fit]

    def pixels(array: Any) -> Any:
        return torch.from_numpy(array).permute(0, 3, 1, 2).float().div(255)

    return (
        pixels(data["train_images"][picked]), torch.from_numpy(data["train_labels"][picked]).long(),
        pixels(data["test_images"][:test]), torch.from_numpy(data["test_labels"][:test]).long(),
    )  # fmt: skip


def compare(name: str, target_name: str, speedups: tuple[float, ...], options: argparse.Namespace, rows: Any) -> None:
    """All methods at all budgets of one network on one runtime."""
    from edgeprune import devices
    from edgeprune import target as targets
    from edgeprune.engine import Session
    from edgeprune.graph import Plan, trace
    from edgeprune.latency import Predictor, Table, maker
    from edgeprune.latency import options as grid
    from edgeprune.recover.repair import repair
    from edgeprune.search import Evaluator, measure

    model = load(name, options.weights)
    images, labels, test, answers = splits(options.data, max(options.repair, options.images), options.test)
    structure, target = trace(model, images[:1]), targets.load(target_name)
    with tempfile.TemporaryDirectory() as folder, devices.connect(target) as device:
        made = maker(model, structure, images[:1], target, Path(folder))
        table = Table.load(options.tables / f"{name}.{target_name}.jsonl", device.probe().fingerprint)
        predictor = Predictor(table, structure, made.network)
        allowed = grid(structure, target.channels)
        session = Session(model, images[: options.images])
        curves = measure(structure, session, allowed, cache=options.work / f"{name}.{target_name}.curves.json")
        judge = Evaluator(structure, session)
        by_fp32 = _fp32_predictor(name, model, structure, images[:1], target, Path(folder), device, options)
        bench = Bench(
            model, structure, predictor, allowed, curves, images[: options.images], labels[: options.images], judge,
            options.rounds, by_fp32, {},
        )  # fmt: skip
        for speedup in speedups:
            plans = {}
            for method, choose in METHODS.items():
                key = f"{name}/{target_name}/{speedup}/{method}"
                if (options.only and not key.startswith(tuple(options.only))) or key in rows:
                    continue
                start = time.perf_counter()
                own = replace(bench, memory={})
                row = closed_row(own, method, choose, speedup, options, (table, device, made))
                if "plan" in row:
                    plan = row.pop("plan")
                    plans[key] = plan
                    plan.save(plan_file(options.work / "plans", key))
                    pruned = repair(model, plan.apply(model), structure, plan, images[: options.repair])
                    row["accuracy"] = accuracy(pruned, test, answers)
                row |= {"seconds": time.perf_counter() - start, "load_average": os.getloadavg()[1]}
                rows[key] = row
                print(key, {k: v for k, v in row.items() if k != "widths"}, flush=True)
                save(options.out, rows)
            if options.again:
                every = [f"{name}/{target_name}/{speedup}/{method}" for method in METHODS]
                plans = {
                    k: Plan.load(f) for k in every if k in rows and (f := plan_file(options.work / "plans", k)).exists()
                }
            if plans and not options.no_measure:
                ratios = measured_together(made, device, target, plans)
                for key, ratio in ratios.items():
                    rows[key]["of_budget_together"] = ratio * speedup
                save(options.out, rows)


def closed_row(
    bench: Bench, method: str, choose: Any, speedup: float, options: argparse.Namespace, place: tuple[Any, Any, Any]
) -> dict[str, Any]:
    from edgeprune.errors import BudgetError
    from edgeprune.search import refine

    if method.startswith("Torch-Pruning") and not options.site:
        return {"result": "not run: no --site with torch_pruning"}

    def solve(predictor: Any, ms: float) -> Any:
        plan = choose(replace(bench, predictor=predictor), ms)
        if plan is None:
            raise BudgetError("none of its networks is predicted to be fast enough.")
        return plan

    def loss(plan: Any) -> float:
        return float(next(iter(bench.memory.values())).loss(plan))

    table, device, made = place
    evaluated = loss if METHODS[method] in EVALUATED else None
    try:
        closed = refine(solve, table, device, made, 1 / speedup, rounds=options.closure, loss=evaluated)
    except BudgetError as error:
        return {"result": f"cannot reach: {error.message}"}
    plan = closed.answer
    return {
        "plan": plan,
        "result": "reached",
        "of_budget": closed.of_budget,
        "measurements": len(closed.steps),
        "removed": list(plan.removed),
        "widths": {name: len(units) for name, units in plan.kept.items()},
    }


def _fp32_predictor(
    name: str, model: Any, structure: Any, example: Any, target: Any, folder: Path, device: Any, options: Any
) -> Any:
    """From a table that knows FP32 kernels only, as one gets by measuring in the framework's own precision."""
    from edgeprune.latency import Predictor, Table, maker, quick

    made = maker(model, structure, example, target, folder, precision="fp32")
    path = options.work / f"{name}.{target.name}.fp32.jsonl"
    fingerprint = device.probe().fingerprint
    table = Table.load(path, fingerprint) if path.exists() else Table(fingerprint)
    if made.network not in table.networks or len(table.networks[made.network].runs) < 16:
        table = quick(table, device, made, keep=lambda found: found.save(path)).table
    return Predictor(table, structure, made.network)


def measured_together(made: Any, device: Any, target: Any, plans: Mapping[str, Any]) -> dict[str, float]:
    """Latency over the dense one's, all in one interleaved run."""
    from edgeprune.graph import DENSE

    built = [made.build(DENSE, "dense")]
    for k, plan in enumerate(plans.values()):
        built.append(made.build(plan.configuration, f"v{k}"))
    dense, *others = device.measure([device.load(item.artifact) for item in built], target.protocol)
    return {key: timing.median / dense.median for key, timing in zip(plans, others, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for loss curves")
    parser.add_argument("--weights", type=Path, help="safetensors of the one network of this call")
    parser.add_argument("--site", default="", help="folder with torch_pruning")
    parser.add_argument("--only", nargs="*", default=[], help="prefixes of network/target/speedup/method")
    parser.add_argument("--images", type=int, default=512, help="for loss curves and judging")
    parser.add_argument("--repair", type=int, default=2048, help="images for the final repair")
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--closure", type=int, default=8, help="networks that closure may measure for one method")
    parser.add_argument("--again", action="store_true", help="measure all kept plans of a column together once more")
    parser.add_argument("--no-measure", action="store_true", help="leave the interleaved measurement out")
    parser.add_argument("--out", type=Path, default=RESULTS / "head_to_head.json")
    options = parser.parse_args()
    if options.site:
        with_site(options.site)
    options.work.mkdir(parents=True, exist_ok=True)
    rows = kept(options.out)
    rows["conditions"] = {
        "images": options.images,
        "repair_images": options.repair,
        "test_images": options.test,
        "rounds": options.rounds,
        "latency": "closed on measurements; of_budget_together: all networks of a budget in one interleaved run",
        "accuracy": "FP32, untrained, after least-squares repair",
    }
    for name, target, speedups in RUNS:
        wanted = [s for s in speedups if not options.only or any(_matches(o, name, target, s) for o in options.only)]
        if wanted:
            compare(name, target, tuple(wanted), options, rows)


def plan_file(folder: Path, key: str) -> Path:
    """Where the plan of a row is kept, for benchmarks/recovery.py."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{key.replace('/', '-').replace(' ', '_')}.json"


def _matches(prefix: str, name: str, target: str, speedup: float) -> bool:
    key = f"{name}/{target}/{speedup}/"
    return key.startswith(prefix) or prefix.startswith(key)


if __name__ == "__main__":
    main()
