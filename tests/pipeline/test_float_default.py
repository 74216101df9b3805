"""FP32 rows are measured with f32 forced; what the runtime would take by itself stands beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgeprune import target
from edgeprune.devices import Artifact, Probe
from edgeprune.pipeline import float_default

HAS = {"features": ["avx512f", "avx512_vnni", "avx512_bf16"]}
NAMES = ("dense-fp32", "dense-int8", "pruned-fp32", "pruned-int8")
TIMES = dict(zip(NAMES, (9.0, 3.0, 6.0, 2.0), strict=True))


class Device:
    """Runs twice as slow as when the medians were measured; bf16 is three times as fast as f32."""

    def __init__(self) -> None:
        self.opened: list[Artifact] = []

    def load(self, artifact: Artifact) -> Any:
        self.opened.append(artifact)
        return SimpleNamespace(artifact=artifact)

    def unload(self, loaded: Any) -> None:
        self.opened.remove(loaded.artifact)

    def measure(self, loaded: Sequence[Any], protocol: target.Protocol) -> list[Any]:
        assert protocol.rounds <= float_default.ROUNDS

        def one(artifact: Artifact) -> float:
            short = artifact.options.get("INFERENCE_PRECISION_HINT") == "bf16"
            return 2 * TIMES[artifact.name.removesuffix("-bf16")] / (3 if short else 1)

        return [SimpleNamespace(median=one(part.artifact)) for part in loaded]


def measured(fingerprint: dict[str, object], **changes: Any) -> Any:
    device, profile = Device(), target.load("intel-cpu")
    asked = msgspec.structs.replace(profile, **changes)
    artifacts = {name: Artifact(name, "openvino", name[-4:], {"a.xml": Path("a.xml")}) for name in NAMES}
    loaded = {name: SimpleNamespace(artifact=artifact) for name, artifact in artifacts.items()}
    timings: Any = {name: SimpleNamespace(median=value) for name, value in TIMES.items()}
    bench: Any = SimpleNamespace(device=device, target=asked)
    found = float_default.measure(bench, loaded, timings, Probe(fingerprint, {}))
    assert device.opened == []
    return found


def test_the_shorter_type_is_measured_at_the_pace_of_the_other_rows() -> None:
    found = measured(HAS)["float_default"]
    assert (found.type, found.dense_fp32, found.pruned_fp32) == ("bf16", pytest.approx(3.0), pytest.approx(2.0))


@pytest.mark.parametrize(
    ("fingerprint", "changes"),
    [
        ({"features": ["avx2", "avx512_vnni"]}, {}),
        ({}, {}),
        (HAS, {"runtime": "onnxruntime"}),
        (HAS, {"execution": target.Execution(options={"PERFORMANCE_HINT": "LATENCY"})}),
        (HAS, {"protocol": target.Protocol(unit="instructions")}),
    ],
)
def test_nothing_is_measured_where_there_is_none(fingerprint: dict[str, object], changes: dict[str, Any]) -> None:
    assert measured(fingerprint, **changes) == {}
