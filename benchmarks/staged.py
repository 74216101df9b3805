"""Deep cuts in one go or in two stages with training between: an ablation at equal measured INT8 latency.

    python benchmarks/staged.py --data cifar10.npz --tables DIR --work DIR [--speedup 3] [--images 12000] [--epochs 3]

ResNet-56 on OpenVINO, from the table that benchmarks/prediction.py left in --tables. Both ways end at the same
measured speed-up over dense INT8 (closure) and see equally many training images. One go: search, repair, training.
Two stages: search for the square root of the speed-up, repair, half of the training; then the same again from the
network so trained, with loss curves and a table of its own, and the dense network as the teacher of both. Selection by
the last images of the training set; the test set is only counted, in FP32. Writes benchmarks/results/staged.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, save
from head_to_head import load
from recovery import splits

from edgeprune import devices
from edgeprune import target as targets
from edgeprune.engine import Session
from edgeprune.graph import DENSE, Plan, trace
from edgeprune.latency import Predictor, Table, maker, quick
from edgeprune.latency import options as grid
from edgeprune.recipe import RecoverSection
from edgeprune.recover.batches import evaluate
from edgeprune.recover.repair import repair
from edgeprune.recover.train import train
from edgeprune.search import Again, Evaluator, find, measure, refine


def search(
    model: Any, images: Any, ratio: float, target: Any, device: Any, table: Table, folder: Path
) -> tuple[Plan, Any, Table, float]:
    """A plan that closes at `ratio` of this network's INT8 latency; with the structure, the table, what was reached."""
    structure = trace(model, images[:1])
    made = maker(model, structure, images[:1], target, folder)
    if made.network not in table.networks or len(table.networks[made.network].runs) < 16:
        table = quick(table, device, made).table
    predictor = Predictor(table, structure, made.network)
    session = Session(model, images)
    curves = measure(structure, session, grid(structure, target.channels))
    judge = Evaluator(structure, session)
    found = find(structure, predictor, ratio * predictor.dense, curves, judge=judge, rounds=2)
    again = Again(structure, curves, found, judge)
    closed = refine(again, table, device, made, ratio, rounds=6, loss=again.loss)
    assert isinstance(closed.answer, Plan)
    return closed.answer, structure, closed.table, closed.ratio


def cut(
    model: Any, teacher: Any, ratio: float, epochs: float, folder: Path, place: tuple[Any, Any, Table], data: Any
) -> tuple[Any, float, dict[str, float]]:
    """Search, repair, train; the network, the latency ratio reached, and accuracies on the test split."""
    options, (train_split, selection, test) = data
    target, device, table = place
    few = torch.from_numpy(train_split.take(options.repair).arrays())
    folder.mkdir(parents=True, exist_ok=True)
    plan, structure, _, reached = search(model, few[: options.curves], ratio, target, device, table, folder)
    pruned = repair(model, plan.apply(model), structure, plan, few)
    repaired = evaluate(pruned, test)
    section = RecoverSection(epochs=epochs, lr=options.lr)
    train(pruned, teacher, train_split, selection, section, folder, augment=("crop", "flip"))
    said = {"ratio": reached, "repaired": 100 * repaired, "trained": 100 * evaluate(pruned, test)}
    print(said, flush=True)
    return pruned, reached, said


def together(first: Any, others: list[Any], target: Any, device: Any, folder: Path) -> list[float]:
    """INT8 latencies over the first's, in one interleaved run."""
    example, loaded = torch.zeros(1, 3, 32, 32), []
    for index, model in enumerate((first, *others)):
        made = maker(model, trace(model, example), example, target, folder / f"together-{index}")
        loaded.append(device.load(made.build(DENSE, "dense").artifact))
    dense, *rest = device.measure(loaded, target.protocol)
    return [timing.median / dense.median for timing in rest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--speedup", type=float, default=3.0)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--repair", type=int, default=1024)
    parser.add_argument("--curves", type=int, default=256, help="images for loss curves and judging")
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "staged.json")
    options = parser.parse_args()
    began = time.perf_counter()
    dense, target = load("resnet56", None), targets.load("intel-cpu")
    data = splits(options.data, options.images, 2000, options.test)
    row: dict[str, Any] = {key: value for key, value in vars(options).items() if isinstance(value, int | float)}
    row["dense"] = 100 * evaluate(dense, data[2])
    with tempfile.TemporaryDirectory() as folder, devices.connect(target) as device:
        table = Table.load(options.tables / "resnet56.intel-cpu.jsonl", device.probe().fingerprint)
        place, share = (target, device, table), options.epochs
        once, _, row["one go"] = cut(
            dense, dense, 1 / options.speedup, share, options.work / "once", place, (options, data)
        )
        halfway, reached, row["first stage"] = cut(
            dense, dense, options.speedup**-0.5, share / 2, options.work / "first", place, (options, data)
        )
        twice, _, row["second stage"] = cut(
            halfway, dense, 1 / options.speedup / reached, share / 2, options.work / "second", place, (options, data)
        )
        row["together"] = together(dense, [once, twice], target, device, Path(folder))
    row["seconds"] = round(time.perf_counter() - began, 1)
    print(json.dumps(row, indent=1))
    save(options.out, row)


if __name__ == "__main__":
    main()
