"""What widening ranges for unseen inputs is worth (edgeprune/quantize/ranges/unseen.py): with it, and without.

    python benchmarks/unseen.py TASKS --work DIR [--only regression rfdn]

Super-resolution (RFDN on Set5, calibrated with 4 to 63 pieces of COCO's photographs), and a small network of regression
whose inputs are of random sizes: log-normal, 64 unseen examples, twelve draws; its noise is summed over all examples,
and taken of the one percent of them that lose most. OpenVINO's graphs, computed by ONNX Runtime as they are written.
Writes benchmarks/results/unseen.json and the table of docs/int8.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from common import RESULTS, ROOT, heads, kept, put, save
from int8_task_cases import Sources, load
from torch import nn

from edgeprune import quantize
from edgeprune.model import export_onnx
from edgeprune.quantize.ranges import unseen
from edgeprune.runtimes import DIALECTS

OPENVINO = DIALECTS["openvino"]
DRAWS, OTHERS = 12, 64
Row = dict[str, Any]


@contextmanager
def factors(*tried: float) -> Iterator[None]:
    """With these factors tried; the full range alone is what was before."""
    before, unseen.WIDER = unseen.WIDER, tried
    try:
        yield
    finally:
        unseen.WIDER = before


def graphs(model: onnx.ModelProto, examples: Any, distance: Any = None) -> dict[str, tuple[onnx.ModelProto, bool]]:
    """The INT8 graph with widening and without, and whether anything was widened."""
    found = {}
    for name, tried in (("widened", unseen.WIDER), ("full", (1.0,))):
        with factors(*tried):
            ranges = quantize.calibrate(model, examples, OPENVINO, distance=distance)
        told = any("unseen inputs" in line for line in ranges.warnings)
        found[name] = quantize.apply(model, ranges, OPENVINO), told
    return found


def regression(folder: Path, spread: float, count: int) -> Row:
    """Noise at the output of two convolutions on noise of random sizes, in decibels."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    model = onnx.load(export_onnx_once(net, folder / "regression.onnx"))
    signal, noise, worst, told = 0.0, {"widened": 0.0, "full": 0.0}, {"widened": [], "full": []}, 0
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        sizes = rng.lognormal(0, spread, (count + OTHERS, 1, 1, 1)).astype(np.float32)
        examples = rng.random((count + OTHERS, 3, 16, 16), np.float32) * sizes
        exact = quantize.inference_session(model)
        for name, (graph, widened) in graphs(model, examples[:count]).items():
            told += widened
            session = quantize.inference_session(graph)
            for example in examples[count:]:
                wanted, got = (one.run(None, {"input": example[None]})[0] for one in (exact, session))
                energy, error = float(np.square(wanted).sum()), float(np.square(got - wanted).sum())
                signal += energy / 2
                noise[name] += error
                worst[name].append(10 * np.log10(energy / error))
    row: Row = {"network": "regression", "spread": spread, "examples": count, "draws": DRAWS, "widened_in": told}
    row["db"] = {name: round(10 * float(np.log10(signal / value)), 1) for name, value in noise.items()}
    return row | {"worst_db": {name: round(float(np.percentile(values, 1)), 1) for name, values in worst.items()}}


def export_onnx_once(net: nn.Module, path: Path) -> Path:
    """The float graph, made once."""
    if not path.exists():
        export_onnx(net, torch.zeros(1, 3, 16, 16), path)
    return path


def restoration(sources: Sources, count: int) -> Row:
    """PSNR of RFDN on Set5."""
    case = load("rfdn", sources)
    model = onnx.load(case.model)
    row: Row = {"network": "rfdn", "examples": count, "db": {}}
    made = {"float": (model, False), **graphs(model, case.calibration[:count], case.task.distance)}
    for name, (graph, widened) in made.items():
        session = quantize.inference_session(graph)
        outputs = [session.run(None, feed) for feed in case.scored]
        columns = tuple(np.concatenate(column) for column in zip(*outputs, strict=True))
        row["db"][name] = round(float(case.task.score(columns, case.targets).value), 2)
        row["widened_in"] = row.get("widened_in", 0) + widened
    return row


def table(rows: list[Row]) -> str:
    """A line a row."""
    lines = heads("network", "calibrated with", "widened in", "full ranges", "widened", "worst 1 %: full", "widened")
    for row in rows:
        regression = row["network"] == "regression"
        name = f"regression, sizes spread by {row['spread']}: SQNR, dB" if regression else "RFDN: PSNR, dB"
        name += "" if regression else f" (float {row['db']['float']:.2f})"
        draws = f"{row['widened_in']} of {row['draws']}" if regression else ("yes" if row["widened_in"] else "no")
        cells = [row["db"]["full"], row["db"]["widened"]]
        cells += [row["worst_db"]["full"], row["worst_db"]["widened"]] if regression else ["", ""]
        lines.append("| " + " | ".join(str(cell) for cell in (name, row["examples"], draws, *cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or write the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path, nargs="?")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", nargs="+", default=["regression", "rfdn"], help="the other's rows are kept")
    given = parser.parse_args()
    out = RESULTS / "unseen.json"
    if given.tasks is not None:
        rows = [row for row in kept(out, {"rows": []})["rows"] if row["network"] not in given.only]
        if "regression" in given.only:
            rows += [regression(given.work, spread, count) for spread in (0.0, 0.2, 0.4, 0.8) for count in (8, 32, 128)]
        if "rfdn" in given.only:
            rows += [restoration(Sources(given.tasks, given.work), count) for count in (4, 8, 16, 63)]
        save(out, {"rows": rows})
    put(ROOT / "docs" / "int8.md", "unseen.py", table(kept(out)["rows"]))


if __name__ == "__main__":
    main()
