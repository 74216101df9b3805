"""The run directory: whole stages or none, resume, locks, a full disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeprune.errors import RunError
from edgeprune.pipeline.code import code
from edgeprune.pipeline.rundir import RunDirectory, key_of, read_json, write_json
from edgeprune.stage import NAMES as STAGES


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
    with pytest.raises(RunError, match="not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(RunError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_keys_depend_on_values_not_on_order() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})


def sealed(path: Path) -> RunDirectory:
    """A run whose stages have a few files each; graph to validate, all of key 'a'."""
    with RunDirectory(path) as run:
        for name in STAGES[:-1]:
            run.stage(name, "a", lambda folder, name=name: fill(folder, name))
    return RunDirectory(path)


def fill(folder: Path, text: str) -> None:
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "a.json").write_text(f'"{text}"')
    (folder / "deep" / "b.bin").write_bytes(bytes(range(256)))
    (folder / "empty").write_bytes(b"")


DAMAGE = {
    "flipped": lambda path: path.write_bytes(flip(path.read_bytes())),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1] if path.stat().st_size else b"x"),
    "emptied": lambda path: path.write_bytes(b"" if path.stat().st_size else b"\0"),
    "deleted": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link": lambda path: (path.rename(path.parent.parent / "moved"), path.symlink_to(path.parent.parent / "moved")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "joined by another": lambda path: path.with_name("more").write_text("x"),
}


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 4]) if data else b"y"


@pytest.mark.parametrize("how", DAMAGE.values(), ids=DAMAGE)
def test_every_damage_to_one_file_is_found_and_healed(tmp_path: Path, how: Callable[[Path], object]) -> None:
    sealed(tmp_path / "run")
    names = [path.relative_to(tmp_path / "run" / "graph") for path in (tmp_path / "run" / "graph").rglob("*")]
    damaged = [name for name in names if not (tmp_path / "run" / "graph" / name).is_dir()]
    assert {str(name) for name in damaged} == {"a.json", "deep/b.bin", "empty", "stage.json"}
    for name in damaged:
        how(tmp_path / "run" / "graph" / name)
        with RunDirectory(tmp_path / "run") as run:
            assert not run.is_whole("graph", "a"), name
            run.stage("graph", "a", lambda folder: fill(folder, "graph"))
        with RunDirectory(tmp_path / "run") as run:
            assert run.is_whole("graph", "a"), name
            assert run.is_whole("latency", "a"), "made again as it was: what came after still holds"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    sealed(tmp_path)
    (tmp_path / "plan" / "a.json").write_text("other")
    (tmp_path / "validate" / "deep" / "b.bin").unlink()
    (tmp_path / "artifacts" / "new").write_text("x")
    with RunDirectory(tmp_path) as run:
        said = {name: run.state(name, "a").fault for name in STAGES[:-1]}
    assert said["plan"] == "a.json has been changed"
    assert said["validate"] == "deep/b.bin is missing"
    assert said["artifacts"] == "new has been added"
    assert said["graph"] == said["quantize"] == ""


def test_a_stage_made_again_otherwise_unmakes_all_that_came_of_it(tmp_path: Path) -> None:
    sealed(tmp_path)
    (tmp_path / "quantize" / "a.json").unlink()
    with RunDirectory(tmp_path) as run:
        run.stage("quantize", "a", lambda folder: fill(folder, "another"))
        assert run.is_whole("recover", "a")
        assert run.state("artifacts", "a").fault == "it was made from another quantize/"
        run.stage("artifacts", "a", lambda folder: fill(folder, "artifacts"))
        assert run.is_whole("validate", "a"), "the artifacts are the same again, byte for byte"


def test_a_whole_stage_of_another_run_is_not_taken_for_this_runs(tmp_path: Path) -> None:
    sealed(tmp_path / "one")
    with RunDirectory(tmp_path / "two") as run:
        run.stage("search", "a", lambda folder: fill(folder, "other"))
    shutil.rmtree(tmp_path / "one" / "search")
    shutil.copytree(tmp_path / "two" / "search", tmp_path / "one" / "search")
    with RunDirectory(tmp_path / "one") as run:
        assert not run.is_whole("recover", "a")
        assert not run.is_whole("search", "a"), "it came of another latency/"


@pytest.mark.parametrize("name", ["latency", "search", "recover"])
@pytest.mark.parametrize("how", [DAMAGE["flipped"], DAMAGE["deleted"], DAMAGE["joined by another"]])
def test_a_training_is_never_thrown_away_unasked(tmp_path: Path, name: str, how: Callable[[Path], object]) -> None:
    sealed(tmp_path)
    keys = dict.fromkeys(STAGES, "a")
    for file in ("a.json", "stage.json"):
        path = tmp_path / name / file
        before = path.read_bytes()
        how(path)
        with RunDirectory(tmp_path) as run, pytest.raises(RunError, match="not as the run left it") as refused:
            run.check(keys, STAGES)
        assert str(tmp_path / name) in refused.value.message
        assert "--from" in refused.value.remedy
        path.write_bytes(before)
        (tmp_path / name / "more").unlink(missing_ok=True)
    with RunDirectory(tmp_path) as run:
        run.check(keys, STAGES)
        run.check({**keys, "recover": "b"}, STAGES)


def test_a_training_of_other_inputs_is_no_reason_to_stop(tmp_path: Path) -> None:
    sealed(tmp_path)
    (tmp_path / "recover" / "a.json").unlink()
    with RunDirectory(tmp_path) as run:
        run.check(dict.fromkeys(STAGES, "b"), STAGES)
        with pytest.raises(RunError):
            run.check(dict.fromkeys(STAGES, "a"), STAGES)
        run.forget("search")
        run.check(dict.fromkeys(STAGES, "a"), STAGES)


def test_a_checkpoint_stays_until_the_stage_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any rename, deletion or fsync of the end: the work is never done twice, once it is sealed."""
    counts = []
    for at in range(40):
        folder, calls = tmp_path / str(at), []

        def work(part: Path, calls: list[str] = calls) -> None:
            calls.append("resumed" if (part / "checkpoint.pt").exists() else "trained")
            (part / "checkpoint.pt").write_text("all steps")
            (part / "weights").write_text("good")

        with monkeypatch.context() as patch, contextlib.suppress(Killed), RunDirectory(folder) as run:
            kill_at(patch, at)
            run.stage("recover", "a", work)
        for _ in range(2):
            with RunDirectory(folder) as run:
                run.stage("recover", "a", work)
                assert run.is_whole("recover", "a")
        assert calls.count("trained") == 1
        counts.append(len(calls))
        assert sorted(path.name for path in (folder / "recover").iterdir()) == ["stage.json", "weights"]
        assert not (folder / "recover.part").exists() and not (folder / "recover.old").exists()
    assert set(counts) == {1, 2}


class Killed(BaseException):
    """Stands in for SIGKILL: no handler of ours catches it."""


def kill_at(patch: pytest.MonkeyPatch, at: int) -> None:
    """Let the `at`-th change of names, deletion or fsync, and all after it, end in Killed, before it happens."""
    left = [at]

    def killing(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **named)

        return call

    for holder, name in ((os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink")):
        patch.setattr(holder, name, killing(getattr(holder, name)))


@pytest.mark.long
def test_the_lock_is_never_held_twice(tmp_path: Path) -> None:
    """Four processes, a thousand times: whoever is inside finds nobody else inside."""
    path, sign, children = tmp_path / "run", tmp_path / "inside", []
    for _ in range(4):
        child = os.fork()
        if not child:
            os._exit(acquire(path, sign, 250))
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4


def acquire(path: Path, sign: Path, times: int) -> int:
    """Hold the lock so many times; 1 where somebody else held it too."""
    done = 0
    while done < times:
        try:
            with RunDirectory(path):
                try:
                    os.close(os.open(sign, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    return 1
                time.sleep(0.0002)
                sign.unlink()
                done += 1
        except RunError:
            time.sleep(0.0005)
    return 0


@pytest.mark.parametrize("name", [".lock", "events.jsonl"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "dangling link", "loop"])
def test_what_is_no_plain_file_is_refused_and_no_link_is_followed(tmp_path: Path, name: str, kind: str) -> None:
    path, victim = tmp_path / "run" / name, tmp_path / "victim"
    path.parent.mkdir()
    victim.write_text("precious")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link": victim, "dangling link": tmp_path / "nowhere", "loop": path}[kind])
    with pytest.raises(RunError, match="is not a plain file"), RunDirectory(tmp_path / "run") as run:
        run.event("x")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["graph", "graph.part", "graph.old"])
def test_a_link_in_the_place_of_a_stage_is_replaced_not_followed(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("x")
    (victim / ".key").write_text("a")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(victim)
    with RunDirectory(tmp_path / "run") as run:
        run.stage("graph", "a", lambda folder: (folder / "mine").write_text("x"))
        assert run.is_whole("graph", "a")
    assert sorted(path.name for path in victim.iterdir()) == [".key", "precious"]
    assert not (tmp_path / "run" / "graph").is_symlink()


def test_claims_of_before_are_moved_away_once(tmp_path: Path) -> None:
    for text in ("first", "second"):
        (tmp_path / "release").mkdir()
        (tmp_path / "release" / "a.tar").write_text(text)
        (tmp_path / "result.json").write_text(text)
        with RunDirectory(tmp_path) as run:
            assert run.withdraw() == ["result.json", "release"]
            assert run.withdraw() == []
    assert (tmp_path / "earlier" / "release" / "a.tar").read_text() == "second"
    assert not (tmp_path / "release").exists() and not (tmp_path / "result.json").exists()


def test_the_code_that_makes_a_stage_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("x = 1\n")
    (tmp_path / "alone.py").write_text("")
    monkeypatch.setattr("edgeprune.pipeline.code.PACKAGE", tmp_path)
    before = code.__wrapped__("room", "alone")
    assert before == code.__wrapped__("room", "alone") != code.__wrapped__("room")
    (tmp_path / "room" / "a.py").write_text("x = 2\n")
    changed = code.__wrapped__("room", "alone")
    (tmp_path / "room" / "a.py").rename(tmp_path / "room" / "b.py")
    assert len({before, changed, code.__wrapped__("room", "alone")}) == 3
