"""An ARM target's second file: the Q/DQ graph as the device's own ONNX Runtime rewrites it for its CPU.

x86 never makes it: its kernels want other layouts, and leave S8S8 convolutions in float. It travels beside the plain
graph when its outputs are the plain graph's, bit for bit, on the device; the plain graph is what all figures are of.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgeprune.devices import Loaded
from edgeprune.devices.device import AgentDevice
from edgeprune.errors import JobFailed
from edgeprune.pipeline.context import Context
from edgeprune.release.bundle import digest

FILE = "pruned-int8-optimised.onnx"
OPTIONS = {"graph_optimization_level": "disable"}  # all has been done
IMAGES = 64  # test images on which the two files must give the same bits
MACHINES = ("aarch64", "arm64")


def wanted(context: Context) -> bool:
    """Whether the target's artifact can be optimised ahead: ONNX Runtime on ARM."""
    return context.target.runtime == "onnxruntime" and context.target.family == "arm"


def write(context: Context, folder: Path, plain: Loaded) -> dict[str, Any]:
    """FILE in `folder`, and what the manifest says of it: where it was made, and how it compares with `plain`.

    Where there is no ARM device, or the file is not as good as the plain one: only `missing`, the reason.
    """
    device, fingerprint = context.device, context.device.probe().fingerprint
    machine = str(fingerprint.get("machine", ""))
    if machine not in MACHINES or not isinstance(device, AgentDevice):
        return {"missing": f"no 64-bit ARM device made it: the artifact was run on {machine or 'no device'}."}
    try:
        facts = _compared(context, device, folder / FILE, plain)
    except JobFailed as cause:
        (folder / FILE).unlink(missing_ok=True)
        return {"missing": f"the device could not make or open it: {cause.message}"}
    if facts["same_bits"] < 1:
        (folder / FILE).unlink()
        return {"missing": f"its outputs are the plain graph's on only {facts['same_bits']:.2%} of the images."}
    made = {key: fingerprint.get(key) for key in ("machine", "cpus", "emulation", "runtime", "runtime_version")}
    context.say("validate", f"optimised on {', '.join(map(str, fingerprint.get('cpus', [])))}: {in_words(facts)}")
    return {"file": FILE, "sha256": digest(folder / FILE), "made_on": made, **facts}


def _compared(context: Context, device: AgentDevice, path: Path, plain: Loaded) -> dict[str, Any]:
    """Make the file, and hold it against the plain graph: bits of outputs, latency and load."""
    path.write_bytes(device.optimised(plain))
    options = {**plain.artifact.options, **OPTIONS}
    made = device.load(dataclasses.replace(plain.artifact, files={path.name: path}, options=options))
    images = context.data.test.take(IMAGES).arrays()
    pairs = zip(device.infer(plain, images), device.infer(made, images), strict=True)
    same = [(one == other).reshape(len(images), -1).all(axis=1) for one, other in pairs]
    timings = device.measure([plain, made], context.target.protocol)
    device.unload(made)
    return {
        "options": options,
        "images": len(images),
        "same_bits": float(min(rows.mean() for rows in same)),
        "unit": timings[0].unit,
        "median": {"plain": timings[0].median, "optimised": timings[1].median},
        "load_s": {"plain": _load_s(plain), "optimised": _load_s(made)},
        "bytes": {"plain": plain.artifact.bytes, "optimised": path.stat().st_size},
    }


def _load_s(loaded: Any) -> float:
    """Seconds by the device's clock, which on a board with an instruction clock are 10^9 instructions each."""
    return float(loaded.info["load_s"])


def in_words(facts: dict[str, Any]) -> str:
    """One sentence on the comparison."""
    median, load = facts["median"], facts["load_s"]
    return (
        f"outputs as the plain graph's, bit for bit, on {facts['images']} images; latency "
        f"{median['optimised'] / median['plain'] - 1:+.2%}, loading {load['optimised'] / load['plain'] - 1:+.0%}"
    )
