"""Fresh processes of a measurement: two open the artifacts side by side, and neither is timed before both have."""

from __future__ import annotations

import itertools
import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeprune.devices.agent import supervisor
from edgeprune.devices.agent.wire import Failure, encode


@pytest.mark.parametrize(("room", "abreast"), [(4 << 30, 2), (1 << 30, 1)])
def test_two_workers_open_the_artifacts_before_either_is_timed_where_there_is_memory(
    room: int, abreast: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What each of them was asked, in order: never a measurement while another one opens."""
    asked = list[tuple[int, str]]()

    class Worker:
        def __init__(self, command: list[str]) -> None:
            self.number, self.lines, self.alive = made.__next__(), queue.Queue[bytes](), True
            self.process = SimpleNamespace(pid=0, poll=lambda: None, returncode=None)

        def send(self, message: dict[str, Any]) -> None:
            asked.append((self.number, message["op"]))
            found = {"samples": [[[1.0]]], "reasons": ["hot"], "notes": [], "pinned": [0], "others": 0.5}
            self.lines.put(encode({"ok": True, "result": found if message["op"] == "measure" else {}}))

        def kill(self) -> None:
            assert self.alive
            self.alive = False

    made = itertools.count()
    monkeypatch.setattr(supervisor, "Child", Worker)
    monkeypatch.setattr(supervisor.state, "available", lambda: room)
    monkeypatch.setattr(supervisor.os, "cpu_count", lambda: 2)
    agent = supervisor.Supervisor(str(tmp_path), [], lambda event: None)
    agent._known["a"] = {"handle": "a"}
    request = {"rounds": 3, "max_seconds": 3.0, "timeout_s": 5.0}
    found = agent._in_fresh_processes(request, ["a"], 3)
    together = [(0, "load"), (1, "load"), (0, "measure"), (1, "measure"), (2, "load"), (2, "measure")]
    alone = [(0, "load"), (0, "measure"), (1, "load"), (1, "measure"), (2, "load"), (2, "measure")]
    assert asked == (together if abreast == 2 else alone)
    assert found["samples"] == [[[1.0]] * 3] and found["reasons"] == ["hot"]
    assert found["others"] == pytest.approx(0.5)


def test_a_worker_that_cannot_open_an_artifact_ends_the_measurement_and_both_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workers = list[Any]()

    class Worker:
        def __init__(self, command: list[str]) -> None:
            workers.append(self)
            self.lines, self.alive = queue.Queue[bytes](), True
            self.process = SimpleNamespace(pid=0, poll=lambda: None, returncode=None)

        def send(self, message: dict[str, Any]) -> None:
            bad = {"kind": "runtime", "message": "it cannot be opened", "rc": 1}
            self.lines.put(encode({"ok": len(workers) == 1, "result": {}, "error": bad}))

        def kill(self) -> None:
            self.alive = False

    monkeypatch.setattr(supervisor, "Child", Worker)
    monkeypatch.setattr(supervisor.state, "available", lambda: 8 << 30)
    monkeypatch.setattr(supervisor.os, "cpu_count", lambda: 2)
    agent = supervisor.Supervisor(str(tmp_path), [], lambda event: None)
    agent._known["a"] = {"handle": "a"}
    with pytest.raises(Failure, match="it cannot be opened"):
        agent._in_fresh_processes({"rounds": 4, "max_seconds": 3.0, "timeout_s": 5.0}, ["a"], 4)
    assert [worker.alive for worker in workers] == [False, False]
