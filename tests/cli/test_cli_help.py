"""Help at every level, did-you-mean, and commands that come from the profiles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeprune import runtimes, target
from edgeprune.cli import app
from edgeprune.cli.steps import STEPS

SHIPPED = list(target.names())


def test_help_names_every_target_and_command(edgeprune_command):
    done = edgeprune_command("--help")
    assert done.exit_code == 0
    for name in (*SHIPPED, *app.COMMANDS):
        assert f"  {name} " in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 100


@pytest.mark.parametrize("name", SHIPPED)
def test_help_of_a_target_lists_its_steps_in_order(edgeprune_command, name):
    done = edgeprune_command(name, "--help")
    assert done.exit_code == 0, done.stderr
    places = [done.stdout.index(f"\n  {step} ") for step in (*STEPS, "run")]
    assert places == sorted(places)
    assert target.load(name).title in done.stdout


@pytest.mark.parametrize("step", [*STEPS, "run"])
def test_help_of_each_step(edgeprune_command, step):
    text = edgeprune_command("intel-cpu", step, "--help").stdout
    for option in ("--run-dir", "--device", "--threads", "--json", "--quiet", "--verbose"):
        assert option in text
    assert ("--from" in text) == (step == "run")
    assert ("--sign" in text) == (step in ("run", "package"))


@pytest.mark.parametrize("name", app.COMMANDS)
def test_help_of_each_command(edgeprune_command, name):
    if not Path(app.__file__).with_name(f"{name}.py").is_file():
        pytest.skip(f"{name} is not written yet")
    done = edgeprune_command(name, "--help")
    assert done.exit_code == 0, done.stderr
    assert "Usage: edgeprune " + name in done.stdout


def test_options_of_one_runtime_appear_only_under_its_targets(edgeprune_command):
    for name in SHIPPED:
        runtime = target.load(name).runtime
        text = edgeprune_command(name, "run", "--help").stdout
        for owner in runtimes.names():
            for option in runtimes.load(owner).options:
                assert (option.flag in text) == (owner == runtime), (name, option.flag)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["intel-cup"], "Did you mean 'intel-cpu'?"),
        (["target"], "Did you mean 'targets'?"),
        (["intel-cpu", "rnu", "recipe.toml"], "Did you mean 'run'?"),
        (["intel-cpu", "calibarte"], "Did you mean 'calibrate'?"),
        (["intel-cpu", "run", "--stream", "2", "recipe.toml"], "'--streams'"),
        (["zzz"], "Known: "),
    ],
)
def test_did_you_mean(edgeprune_command, arguments, hint):
    done = edgeprune_command(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert hint in done.stderr
    assert "--help'." in done.stderr


def test_version(edgeprune_command):
    import edgeprune

    assert edgeprune_command("--version").stdout == f"edgeprune {edgeprune.__version__}\n"


def test_targets_says_how_each_was_verified(edgeprune_command):
    done = edgeprune_command("targets")
    assert done.exit_code == 0
    for name in SHIPPED:
        assert name in done.stdout
    listed = edgeprune_command("targets", "--json").json["targets"]
    assert [item["name"] for item in listed] == SHIPPED
    assert {"runtime", "dialect", "channels", "verified", "evidence"} <= set(listed[0])


def test_a_user_adds_a_target_by_adding_a_folder(edgeprune_command, project):
    assert "quick" in edgeprune_command("--targets", "targets", "targets").stdout
    assert "measured in a hurry" in edgeprune_command("--targets", "targets", "quick", "--help").stdout
    assert "quick" not in edgeprune_command("targets").stdout  # and it does not stay


def test_targets_from_the_environment(edgeprune_command, project, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_TARGETS", str(project / "targets"))
    assert "quick" in edgeprune_command("targets").stdout


def test_a_folder_of_targets_that_is_not_there(edgeprune_command):
    done = edgeprune_command("--targets", "nowhere", "targets")
    assert done.exit_code == 2
    assert "nowhere: no such folder" in done.stderr


def test_one_broken_profile_hides_no_other(edgeprune_command, project):
    Path("targets/quick/profile.toml").write_text('name = "quick"\nruntme = "x"\n')
    done = edgeprune_command("--targets", "targets", "targets")
    assert done.exit_code == 2
    assert "intel-cpu" in done.stdout
    assert "Did you mean 'runtime'?" in done.stderr
    assert edgeprune_command("--targets", "targets", "--help").exit_code == 0
    assert edgeprune_command("--targets", "targets", "quick", "--help").exit_code == 2


def test_a_target_cannot_take_a_commands_name(edgeprune_command, project):
    Path("targets/report").mkdir()
    Path("targets/report/profile.toml").write_text(Path("targets/quick/profile.toml").read_text())
    assert "RUN is a run directory" in edgeprune_command("--targets", "targets", "report", "--help").stdout


def test_json_is_json(edgeprune_command):
    json.loads(edgeprune_command("targets", "--json").stdout)
