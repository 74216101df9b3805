"""What options of layers cost on a real runtime, and how well a small table predicts it, on 3 x 3 convolutions.

    python benchmarks/layer_options.py [--option low-rank] [--rounds 3]

The table has six narrowed networks and four that have the option; then three networks are predicted, built in INT8 and
measured beside the dense one by the target's own protocol, all interleaved. Writes results/layer_options.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, kept, ratios, save
from torch import Tensor, nn

from edgeprune import devices, latency, trace
from edgeprune import target as targets
from edgeprune.graph import DENSE, Configuration
from edgeprune.latency.timing import QUICK
from edgeprune.latency.variants import draw

WIDTH, SIDE, NARROWED, WITH = 64, 64, 6, 4


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.b(torch.relu(self.a(x))))


class Net(nn.Module):
    """Stem, two blocks, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, WIDTH, 3, 2, 1), Block(), Block()
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(torch.relu(self.stem(x)))).mean((2, 3)))


def run(name: str, option: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Predicted and measured latency over the dense network's, on one target of this machine."""
    torch.manual_seed(0)
    network, example, target = Net().eval(), torch.rand(1, 3, SIDE, SIDE), targets.load(name)
    structure = trace(network, example)
    ways = structure.options(network, [option])
    least, most = ({layer: texts[k] for layer, texts in ways.items()} for k in (0, -1))
    cases = {
        "one layer": Configuration({}, (), {"one.a": least["one.a"]}),
        "every layer": Configuration({}, (), least),
        "one block gone, the other's layers": Configuration(
            {}, ("two",), {"one.a": most["one.a"], "one.b": least["one.b"]}
        ),
    }
    with devices.connect(target, "local") as device:
        maker = latency.maker(network, structure, example, target, folder)
        table = latency.Table(device.probe().fingerprint)
        table = latency.extend(table, device, maker, draw(structure, target.channels, NARROWED), QUICK)
        table = latency.with_options(table, device, maker, ways, networks=WITH)
        predictor = latency.Predictor(table, structure, maker.network)
        built = [maker.build(one, f"case-{k}") for k, one in enumerate((DENSE, *cases.values()))]
        found, _ = ratios(device, [device.load(one.artifact) for one in built], target.protocol, rounds)
    rows = {
        case: {
            "options": dict(one.options),
            "removed": list(one.removed),
            "predicted": predictor.predict(one) / predictor.dense,
            "measured": statistics.median(times),
        }
        for (case, one), times in zip(cases.items(), found[1:], strict=True)
    }
    return {"cases": rows, "load": round(os.getloadavg()[0], 1), "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--option", default="low-rank")
    parser.add_argument("--targets", nargs="+", default=["x86-onnxruntime", "intel-cpu"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "layer_options.json")
    given = parser.parse_args()
    found = kept(given.out)
    for name in given.targets:
        with tempfile.TemporaryDirectory() as folder:
            found[f"{given.option} on {name}"] = row = run(name, given.option, given.rounds, Path(folder))
        print(name, row, flush=True)
        save(given.out, found)


if __name__ == "__main__":
    main()
