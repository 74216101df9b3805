"""Our search against simpler ones and against Torch-Pruning, at equal measured INT8 latency, with the same repair.

    python benchmarks/head_to_head.py --data cifar10.npz --tables DIR --work DIR [--site DIR] [--only
    resnet56/intel-cpu/2.0]

Every method gets the same dense network, the same table of measured kernels, and the same closure: it is asked again
until its network, built and measured beside the dense INT8 one, lies just within the budget (`of_budget`). Then all
networks of one budget are measured once more in one interleaved run (`of_budget_together`). Repair is least squares on
the same training images; accuracy is on the test images, in FP32, before any training. "cannot reach" is a result.
`--data` is an .npz as `examples/cifar10/fetch.py` writes it; `--tables` holds what benchmarks/prediction.py left there;
`--site` has torch_pruning (without it those rows are left out).

Rows are kept as they come: a killed run goes on where it stopped. Writes benchmarks/head_to_head.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
RUNS = (
    ("resnet56", "intel-cpu", (1.5, 2.0, 3.0)),
    ("resnet56", "x86-onnxruntime", (1.5, 2.0, 3.0)),
    ("vgg16", "intel-cpu", (2.0, 4.0)),
    ("vgg16", "x86-onnxruntime", (2.0, 4.0)),
)


@dataclass(frozen=True, eq=False)
class Bench:
    """What every method may look at."""

    model: Any
    structure: Any
    predictor: Any
    allowed: Mapping[str, tuple[int, ...]]
    curves: Any
    images: Any
    labels: Any
    judge: Any
    rounds: int
    by_fp32: Any  # a predictor whose table was measured in FP32
    memory: dict[str, Any]  # what a method keeps from one round of closure to the next

    def l1(self) -> dict[str, tuple[int, ...]]:
        from edgeprune.recover.saliency import orders

        return orders(self.model, self.structure, self.images, "l1")

    def plan(
        self, widths: Mapping[str, int], order: Mapping[str, tuple[int, ...]], removed: tuple[str, ...] = ()
    ) -> Any:
        inner = {name for b in self.structure.blocks if b.module in removed for name in b.inner}
        kept = {name: sorted(order[name][:width]) for name, width in widths.items() if name not in inner}
        return self.structure.plan(kept, removed)


def ours(bench: Bench, ms: float, **options: bool) -> Any:
    """The joint search, or half of it. Curves are corrected by evaluated networks in the first round of closure."""
    from edgeprune.pipeline.choose import corrected
    from edgeprune.search import find

    key = f"ours {sorted(options.items())}"
    if key not in bench.memory:
        found = find(
            bench.structure, bench.predictor, ms, bench.curves, judge=bench.judge, rounds=bench.rounds, **options
        )  # fmt: skip
        factors = min(found.rounds, key=lambda item: item.loss).factors
        bench.memory[key] = corrected(bench.curves, bench.structure, factors)
    return find(bench.structure, bench.predictor, ms, bench.memory[key], **options).plan


def uniform(bench: Bench, ms: float) -> Any:
    """The largest uniform fraction that fits, by L1."""
    order = bench.l1()
    for fraction in np.arange(0.99, 0.0, -0.01):
        widths = {n: min(w, key=lambda u: (abs(u - fraction * w[-1]), -u)) for n, w in bench.allowed.items()}
        if bench.predictor.predict(widths) <= ms:
            return bench.plan(widths, order)
    return None


def random(bench: Bench, ms: float, seed: int = 0) -> Any:
    """Of 300 random networks the one that comes nearest to the budget; random channels, no blocks."""
    from edgeprune.recover.saliency import orders

    generator = np.random.default_rng(seed)
    best, found = 0.0, None
    for _ in range(300):
        share = generator.uniform(0, 1)
        widths = {
            n: min(w, key=lambda u: abs(u - np.clip(generator.normal(share, 0.25), 0, 1) * w[-1]))
            for n, w in bench.allowed.items()
        }
        value = bench.predictor.predict(widths)
        if best < value <= ms:
            best, found = value, widths
    order = orders(bench.model, bench.structure, bench.images, "random", seed=seed)
    return None if found is None else bench.plan(found, order)


class Macs:
    """A cost that counts multiply-accumulates."""

    beta = 0.0

    def __init__(self, structure: Any) -> None:
        self.layers = {layer.name: layer for layer in structure.layers}

    def kernel(self, layer: str, c_in: int, c_out: int) -> float:
        from edgeprune.graph.structure import width

        found = self.layers[layer]
        full = width(found.inputs, {}) * (1 if found.groups > 1 else width(found.outputs, {}))
        return found.macs * c_in * (1 if found.groups > 1 else c_out) / full / 1e6


class Frozen:
    """The true predictor with every layer's input channels held at their dense number."""

    def __init__(self, structure: Any, predictor: Any) -> None:
        from edgeprune.graph.structure import width

        self.predictor, self.beta = predictor, predictor.beta
        self.inputs = {layer.name: width(layer.inputs, {}) for layer in structure.layers}
        self.depthwise = {layer.name for layer in structure.layers if layer.groups > 1}

    def kernel(self, layer: str, c_in: int, c_out: int) -> float:
        return float(self.predictor.kernel(layer, c_in if layer in self.depthwise else self.inputs[layer], c_out))


def blind(bench: Bench, ms: float, cost: Any, blocks: bool = False) -> Any:
    """Solve with another cost; of its own budgets, the largest whose answer fits the true one."""
    from edgeprune.search import formulate, solve, to_plan
    from edgeprune.search.solve import floor

    program = formulate(bench.structure, cost, bench.curves, blocks=blocks)
    least, most = floor(program), program.totals(program.dense()).ms
    found = None
    for _ in range(14):
        middle = (least + most) / 2
        plan = to_plan(bench.structure, bench.curves, solve(program, [middle * 1.000001])[0].choice)
        if bench.predictor.predict(plan) <= ms:
            least, found = middle, plan
        else:
            most = middle
    return found


def torch_pruning(bench: Bench, ms: float, importance: str, multiple: int) -> Any:
    """Torch-Pruning, global: the smallest ratio whose network fits. Its cuts become a plan of ours."""
    import torch_pruning as tp

    from edgeprune.errors import BudgetError

    fastest = (float("inf"), 0.0)
    for ratio in np.arange(0.05, 0.96, 0.05):
        if ratio not in bench.memory:
            try:
                kept = _peer_cuts(tp, bench, float(ratio), importance, multiple)
                bench.memory[ratio] = bench.structure.plan(kept)
            except Exception as error:
                print(f"   torch_pruning at {ratio:.2f}: {type(error).__name__}: {error}", flush=True)
                bench.memory[ratio] = None
        plan = bench.memory[ratio]
        if plan is None:
            continue
        predicted = bench.predictor.predict(plan)
        if predicted <= ms:
            return plan
        fastest = min(fastest, (predicted, float(ratio)))
    speedup = bench.predictor.dense / fastest[0]
    raise BudgetError(
        f"its fastest is {speedup:.2f}x at a ratio of {fastest[1]:.2f} (groups that would vanish stay whole)."
    )


def _peer_cuts(tp: Any, bench: Bench, ratio: float, importance: str, multiple: int) -> dict[str, list[int]]:
    import copy

    import torch
    from torch import nn

    model = copy.deepcopy(bench.model).eval()
    example = bench.images[:1]
    measure = {
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": lambda: tp.importance.GroupTaylorImportance(),
    }[importance]()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        model, example, importance=measure, global_pruning=True, pruning_ratio=ratio, max_pruning_ratio=0.9,
        ignored_layers=[last], round_to=multiple,
    )  # fmt: skip
    if importance == "taylor":
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(bench.images), bench.labels)
        loss.backward()
    names = {module: name for name, module in model.named_modules()}
    producers = {layer: group for group in bench.structure.groups for layer in group.producers}
    gone: dict[str, set[int]] = {}
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            name = names.get(dependency.target.module, "")
            if name in producers and "out" in getattr(dependency.handler, "__name__", ""):
                gone.setdefault(producers[name].name, set()).update(int(k) for k in indices)
                break
        group.prune()
    torch.manual_seed(0)
    return {
        name: [u for u in range(bench.structure.group(name).size) if u not in spots]
        for name, spots in gone.items()
        if len(spots) < bench.structure.group(name).size
    }


METHODS: dict[str, Callable[[Bench, float], Any]] = {
    "ours": lambda b, ms: ours(b, ms),
    "ours without blocks": lambda b, ms: ours(b, ms, blocks=False),
    "ours, blocks alone": lambda b, ms: ours(b, ms, widths=False),
    "ours, tables measured in FP32": lambda b, ms: blind(b, ms, b.by_fp32, blocks=True),
    "ours, c_in frozen": lambda b, ms: blind(b, ms, Frozen(b.structure, b.predictor), blocks=True),
    "uniform L1": uniform,
    "random": random,
    "FLOPs-driven": lambda b, ms: blind(b, ms, Macs(b.structure)),
    "additive knapsack, c_in frozen": lambda b, ms: blind(b, ms, Frozen(b.structure, b.predictor)),
    "Torch-Pruning L2, rounded to 8": lambda b, ms: torch_pruning(b, ms, "l2", 8),
    "Torch-Pruning L2, rounded to 16": lambda b, ms: torch_pruning(b, ms, "l2", 16),
    "Torch-Pruning Taylor, rounded to 8": lambda b, ms: torch_pruning(b, ms, "taylor", 8),
    "Torch-Pruning Taylor, rounded to 16": lambda b, ms: torch_pruning(b, ms, "taylor", 16),
}


def load(name: str, weights: Path | None) -> Any:
    """The trained network."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    sys.path.insert(0, str(HERE.parent / "examples" / "cifar10"))
    import resnet
    import vgg

    model = resnet.resnet56() if name == "resnet56" else vgg.vgg16_bn()
    file = weights or HERE.parent / "examples" / "cifar10" / f"{name}.safetensors"
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
    from edgeprune.graph import trace
    from edgeprune.latency import Predictor, Table, maker
    from edgeprune.latency import options as grid
    from edgeprune.recover.repair import repair
    from edgeprune.search import Stitcher, measure

    model = load(name, options.weights)
    images, labels, test, answers = splits(options.data, max(options.repair, options.images), options.test)
    structure, target = trace(model, images[:1]), targets.load(target_name)
    with tempfile.TemporaryDirectory() as folder, devices.connect(target) as device:
        made = maker(model, structure, images[:1], target, Path(folder))
        table = Table.load(options.tables / f"{name}.{target_name}.jsonl", device.probe().fingerprint)
        predictor = Predictor(table, structure, made.network)
        allowed = grid(structure, target.channels)
        curves = measure(
            model,
            structure,
            images[: options.images],
            allowed,
            cache=options.work / f"{name}.{target_name}.curves.json",
        )
        judge = Stitcher(model, structure, images[: options.images])
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
                row = _row(own, method, choose, speedup, options, (table, device, made))
                if "plan" in row:
                    plan = row.pop("plan")
                    plans[key] = plan
                    pruned = repair(model, plan.apply(model), structure, plan, images[: options.repair])
                    row["accuracy"] = accuracy(pruned, test, answers)
                row |= {"seconds": time.perf_counter() - start, "load_average": os.getloadavg()[1]}
                rows[key] = row
                print(key, {k: v for k, v in row.items() if k != "widths"}, flush=True)
                _save(options, rows)
            if plans and not options.no_measure:
                ratios = _measured(made, device, target, structure, plans)
                for key, ratio in ratios.items():
                    rows[key]["of_budget_together"] = ratio * speedup
                _save(options, rows)


def _row(
    bench: Bench, method: str, choose: Any, speedup: float, options: argparse.Namespace, place: tuple[Any, Any, Any]
) -> dict[str, Any]:
    from edgeprune.errors import BudgetError
    from edgeprune.latency import close

    if method.startswith("Torch-Pruning") and not options.site:
        return {"result": "not run: no --site with torch_pruning"}

    def solve(predictor: Any, ms: float) -> Any:
        plan = choose(replace(bench, predictor=predictor), ms)
        if plan is None:
            raise BudgetError("none of its networks is predicted to be fast enough.")
        return plan

    table, device, made = place
    try:
        closed = close(solve, table, device, made, 1 / speedup, rounds=options.closure)
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


def _measured(made: Any, device: Any, target: Any, structure: Any, plans: Mapping[str, Any]) -> dict[str, float]:
    """Latency over the dense one's, all in one interleaved run."""
    from edgeprune.latency.variants import DENSE, Variant

    built = [made.build(DENSE, "dense")]
    for k, plan in enumerate(plans.values()):
        built.append(made.build(Variant({n: len(u) for n, u in plan.kept.items()}, tuple(plan.removed)), f"v{k}"))
    dense, *others = device.measure([device.load(item.artifact) for item in built], target.protocol)
    return {key: timing.median / dense.median for key, timing in zip(plans, others, strict=True)}


def _save(options: argparse.Namespace, rows: Any) -> None:
    temporary = options.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    temporary.replace(options.out)


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
    parser.add_argument("--no-measure", action="store_true", help="leave the interleaved measurement out")
    parser.add_argument("--out", type=Path, default=HERE / "head_to_head.json")
    options = parser.parse_args()
    if options.site:
        sys.path.append(options.site)
    options.work.mkdir(parents=True, exist_ok=True)
    rows = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
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


def _matches(prefix: str, name: str, target: str, speedup: float) -> bool:
    key = f"{name}/{target}/{speedup}/"
    return key.startswith(prefix) or prefix.startswith(key)


if __name__ == "__main__":
    main()
