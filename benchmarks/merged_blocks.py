"""What merging two layers into one would win, measured in INT8: an ablation of "merged blocks".

    python benchmarks/merged_blocks.py [--out FILE]

Two convolutions with nothing between them are one convolution (LayerMerge, arXiv:2406.12837, after it has dropped the
activation between them): two 3x3 become a 5x5, a pointwise projection and the next block's pointwise expansion one
pointwise convolution. Both forms of four such pairs in a row, as ResNet-56 and MobileNetV2 have them, are quantised for
each runtime of this machine and timed in one interleaved run; above 1 the merged form is slower. Whether accuracy
survives is not asked: the second kind is exact, the first changes the function.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, ratios, save
from torch import nn

from edgeprune import devices
from edgeprune import target as targets
from edgeprune.graph import DENSE, trace
from edgeprune.latency import maker

PAIRS = 4
ROUNDS = 4  # of the target's own protocol; the median ratio counts
# name: (channels outside, channels between, kernel, side)
CASES = {
    "ResNet-56 stage 1, 3x3 + 3x3 -> 5x5": (16, 16, 3, 32),
    "ResNet-56 stage 2, 3x3 + 3x3 -> 5x5": (32, 32, 3, 16),
    "ResNet-56 stage 3, 3x3 + 3x3 -> 5x5": (64, 64, 3, 8),
    "MobileNetV2 at 56x56, 1x1 + 1x1 -> 1x1": (144, 24, 1, 56),
    "MobileNetV2 at 28x28, 1x1 + 1x1 -> 1x1": (192, 32, 1, 28),
    "MobileNetV2 at 14x14, 1x1 + 1x1 -> 1x1": (384, 64, 1, 14),
}


def network(outside: int, between: int, kernel: int, merged: bool) -> nn.Module:
    """A stem, the pairs (a ReLU behind each), a classifier."""
    layers: list[nn.Module] = [nn.Conv2d(3, outside, 1), nn.ReLU()]
    for _ in range(PAIRS):
        if merged:
            layers.append(nn.Conv2d(outside, outside, 2 * kernel - 1, padding=kernel - 1))
        else:
            # A pair of 3x3 keeps its ReLU: without it there would be no reason to have two layers.
            middle = [nn.ReLU()] if kernel > 1 else []
            first = nn.Conv2d(outside, between, kernel, padding=kernel // 2)
            layers += [first, *middle, nn.Conv2d(between, outside, kernel, padding=kernel // 2)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outside, 10)).eval()


def ratio(device: Any, target: Any, case: tuple[int, int, int, int], folder: Path) -> dict[str, float]:
    """Merged over separate: time, and multiplications."""
    outside, between, kernel, side = case
    example, loaded, macs = torch.zeros(1, 3, side, side), [], []
    for merged in (False, True):
        model = network(outside, between, kernel, merged)
        structure = trace(model, example)
        made = maker(model, structure, example, target, folder / str(merged))
        loaded.append(device.load(made.build(DENSE, "dense").artifact))
        macs.append(sum(layer.macs for layer in structure.layers))
    found = sorted(ratios(device, loaded, target.protocol, ROUNDS)[0][1])
    for item in loaded:
        device.unload(item)
    return {
        "time": (found[ROUNDS // 2 - 1] + found[ROUNDS // 2]) / 2,
        "least": found[0],
        "most": found[-1],
        "multiplications": macs[1] / macs[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "merged_blocks.json")
    options = parser.parse_args()
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name in ("intel-cpu", "x86-onnxruntime"):
        target = targets.load(name)
        with devices.connect(target) as device:
            for case, shape in CASES.items():
                with tempfile.TemporaryDirectory() as folder:
                    rows.setdefault(case, {})[name] = ratio(device, target, shape, Path(folder))
                print(f"{case}, {name}: {rows[case][name]}", flush=True)
    save(options.out, rows)


if __name__ == "__main__":
    main()
