"""A bundle's claims measured again by plain runtime code: nothing of edgeprune is imported, only the runtime and numpy.

    python benchmarks/plain.py ARTIFACTS EXAMPLES.npz --runtime onnxruntime [--precision f32] [--rounds 20] [--runs 40]

ARTIFACTS is the artifacts/ folder of a run. EXAMPLES.npz holds inputs [N, ...] as the network takes them, labels [N].
The dense and the pruned INT8 artifact are run in turns, one thread, batch 1, pinned to one core. Prints JSON: median
milliseconds of each, their ratio with the rounds' quartiles, and how many labels each gets right.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

NAMES = ("dense-int8", "pruned-int8")


def opened(folder: Path, name: str, runtime: str, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """The artifact as a function of one example [1, ...]."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        first = session.get_inputs()[0].name
        return lambda example: session.run(None, {first: example})[0]
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    settings |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    request = openvino.Core().compile_model(folder / f"{name}.xml", "CPU", settings).create_infer_request()
    return lambda example: next(iter(request.infer([example]).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("examples", type=Path)
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), required=True)
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=40)
    given = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with np.load(given.examples) as held:
        inputs, labels = held["inputs"], held["labels"]
    found: dict[str, dict[str, object]] = {}
    networks = {name: opened(given.artifacts, name, given.runtime, given.precision) for name in NAMES}
    for name, network in networks.items():
        right = sum(int(network(inputs[i : i + 1])[0].argmax()) == int(labels[i]) for i in range(len(labels)))
        found[name] = {"right": right, "examples": len(labels)}
    medians: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(given.rounds):
        for name in NAMES if turn % 2 else reversed(NAMES):
            times = []
            for run in range(given.runs + 5):
                example = inputs[(turn + run) % len(inputs)][None]
                began = time.perf_counter()
                networks[name](example)
                times.append(time.perf_counter() - began)
            medians[name].append(1e3 * statistics.median(times[5:]))
    for name in NAMES:
        found[name]["ms"] = statistics.median(medians[name])
    ratios = [dense / pruned for dense, pruned in zip(medians["dense-int8"], medians["pruned-int8"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(json.dumps({"networks": found, "speedup": middle, "quartiles": [low, high], "rounds": given.rounds}))


if __name__ == "__main__":
    main()
