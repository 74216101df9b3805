"""Which layers of the pruned network run in INT8: all that the runtime can, unless accuracy or speed says otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgeprune import latency, quantize, runtimes
from edgeprune.devices import Loaded
from edgeprune.pipeline import workloads
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.events import Voice
from edgeprune.pipeline.subject import Subject
from edgeprune.quantize import Ranges, fallback, inference_session

CHUNK = 64  # examples at once
AGREEMENT = 0.97  # of INT8 with float on the calibration images; above it no layer needs to stay in float
NOISE = 0.003  # noise over signal at the output (25 dB) that INT8 may add in all, where layers do have to stay


def choose_precision(
    subject: Subject, bench: Bench, voice: Voice, folder: Path, network: onnx.ModelProto, ranges: Ranges
) -> dict[str, object]:
    """Layer -> precision where some stay in float, and why; nothing for a network that INT8 serves well.

    The recipe's [quantize] fallback: "auto" solves the program of `quantize.fallback` on times measured on the device,
    "greedy" reverts the worst layer until the rest is good enough, "none" keeps all in INT8.
    """
    method = subject.recipe.quantize.fallback
    if method == "none":
        return {}
    agreement = _agreement(subject, network, quantize.apply(network, ranges, bench.dialect))
    costs, edges = _costs(subject, bench, folder, network, ranges, agreement)
    slower = [name for name, cost in costs.items() if cost.int8_ms > cost.float_ms * 1.25]
    if agreement >= AGREEMENT and len(slower) <= len(costs) / 2:
        return {"method": method, "agreement": agreement, "float": []}
    choice = fallback.choose(method, costs, edges, NOISE)
    kept = sorted(name for name, kind in choice.precision.items() if kind == "float")
    found: dict[str, object] = {"method": method, "agreement": agreement, "float": kept, "ms": choice.ms}
    found["loss"] = choice.loss
    agrees = f"INT8 agrees on {100 * agreement:.1f} %"
    if agreement < AGREEMENT and len(kept) == len(costs):  # the precision gate refuses it: it is no INT8 artifact
        voice.say(
            "quantize", f"{agrees}; what agrees more leaves no layer in INT8: all run in INT8, and the gates decide"
        )
        return {**found, "float": []}
    if agreement >= AGREEMENT and kept:  # for speed alone: a profile times kernels, and their sum is not the network
        whole = _whole(bench, folder, network, ranges, kept)
        found["whole"] = whole
        if whole["chosen"] > whole["room"] * whole["int8"]:  # not faster, or by no more than noise
            voice.say("quantize", f"{_slower(whole, bench)}: no layer stays in float for it")
            return {**found, "float": []}
    voice.say("quantize", f"{agrees}; {len(kept)} of {len(costs)} layers stay in float")
    return found


def _whole(
    bench: Bench, folder: Path, network: onnx.ModelProto, ranges: Ranges, kept: Iterable[str]
) -> dict[str, float]:
    """The latency of the network whose layers are all in INT8, and of the one that the profiles chose, interleaved.

    `room` is the share of the first that the second must stay below to be faster beyond this device's noise.
    """
    with contextlib.ExitStack() as stack:
        loaded = [
            stack.enter_context(_opened(bench, folder, f"whole-{name}", quantised, "int8"))
            for name, quantised in (
                ("int8", quantize.apply(network, ranges, bench.dialect)),
                ("chosen", quantize.apply(network, ranges, bench.dialect, dict.fromkeys(kept, "float"))),
            )
        ]
        every, chosen = bench.device.measure(loaded, bench.target.protocol)
    noise = latency.deviation((every, chosen), bench.target.protocol.unit)
    return {"int8": every.median, "chosen": chosen.median, "room": latency.room(noise, bench.target.protocol.unit)}


def _slower(whole: Mapping[str, float], bench: Bench) -> str:
    unit = bench.target.protocol.unit
    return f"with layers in float, for speed, it takes {whole['chosen']:.4g} {unit}, without {whole['int8']:.4g}"


@contextlib.contextmanager
def _opened(bench: Bench, folder: Path, name: str, graph: onnx.ModelProto, precision: str) -> Iterator[Loaded]:
    """The graph on the device, and no file of it afterwards."""
    path = folder / f"{name}.onnx"
    onnx.save(graph, path)
    artifact = runtimes.build(path, folder / "fallback", bench.target, name, precision)
    loaded = bench.device.load(artifact)
    try:
        yield loaded
    finally:
        bench.device.unload(loaded)
        for file in (path, *artifact.files.values()):
            file.unlink(missing_ok=True)


def _agreement(subject: Subject, one: onnx.ModelProto, other: onnx.ModelProto) -> float:
    """How far two graphs agree on the calibration examples, in ONNX Runtime on this host; 1 where they are equal.

    For a classifier the share of examples of the same class. Else one less the task's distance between the two, as a
    share of its distance between the outputs of one example and those of another: 0 is no relation at all.
    """
    work, limit = subject.workload, subject.recipe.quantize.images
    sessions = [inference_session(one), inference_session(other)]
    same: list[Any] = []
    near = far = 0.0
    for fed in fed_by_name(one, workloads.feeds(work, "calibration", limit, CHUNK)()):
        a, b = (run_graph(runner, one, fed) for runner in sessions)
        if workloads.is_top_class(work.task):
            same.append(a[0].argmax(1) == b[0].argmax(1))
            continue
        wanted, found = (tuple(torch.from_numpy(value) for value in values) for values in (a, b))
        near += float(work.task.distance(wanted, found).sum())
        far += float(work.task.distance(wanted, tuple(value.roll(1, 0) for value in wanted)).sum())
    if workloads.is_top_class(work.task):
        return float(np.concatenate(same).mean())
    return max(0.0, 1 - near / far) if far > 0 else float(near == 0)


def fed_by_name(graph: onnx.ModelProto, batches: Iterable[Any]) -> Iterator[dict[str, NDArray[Any]]]:
    """Batches by the graph's input names."""
    names = [value.name for value in graph.graph.input]
    for batch in batches:
        yield dict(batch) if isinstance(batch, dict) else {names[0]: batch}


def run_graph(runner: Any, graph: onnx.ModelProto, fed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """All outputs of a batch, run in pieces of the graph's own batch; the last one is filled up."""
    size = max(1, graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value)
    count = len(next(iter(fed.values())))
    parts = []
    for start in range(0, count, size):
        chosen = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(runner.run(None, {name: value[chosen] for name, value in fed.items()}))
    return [np.concatenate(column)[:count] for column in zip(*parts, strict=True)]


def _costs(
    subject: Subject, bench: Bench, folder: Path, network: onnx.ModelProto, ranges: Ranges, agreement: float
) -> tuple[dict[str, fallback.LayerCost], fallback.Edges]:
    """Each layer's profiled time in float and in INT8, its noise (measured only where it will be needed), reformats."""
    quantised = quantize.apply(network, ranges, bench.dialect)
    profiles = {}
    for name, graph, precision in (("float", network, "fp32"), ("int8", quantised, "int8")):
        with _opened(bench, folder, f"fallback-{name}", graph, precision) as loaded:
            profiles[name] = bench.device.profile(loaded)
    if agreement >= AGREEMENT:
        layers = dict.fromkeys((node.name for node in network.graph.node if node.op_type in ("Conv", "Gemm")), 0.0)
    else:
        batches = workloads.feeds(subject.workload, "calibration", subject.recipe.quantize.images)
        layers = fallback.sensitivities(network, ranges, bench.dialect, batches, 16)
    times = {name: fallback.times(layers, kernels) for name, kernels in profiles.items()}
    reformat = [kernel.median for kernel in profiles["int8"] if "quantize" in kernel.kind.lower()]
    numbers = sum(int(np.prod(part.shape)) for part in subject.workload.inputs.parts)
    per_element = min(reformat, default=0.0) / max(1, numbers)
    costs = {name: fallback.LayerCost(times["float"][name], times["int8"][name], loss) for name, loss in layers.items()}
    return costs, fallback.layer_edges(network, per_element)
