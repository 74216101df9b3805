"""What each part of recovery brings: one plan, trained in a dozen ways on equally many images in equally many steps.

    python benchmarks/ablation.py RUN --data cifar10.npz --work DIR [--learned RUN] [--arms default dist ...]
    [--epochs 5] [--images 45000] [--seeds 0 1] [--no-int8]
    python benchmarks/ablation.py                 # the tables of docs/recovery.md, from results/ablation.json

RUN is a run directory of the command line with search/plan.json; its recipe.lock.toml names the network, its weights
and the target. `--learned` is another one of the same network and budget, made with [search] method = "learned".

Each arm differs from the first, the product's default, in one thing:

    default              least-squares repair, KL to the dense network, moving average, shifts and mirror images
    no repair            trained from the cut weights
    dist                 DIST in place of KL
    labels alone         cross-entropy of the labels, no teacher
    kl + labels          both
    kl + features        layers inside as well
    no ema               the weights themselves, not their moving average
    no augmentation      the images as they are
    mixup, cutmix        each image mixed with another one as well
    sparsity             the first quarter of the epochs before the cut, a penalty growing on what goes
    qat                  the last quarter of the epochs in INT8
    learned masks        the plan of --learned, trained as the default is

Splits are those of benchmarks/recovery.py. Accuracy in FP32 before and after training on all test images, and of the
calibrated INT8 artifact on the device's runtime. A row an arm and seed, kept as it comes in
benchmarks/results/ablation.json; checkpoints in --work let a killed row go on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, dialect_on, heads, kept, line, put, save
from recovery import TRAINING, splits

PART = 0.25  # share of the epochs that a part of its own gets
KL_AND = 0.5  # weight of what is learnt beside KL
CALIBRATION = 512  # images
STEPS = ("cut", "repaired", "trained", "int8")  # top-1 along the way


@dataclass(frozen=True)
class Arm:
    """What is other than the default."""

    changes: Mapping[str, Any] = field(default_factory=dict)  # of [recover]
    repaired: bool = True
    augment: tuple[str, ...] = ("crop", "flip")
    sparsity: str = ""  # kind of penalty, in a share of the epochs before the cut
    qat: float = 0.0  # share of the epochs in INT8, at the end
    learned: bool = False  # the plan of --learned


ARMS = {
    "default": Arm(),
    "no repair": Arm(repaired=False),
    "dist": Arm({"distill": "dist"}),
    "labels alone": Arm({"distill": "none", "label_weight": 1.0}),
    "kl + labels": Arm({"label_weight": KL_AND}),
    "kl + features": Arm({"distill": {"kl": 1.0, "features": KL_AND}}),
    "no ema": Arm({"ema": 0.0}),
    "no augmentation": Arm(augment=()),
    "mixup": Arm(augment=("crop", "flip", "mixup")),
    "cutmix": Arm(augment=("crop", "flip", "cutmix")),
    "sparsity": Arm(sparsity="group-lasso"),
    "qat": Arm(qat=PART),
    "learned masks": Arm(learned=True),
}


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory's network and target; its plans are made for this structure."""

    model: Any
    structure: Any
    target: Any
    name: str

    @staticmethod
    def of(folder: Path, example: Any) -> Run:
        import torch
        from safetensors.torch import load_file

        from edgeprune import target
        from edgeprune.graph import trace
        from edgeprune.model import usercode

        recipe = tomllib.loads((folder / "recipe.lock.toml").read_text("utf-8"))
        section = recipe["model"]
        factory = usercode.load_callable(section["factory"], "[model] factory", folder)
        model = factory(**section.get("arguments", {}))
        if section.get("weights"):
            model.load_state_dict(load_file(section["weights"]))
        model = model.eval().requires_grad_(True)
        with torch.no_grad():
            structure = trace(model, example)
        return Run(model, structure, target.load(recipe["target"]), section["factory"].rpartition(":")[2])


def trained(
    run: Run, arm: Arm, options: argparse.Namespace, seed: int, data: Any, folder: Path, known: Mapping[str, Any]
) -> dict[str, Any]:
    """One network, cut, repaired and trained as the arm has it; `known`: the row of another arm that began alike."""
    import torch

    from edgeprune.graph import Plan
    from edgeprune.recipe import RecoverSection
    from edgeprune.recover import evaluate, repair, train

    images, selection, test = data
    plan = Plan.load((options.learned if arm.learned else options.run) / "search" / "plan.json")
    few = torch.from_numpy(images.take(options.repair).arrays())
    uncut, before = run.model, dict[str, Any]()
    epochs = options.epochs * (1 - arm.qat - (PART if arm.sparsity else 0))
    section = RecoverSection(
        **{"epochs": epochs, "lr": options.lr, "batch": options.batch, "seed": seed, **arm.changes}
    )
    if arm.sparsity:
        uncut, before = sparse(run, plan, arm, section, options, data, folder / "sparse")
    began = time.perf_counter()
    pruned = plan.apply(uncut)
    row = {"cut": known.get("cut") or 100 * evaluate(pruned, test), "removed": len(plan.removed), **before}
    if arm.repaired:
        pruned = repair(uncut, pruned, run.structure, plan, few, seed=seed)
        row["repaired"] = known.get("repaired") or 100 * evaluate(pruned, test)
    row["repair_seconds"], began = round(time.perf_counter() - began, 1), time.perf_counter()
    pruned, teacher = pruned.to(options.device), run.model.to(options.device)
    found = train(pruned, teacher, images, selection, section, folder, augment=arm.augment)
    pruned = pruned.cpu().eval()
    run.model.cpu()
    torch.save(pruned.state_dict(), folder / "trained.pt")
    row |= {
        "trained": 100 * evaluate(pruned, test),
        "selection": 100 * found.best_accuracy,
        "best_epoch": found.best_epoch,
        "steps": found.steps,
        "precision": found.precision,
        "train_seconds": round(found.seconds, 1),
    }
    if options.int8:
        row |= int8(run, pruned, arm, options, data)
    return row


def sparse(
    run: Run, plan: Any, arm: Arm, section: Any, options: argparse.Namespace, data: Any, folder: Path
) -> tuple[Any, dict[str, Any]]:
    """The dense network, trained before the cut as the product does it, and what the row gains."""
    import copy

    import msgspec

    from edgeprune.recover import Penalty, evaluate, train

    images, selection, test = data
    network = copy.deepcopy(run.model)
    penalty = Penalty(network, run.structure, plan, arm.sparsity)
    size, epochs = penalty.size(), PART * options.epochs
    section = msgspec.structs.replace(section, epochs=epochs, schedule="constant", ema=0.0)
    teacher = run.model.to(options.device)
    found = train(
        network.to(options.device), teacher, images, selection, section, folder, augment=arm.augment, penalty=penalty
    )
    network = network.cpu().eval()
    run.model.cpu()
    seconds = round(found.seconds, 1)
    return network, {
        "uncut": 100 * evaluate(network, test),
        "left": penalty.size() / size,
        "sparse_steps": found.steps,
        "sparse_seconds": seconds,
    }


def int8(run: Run, pruned: Any, arm: Arm, options: argparse.Namespace, data: Any) -> dict[str, Any]:
    """Top-1 of the INT8 artifact on the device's runtime, after training in INT8 where the arm has it."""
    import onnx
    import torch

    from edgeprune import devices, quantize
    from edgeprune.model import export_onnx
    from edgeprune.recipe import QuantizeSection

    images, _, test = data
    few = images.take(CALIBRATION)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, devices.connect(run.target) as device:
        folder = Path(name)
        export_onnx(pruned, torch.zeros(1, *images.preprocess.shape), folder / "fp32.onnx")
        graph = onnx.load(folder / "fp32.onnx")
        dialect = dialect_on(device, run.target)
        ranges = quantize.calibrate(graph, lambda: few.batches(32), dialect, QuantizeSection())
        before = _top1(device, quantize.apply(graph, ranges, dialect, {}), run.target, folder, test)
        row = {"int8": before, "int8_seconds": round(time.perf_counter() - began, 1)}
        if arm.qat:
            began = time.perf_counter()
            epochs = options.epochs * arm.qat
            lr = QuantizeSection().qat_lr
            graph, ranges = quantize.fine_tune(
                graph, ranges, dialect, lambda: images.batches(options.batch), epochs, {}, lr=lr
            )
            after = _top1(device, quantize.apply(graph, ranges, dialect, {}), run.target, folder, test)
            row |= {"int8_before_qat": before, "int8": after, "qat_seconds": round(time.perf_counter() - began, 1)}
    return row


def _top1(device: Any, graph: Any, target: Any, folder: Path, test: Any) -> float:
    import onnx

    from edgeprune import runtimes

    onnx.save(graph, folder / "int8.onnx")
    loaded = device.load(runtimes.build(folder / "int8.onnx", folder, target, "int8", "int8"))
    try:
        scores = device.infer(loaded, test.arrays())[0]
    finally:
        device.unload(loaded)
    return 100 * float((scores.argmax(1) == test.labels).mean())


def tables(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a table a network, plan and learning rate; a line an arm, its seeds side by side."""
    groups: dict[tuple[Any, ...], dict[str, dict[int, Mapping[str, Any]]]] = {}
    for key, row in rows.items():
        cost = (row["network"], key.split("/")[1], row["epochs"], row["images"], row["lr"])
        groups.setdefault(cost, {}).setdefault(row["arm"], {})[row["seed"]] = row
    found = []
    for (network, plan, epochs, images, rate), arms in groups.items():
        default = arms.get("default", {})
        dense = next(iter(next(iter(arms.values())).values()))["dense"]
        found.append(
            f"**{network}, {plan}: {epochs:g} epochs of {images:,} images at a learning rate of {rate:g}** "
            f"(dense FP32 {dense:.2f} %)\n"
        )
        found += heads("arm", "seeds", "cut", "repaired", "trained", "in INT8", "less default")
        for name, seeds in arms.items():
            paired = [row["int8"] - default[seed]["int8"] for seed, row in seeds.items() if seed in default]
            lead = f"{sum(paired) / len(paired):+.2f}" if paired and name != "default" else ""
            cells = [" / ".join(f"{row[key]:.2f}" for row in seeds.values() if key in row) or "-" for key in STEPS]
            found.append(line(name, ", ".join(map(str, seeds)), *cells, lead))
        found.append("")
    return "\n".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, help="folder for checkpoints and trained weights")
    parser.add_argument("--learned", type=Path, help='a run of [search] method = "learned"')
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=TRAINING)
    parser.add_argument("--selection", type=int, default=2000)
    parser.add_argument("--repair", type=int, default=2048)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-int8", dest="int8", action="store_false")
    parser.add_argument("--out", type=Path, default=RESULTS / "ablation.json")
    options = parser.parse_args()
    if options.run is None:
        put(ROOT / "docs" / "recovery.md", "ablation.py", tables(kept(options.out)))
        return
    if options.data is None or options.work is None:
        parser.error("a run needs --data and --work")
    import torch

    from edgeprune.recover import evaluate

    torch.set_num_threads(options.threads)
    rows = kept(options.out)
    data = splits(options.data, options.images, options.selection, options.test)
    run = Run.of(options.run, torch.from_numpy(data[0].take(1).arrays()))
    cost = {"epochs": options.epochs, "images": len(data[0]), "batch": options.batch, "lr": options.lr}
    for seed in options.seeds:
        for name in options.arms:
            arm = ARMS[name]
            cost_in_words = f"{options.epochs:g} epochs of {len(data[0])} at {options.lr:g}"
            key = f"{run.name}/{options.run.name}/{name}/{cost_in_words}/seed {seed}"
            if key in rows:
                continue
            if arm.learned and options.learned is None:
                print(f'{key}: no plan; --learned names a run of [search] method = "learned"', flush=True)
                continue
            began = time.perf_counter()
            folder = options.work / key.replace("/", "-").replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            dense = next((row["dense"] for row in rows.values() if row["network"] == run.name), None)
            dense = 100 * evaluate(run.model, data[2]) if dense is None else dense
            row = {"network": run.name, "target": run.target.name, "arm": name, "seed": seed, "dense": dense, **cost}
            other = f"{run.name}/{options.run.name}/default/{cost_in_words}/seed {seed}"
            known = {} if arm.sparsity or arm.learned else rows.get(other, {})
            row |= trained(run, arm, options, seed, data, folder, known)
            rows[key] = {**row, "test_images": len(data[2]), "seconds": round(time.perf_counter() - began, 1)}
            save(options.out, rows)
            for path in folder.rglob("checkpoint.pt"):
                path.unlink()
            print(key, json.dumps(rows[key]), flush=True)


if __name__ == "__main__":
    main()
