"""FP32 rows are measured with f32 forced; what the runtime would take by itself stands beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgeprune import target
from edgeprune.devices import Artifact, Probe
from edgeprune.errors import JobFailed
from edgeprune.pipeline import feasible, float_default

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


@dataclass(frozen=True)
class Maker:
    """Builds dense artifacts, and counts those that are left."""

    left: list[Artifact]
    precision: str = "int8"
    layers: dict[str, str] = field(default_factory=dict)

    def build(self, variant: Any, name: str) -> Any:
        made = Artifact(f"dense-{self.precision}", "openvino", self.precision, {"a.xml": Path("a.xml")})
        self.left.append(made)
        return SimpleNamespace(artifact=made)

    def forget(self, built: Any) -> None:
        self.left.remove(built.artifact)


def test_plan_measures_the_dense_network_so() -> None:
    bench: Any = SimpleNamespace(
        device=Device(), target=target.load("intel-cpu"), probe=SimpleNamespace(fingerprint=HAS)
    )
    maker: Any = Maker([])
    found = float_default.of_dense(bench, maker, 30.0)
    assert found is not None and found.dense_fp32 == pytest.approx(30.0) and found.pruned_fp32 is None
    assert maker.left == [] and bench.device.opened == []
    plain: Any = SimpleNamespace(**{**vars(bench), "probe": SimpleNamespace(fingerprint={})})
    assert float_default.of_dense(plain, maker, 30.0) is None and maker.left == []


@pytest.mark.parametrize(
    ("int8", "own", "says"),
    [
        (5.0, {}, ""),
        (5.0, {"type": "bf16", "dense_fp32": 6.0}, ""),
        (5.0, {"type": "bf16", "dense_fp32": 4.0}, "own default, bf16: 4 ms against dense INT8's 5"),
        (9.9, {"type": "bf16", "dense_fp32": 4.0}, "not faster than FP32 on this device: 9.9 against 10 ms"),
    ],
)
def test_plan_says_where_int8_does_not_pay(int8: float, own: dict[str, Any], says: str) -> None:
    found = feasible._pays({"spread": 0.01, "dense_int8": int8, "dense_fp32": 10.0, "unit": "ms"}, own)
    assert [says in one.message for one in found] == [True] * bool(says)


@pytest.mark.parametrize(
    ("int8", "fp32", "own_spread", "says"),
    [
        (28.7, 22.3, 0.1, True),  # a CPU without VNNI, as it was measured
        (28.7, 22.3, 0.2, True),  # slower by more than two measurements of one network may differ
        (28.7, 22.3, 0.25, False),
        (10.1, 10.0, 0.15, False),  # nobody can tell
        (10.1, 10.0, 0.02, True),
        (9.7, 10.0, 0.02, False),
        (28.7, 22.3, None, False),  # planned before dense FP32's own spread was kept
        (80.0, 22.3, None, True),
        (28.7, 22.3, 1.5, False),
    ],
)
def test_int8_and_fp32_are_judged_by_their_own_ratio(
    int8: float, fp32: float, own_spread: float | None, says: bool
) -> None:
    """A floor that could not be timed well says nothing of them."""
    measured = {"spread": 0.69, "fp32_spread": own_spread, "dense_int8": int8, "dense_fp32": fp32, "unit": "ms"}
    assert [one.name for one in feasible._pays(measured, {})] == ["faster"] * says


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


def test_a_runtime_that_does_not_run_it_costs_no_release(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Device, loaded: Sequence[Any], protocol: target.Protocol) -> list[Any]:
        raise JobFailed("it ended.")

    monkeypatch.setattr(Device, "measure", refuse)
    assert measured(HAS) == {}
