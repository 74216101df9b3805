"""The networks that benchmarks/recovery.py trained, as INT8 artifacts: accuracy and latency on the device's runtime.

    python benchmarks/recovered_int8.py --data cifar10.npz --plans DIR --trained FILE --row "resnet56/intel-cpu/2.0/..."

Calibrates the dense and the trained network with the product's defaults on 512 training images, builds both, runs all
10,000 test images through the device's runtime and times both in one interleaved run. The figures go into the row of
benchmarks/results/recovery.json that --row names, as `int8`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, dialect_on, save
from head_to_head import load, plan_file
from recovery import splits


def measured(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the row gains."""
    import onnx
    import torch

    from edgeprune import devices, quantize, runtimes, tasks, validate
    from edgeprune import target as targets
    from edgeprune.graph import Plan
    from edgeprune.model import export_onnx
    from edgeprune.recipe import QuantizeSection

    network, target_name, speedup, method = row.split("/")[:4]
    target = targets.load(target_name)
    images, _, test = splits(options.data, 45_000, 1, options.test)
    few = images.take(512)
    dense = load(network, options.weights)
    pruned = Plan.load(plan_file(options.plans, f"{network}/{target_name}/{speedup}/{method}")).apply(dense)
    pruned.load_state_dict(torch.load(options.trained, weights_only=True))
    with tempfile.TemporaryDirectory() as name, devices.connect(target) as device:
        folder, loaded, dialect = Path(name), [], dialect_on(device, target)
        for kind, model in (("dense", dense), ("pruned", pruned.eval())):
            export_onnx(model, torch.zeros(1, 3, 32, 32), folder / f"{kind}-fp32.onnx")
            graph = onnx.load(folder / f"{kind}-fp32.onnx")
            ranges = quantize.calibrate(graph, lambda: few.batches(32), dialect, QuantizeSection())
            onnx.save(quantize.apply(graph, ranges, dialect, {}), folder / f"{kind}-int8.onnx")
            artifact = runtimes.build(folder / f"{kind}-int8.onnx", folder, target, f"{kind}-int8", "int8")
            loaded.append(device.load(artifact))
        timings = device.measure(loaded, target.protocol)
        arrays = test.arrays()
        found = [device.infer(one, arrays)[0] for one in loaded]
    task = tasks.Classification()
    scored = [validate.network(task, logits, test.labels, found[0]).to_dict() for logits in found]
    return {
        "dense": scored[0],
        "pruned": scored[1],
        "dense_ms": timings[0].median,
        "pruned_ms": timings[1].median,
        "speedup": timings[0].median / timings[1].median,
        "runtime": f"{target.runtime} {device.runtime_version}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--plans", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="safetensors of the dense network")
    parser.add_argument("--trained", type=Path, required=True, help="trained.pt that recovery.py left")
    parser.add_argument("--row", required=True, help="which row of recovery.json it is")
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "recovery.json")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text(encoding="utf-8"))
    if options.row not in rows:
        parser.error(f"{options.out} has no row {options.row!r}")
    rows[options.row]["int8"] = found = measured(options.row, options)
    save(options.out, rows)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
