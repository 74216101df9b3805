"""What an export to ONNX costs with torch's table of ONNX functions made once, and made anew each time as torch does.

python benchmarks/exports.py        # results/exports.json: median seconds of CPU of one export, taken in turn
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from common import RESULTS, save
from torch import nn

from edgeprune.model import export

TURNS = 9


def main() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    taken: dict[str, list[float]] = {"once": [], "anew": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS + 1):
            for kind, seconds in taken.items():
                anew = mock.patch.object(export, "one_registry", contextlib.nullcontext)
                with anew if kind == "anew" else contextlib.nullcontext():
                    began = time.process_time()
                    export.export_onnx(network, torch.zeros(1, 3, 16, 16), Path(folder) / "network.onnx")
                    if turn:  # the first ones import
                        seconds.append(time.process_time() - began)
    row = {kind: round(statistics.median(seconds), 3) for kind, seconds in taken.items()}
    print(row)
    save(RESULTS / "exports.json", {"torch": torch.__version__, "exports": TURNS, "cpu_seconds": row})


if __name__ == "__main__":
    main()
