"""How well do latency tables predict networks that they have not seen?

    python benchmarks/prediction.py --site DIR [--only resnet56/intel-cpu ...] [--tables DIR]

ResNet-56 and VGG16-BN at CIFAR-10's shape, ResNet-18 and MobileNetV2 at 224 x 224, and what people ship (shipped.py: a
MiniLM, a DS-CNN, a TC-ResNet, a detector of YOLOv8n's size); INT8, batch 1, one thread, OpenVINO and ONNX Runtime. A
table is built from 40 random variants; 30 others, drawn with another seed, are predicted before they are measured.
Beside it, an affine function of MACs fitted to the same 40 runs, and how well the machine repeats itself: the unseen
networks measured once more, in other company. No prediction can be better than that. Writes results/prediction.json
(a row a combination, kept when others are run again) and prediction.png. `--site` holds torchvision (`pip install
--no-deps --target DIR torchvision==0.28.0`).

Timing is done on whatever else the machine does: run it on a quiet one, or put the device's worker before the rest.
Where the kernel groups processes by session, `nice` does nothing: write -15 to /proc/PID/autogroup of the worker.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, beside, save, with_site

NETWORKS = ("resnet56", "vgg16", "resnet18", "mobilenetv2", "minilm", "dscnn", "tcresnet", "detector")
TARGETS = ("x86-onnxruntime", "intel-cpu")


def network(name: str, site: str) -> tuple[Any, tuple[int, ...]]:
    """(model in eval mode, input shape); weights are as initialised, for latency does not depend on them."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if name in ("resnet56", "vgg16"):
        beside("examples/cifar10")
        import resnet
        import vgg

        return (resnet.resnet56() if name == "resnet56" else vgg.vgg16_bn()).eval(), (3, 32, 32)
    if name not in ("resnet18", "mobilenetv2"):
        import shipped

        return shipped.build(name)
    with_site(site)
    if "_library" not in globals():  # on a CPU build of torch these two operators are missing
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_library"] = library
    import torchvision

    factory = {"resnet18": "resnet18", "mobilenetv2": "mobilenet_v2"}[name]
    return getattr(torchvision.models, factory)(weights=None).eval(), (3, 224, 224)


@contextlib.contextmanager
def workplace(name: str, target_name: str, site: str, tables: Path | None) -> Any:
    """(maker, device, table, keep): everything that profiling and closure need; the table is kept in `tables`."""
    import torch

    from edgeprune import devices
    from edgeprune import target as targets
    from edgeprune.graph import trace
    from edgeprune.latency import Table, maker

    model, shape = network(name, site)
    example = torch.zeros(1, *shape)
    target = targets.load(target_name)
    path = tables / f"{name}.{target_name}.jsonl" if tables else None
    with tempfile.TemporaryDirectory() as folder, devices.connect(target) as device:
        made = maker(model, trace(model, example), example, target, Path(folder))
        fingerprint = device.probe().fingerprint
        table = Table.load(path, fingerprint) if path and path.exists() else Table(fingerprint)
        yield made, device, table, (lambda found: found.save(path)) if path else (lambda found: None)


def measure(name: str, target_name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    from edgeprune.latency import profile
    from edgeprune.latency.profiling import errors

    with workplace(name, target_name, arguments.site, arguments.tables) as (made, device, table, keep):

        def tell(done: int, total: int, what: str) -> None:
            print(f"  {name} {target_name} {done}/{total} {what}", flush=True)

        found = profile(table, device, made, arguments.count, arguments.unseen, progress=tell, keep=keep)
        keep(found.table)
        repeated = np.array(again(device, made, found.table, len(found.measured)))
        both = np.isfinite(repeated)
        return {
            "network": name,
            "target": target_name,
            "unit": found.table.unit,
            "fingerprint": dict(found.table.fingerprint),
            "dense": found.predictor.dense,
            "errors": asdict(found.errors),
            "errors_by_macs": asdict(found.by_macs),
            "repeatability": asdict(errors(repeated[both], np.array(found.measured)[both])),
            "seconds": round(found.seconds, 1),
            "networks": found.networks,
            "cells": found.cells,
            "calibration": asdict(found.predictor.calibration),
            "load_average": os.getloadavg()[1],
            "measured": found.measured,
            "predicted": found.predicted,
            "predicted_by_macs": found.predicted_by_macs,
        }


def again(device: Any, made: Any, table: Any, count: int) -> list[float]:
    """The last `count` runs of the table, measured once more in another order; latency over the dense one's."""
    from edgeprune.latency import Table
    from edgeprune.latency.sample import extend

    record = table.networks[made.network]
    runs = record.runs[-count:]
    order = np.random.default_rng(0).permutation(count)
    fewer = table.with_network(made.network, replace(record, runs=record.runs[:-count]))
    found: Table = extend(fewer, device, made, [runs[int(index)].configuration for index in order])
    ratios = {run.key: run.ratio for run in found.networks[made.network].runs}
    return [ratios.get(run.key, float("nan")) for run in runs]


def patiently(work: Any, times: int = 3) -> Any:
    """Do `work` again when the device was lost or too noisy: tables are kept after each batch, so it goes on there."""
    from edgeprune.errors import DeviceError, MeasurementError

    for attempt in range(times):
        try:
            return work()
        except (DeviceError, MeasurementError) as error:
            print(f"  attempt {attempt + 1}: {error}", flush=True)
            if attempt == times - 1:
                raise
    raise AssertionError("unreachable")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Predicted against measured, one panel a combination; ratios to the dense INT8 latency."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = [name for name in NETWORKS if any(row["network"] == name for row in rows)]
    lines = [name for name in TARGETS if any(row["target"] == name for row in rows)]
    figure, axes = plt.subplots(
        len(lines), len(columns), figsize=(3.4 * len(columns), 3.4 * len(lines)), squeeze=False, layout="constrained"
    )
    for panel in axes.flat:
        panel.set_visible(False)
    for row in rows:
        panel = axes[lines.index(row["target"])][columns.index(row["network"])]
        panel.set_visible(True)
        top = 1.05 * max([1.0, *row["measured"], *row["predicted"]])
        panel.plot([0, top], [0, top], color="0.7", linewidth=1)
        panel.scatter(row["measured"], row["predicted_by_macs"], s=12, color="tab:orange", marker="x", label="MACs")
        panel.scatter(row["measured"], row["predicted"], s=14, color="tab:blue", label="table")
        errors, by_macs = row["errors"], row["errors_by_macs"]
        panel.set_title(
            f"{row['network']}, {row['target']}\nmedian {errors['median']:.1%}, p90 {errors['p90']:.1%}"
            f" (MACs {by_macs['median']:.0%}, {by_macs['p90']:.0%})",
            fontsize=9,
        )
        panel.set_xlim(0, top)
        panel.set_ylim(0, top)
        panel.set_xlabel("measured / dense", fontsize=8)
        panel.set_ylabel("predicted / dense", fontsize=8)
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def keep_row(path: Path, row: dict[str, Any], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Put `row` in the JSON in place of the one with the same `keys`; all rows."""
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [old for old in rows if any(old[key] != row[key] for key in keys)] + [row]
    rows.sort(key=lambda one: [str(one[key]) for key in keys])
    save(path, rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", default="", help="folder with torchvision")
    parser.add_argument("--only", nargs="*", default=[], help="network/target pairs")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--unseen", type=int, default=30)
    parser.add_argument("--tables", type=Path, help="keep the tables here, and go on with those that are there")
    parser.add_argument("--out", type=Path, default=RESULTS / "prediction.json")
    arguments = parser.parse_args()
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    for target in TARGETS:
        for name in NETWORKS:
            if arguments.only and f"{name}/{target}" not in arguments.only:
                continue
            row = patiently(lambda name=name, target=target: measure(name, target, arguments))
            print(name, target, row["errors"], row["seconds"], flush=True)
            if row["errors"]["count"] < arguments.unseen / 2:
                print("  not kept: the table had seen most of these networks; start from an empty one", flush=True)
                continue
            rows = keep_row(arguments.out, row, ("network", "target"))
    plot(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
