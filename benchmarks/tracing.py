"""What a trace takes, and where it goes: processor seconds, captures, and memory over the network's own size.

    python benchmarks/tracing.py --site DIR [--only resnet50 ...]

Each network (random weights) is traced in a process of its own: once on a fresh build as the process's first, which
pays for what torch imports and caches on the way, then three times more, of which the median is taken. Seconds are
processor seconds of one thread; `captures` counts calls of `torch.export.export` and their share of the seconds;
`times_size` is the peak of memory that a trace adds, in sizes of the network, itself included. Writes
results/tracing.json. `--site` as in zoo.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import zoo
from common import RESULTS, kept, save

GOALS = {"resnet50": 3.0, "yolov8n-640": 15.0, "bert-base": 10.0}  # seconds of one core
LARGE = 1.2  # sizes of a network of 300 M parameters


def build(name: str) -> tuple[Any, Any]:
    """The network in eval mode, and its example inputs."""
    import torch
    import zoo_shipped

    if name == "resnet50":
        import torchvision

        return torchvision.models.resnet50(weights=None).eval(), torch.randn(1, 3, 224, 224)
    if name == "vit-large":
        import timm

        return timm.create_model("vit_large_patch16_224", pretrained=False).eval(), torch.randn(1, 3, 224, 224)
    if name == "bert-base":
        import transformers

        words = {"input_ids": torch.randint(3, 90, (1, 128)), "attention_mask": torch.ones(1, 128, dtype=torch.int64)}
        return transformers.BertModel(transformers.BertConfig()).eval(), words
    model, x = zoo_shipped._yolo("yolov8n", 640)()
    return model.eval(), x


def row(name: str, site: str) -> dict[str, Any]:
    """One network; in a process of its own."""
    zoo.prepare(site)
    import torch

    import edgeprune

    spent: list[float] = []
    export = torch.export.export

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return export(*args, **kwargs)
        finally:
            spent.append(time.process_time() - start)

    torch.export.export = timed  # type: ignore[assignment]
    seconds, shares, peaks = [], [], []
    for _ in range(4):
        model, x = build(name)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        spent.clear()
        at_rest, start = zoo.memory(reset=True), time.process_time()
        structure = edgeprune.trace(model, x)
        seconds.append(time.process_time() - start)
        peaks.append(1 + max(0.0, zoo.memory() - at_rest) * 2**20 / size)
        shares.append(sum(spent) / seconds[-1])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "groups": len(structure.groups),
        "first_seconds": round(seconds[0], 2),
        "seconds": round(statistics.median(seconds[1:]), 2),
        "captures": len(spent),
        "captures_share": round(statistics.median(shares[1:]), 2),
        "times_size": round(peaks[0], 2),
        "goal_seconds": GOALS.get(name),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=RESULTS / "tracing.json")
    options = parser.parse_args()
    for name in (*GOALS, "vit-large"):
        if not options.only or name in options.only:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = {name: pool.apply(row, (name, options.site))}
            print(found, flush=True)
            save(options.out, {**kept(options.out), **found})


if __name__ == "__main__":
    main()
