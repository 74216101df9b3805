"""A bundle's claims measured again by plain runtime code: nothing of edgeprune is imported, only the runtime and numpy.

    python benchmarks/plain.py ARTIFACTS EXAMPLES.npz --runtime onnxruntime [--precision f32] [--rounds 20] [--runs 40]
        [--outputs FILE.npz]

ARTIFACTS is the artifacts/ folder of a run. EXAMPLES.npz holds input0 [N, ...], input1, ... as the network takes them,
and labels [N] where it is a classifier. The dense and the pruned INT8 artifact are run in turns, one thread, batch 1,
pinned to one core. Prints JSON: median milliseconds of each, their ratio with the rounds' quartiles, the same by the
CPU time of the process (`undisturbed`: on a busy core a run waits for its turn, 4 ms each time, whatever the network),
and how many labels each gets right. With `--outputs`, what each gives for every example is kept: NAME/0 [N, ...],
NAME/1, ...
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


Network = Callable[[list[np.ndarray]], list[np.ndarray]]


def opened(folder: Path, name: str, runtime: str, precision: str) -> Network:
    """The artifact as a function of one example, its inputs [1, ...] in their order; all outputs."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        return lambda example: session.run(None, dict(zip(names, example, strict=True)))
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    settings |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    request = openvino.Core().compile_model(folder / f"{name}.xml", "CPU", settings).create_infer_request()
    return lambda example: list(request.infer(example).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("examples", type=Path)
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), required=True)
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--outputs", type=Path)
    given = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with np.load(given.examples) as held:
        inputs = [held[f"input{number}"] for number in range(sum(name.startswith("input") for name in held))]
        labels = held.get("labels")

    def example(number: int) -> list[np.ndarray]:
        return [part[number][None] for part in inputs]

    found: dict[str, dict[str, object]] = {}
    networks = {name: opened(given.artifacts, name, given.runtime, given.precision) for name in NAMES}
    kept: dict[str, list[list[np.ndarray]]] = {}
    for name, network in networks.items():
        kept[name] = [[part.copy() for part in network(example(number))] for number in range(len(inputs[0]))]
        found[name] = {"examples": len(inputs[0])}
        if labels is not None:
            found[name]["right"] = sum(
                int(one[0].argmax()) == int(label) for one, label in zip(kept[name], labels, strict=True)
            )
    if given.outputs:
        parts = {
            f"{name}/{k}": np.concatenate(list(part))
            for name in NAMES
            for k, part in enumerate(zip(*kept[name], strict=True))
        }
        np.savez(given.outputs, **parts)
    medians: dict[str, list[float]] = {name: [] for name in NAMES}
    had: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(given.rounds):
        for name in NAMES if turn % 2 else reversed(NAMES):
            times, own = [], []
            for run in range(given.runs + 5):
                one = example((turn + run) % len(inputs[0]))
                cpu, began = time.process_time(), time.perf_counter()
                networks[name](one)
                times.append(time.perf_counter() - began)
                own.append(time.process_time() - cpu)
            medians[name].append(1e3 * statistics.median(times[5:]))
            had[name].append(1e3 * statistics.median(own[5:]))
    for name in NAMES:
        found[name]["ms"] = statistics.median(medians[name])
    ratios = [dense / pruned for dense, pruned in zip(medians["dense-int8"], medians["pruned-int8"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    alone = {name: statistics.median(had[name]) for name in NAMES}
    undisturbed = {"ms": alone, "speedup": alone["dense-int8"] / alone["pruned-int8"]}
    told = {"networks": found, "speedup": middle, "quartiles": [low, high], "undisturbed": undisturbed}
    print(json.dumps({**told, "rounds": given.rounds}))


if __name__ == "__main__":
    main()
