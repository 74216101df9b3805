"""[run] track: TensorBoard's file holds every number of training; what is not installed, or fails, is said."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import msgspec
import pytest
from small_run import run_of

from edgeprune import recipe
from edgeprune.errors import MissingDependency
from edgeprune.pipeline import recovery, tracking


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of TensorBoard's records: length, checksum, event, checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.rglob("events.out.*")):
        raw, place = path.read_bytes(), 0
        while place < len(raw):
            (length,) = struct.unpack("<Q", raw[place : place + 8])
            event = event_pb2.Event.FromString(raw[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_has_the_numbers_of_training(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with run_of(tmp_path, run={"track": ["tensorboard"]}) as context:
        recovery.check(context.subject, context.weights)
        context.voice.track("recover", {"step": 1, "loss": 0.5, "score": 70.0, "metric": "top-1"})
        context.voice.track("recover", {"step": 2, "loss": 0.25, "kind": "mine"})
    found = scalars(tmp_path / "run" / "tracking")
    assert found == {"recover/loss": [(1, 0.5), (2, 0.25)], "recover/score": [(1, 70.0)]}
    assert '"loss": 0.25' in (tmp_path / "run" / "events.jsonl").read_text()


def test_one_that_is_not_installed_is_an_error_of_the_plan(tmp_path: Path) -> None:
    absent = next((name for name in ("wandb", "mlflow") if importlib.util.find_spec(name) is None), None)
    if absent is None:
        pytest.skip("both are installed here")
    with run_of(tmp_path, run={"track": [absent]}) as context, pytest.raises(MissingDependency, match=absent) as found:
        recovery.check(context.subject, context.weights)
    assert found.value.remedy == f"pip install 'edgeprune[{absent}]'"


def test_one_that_fails_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    (tmp_path / "tracking").write_text("in the way of its folder")
    said: list[str] = []
    made = recipe.of_python({"model": {"factory": "a:b"}, "data": {"source": "x:y"}, "budget": {"speedup": 2.0}}, "r")
    made = msgspec.structs.replace(made, run=recipe.RunSection(track=("tensorboard",)))
    trackers = tracking.Trackers(made, "here", tmp_path, said.append)
    for step in (1, 2):
        trackers.log("recover", {"step": step, "loss": 1.0})
    trackers.close()
    assert len(said) == 1 and said[0].startswith("[run] track: tensorboard is left out from here on: ")
