"""An ARM target's second file: the Q/DQ graph as the device's own ONNX Runtime rewrites it for its CPU.

x86 never makes it: its kernels want other layouts, and leave S8S8 convolutions in float. It travels beside the plain
graph when its outputs are the plain graph's, bit for bit, on the device; the plain graph is what all figures are of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune import files, runtimes
from edgeprune.devices import AgentDevice, Fleet, Loaded
from edgeprune.errors import JobFailed
from edgeprune.pipeline import images
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.events import Voice
from edgeprune.pipeline.subject import Subject
from edgeprune.result import Facts
from edgeprune.target import Target

FILE = "pruned-int8-optimised.onnx"
OPTIONS = {"graph_optimization_level": "disable"}  # all has been done
IMAGES = 64  # test examples on which the two files must give the same bits
MACHINES = ("aarch64", "arm64")


def wanted(target: Target) -> bool:
    """Whether the target's artifact can be optimised ahead: ONNX Runtime on ARM."""
    return target.family in runtimes.load(target.runtime).optimises_on


def write(subject: Subject, bench: Bench, voice: Voice, folder: Path, plain: Loaded) -> dict[str, object]:
    """FILE in `folder`, and what the manifest says of it: where it was made, and how it compares with `plain`.

    Where there is no ARM device, or the file is not as good as the plain one: only `missing`, the reason.
    """
    device, fingerprint = bench.device, bench.device.probe().fingerprint
    machine = str(fingerprint.get("machine", ""))
    if machine not in MACHINES or not isinstance(device, AgentDevice | Fleet):
        return {"missing": f"no 64-bit ARM device made it: the artifact was run on {machine or 'no device'}."}
    try:
        facts = _compared(subject, bench.target, device, folder / FILE, plain)
    except JobFailed as cause:
        (folder / FILE).unlink(missing_ok=True)
        return {"missing": f"the device could not make or open it: {cause.message}"}
    same = Facts(facts).number("same_bits") or 0.0
    if same < 1:
        (folder / FILE).unlink()
        return {"missing": f"its outputs are the plain graph's on only {100 * same:.2f} % of the images."}
    made = {key: fingerprint.get(key) for key in ("machine", "cpus", "emulation", "runtime", "runtime_version")}
    voice.say("validate", f"optimised on {', '.join(map(str, Facts(fingerprint).listed('cpus')))}: {in_words(facts)}")
    return {"file": FILE, "sha256": files.sha256(folder / FILE), "made_on": made, **facts}


def _compared(
    subject: Subject, target: Target, device: AgentDevice | Fleet, path: Path, plain: Loaded
) -> dict[str, object]:
    """Make the file, and hold it against the plain graph: bits of outputs, latency and load."""
    path.write_bytes(device.optimised(plain))
    options = {**plain.artifact.options, **OPTIONS}
    made = device.load(dataclasses.replace(plain.artifact, files={path.name: path}, options=options))
    work = subject.workload
    given, targets = images.some(work, range(min(IMAGES, len(work.data.split("test")))))
    pairs = zip(*(images.infer(device, one, subject, given) for one in (plain, made)), strict=True)
    same = [(one == other).reshape(len(targets), -1).all(axis=1) for one, other in pairs]
    timings = device.measure([plain, made], target.protocol)
    device.unload(made)
    return {
        "options": options,
        "images": len(targets),
        "same_bits": float(min(rows.mean() for rows in same)),
        "unit": timings[0].unit,
        "median": {"plain": timings[0].median, "optimised": timings[1].median},
        "load_s": {"plain": _load_s(plain), "optimised": _load_s(made)},
        "bytes": {"plain": plain.artifact.bytes, "optimised": path.stat().st_size},
    }


def _load_s(loaded: Any) -> float:
    """Seconds by the device's clock, which on a board with an instruction clock are 10^9 instructions each."""
    return float(loaded.info["load_s"])


def in_words(facts: Mapping[str, object]) -> str:
    """One sentence on the comparison."""
    latency, load = (_change(Facts(facts).part(name)) for name in ("median", "load_s"))
    return (
        f"outputs as the plain graph's, bit for bit, on {facts['images']} images; latency {100 * latency:+.2f} %, "
        f"loading {100 * load:+.0f} %"
    )


def _change(found: Facts) -> float:
    """Of the optimised graph from the plain one, relative."""
    return (found.number("optimised") or 0.0) / (found.number("plain") or 1.0) - 1
