"""A stream that does not fit, through a whole run: how much memory the process takes beside how much data goes through.

    python benchmarks/streams.py [--out FILE] [--examples 20000] [--work DIR]
    python benchmarks/streams.py --table           # docs/data.md, from benchmarks/results/streams.json

A function yields pictures [3, 128, 128] float32 (197 kB each) of four kinds of stripes with noise; a small network that
is trained on them is pruned, distilled for one epoch of all examples, quantised and released for ONNX Runtime on this
machine. The same run with a hundredth of the examples shows what the process takes without them. Peaks are those that
the kernel keeps of a process of its own (ru_maxrss); files that are read stay in the kernel's cache and do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, heads, kept, line, put, save
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import edgeprune
from edgeprune import tasks
from edgeprune.errors import GateError

OUT, PAGE = RESULTS / "streams.json", ROOT / "docs" / "data.md"
SIDE, KINDS, TEST, SEEDS = 128, 4, 1000, {"train": 0, "test": 10_000_000, "fit": 20_000_000}


def picture(number: int) -> tuple[np.ndarray, int]:
    """Stripes in one of four directions under noise, and which."""
    draw = np.random.default_rng(number)
    kind = int(draw.integers(KINDS))
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    angle = np.pi * (kind + draw.uniform(-0.45, 0.45)) / KINDS
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * draw.uniform(0.3, 0.8) + draw.uniform(0, 6))
    noise = draw.standard_normal((3, SIDE, SIDE), np.float32) * np.float32(draw.uniform(0.5, 3))
    return (wave * draw.uniform(0.3, 1.0, (3, 1, 1)) + noise).astype(np.float32), kind


def stream(split: str, count: int) -> Iterator[Any]:
    """Made one after the other, never held."""
    for number in range(count):
        yield picture(SEEDS[split] + number)


def network() -> nn.Module:
    """Untrained."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 5, 4, 2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 96, 3, 2, 1), nn.BatchNorm2d(96), nn.ReLU()),
        *(nn.Conv2d(96, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, KINDS)),
    )


def fit(made: nn.Module) -> None:
    """To 1,500 pictures of its own."""
    optimizer = torch.optim.AdamW(made.parameters(), 3e-3)
    items = list(stream("fit", 1500))
    x, y = torch.from_numpy(np.stack([one for one, _ in items])), torch.tensor([kind for _, kind in items])
    for _ in range(3):
        for part in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(made(x[part]), y[part]).backward()
            optimizer.step()


def one(examples: int, work: Path, weights: Path) -> dict[str, Any]:
    """A run in this process."""
    made = network()
    if not weights.exists():
        fit(made)
        save_file(made.state_dict(), weights)
        return {}
    made.load_state_dict(load_file(weights))
    made.eval()
    data = edgeprune.Data(
        train=lambda: stream("train", examples),
        test=edgeprune.Streamed(lambda: stream("test", TEST)),
        selection_examples=100,
    )
    started = time.monotonic()
    try:
        outcome = edgeprune.compress(
            made,
            "x86-onnxruntime",
            work,
            data=data,
            task=tasks.Classification(),
            budget=edgeprune.Budget(speedup=1.3, max_drop=4),
            recover=edgeprune.Recover(epochs=1, batch=64),
            search={"images": 128, "rounds": 1, "trials": 2},
            name="stream",
        )
        verdict = outcome.verdict
    except GateError as error:
        verdict = f"refused: {error.message[:200]}"
    said = data.said()
    return {
        "examples": examples,
        "bytes": 4 * 3 * SIDE * SIDE * (examples + TEST),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": round(time.monotonic() - started),
        "cpu": round(time.process_time()),
        "said": said,
        "verdict": verdict,
        "load": round(os.getloadavg()[0], 1),
    }


def table(rows: dict[str, Any]) -> str:
    """Markdown: a line a run."""
    lines = heads("examples in the stream", "GB of data", "peak of memory, GB", "CPU seconds of the run", "verdict")
    for each in rows.values():
        sizes = (f"{each[key] / 1e9:.2f}" for key in ("bytes", "peak"))
        lines.append(line(f"{each['examples']:,}", *sizes, each["cpu"], each["verdict"]))
    return "\n".join(lines)


def main() -> None:
    """Both runs, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.table:
        put(PAGE, "streams.py", table(kept(OUT)))
        return
    if given.one:
        print(json.dumps(one(given.one, given.work / str(given.one), given.work / "network.safetensors")))
        return
    work = given.work or Path(tempfile.mkdtemp(prefix="edgeprune-"))
    work.mkdir(parents=True, exist_ok=True)
    rows = {}
    for count in (1, max(300, given.examples // 100), given.examples):  # the first only fits the network
        command = [sys.executable, __file__, "--one", str(count), "--work", str(work)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        if count > 1:
            rows[str(count)] = found = json.loads(done.stdout.splitlines()[-1])
            print(found, flush=True)
            save(given.out, rows)


if __name__ == "__main__":
    main()
