"""What a release says of the fleet that measured it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgeprune import report, result
from edgeprune.devices import Artifact, Fleet, Probe, Timing
from edgeprune.errors import DeviceUnreachable
from edgeprune.pipeline import fleets
from edgeprune.release import readme
from edgeprune.result import FleetBoard, FleetInfo
from edgeprune.target import Protocol


class Board:
    """A board on which the pruned network takes `share` of the dense one's time."""

    def __init__(self, dense: float, share: float, reason: str = "", gone: bool = False) -> None:
        self.dense, self.share, self.reason, self.gone, self.open = dense, share, reason, gone, 0

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def probe(self) -> Probe:
        return Probe({"cpu": "one"}, {"where": "a shelf"})

    def load(self, artifact: Artifact) -> Any:
        self.open += 1
        return SimpleNamespace(artifact=artifact)

    def unload(self, loaded: Any) -> None:
        self.open -= 1

    def measure(self, loaded: Sequence[Any], protocol: Protocol) -> list[Timing]:
        if self.gone:
            raise DeviceUnreachable("the power is off.")
        assert [one.artifact.name for one in loaded] == ["dense-int8", "pruned-int8"]
        reasons = (self.reason,) if self.reason else ()
        found = (self.dense, self.dense * self.share)
        return [Timing(v, v, v, v, v, 0.0, 3, (v,) * 3, valid=not reasons, reasons=reasons) for v in found]


def compared(boards: dict[str, Any]) -> FleetInfo:
    said: list[str] = []
    artifacts = {name: Artifact(name, "onnxruntime", "int8", {}) for name in ("dense-int8", "pruned-int8")}
    with Fleet(boards) as fleet:
        context: Any = SimpleNamespace(
            device=fleet, target=SimpleNamespace(protocol=Protocol()), say=lambda stage, line: said.append(line)
        )
        found = fleets.compare(context, context, artifacts)["fleet"]
    assert said[-1] == found.text and not any(board.open for board in boards.values())
    return found


def test_how_far_the_boards_differ() -> None:
    found = compared({"a": Board(2.0, 0.5), "b": Board(2.1, 0.5), "c": Board(2.0, 0.51)})
    assert found.validated_on == "a" and len(found.measured) == 3
    assert found.latency_differs == pytest.approx(0.05) and found.speedup_differs == pytest.approx(0.02)
    assert "validated on a, one of a fleet of 3; 3 boards measured" in found.text and "5.00 %" in found.text


def test_what_does_not_count_and_who_dropped() -> None:
    found = compared({"a": Board(2.0, 0.5), "b": Board(9.0, 0.5, "throttled"), "c": Board(2.0, 0.5, gone=True)})
    assert [one.valid for one in found.boards] == [True, False, False] and found.latency_differs is None
    assert "b (throttled)" in found.text and "c (the power is off.)" in found.text


def test_one_device_says_nothing_of_a_fleet() -> None:
    context: Any = SimpleNamespace(device=Board(1.0, 0.5))
    assert fleets.compare(context, context, {}) == {}


def test_it_is_read_again_and_shown(tmp_path: Path) -> None:
    info = compared({"a": Board(2.0, 0.5), "b": Board(2.1, 0.5)})
    data = {"version": 2, "name": "net", "target": "x86-onnxruntime", "unit": "ms", "fleet": msgspec.to_builtins(info)}
    assert result.read(data).fleet == info
    assert result.glance({**data, "fleet": {"boards": 3}}).fleet is None
    assert "validated on a, one of a fleet of 2" in readme._fleet(data)
    report.write(data, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Validated on a." in page and "a shelf" in page
    assert FleetBoard(name="x", dense_int8=0.0, pruned_int8=1.0).speedup is None
