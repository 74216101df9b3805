"""After recovery of equal cost: do the networks that start better also end better?

    python benchmarks/recovery.py --data cifar10.npz --plans DIR --work DIR [--only resnet56/intel-cpu/2.0]
    [--methods "ours" "uniform L1" ...] [--epochs 3] [--images 45000] [--seeds 0 1 2] [--device cuda]

Takes the plans that benchmarks/head_to_head.py chose (its --work/plans) and gives every one the same: least-squares
repair on the same images, then the same number of images of training by the product's own recovery, the same loss,
schedule and seeds. Training images are the first 45,000; the last 5,000 of the training set, which the dense ResNet-56
was never trained on, choose the epoch; the test images are only counted, in FP32. Checkpoints let a killed run go on.
Writes results/recovery.json, a row a plan and seed, with the accuracy before training and after; trained weights
stay in --work, and --start goes on from them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, kept, save
from head_to_head import load, plan_file

TRAINING = 45_000  # images that the published ResNet-56 was trained on; the others choose


def splits(path: Path, images: int, selection: int, test: int) -> tuple[Any, Any, Any]:
    """(training, selection, test) splits of the .npz."""
    from edgeprune.model.data import Preprocess, Split

    data = np.load(path)
    prepare = Preprocess(0, 0, 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (3, 32, 32))

    def split(name: str, kind: str, indices: range) -> Any:
        pixels, labels = data[f"{kind}_images"], data[f"{kind}_labels"]
        chosen = tuple(indices)
        return Split(name, lambda index: pixels[index], chosen, labels[list(chosen)].astype(np.int64), prepare)

    return (
        split("train", "train", range(min(images, TRAINING))),
        split("selection", "train", range(TRAINING, TRAINING + selection)),
        split("test", "test", range(test)),
    )


def recover(key: str, options: argparse.Namespace, seed: int, data: tuple[Any, Any, Any]) -> dict[str, Any]:
    """One network, repaired and trained."""
    import torch

    from edgeprune.graph import Plan, trace
    from edgeprune.recipe import RecoverSection
    from edgeprune.recover.batches import evaluate
    from edgeprune.recover.repair import repair
    from edgeprune.recover.train import train

    images, selection, test = data
    began = time.perf_counter()
    model = load(key.split("/")[0], options.weights)
    torch.set_num_threads(options.threads)
    dense = evaluate(model, test)
    few = torch.from_numpy(images.take(options.repair).arrays())
    structure, plan = trace(model, few[:1]), Plan.load(plan_file(options.plans, key))
    if options.start:
        pruned = plan.apply(model)
        pruned.load_state_dict(torch.load(options.start, weights_only=True))
    else:
        pruned = repair(model, plan.apply(model), structure, plan, few, seed=seed)
    repaired = evaluate(pruned, test)
    pruned, model = pruned.to(options.device), model.to(options.device)
    section = RecoverSection(epochs=options.epochs, lr=options.lr, seed=seed)
    folder = options.work / f"{key.replace('/', '-')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    found = train(pruned, model, images, selection, section, folder, augment=("crop", "flip"))
    torch.save(pruned.state_dict(), folder / "trained.pt")
    return {
        "dense": 100 * dense,
        "start" if options.start else "repaired": 100 * repaired,
        "trained": 100 * evaluate(pruned, test),
        "selection": 100 * found.best_accuracy,
        "epochs": options.epochs,
        "lr": options.lr,
        "images": len(images),
        "test_images": len(test),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--plans", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--weights", type=Path, help="safetensors of the one network of this call")
    parser.add_argument("--start", type=Path, help="trained.pt of an earlier run of the one method of this call: go on")
    parser.add_argument("--only", default="resnet56/intel-cpu/2.0", help="network/target/speed-up")
    methods = ["ours", "ours without blocks", "ours, blocks alone", "FLOPs-driven", "uniform L1"]
    parser.add_argument("--methods", nargs="+", default=methods)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--images", type=int, default=TRAINING)
    parser.add_argument("--selection", type=int, default=2000)
    parser.add_argument("--repair", type=int, default=2048)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "recovery.json")
    options = parser.parse_args()
    rows = kept(options.out)
    data = splits(options.data, options.images, options.selection, options.test)
    for seed in options.seeds:
        for method in options.methods:
            key = f"{options.only}/{method}"
            name = f"{key}/{options.epochs:g} {'more ' if options.start else ''}epochs of {len(data[0])}/seed {seed}"
            if name in rows:
                continue
            if not plan_file(options.plans, key).exists():
                print(f"{key}: no plan (it cannot reach the speed, or head_to_head.py has not run)", flush=True)
                continue
            rows[name] = recover(key, options, seed, data)
            save(options.out, rows)
            print(name, rows[name], flush=True)


if __name__ == "__main__":
    main()
