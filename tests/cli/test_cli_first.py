"""The first commands that a user types: init, quick, runs."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from edgeprune import recipe
from edgeprune.cli import quick
from edgeprune.errors import BudgetError, UsageError
from edgeprune.pipeline import RunDirectory, Wanted


@pytest.mark.long
def test_init_writes_a_recipe_with_comments(edgeprune_command, project):
    done = edgeprune_command("init", "net.py:net", "--data", "data.npz", "--speedup", "1.2", "-o", "mine.toml")
    assert done.exit_code == 0, done.stderr
    assert "train_images [200, 16, 16, 3]" in done.stderr
    assert "top-1" in done.stderr
    assert done.stdout.splitlines()[-1] == "mine.toml"
    text = Path("mine.toml").read_text()
    assert "# over the dense INT8 artifact" in text
    made = recipe.load("mine.toml")
    assert (made.budget.speedup, made.model.input, made.data.source) == (1.2, (3, 16, 16), "data.npz")
    stated = ("--set", "data.mean=[0.1]", "--set", "data.std=[0.5]", "--set", "recover.optimizer=adamw")
    done = edgeprune_command("init", "net.py:net", "--data", "data.npz", *stated, "-o", "other.toml")
    other = recipe.load("other.toml")
    assert (other.data.mean, other.data.std, other.recover.optimizer) == ((0.1,), (0.5,), "adamw"), done.stderr
    assert "pixels as" not in done.stderr  # nothing is tried
    unstated = edgeprune_command("init", "net.py:net", "--data", "data.npz", "-o", "third.toml")
    assert "pixels as" in unstated.stderr
    again = edgeprune_command("init", "net.py:net", "--data", "data.npz", "-o", "mine.toml")
    assert again.exit_code == 2
    assert "mine.toml is there already" in again.stderr


def test_a_quick_run_that_cannot_be_drafted_leaves_no_folder(edgeprune_command, project):
    done = edgeprune_command("intel-cpu", "quick", "net.py:net", "--data", "gone")
    assert done.exit_code == 3 and not Path("runs").exists()
    Path("runs").mkdir()
    edgeprune_command("intel-cpu", "quick", "net.py:net", "--data", "gone")
    assert list(Path("runs").iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["init"], 2, "the network is missing"),
        (["init", "net.py:net"], 2, "--data is missing"),
        (["init", "net.py:net", "--data", "gone"], 3, "no such file or folder"),
        (["init", "net.py:net", "--data", "targets"], 3, "1 .toml file: no layout that is read"),
        (["init", "net.py:net", "--data", "data.npz", "--input", "3,x"], 2, "not a shape"),
        (["init", "net.py:net", "--data", "data.npz", "--task", "clasification"], 3, "Did you mean 'classification'?"),
        (["init", "net.py:net", "--data", "data.npz", "--argument", "x"], 2, "not NAME=VALUE"),
        (["init", "net.py:net", "--data", "data.npz", "--set", "mean=[0.5]"], 2, "not SECTION.KEY=VALUE"),
        (["init", "net.py:net", "--data", "data.npz", "--set", "budget.speedup=2"], 2, "that is --speedup"),
        (["init", "net.py:net", "--data", "data.npz", "--set", "data.means=[0.5]"], 2, "Did you mean 'mean'?"),
        (["init", "net.py:nets", "--data", "data.npz"], 3, "Did you mean 'net'?"),
        (["intel-cpu", "quick", "net.py:net"], 2, "--data is missing"),
        (["runs", "gone"], 11, "gone: no such folder"),
        (["runs", ".", "--yes"], 2, "belong to --clean"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(edgeprune_command, project, arguments, code, message):
    done = edgeprune_command(*arguments, *(["-o", "new.toml"] if arguments[0] == "init" else []))
    assert done.exit_code == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("new.toml").exists()


def test_another_budget_goes_on_with_the_quick_run_that_is_there(tmp_path):
    """As a refusal proposes it; another network is another run."""
    first = Wanted("net.py:net", "photos", max_drop=1.0)
    assert not quick._known(tmp_path, first)
    (tmp_path / "recipe.toml").touch()
    (tmp_path / "quick.json").write_text(json.dumps(dataclasses.asdict(first), default=list))
    assert quick._known(tmp_path, first)
    older = {key: value for key, value in dataclasses.asdict(first).items() if key != "tokenizer"}  # not asked then
    (tmp_path / "quick.json").write_text(json.dumps(older, default=list))
    assert quick._known(tmp_path, first)
    with pytest.raises(UsageError, match="asked for otherwise: tokenizer"):
        quick._known(tmp_path, dataclasses.replace(first, tokenizer="tokenizer.json"))
    assert not quick._known(tmp_path, dataclasses.replace(first, max_drop=2.0, speedup=1.2))
    with pytest.raises(UsageError, match="asked for otherwise: data, factory"):
        quick._known(tmp_path, dataclasses.replace(first, factory="net.py:other", data="more", max_drop=2.0))


def a_run(name, verdict="", bundle=False, days=0.0):
    folder = Path("runs") / name
    (folder / "release").mkdir(parents=True)
    (folder / "recipe.lock.toml").write_text('target = "intel-cpu"\n')
    if verdict:
        (folder / "result.json").write_text(json.dumps({"verdict": verdict}))
    if bundle:
        (folder / "release" / f"{name}.tar").write_bytes(b"0" * 5_000_000)
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - days * 86400,) * 2)
    return folder


def test_runs_are_listed_and_cleaned_only_where_nothing_is_lost(edgeprune_command, project):
    a_run("good", "release", bundle=True)
    a_run("bad", "refused", days=3)
    (a_run("begun", days=9) / "recipe.lock.toml").unlink()  # by plan
    for name in (".lock", "events.jsonl"):
        (Path("runs/begun") / name).touch()
        os.utime(Path("runs/begun") / name, (0, 0))
    os.utime("runs/begun", (time.time() - 9 * 86400,) * 2)
    busy = a_run("busy", days=9)
    (Path("runs") / "notes").mkdir()
    table = edgeprune_command("runs").stdout
    with pytest.raises(BudgetError), RunDirectory(Path("runs/begun")):
        raise BudgetError("too much is asked for.")
    os.utime("runs/begun/events.jsonl", (0, 0))
    assert "nothing yet (BudgetError)" in edgeprune_command("runs").stdout
    os.utime("runs/begun", (time.time() - 9 * 86400,) * 2)
    for wanted in ("release", "refused", "nothing yet", "good.tar", "5.0 MB", "3 days", "4 runs"):
        assert wanted in table
    assert edgeprune_command("runs", "--clean").exit_code == 2  # no terminal: it asks for --yes
    with (busy / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "busy" in edgeprune_command("runs").stdout
        done = edgeprune_command("runs", "--clean", "--yes", "--older", "5", "--json")
    assert [Path(one["path"]).name for one in done.json["removed"]] == ["begun"]
    edgeprune_command("runs", "--clean", "--yes")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["good", "notes"]
    edgeprune_command("runs", "--clean", "--yes", "--released")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["notes"]


def test_a_refusal_in_json_has_its_error_beside_what_was_found(edgeprune_command, project, pipeline):
    pipeline.plan_result = {"feasible": False, "advice": "Ask for less.", "unit": "ms"}
    done = edgeprune_command("intel-cpu", "plan", "recipe.toml", "--json")
    assert done.exit_code == 7
    assert done.json["plan"]["advice"] == "Ask for less."
    assert done.json["error"] == {
        "kind": "BudgetError", "message": "the budget cannot be met.", "remedy": "Ask for less.", "exit_code": 7
    }  # fmt: skip
