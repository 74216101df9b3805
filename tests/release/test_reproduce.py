"""A bundle's recipe, run again: what is said of it. The run itself is a stand-in that copies a finished one."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from edgeprune import files, pipeline
from edgeprune.cli import main
from edgeprune.errors import BundleError, GateError, NotAuthenticated, RegressionError, UsageError
from edgeprune.pipeline import Outcome
from edgeprune.release.bundle import bundle
from edgeprune.scale import reproduce


def told(made):
    return {one.name: one.same for one in made.parts}


@pytest.fixture
def again(made, tmp_path, monkeypatch):
    """The bundle, and a `pipeline.run` that leaves a copy of its run, changed by `again.change(folder, result)`."""
    run, result = made
    seen = {}

    class Again:
        old = bundle(run, result, tmp_path / "old")
        asked = seen

        @staticmethod
        def change(folder, changed):
            return changed

    def stand_in(recipe, target, path, **how):
        seen.update(recipe=recipe, target=target, **how)
        shutil.copytree(run, path, dirs_exist_ok=True)
        listed = {"pruned-int8": {"sha256": dict(result["artifact"]["sha256"]), "options": {}}}
        (path / "artifacts" / "artifacts.json").write_text(json.dumps(listed))
        found = Again.change(path, json.loads(json.dumps(result)))
        if found["verdict"] != "release":
            error = GateError("refused.", "")
            error.outcome = Outcome(path, found, None, path / "report.html")
            raise error
        (path / "release").mkdir()
        return Outcome(path, found, bundle(path, found, path / "release"), None)

    monkeypatch.setattr(pipeline, "run", stand_in)
    return Again


@pytest.mark.long
def test_the_same_again(again, made, tmp_path):
    found = reproduce(again.old, tmp_path, tmp_path / "new", trusted=True)
    assert told(found) == {
        "recipe": True, "target": True, "packages": True, "device": True, "test examples": None,
        "chosen network": True, "weights": None, "INT8 graph": None, "artifact": True,
    }  # fmt: skip
    assert found.identical and found.compared is not None
    found.check(strict=True)
    recipe = again.asked["recipe"]
    assert recipe.name == "tiny" and recipe.path == str(tmp_path / "recipe.toml")
    assert recipe.section("budget") == made[1]["recipe"]["budget"] | recipe.section("budget")


@pytest.mark.long
def test_what_differs_is_named(again, tmp_path):
    def change(folder, result):
        (folder / "recipe.lock.toml").write_text("[model]\n# other\n")
        (folder / "search" / "plan.json").write_text('{"version": 1, "removed": ["layer1.2"], "kept": {"a": [0]}}')
        measured = json.loads((folder / "validate" / "measured.json").read_text())
        measured["sha256"]["search/plan.json"] = files.sha256(folder / "search" / "plan.json")
        (folder / "validate" / "measured.json").write_text(json.dumps(measured))
        packages = {**result["environment"]["packages"], "torch": "9.9"}
        result["environment"] = {**result["environment"], "packages": packages}
        result["device"] = {**result["device"], "kernel": "9.9"}
        listed = {"pruned-int8": {"sha256": dict.fromkeys(result["artifact"]["sha256"], "0" * 64), "options": {}}}
        (folder / "artifacts" / "artifacts.json").write_text(json.dumps(listed))
        return result

    again.change = staticmethod(change)
    found = reproduce(again.old, tmp_path, tmp_path / "new", trusted=True)
    told_now = told(found)
    assert [told_now[name] for name in ("recipe", "packages", "device", "chosen network", "artifact")] == [False] * 5
    messages = {one.name: one.message for one in found.parts}
    assert "layer1.2" in messages["chosen network"] and "channels of 1 groups (a)" in messages["chosen network"]
    assert "torch" in messages["packages"] and "9.9 now" in messages["packages"] and "kernel" in messages["device"]
    found.check()  # the very artifact is in its bundle: as good
    with pytest.raises(RegressionError, match="byte for byte: recipe"):
        found.check(strict=True)


def test_a_run_that_is_refused(again, tmp_path):
    again.change = staticmethod(lambda folder, result: {**result, "verdict": "refused"})
    found = reproduce(again.old, tmp_path, tmp_path / "new", trusted=True)
    assert found.verdict == "refused" and found.compared is None
    with pytest.raises(GateError, match="was not made again"):
        found.check()


@pytest.mark.long
def test_the_command(again, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["reproduce", str(again.old), "--unsigned", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["identical"] is True
    shown = CliRunner().invoke(main, ["reproduce", str(again.old), "--unsigned", "--run-dir", "other"])
    assert "REPRODUCED, byte for byte" in shown.stdout


def test_what_cannot_be_run_again(again, made, tmp_path):
    with pytest.raises(NotAuthenticated, match="its recipe names code"):
        reproduce(again.old, tmp_path)
    assert CliRunner().invoke(main, ["reproduce", str(again.old)]).exit_code == 12
    with pytest.raises(UsageError, match="no such folder"):
        reproduce(again.old, tmp_path / "nowhere", trusted=True)
    with pytest.raises(UsageError):
        reproduce(tmp_path / "none.tar", tmp_path, trusted=True)
    run, result = made
    for model, says, kind in (
        ({"factory": "x", "unheard": 1}, "unheard", BundleError),
        ({"factory": "<objects>"}, "handed over by Python", UsageError),
    ):
        recipe = {**result["recipe"], "model": model}
        other = bundle(run, {**result, "recipe": recipe}, tmp_path / says.replace(" ", "-"))
        with pytest.raises(kind, match=says):
            reproduce(other, tmp_path, trusted=True)
