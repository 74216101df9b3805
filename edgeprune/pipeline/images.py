"""Every artifact's outputs on the test images.

On a real device, all of them there. An emulated core is slow, so there the exact pre-check on this machine does all
images, and then the true runtime as many as it can in a few minutes; those outputs count in place of the pre-check's,
and how far the two agree is part of the result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune import devices, validate
from edgeprune.devices import Artifact, Device, Loaded
from edgeprune.pipeline.context import Context

CHUNK = 500  # images held in memory at once
EMULATED_CHUNK = 50
RELEASED, RELEASED_S, OTHERS_S = "pruned-int8", 240.0, 40.0  # patience with an emulated core; at least one chunk

Array = NDArray[Any]


@dataclass(frozen=True)
class Outputs:
    """What came of the test images.

    Attributes:
        logits: artifact -> [N, classes].
        emulated: artifact -> how many images the true runtime did under emulation, its accuracy on them, and how far
            it agrees with the pre-check; empty on a real device.
    """

    logits: dict[str, Array]
    emulated: dict[str, dict[str, Any]]


def run(context: Context, artifacts: Mapping[str, Artifact], loaded: Mapping[str, Loaded]) -> Outputs:
    """The outputs of every artifact on the test split."""
    core = devices.emulated_core(context.target, context.device_name)
    if not core:
        return Outputs(_everything(context, context.device, loaded), {})
    with devices.connect(context.target, "local") as here:
        logits = _everything(context, here, {name: here.load(one) for name, one in artifacts.items()})
    found = {}
    with devices.connect(context.target, f"qemu-user://{core}") as there:
        runtime = f"{context.target.runtime} {there.runtime_version}, {core} under qemu-user"
        for name, artifact in artifacts.items():
            true = _patiently(context, there, artifact)
            found[name] = {"runtime": runtime, **_compare(true, logits[name], context.data.test.labels)}
            if artifact.precision == "int8":
                found[name]["unproven"] = unproven(next(iter(artifact.files.values())))
            logits[name] = np.concatenate([true, logits[name][len(true) :]])
            context.say("validate", f"{name}: {in_words(found[name], len(logits[name]))}")
    return Outputs(logits, found)


def unproven(path: Path) -> list[str]:
    """What in an INT8 graph may give other bits on ARM than in the pre-check; empty: every bit must be the same."""
    import onnx

    from edgeprune.devices import precheck

    return list(precheck.unproven(onnx.load(path)))


def in_words(found: Mapping[str, Any], images: int) -> str:
    """One sentence on what the true runtime did under emulation."""
    return (
        f"{found['images']:,} of {images:,} test images on the true runtime ({found['runtime']}): top-1 "
        f"{found['accuracy']:.2%}, 95 % interval {found['low']:.2%} to {found['high']:.2%}; the same class as the "
        f"pre-check on {found['same_class']:.2%} of them, the same bits on {found['same_bits']:.2%}"
    )


def _everything(context: Context, device: Device, loaded: Mapping[str, Loaded]) -> dict[str, Array]:
    """All images through all artifacts, a chunk at a time."""
    found: dict[str, list[Array]] = {name: [] for name in loaded}
    test, report = context.data.test, context.progress("validate")
    for start in range(0, len(test), CHUNK):
        images = test.arrays(range(start, min(start + CHUNK, len(test))))
        for name, one in loaded.items():
            found[name].append(device.infer(one, images)[0])
        report(start + len(images), len(test), "test images")
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _patiently(context: Context, device: Device, artifact: Artifact) -> Array:
    """As many images, from the first on, as an emulated core can do in the time that the artifact is worth."""
    test, report, one = context.data.test, context.progress("validate"), device.load(artifact)
    end, parts, done = time.monotonic() + (RELEASED_S if artifact.name == RELEASED else OTHERS_S), [], 0
    while not done or (done < len(test) and time.monotonic() < end):
        images = test.arrays(range(done, min(done + EMULATED_CHUNK, len(test))))
        parts.append(device.infer(one, images)[0])
        done += len(images)
        report(done, len(test), f"{artifact.name} on the emulated core")
    device.unload(one)
    return np.concatenate(parts)


def _compare(true: Array, checked: Array, labels: Array) -> dict[str, Any]:
    count = len(true)
    scored = validate.accuracy(true, labels[:count], checked[:count])
    rows = (true == checked[:count]).reshape(count, -1).all(axis=1)
    return {
        "images": count,
        "accuracy": scored.accuracy,
        "correct": scored.correct,
        "low": scored.low,
        "high": scored.high,
        "same_class": scored.agreement,
        "same_bits": float(rows.mean()),
        "max_error": float(np.abs(true - checked[:count]).max()),
    }
