"""A sweep of a tiny network: what is shared is made once, a killed one resumes, Ray gives what one process gives."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections import Counter

import msgspec
import pytest
from click.testing import CliRunner
from tiny_sweep import SWEEP

from edgeprune.cli import main
from edgeprune.errors import DeviceUnreachable, UsageError
from edgeprune.pipeline import RunDirectory
from edgeprune.scale import engines, tasks
from edgeprune.scale.spec import SweepResources, load_sweep
from edgeprune.scale.sweep import as_csv
from edgeprune.scale.tasks import TaskDone, plan_tasks


def sweep(*arguments):
    return CliRunner().invoke(main, ["sweep", "sweep.toml", *map(str, arguments)], prog_name="edgeprune")


def made(folder):
    """Stage -> how often it was made, over all runs of a sweep."""
    found: Counter[str] = Counter()
    for log in folder.glob("runs/*/events.jsonl"):
        for line in log.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "end":
                found[event["stage"]] += 1
    return found


def test_each_shared_stage_has_one_maker_and_the_rest_wait_for_it(project):
    text = SWEEP.replace('["one.toml"]', '["one.toml", "two.toml"]').replace('["quick"]', '["quick", "other"]')
    text = text.replace('until = "search"', "seeds = [0, 1]").replace("[1.05, 1.1]", "[1.05, 1.1, 1.2]")
    (project / "sweep.toml").write_text(text)
    asked, runs = load_sweep(project / "sweep.toml")
    found = plan_tasks(runs, project / "runs", asked.until)
    count = Counter(task.phase for task in found)
    assert len(runs) == 2 * 2 * 3 * 2
    assert count == {"graph": 2, "latency": 4, "search": 24, "recover": 24, "package": 24}
    seen: set[str] = set()
    for task in found:  # in order nothing waits for what comes later
        assert set(task.after) <= seen
        seen.add(task.name)
    by_name = {task.name: task for task in found}
    second = by_name["one-quick-1.1x-s1:search"]
    assert second.after == ("one-quick-1.05x-s0:latency", "one-quick-1.05x-s0:search", "one-quick-1.1x-s0:search")
    assert second.device == "local" and by_name["one-quick-1.1x-s1:recover"].device == ""
    assert {run.recipe().recover.seed for run in runs} == {0, 1}


@pytest.mark.slow
def test_in_order_then_again(project):
    done = sweep("--engine", "order", "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["state"] for row in rows] == ["searched", "searched"]
    assert made(project / "sweeps" / "tiny") == {
        "graph": 1,
        "precision": 1,
        "plan": 2,
        "dense": 1,
        "latency": 1,
        "search": 2,
    }
    assert rows[1]["taken"][0] == "graph"
    with (project / "sweeps/tiny/sweep.csv").open() as stream:
        assert [row["run"] for row in csv.DictReader(stream)] == ["one-quick-1.05x", "one-quick-1.1x"]
    page = (project / "sweeps/tiny/sweep.html").read_text()
    assert "one-quick-1.1x" in page and "searched" in page
    assert sweep("--engine", "order", "--quiet").exit_code == 0
    assert made(project / "sweeps" / "tiny") == {
        "graph": 1,
        "precision": 1,
        "plan": 2,
        "dense": 1,
        "latency": 1,
        "search": 2,
    }  # nothing again


@pytest.mark.slow
def test_on_ray_killed_and_resumed(project):
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "edgeprune", "sweep", "sweep.toml", "--engine", "ray"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder, end = project / "sweeps" / "tiny", time.monotonic() + 600
    while not made(folder)["plan"] and time.monotonic() < end and process.poll() is None:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = made(folder)
    assert before["graph"] == 1 and before["search"] < 2
    done = sweep("--engine", "ray", "--json")
    assert done.exit_code == 0, done.stderr
    assert [row["state"] for row in json.loads(done.stdout)["rows"]] == ["searched", "searched"]
    assert made(folder) == {"graph": 1, "precision": 1, "plan": 2, "dense": 1, "latency": 1, "search": 2}


def test_one_run_that_fails_leaves_the_others(project, monkeypatch):
    """A device that comes back is tried again; what waits for a failed task is skipped, and says for what."""
    _, runs = load_sweep(project / "sweep.toml")
    found = plan_tasks(runs, project / "runs", "search")
    tried: Counter[str] = Counter()

    def perform(task, events):
        tried[task.name] += 1
        if task.phase == "latency" and tried[task.name] < 3:
            raise DeviceUnreachable("the board does not answer.")
        ending = "impossible" if task.name == "one-quick-1.05x:search" else "done"
        return TaskDone(task.name, ending, "too fast" if ending != "done" else "")

    monkeypatch.setattr(engines, "perform", perform)
    ended = {one.name: one for one in engines.in_order(SweepResources(retries=2), lambda event: None)(found)}
    assert ended["one-quick-1.05x:latency"].ending == "done" and tried["one-quick-1.05x:latency"] == 3
    assert ended["one-quick-1.1x:search"].ending == "skipped" and "too fast" in ended["one-quick-1.1x:search"].why
    tried.clear()
    ended = {one.name: one for one in engines.in_order(SweepResources(retries=1), lambda event: None)(found)}
    assert ended["one-quick-1.05x:latency"].ending == "failed"


@pytest.mark.parametrize(
    ("asked", "instead", "says"),
    [
        ('["quick"]', '["quikc"]', "no target is called 'quikc'"),
        ('["one.toml"]', '["none.toml"]', "none.toml"),
        ('["one.toml"]', '["one.toml", "one.toml"]', "is in it twice"),
        ("[1.05, 1.1]", "[0.5]", "speedup is 0.5"),
        ("[1.05, 1.1]", "[nan]", "a budget of nan"),
        ("speedups", "speedup", "unknown key 'speedup'"),
        ('until = "search"', 'until = "search"\n[devices]\nquikc = "pi"', "is no target of this sweep"),
        ('name = "tiny"', 'name = "../x"', "becomes a folder"),
        ('until = "search"', "latencies_ms = [1.0]", "speedups and latencies_ms"),
    ],
)
def test_a_sweep_that_cannot_begin(project, asked, instead, says):
    assert asked in SWEEP
    (project / "sweep.toml").write_text(SWEEP.replace(asked, instead))
    done = sweep()
    assert done.exit_code == 2 and says in done.stderr, done.stderr
    assert not (project / "sweeps").exists()


def test_two_sweeps_in_one_folder(project):
    with RunDirectory(project / "sweeps" / "tiny"):
        done = sweep("--engine", "order")
    assert done.exit_code == 11 and "in use by another edgeprune" in done.stderr
    assert "another --out" in done.stderr and "--run-dir" not in done.stderr
    (project / "sweeps" / "tiny" / "sweep.json").write_text('{"name": "other"}')
    done = sweep("--engine", "order")
    assert done.exit_code == 11 and "holds the sweep 'other'" in done.stderr
    (project / "mine").mkdir()
    (project / "mine" / "thesis.txt").write_text("")
    done = sweep("--engine", "order", "--out", "mine")
    assert done.exit_code == 11 and "holds thesis.txt" in done.stderr


def test_without_ray_an_address_is_refused(project, monkeypatch):
    monkeypatch.setattr(engines, "installed", lambda: False)
    done = sweep("--address", "auto")
    assert done.exit_code == 5 and "edgeprune[ray]" in done.stderr


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "nowhere.invalid:6379", "127.0.0.1:99999"]
)
def test_a_cluster_that_is_not_there(project, monkeypatch, address):
    """Said at once, and before Ray is asked, which would try for minutes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # not listening
        monkeypatch.setattr(engines, "installed", lambda: True)
        monkeypatch.setattr(engines, "_start", lambda *_: pytest.fail("Ray was asked"))
        monkeypatch.setitem(sys.modules, "ray", None)
        done = sweep("--address", address.format(port=free.getsockname()[1]))
    assert done.exit_code == 2 and "no Ray cluster at" in done.stderr and "ray start --head" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("answer", "refused"),
    [(b"HTTP/1.0 400 Bad Request\r\n\r\n", True), (b"", True), (b"\0\0\0\4\0\0\0\0\0", False)],
    ids=["another web server", "closed at once", "gRPC"],
)
def test_something_else_at_the_address(project, monkeypatch, answer, refused):
    """Such as Ray's dashboard; Ray would wait for it for minutes."""
    asked: list[str] = []

    def started(ray, address, named):
        asked.append(address)
        raise UsageError("as far as this")

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            link, _ = server.accept()
            with link:
                assert link.recv(24).startswith(b"PRI * HTTP/2.0")
                link.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setattr(engines, "installed", lambda: True)
        monkeypatch.setattr(engines, "_start", started)
        monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = sweep("--address", address)
        thread.join()
    assert done.exit_code == 2 and asked == ([] if refused else [address]), done.stderr
    assert ("no Ray cluster at" in done.stderr) == refused


def test_what_others_write_to_standard_output_is_no_part_of_the_json(project, monkeypatch, capfd):
    from edgeprune import scale
    from edgeprune.result import SweepReport

    def noisy(*_, **__):
        os.write(1, b"a node has gone\n")
        return SweepReport(name="tiny", engine="Ray", rows=(), tasks=0, done=0, seconds=0.0)

    monkeypatch.setattr(scale, "sweep", noisy)
    done = sweep("--json")
    assert json.loads(done.stdout)["engine"] == "Ray"
    seen = capfd.readouterr()
    assert "a node has gone" in seen.err and "a node has gone" not in seen.out
    os.write(1, b"again")
    assert capfd.readouterr().out == "again"


def test_a_spreadsheet_computes_nothing():
    from edgeprune.result import SweepRow

    text = as_csv([SweepRow(run="=1+1", recipe="r", target="t", budget="2x", seed=0, folder="f", why="a\nb,c")])
    row = next(csv.DictReader(text.splitlines()))
    assert row["run"] == "'=1+1" and row["why"] == "a b,c"


def test_the_page_has_a_column_only_for_what_is_there(tmp_path):
    """And why a run was not released stands below, where a sentence has room."""
    from edgeprune.report import sweep_page
    from edgeprune.result import SweepReport, SweepRow

    def page(*rows):
        return sweep_page(SweepReport(name="s", engine="e", rows=rows, tasks=1, done=1, seconds=1.0), tmp_path)

    searched = SweepRow(run="a", recipe="r", target="t", budget="2x", seed=0, folder="f", state="searched", speedup=2.0)
    text = page(searched)
    assert ">speed-up</th>" in text and ">bytes</th>" not in text and "Why not" not in text
    refused = msgspec.structs.replace(searched, run="b", state="refused", bytes=12_345, why="accuracy: too low.")
    text = page(searched, refused)
    assert ">bytes</th>" in text and "12,345" in text and text.count("accuracy: too low.") == 1
    assert text.index("Why not") < text.index("accuracy: too low.")


def test_every_phase_ends_at_a_stage_of_its_name():
    from edgeprune import stage

    assert set(tasks.PHASES) - {"package"} <= set(stage.NAMES)
