"""The run directory: whole stages or none, resume, locks, a full disk."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from edgeprune.errors import RunError
from edgeprune.pipeline.rundir import RunDirectory, key_of, read_json, write_json


def test_a_whole_stage_is_kept_and_a_changed_key_makes_it_again(tmp_path: Path) -> None:
    calls = []
    with RunDirectory(tmp_path / "run") as run:
        for key in ("a", "a", "b"):
            run.stage("graph", key, lambda folder, key=key: calls.append((key, folder.name)))
        assert run.is_whole("graph", "b") and not run.is_whole("graph", "a")
    assert calls == [("a", "graph.part"), ("b", "graph.part")]
    assert [timing["reused"] for timing in run.timings] == [False, True, False]


def test_a_failed_stage_leaves_the_earlier_result_and_its_part_for_the_next_try(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        assert not (folder / "checkpoint").exists()
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    found = []
    with RunDirectory(tmp_path) as run:
        run.stage("graph", "a", lambda folder: (folder / "x").write_text("1"))
        with pytest.raises(KeyboardInterrupt):
            run.stage("graph", "b", fail)
        assert (tmp_path / "graph" / "x").read_text() == "1"
    with RunDirectory(tmp_path) as run:
        run.stage("graph", "b", lambda folder: found.append((folder / "checkpoint").read_text()))
    assert found == ["half"]


def test_a_part_of_other_inputs_is_thrown_away(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    with RunDirectory(tmp_path) as run:
        with pytest.raises(KeyboardInterrupt):
            run.stage("graph", "a", fail)
        run.stage("graph", "b", lambda folder: None)
        assert not (tmp_path / "graph" / "checkpoint").exists()


def test_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path), pytest.raises(RunError, match="in use by another edgeprune"), RunDirectory(tmp_path):
        pass
    with RunDirectory(tmp_path):
        pass


def test_a_full_disk_is_one_clear_error_and_keeps_whole_stages(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunDirectory(tmp_path) as run:
        run.stage("graph", "a", lambda folder: None)
        with pytest.raises(RunError, match="the disk is full") as caught:
            run.stage("latency", "a", fill)
        assert caught.value.exit_code == 11
        assert run.is_whole("graph", "a") and not run.is_whole("latency", "a")


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"), RunDirectory(tmp_path / "file"):
        pass


def test_forgetting_a_stage_forgets_all_after_it(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        for name in ("graph", "latency", "recover"):
            run.stage(name, "a", lambda folder: None)
        run.forget("latency")
        assert [name for name in ("graph", "latency", "recover") if run.is_whole(name, "a")] == ["graph"]


def test_events_tell_what_happened(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.stage("graph", "a", lambda folder: None)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(line["event"], line["stage"]) for line in lines] == [("begin", "graph"), ("end", "graph")]


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        read_json(tmp_path / "a.json")
    with pytest.raises(RunError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_keys_depend_on_values_not_on_order() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
