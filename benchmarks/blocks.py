"""How many blocks of networks that people ship may go, of which kind, and whether each goes with a proof.

    python benchmarks/blocks.py --site DIR [--only yolov8n ...] [--before]

Each network (random weights, small ones of each kind: `zoo_shipped.py`, and torchvision's) is traced, with repeats
(which are no part of the default), and each of its blocks is removed alone, then all of them together, then all of them
with 30 % of every width; a proof is made of each (`Structure.prove`). `--before` notes how many blocks an edgeprune to
compare with has and proves (set PYTHONPATH).
Writes results/blocks.json and the table of docs/graph.md. `--site` as in zoo.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import zoo
from common import RESULTS, ROOT, heads, kept, line, put, save

SHIPPED = (
    "ultralytics/yolov5n", "ultralytics/yolov8n", "ultralytics/yolov9t", "ultralytics/yolo11n", "text/bert",
    "text/distilbert", "text/llama", "vision/vit", "vision/swin", "vision/segformer", "vision/detr", "audio/wav2vec2",
    "audio/whisper-encoder",
)  # fmt: skip
VISION = ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "vit_b_16", "swin_t", "convnext_tiny")


def build(name: str) -> tuple[Any, Any]:
    """The network in eval mode, and its example inputs."""
    import torch
    import zoo_shipped

    torch.manual_seed(0)
    if name in zoo_shipped.NETWORKS:
        model, x = zoo_shipped.NETWORKS[name]()
        return model.eval(), x
    import torchvision

    side = 224 if name == "vit_b_16" else 128
    return getattr(torchvision.models, name)(weights=None).eval(), torch.randn(1, 3, side, side)


def row(name: str, site: str, before: bool) -> dict[str, Any]:
    """One network; in a process of its own."""
    zoo.prepare(site)
    import edgeprune

    model, x = build(name)
    start = time.process_time()
    structure = edgeprune.trace(model, x) if before else edgeprune.trace(model, x, repeats=True)
    seconds = round(time.process_time() - start, 2)
    names = [block.module for block in structure.blocks]
    if before:
        good = [name for name in names if structure.prove(model, structure.plan({}, [name])).passed]
        return {"before": len(names), "before_proven": len(good), "before_seconds": seconds}
    kinds: dict[str, int] = {}
    for block in structure.blocks:
        kinds[block.kind] = kinds.get(block.kind, 0) + 1
    wrong: dict[str, str] = {}
    worst = 0.0
    start = time.process_time()
    widths = structure.uniform(0.3).kept
    choices = {**{one: ({}, [one]) for one in names}, "all": ({}, names), "all, and 30 % of widths": (widths, names)}
    for what, (some, gone) in choices.items():
        proof = structure.prove(model, structure.plan(some, gone))
        worst = max(worst, proof.max_error)
        if not proof.passed or proof.vacuous:
            wrong[what] = proof.detail
    return {
        "blocks": len(names),
        "kinds": kinds,
        "layers": len({layer for block in structure.blocks for layer in block.layers}),
        "of_layers": len({layer.name for layer in structure.layers}),
        "proofs": len(choices),
        "failed": wrong,
        "max_error": worst,
        "seconds": seconds,
        "prove_seconds": round(time.process_time() - start, 1),
    }


def page(found: dict[str, Any]) -> str:
    """The table."""
    lines = heads(
        "network",
        "blocks before, proven",
        "blocks",
        "residual modules",
        "terms of sums",
        "repeats",
        "layers in blocks",
        "proofs",
    )
    for name, one in found.items():
        if "blocks" in one:
            kinds = [one["kinds"].get(kind, 0) for kind in ("module", "term", "repeat")]
            proofs = f"{one['proofs'] - len(one['failed'])} of {one['proofs']}"
            layers = f"{one['layers']} of {one['of_layers']}"
            lines.append(line(name, one.get("before_proven", ""), one["blocks"], *kinds, layers, proofs))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "blocks.json")
    options = parser.parse_args()
    for name in (*SHIPPED, *VISION):
        if not options.only or any(part in name for part in options.only):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                one = pool.apply(row, (name, options.site, options.before))
            print(name, one, flush=True)
            found = kept(options.out)
            save(options.out, {**found, name: {**found.get(name, {}), **one}})
    if not options.before and options.out == RESULTS / "blocks.json":
        put(ROOT / "docs" / "graph.md", "blocks.py", page(kept(options.out)))


if __name__ == "__main__":
    main()
