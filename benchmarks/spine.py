"""The example recipes on the targets that run on this machine: one table of what came out.

    python benchmarks/spine.py [--recipes examples/cifar10/recipe.toml ...] [--targets intel-cpu ...] [--out FILE]

Accuracy is on the 2,000 test images that travel with the repository; latency is interleaved, one thread, batch 1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import kept, save

import edgeprune
from edgeprune.errors import EdgepruneError

NETWORKS = ("dense_fp32", "dense_int8", "pruned_fp32", "pruned_int8")


def main() -> None:
    """Run every pair and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["examples/cifar10/recipe.toml", "examples/cifar10/vgg.toml"])
    parser.add_argument("--targets", nargs="+", default=["intel-cpu", "x86-onnxruntime"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/spine.json"))
    arguments = parser.parse_args()
    rows: dict[str, Any] = kept(arguments.out)
    for recipe in arguments.recipes:
        for target in arguments.targets:
            row = one(recipe, target)
            rows[f"{row['recipe']} {target}"] = row
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            save(arguments.out, rows)
            print(line(row), flush=True)


def one(recipe: str, target: str) -> dict[str, Any]:
    """Run one recipe on one target; a refusal is a result too."""
    folder = Path("runs") / f"spine-{Path(recipe).stem}-{target}"
    refused = ""
    try:
        edgeprune.compress(recipe, target, folder)
    except EdgepruneError as error:
        refused = error.message
        if not (folder / "result.json").exists():
            return {"recipe": recipe, "target": target, "refused": refused}
    result = json.loads((folder / "result.json").read_text())
    latency = f"latency_{result['unit']}"
    keep = ("accuracy", "images", "agreement", "bytes", latency)
    return {
        "recipe": recipe,
        "target": target,
        "seconds": round(sum(stage["seconds"] for stage in result["stages"]), 1),  # also of a run that was resumed
        "refused": refused,
        "runtime": result["runtime"],
        "device": result["device"],
        "speedup_vs_dense_int8": result["speedup_vs_dense_int8"],
        "gates": {gate["name"]: gate["message"] for gate in result["gates"]},
        **{name: {key: result[name][key] for key in keep if key in result[name]} for name in NETWORKS},
    }


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    if "dense_int8" not in row:
        return f"{row['recipe']} {row['target']}: {row['refused']}"
    dense, pruned = row["dense_int8"], row["pruned_int8"]
    return (
        f"{row['recipe']} {row['target']}: FP32 {row['dense_fp32']['accuracy']:.2%}, INT8 {dense['accuracy']:.2%}, "
        f"pruned INT8 {pruned['accuracy']:.2%} at {row['speedup_vs_dense_int8']:.2f}x  {row['refused']}"
    )


if __name__ == "__main__":
    main()
