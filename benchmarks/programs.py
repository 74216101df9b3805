"""Closure asks for budgets near the searched one: one program's answers, or the best evaluated of several programs'?

    python benchmarks/programs.py --data cifar10.npz --tables DIR [--only intel-cpu/3 ...]

ResNet-56, from the tables that benchmarks/prediction.py left in --tables; nothing is measured and nothing trained, so
this may run on a busy machine. The search runs once for each speed-up; then six budgets near it are asked for, as
closure does, of the search's best program alone (`Again(programs=1)`) and of its best four. Each answer is judged on
images that neither chose nor trained anything: 768 of the training set's last 5,000, which the dense network never
saw; half of them repair, half tell KL (softened) and agreement with the dense network. Writes
benchmarks/results/programs.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, kept, save
from corrections import load, prepared, splits

from edgeprune.engine import Session
from edgeprune.graph import trace
from edgeprune.search import Again, Evaluator, find

SHARES = (0.91, 0.94, 0.97, 1.03, 1.06, 1.09)  # of the searched budget
UNSEEN = range(45_000, 45_768)  # of the training set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--only", nargs="+", default=["intel-cpu/2", "intel-cpu/3", "x86-onnxruntime/3"])
    parser.add_argument("--out", type=Path, default=RESULTS / "programs.json")
    options = parser.parse_args()
    model, (images, *_) = load("resnet56", None), splits(options.data, options.images, 1)
    unseen = torch_images(options.data, UNSEEN)
    structure = trace(model, images[:1])
    session = Session(model, images)
    judge = Evaluator(structure, session)
    outside = Evaluator(structure, Session(model, unseen))
    rows: dict[str, Any] = kept(options.out)
    for key in options.only:
        name, _, speedup = key.partition("/")
        predictor, curves = prepared(name, structure, session, options.tables)
        budget = predictor.dense / float(speedup)
        found = find(structure, predictor, budget, curves, judge=judge, trials=8)
        row: dict[str, Any] = {"searched": found.loss}
        for count in (1, 4):
            again = Again(structure, curves, found, judge, programs=count)
            verdicts = [outside(again(predictor, share * budget)) for share in SHARES]
            row[f"{count} programs"] = {
                "loss": [one.loss for one in verdicts],
                "agreement": [100 * one.agreement for one in verdicts],
            }
            print(key, count, *(round(float(np.mean(v)), 2) for v in row[f"{count} programs"].values()), flush=True)
        rows[key] = row
        save(options.out, rows)


def torch_images(path: Path, indices: range) -> Any:
    """Images of the training split, as the network takes them: [n, 3, 32, 32]."""
    import torch

    pixels = np.load(path)["train_images"][indices.start : indices.stop]
    return torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2) / 255)


if __name__ == "__main__":
    main()
