"""What float layers would take by the runtime's own choice of a type, where the target's options forbid it one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from edgeprune import runtimes
from edgeprune.devices import Artifact, Loaded, Probe, Timing
from edgeprune.errors import JobFailed
from edgeprune.graph import DENSE
from edgeprune.latency import ArtifactBuilder
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
        shorter type, the runtime does not run it, or the clock counts no milliseconds.
    """
    shorter = _shorter(bench.target, seen.fingerprint)
    known = {name: timings[name].median for name in ANCHORS}
    found = _timed(bench, shorter, [loaded[name].artifact for name in FLOATS], [loaded[name] for name in ANCHORS])
    if not found:
        return {}
    pace = sum(known.values()) / sum(found[len(FLOATS) :])
    dense, pruned = (one * pace for one in found[: len(FLOATS)])
    told = FloatDefault(option=_option(bench.target), type=shorter, dense_fp32=dense, pruned_fp32=pruned)
    return {"float_default": told}


def of_dense(bench: Bench, maker: ArtifactBuilder, int8: float) -> FloatDefault | None:
    """The same of the dense network alone, before anything is pruned; None as above.

    Args:
        maker: of artifacts in INT8.
        int8: latency of the dense INT8 artifact as it was measured.
    """
    shorter = _shorter(bench.target, bench.probe.fingerprint)
    if not shorter:
        return None
    in_fp32 = replace(maker, precision="fp32", layers={})
    beside, plain = maker.build(DENSE, "dense-beside"), in_fp32.build(DENSE, "dense-float")
    opened = bench.device.load(beside.artifact)
    try:
        found = _timed(bench, shorter, [plain.artifact], [opened])
    finally:
        bench.device.unload(opened)
        maker.forget(beside)
        in_fp32.forget(plain)
    if not found:
        return None
    return FloatDefault(option=_option(bench.target), type=shorter, dense_fp32=found[0] * int8 / found[1])


def _timed(bench: Bench, shorter: str, floats: Sequence[Artifact], anchors: Sequence[Loaded]) -> list[float]:
    """Medians of the float artifacts in the shorter type, then of the anchors; empty where there are none."""
    if not shorter:
        return []
    hint, rounds = runtimes.load(bench.target.runtime).float_hint, min(ROUNDS, bench.target.protocol.rounds)
    protocol = msgspec.structs.replace(bench.target.protocol, rounds=rounds, processes=1, max_seconds=SECONDS)
    opened: list[Loaded] = []
    try:
        for artifact in floats:
            options = {**artifact.options, hint: shorter}
            opened.append(bench.device.load(replace(artifact, name=f"{artifact.name}-{shorter}", options=options)))
        return [one.median for one in bench.device.measure([*opened, *anchors], protocol)]
    except JobFailed:
        return []
    finally:
        for one in opened:
            bench.device.unload(one)


def _option(target: Target) -> str:
    return f"{runtimes.load(target.runtime).float_hint} = {FORCED}"


def _shorter(target: Target, fingerprint: Mapping[str, object]) -> str:
    """The type that the runtime would take there for float layers by itself; empty: what the target's options say."""
    runtime = runtimes.load(target.runtime)
    if target.protocol.unit != "ms" or target.execution.options.get(runtime.float_hint) != FORCED:
        return ""
    features = fingerprint.get("features")
    has = features if isinstance(features, list | tuple) else ()
    return next((name for name, needs in runtime.shorter.items() if any(need in has for need in needs)), "")
