"""Long recoveries, whole: from the recipe to the verdict, on full CIFAR-10, judged in INT8 on the runtime.

    python benchmarks/long_runs.py --data cifar10.npz --weights DIR --work DIR [--only resnet56/2.0 ...]
    [--target intel-cpu] [--epochs 20] [--hours 1.05] [--lr 0.05] [--seed 0] [--method joint]
    [--augment crop flip]
    python benchmarks/long_runs.py --table         # of docs/search.md, from results/long_runs.json

`--data` and `--weights` are what examples/cifar10/fetch.py wrote. The first 45,000 images train, the last 5,000 of the
training set, which the dense networks were never trained on, choose; the 10,000 test images are only counted. The
run directories stay in --work: the same command goes on from the last whole stage, and from the checkpoint within the
training. Writes results/long_runs.json, a row a network, speed-up and target.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, heads, kept, line, put, save
from recovery import TRAINING

CASES = {  # network -> factory, weights
    "resnet56": ("examples/cifar10/resnet.py:resnet56", "resnet56.safetensors"),
    "vgg16": ("examples/cifar10/vgg.py:vgg16_bn", "vgg16_bn.safetensors"),
    "resnet18": ("benchmarks/resnet18.py:resnet18", "resnet18.safetensors"),  # trained by resnet18.py
}
NETWORKS = ("dense_fp32", "dense_int8", "pruned_fp32", "pruned_int8")


def splits(data: Path, folder: Path) -> Path:
    """The .npz with a selection split of its own."""
    path = folder / "cifar45k.npz"
    if not path.exists():
        held = np.load(data)
        made = {f"test_{kind}": held[f"test_{kind}"] for kind in ("images", "labels")}
        for kind in ("images", "labels"):
            made[f"train_{kind}"], made[f"selection_{kind}"] = np.split(held[f"train_{kind}"], [TRAINING])
        np.savez(path, **made)
    return path


def recipe_of(name: str, speedup: float, data: Path, options: argparse.Namespace) -> Any:
    """The recipe of one run."""
    from edgeprune import recipe

    factory, weights = CASES[name]
    return recipe.of_python(
        {
            "name": f"{name}-{speedup:g}x",
            "model": {"factory": str(ROOT / factory), "weights": str(options.weights / weights), "input": [3, 32, 32]},
            "data": {"source": str(data), "augment": options.augment, "calibration": 512},
            "budget": {"speedup": speedup, "max_drop": 1.0},
            "search": {"images": 512, "rounds": 2, "method": options.method},
            "recover": {"epochs": options.epochs, "hours": options.hours, "lr": options.lr, "seed": options.seed},
            "measure": {"patience": options.patience},
        },
        "long_runs",
    )


def row_of(folder: Path) -> dict[str, Any]:
    """What a finished run says."""
    result = json.loads((folder / "result.json").read_text())
    training = json.loads((folder / "recover" / "recover.json").read_text())
    told = training["training"]
    return {
        "networks": {
            name: {
                "accuracy": round(100 * result[name]["accuracy"], 2),
                "images": result[name]["images"],
                "ms": result[name]["latency_ms"]["median"],
            }
            for name in NETWORKS
        },
        "drop": result["comparison"],
        "speedup": result["speedup_vs_dense_int8"],
        "verdict": result["verdict"],
        "failed": [gate["name"] for gate in result["gates"] if not gate["passed"]],
        "selection": training["selection_accuracy"],
        "training": {key: told[key] for key in ("epochs", "seconds", "best_epoch", "precision", "stopped", "resumed")},
        "history": told["history"],
        "runtime": result["runtime"],
        "environment": {key: result["environment"].get(key) for key in ("python", "torch")},
    }


def table(rows: dict[str, Any]) -> str:
    """A line a run, the best of each network, speed and target first."""
    written = heads("network", "runtime", "training", "held out: repaired, trained", "INT8, test", "below dense FP32",
                    "speed-up", "minutes", "verdict")  # fmt: skip

    def place(item: tuple[str, dict[str, Any]]) -> tuple[str, float]:
        return item[0].rsplit("/", 1)[0], item[1]["drop"]["drop"]

    for name, row in sorted(rows.items(), key=place):
        network, asked, target, training = name.split("/")
        drop, held = row["drop"], row["selection"]
        written.append(
            line(
                f"{network} at {float(asked):g}x",
                target,
                training,
                f"{100 * held['repaired']:.1f}, {100 * held['trained']:.1f} of {100 * held['dense']:.1f}",
                f"**{row['networks']['pruned_int8']['accuracy']:.2f}**",
                f"{drop['drop']:.2f} ({drop['low']:.2f} to {drop['high']:.2f})",
                f"{row['speedup']:.2f}x",
                round(row["training"]["seconds"] / 60),
                row["verdict"],
            )
        )
    return "\n".join(written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", nargs="+", default=["resnet56/2.0", "resnet56/3.0", "vgg16/3.0"])
    parser.add_argument("--target", default="intel-cpu")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0, help="of the training; the plan is the same")
    parser.add_argument("--method", default="joint", help="of the search")
    parser.add_argument("--augment", nargs="+", default=["crop", "flip"])
    parser.add_argument("--patience", type=float, default=120.0, help="seconds a stage")
    parser.add_argument("--take", type=Path, help="the run directory of the one case of --only, made elsewhere")
    parser.add_argument("--out", type=Path, default=RESULTS / "long_runs.json")
    options = parser.parse_args()
    if options.table:
        put(ROOT / "docs" / "search.md", "long_runs.py", table(kept(options.out)))
        return
    if None in (options.data, options.weights, options.work):
        parser.error("a run needs --data, --weights and --work")
    from edgeprune import pipeline, target
    from edgeprune.errors import GateError

    options.work.mkdir(parents=True, exist_ok=True)
    rows = kept(options.out)
    for case in options.only:
        name, speedup = case.split("/")
        seeded = f", seed {options.seed}" if options.seed else ""
        masks = ", learned masks" if options.method == "learned" else ""
        mixed = masks + "".join(f", {kind}" for kind in options.augment if kind not in ("crop", "flip"))
        told = f"{seeded}{mixed}".replace(", ", "-").replace(" ", "")
        folder = options.take or options.work / f"{name}-{speedup}-{options.target}{told}"
        planned = options.work / f"{name}-{speedup}-{options.target}{masks.replace(', learned ', '-')}"
        if not folder.exists() and planned.exists():  # the same plan, trained again
            shutil.copytree(planned, folder)
        if not options.take:
            made = recipe_of(name, float(speedup), splits(options.data, options.work), options)
            try:
                pipeline.run(made, target.load(options.target), folder)
            except GateError as refused:
                print(refused.message, flush=True)
        rows[f"{case}/{options.target}/{options.epochs:g} epochs, lr {options.lr:g}{seeded}{mixed}"] = row_of(folder)
        save(options.out, rows)


if __name__ == "__main__":
    main()
