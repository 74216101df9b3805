"""What float layers would take by the runtime's own choice of a type, where the target's options forbid it one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from edgeprune.devices import Artifact, Loaded
from edgeprune.pipeline.bench import Bench
from edgeprune.result import FloatDefault
from edgeprune.target import Target

SHORTER = {"bf16": ("avx512_bf16", "amx_bf16")}  # type -> what a CPU has where OpenVINO takes it for float layers
HINT, FORCED = "INFERENCE_PRECISION_HINT", "f32"
FLOATS, ANCHORS = ("dense-fp32", "pruned-fp32"), ("dense-int8", "pruned-int8")
ROUNDS, SECONDS = 8, 10.0


def measure(
    bench: Bench,
    artifacts: Mapping[str, Artifact],
    loaded: Mapping[str, Loaded],
    medians: Mapping[str, float],
    fingerprint: Mapping[str, object],
) -> FloatDefault | None:
    """Time the float artifacts with the shorter type, beside the INT8 ones.

    Args:
        medians: artifact -> latency as it was measured, which the new figures are held against.

    Returns:
        Latencies in milliseconds; None where nothing is forced, the CPU has no shorter type, or the clock counts none.
    """
    shorter = _shorter(bench.target, fingerprint)
    if not shorter:
        return None
    protocol = msgspec.structs.replace(
        bench.target.protocol, rounds=min(ROUNDS, bench.target.protocol.rounds), processes=1, max_seconds=SECONDS
    )
    opened: list[Loaded] = []
    try:
        for name in FLOATS:
            options = {**artifacts[name].options, HINT: shorter}
            opened.append(bench.device.load(replace(artifacts[name], name=f"{name}-{shorter}", options=options)))
        found = bench.device.measure([*opened, *(loaded[name] for name in ANCHORS)], protocol)
    finally:
        for one in opened:
            bench.device.unload(one)
    pace = sum(medians[name] for name in ANCHORS) / sum(one.median for one in found[len(FLOATS) :])
    dense, pruned = (one.median * pace for one in found[: len(FLOATS)])
    return FloatDefault(option=f"{HINT} = {FORCED}", type=shorter, dense_fp32=dense, pruned_fp32=pruned)


def _shorter(target: Target, fingerprint: Mapping[str, object]) -> str:
    """The type that the runtime would take there for float layers by itself; empty: what the target's options say."""
    if target.runtime != "openvino" or target.protocol.unit != "ms" or target.execution.options.get(HINT) != FORCED:
        return ""
    features = fingerprint.get("features")
    has = features if isinstance(features, list | tuple) else ()
    return next((name for name, needs in SHORTER.items() if any(need in has for need in needs)), "")
