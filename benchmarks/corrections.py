"""What interaction correction and trials win: the loss of every answer that the search evaluates, at equal latency.

    python benchmarks/corrections.py --data cifar10.npz --tables DIR [--trials 24]

ResNet-56 on both runtimes of this machine, from the tables that benchmarks/prediction.py left in --tables; nothing is
measured and nothing trained, so this may run on a busy machine. Loss is the softened KL to the dense network after
repair, on images that the repair did not see (256 training images, half of them judge). Writes
benchmarks/results/corrections.json: for each runtime and speed-up the answers in the order of their evaluation.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, kept, save
from head_to_head import load, splits

from edgeprune import devices
from edgeprune import target as targets
from edgeprune.engine import Session
from edgeprune.graph import trace
from edgeprune.latency import Predictor, Table, maker
from edgeprune.latency import options as grid
from edgeprune.search import Evaluator, Sensitivity, find, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--speedups", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--out", type=Path, default=RESULTS / "corrections.json")
    options = parser.parse_args()
    model, (images, *_) = load("resnet56", None), splits(options.data, options.images, 1)
    structure, session = trace(model, images[:1]), Session(model, images)
    judge = Evaluator(structure, session)
    rows: dict[str, Any] = kept(options.out)
    for name in ("intel-cpu", "x86-onnxruntime"):
        predictor, curves = prepared(name, structure, session, options.tables)
        for speedup in options.speedups:
            if (key := f"{name}/{speedup:g}") in rows:
                continue
            budget = predictor.dense / speedup
            found = find(structure, predictor, budget, curves, judge=judge, trials=options.trials)
            rows[key] = [{"cuts": item.cuts, "loss": item.loss, "removed": len(item.removed)} for item in found.rounds]
            save(options.out, rows)
            print(key, rows[key], flush=True)


def prepared(name: str, structure: Any, session: Session, tables: Path) -> tuple[Predictor, Sensitivity]:
    """The latency predictor of one target from its kept table, and the loss curves on that target's channel grid."""
    target = targets.load(name)
    with tempfile.TemporaryDirectory() as folder, devices.connect(target) as device:
        made = maker(session.model, structure, session.examples[:1], target, Path(folder))
        table = Table.load(tables / f"resnet56.{name}.jsonl", device.probe().fingerprint)
    curves = measure(structure, session, grid(structure, target.channels))
    return Predictor(table, structure, made.network), curves


if __name__ == "__main__":
    main()
