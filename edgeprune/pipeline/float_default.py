"""What float layers would take by the runtime's own choice of a type, where the target's options forbid it one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from edgeprune import runtimes
from edgeprune.devices import Loaded, Probe, Timing
from edgeprune.pipeline.bench import Bench
from edgeprune.result import FloatDefault
from edgeprune.target import Target

FORCED = "f32"
FLOATS, ANCHORS = ("dense-fp32", "pruned-fp32"), ("dense-int8", "pruned-int8")
ROUNDS, SECONDS = 8, 10.0


def measure(
    bench: Bench,
    loaded: Mapping[str, Loaded],
    timings: Mapping[str, Timing],
    seen: Probe,
) -> dict[str, object]:
    """Time the float artifacts with the shorter type, beside the INT8 ones.

    Args:
        timings: of the artifacts as they were measured, which the new figures are held against.

    Returns:
        For measured.json: `float_default`, latencies in milliseconds; nothing where nothing is forced, the CPU has no
        shorter type, or the clock counts no milliseconds.
    """
    shorter, hint = _shorter(bench.target, seen.fingerprint), runtimes.load(bench.target.runtime).float_hint
    if not shorter:
        return {}
    protocol = msgspec.structs.replace(
        bench.target.protocol, rounds=min(ROUNDS, bench.target.protocol.rounds), processes=1, max_seconds=SECONDS
    )
    opened: list[Loaded] = []
    try:
        for name in FLOATS:
            artifact = loaded[name].artifact
            options = {**artifact.options, hint: shorter}
            opened.append(bench.device.load(replace(artifact, name=f"{name}-{shorter}", options=options)))
        found = bench.device.measure([*opened, *(loaded[name] for name in ANCHORS)], protocol)
    finally:
        for one in opened:
            bench.device.unload(one)
    pace = sum(timings[name].median for name in ANCHORS) / sum(one.median for one in found[len(FLOATS) :])
    dense, pruned = (one.median * pace for one in found[: len(FLOATS)])
    option = f"{hint} = {FORCED}"
    return {"float_default": FloatDefault(option=option, type=shorter, dense_fp32=dense, pruned_fp32=pruned)}


def _shorter(target: Target, fingerprint: Mapping[str, object]) -> str:
    """The type that the runtime would take there for float layers by itself; empty: what the target's options say."""
    runtime = runtimes.load(target.runtime)
    if target.protocol.unit != "ms" or target.execution.options.get(runtime.float_hint) != FORCED:
        return ""
    features = fingerprint.get("features")
    has = features if isinstance(features, list | tuple) else ()
    return next((name for name, needs in runtime.shorter.items() if any(need in has for need in needs)), "")
