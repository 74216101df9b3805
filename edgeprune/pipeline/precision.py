"""Which layers of the pruned network run in INT8: all that the runtime can, unless accuracy or speed says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeprune import quantize, runtimes
from edgeprune.pipeline.context import Context
from edgeprune.quantize import Ranges, fallback
from edgeprune.quantize.observe import batches, input_shape, session
from edgeprune.quantize.view import View

AGREEMENT = 0.97  # of INT8 with float on the calibration images; above it no layer needs to stay in float
NOISE = 0.003  # noise over signal at the output (25 dB) that INT8 may add in all, where layers do have to stay


def choose_precision(context: Context, folder: Path, network: onnx.ModelProto, ranges: Ranges) -> dict[str, Any]:
    """Layer -> precision where some stay in float, and why; nothing for a network that INT8 serves well.

    The recipe's [quantize] fallback: "auto" solves the program of `quantize.fallback` on times measured on the device,
    "greedy" reverts the worst layer until the rest is good enough, "none" keeps all in INT8.
    """
    method = context.recipe.quantize.fallback
    if method == "none":
        return {}
    images = context.data.calibration.take(context.recipe.quantize.images).arrays()
    agreement = _agreement(network, quantize.apply(network, ranges, context.dialect), images)
    costs, edges = _costs(context, folder, network, ranges, images, agreement)
    slower = [name for name, cost in costs.items() if cost.int8_ms > cost.float_ms * 1.25]
    if agreement >= AGREEMENT and len(slower) <= len(costs) / 2:
        return {"method": method, "agreement": agreement, "float": []}
    choice = fallback.choose(method, costs, edges, NOISE)
    kept = sorted(name for name, kind in choice.precision.items() if kind == "float")
    context.say("quantize", f"INT8 agrees on {agreement:.1%}; {len(kept)} of {len(costs)} layers stay in float")
    return {"method": method, "agreement": agreement, "float": kept, "ms": choice.ms, "loss": choice.loss}


def _agreement(one: onnx.ModelProto, other: onnx.ModelProto, images: Any) -> float:
    """The share of images on which two graphs predict the same class, in ONNX Runtime on this host."""
    name, size, shape = input_shape(View.of(one))
    sessions = [session(one), session(other)]
    same = []
    for batch, real in batches(images, size, len(images), shape):
        a, b = (s.run(None, {name: batch})[0].argmax(1)[:real] for s in sessions)
        same.append(a == b)
    return float(np.concatenate(same).mean())


def _costs(
    context: Context, folder: Path, network: onnx.ModelProto, ranges: Ranges, images: Any, agreement: float
) -> tuple[dict[str, fallback.Cost], fallback.Edges]:
    """Each layer's profiled time in float and in INT8, its noise (measured only where it will be needed), reformats."""
    quantised = quantize.apply(network, ranges, context.dialect)
    profiles = {}
    for name, graph, precision in (("float", network, "fp32"), ("int8", quantised, "int8")):
        path = folder / f"fallback-{name}.onnx"
        onnx.save(graph, path)
        artifact = runtimes.build(path, folder / "fallback", context.target, f"fallback-{name}", precision)
        loaded = context.device.load(artifact)
        profiles[name] = context.device.profile(loaded)
        context.device.unload(loaded)
        for file in (path, *artifact.files.values()):
            file.unlink(missing_ok=True)
    if agreement >= AGREEMENT:
        layers = dict.fromkeys((node.name for node in network.graph.node if node.op_type in ("Conv", "Gemm")), 0.0)
    else:
        layers = fallback.sensitivities(network, ranges, context.dialect, lambda: [images], 16)
    times = {name: fallback.times(layers, kernels) for name, kernels in profiles.items()}
    reformat = [kernel.median for kernel in profiles["int8"] if "quantize" in kernel.kind.lower()]
    per_element = min(reformat, default=0.0) / max(1, images[0].size)
    costs = {name: fallback.Cost(times["float"][name], times["int8"][name], loss) for name, loss in layers.items()}
    return costs, fallback.layer_edges(network, per_element)
