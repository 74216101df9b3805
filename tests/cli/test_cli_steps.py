"""The steps of a target: what reaches the pipeline, what is printed, and every way to end badly."""

from __future__ import annotations

import errno
import io
import json
import re
import sys
import types
from pathlib import Path

import pytest
from cli_project import Event

from edgeprune import runtimes
from edgeprune.cli.failures import INTERRUPTED
from edgeprune.cli.progress import Bars, Lines, reporter
from edgeprune.cli.session import Invocation
from edgeprune.cli.steps import STEPS
from edgeprune.errors import DeviceBusy, GateError
from edgeprune.runtimes import DIALECTS


@pytest.mark.parametrize("step", [*list(STEPS)[1:], "run"])
def test_each_step_reaches_the_pipeline(edgeprune_command, project, pipeline, step):
    done = edgeprune_command("intel-cpu", step, "recipe.toml", "--run-dir", "here", "--device", "board")
    assert done.exit_code == 0, done.stderr
    (call,) = pipeline.calls
    assert call["until"] == ("package" if step == "run" else step)
    assert (call["run_dir"], call["device"], call["start"]) == (Path("here"), "board", "")
    assert call["recipe"].name == "tiny"
    assert call["target"].name == "intel-cpu"


@pytest.mark.parametrize(("step", "until"), [("prune", "search"), ("run", "recover"), ("run", "artifacts")])
def test_until_ends_there_and_says_what_is_kept_and_how_to_go_on(edgeprune_command, project, pipeline, step, until):
    for stage in ("graph", "precision", "plan", "dense", "latency", "search"):
        Path("runs/tiny", stage).mkdir(parents=True, exist_ok=True)
    done = edgeprune_command("intel-cpu", step, "recipe.toml", "--until", until)
    assert done.exit_code == 0, done.stderr
    assert pipeline.calls[0]["until"] == until
    words = " ".join(done.stdout.split())
    assert (
        "kept graph, precision, plan, dense, latency, search; go on with: edgeprune intel-cpu run recipe.toml" in words
    )
    assert ("repaired, not trained" in words and "--weights trained.safetensors" in words) == (until == "recover")


def test_until_plan_is_plan_and_training_of_ones_own_is_asked_for_once(edgeprune_command, project, pipeline):
    pipeline.plan_result = {"feasible": True}
    edgeprune_command("intel-cpu", "run", "recipe.toml", "--until", "plan", "--json")
    assert pipeline.calls[0]["until"] == "plan" and "weights" not in pipeline.calls[0]
    for extra in ("--weights", "--sign"):
        Path("given").write_text("-----BEGIN")
        done = edgeprune_command("intel-cpu", "run", "recipe.toml", "--until", "plan", extra, "given")
        assert done.exit_code == 2 and done.stderr.startswith("Error: "), (extra, done.stderr)


def test_options_change_the_target_that_is_run(edgeprune_command, project, pipeline):
    edgeprune_command("intel-cpu", "run", "recipe.toml", "--streams", "2", "--threads", "4", "--from", "prune")
    (call,) = pipeline.calls
    execution = call["target"].execution
    assert (execution.options["NUM_STREAMS"], execution.threads, call["start"]) == (2, 4, "prune")
    assert execution.options["PERFORMANCE_HINT"] == "LATENCY"  # the profile's own stay


@pytest.mark.parametrize(
    ("name", "arguments", "key", "value"),
    [
        ("x86-onnxruntime", ["--optimization", "basic"], "graph_optimization_level", "basic"),
        ("jetson-orin-nano", ["--workspace", "256"], "workspace_mib", 256),
    ],
)
def test_options_of_other_runtimes(edgeprune_command, project, pipeline, name, arguments, key, value):
    done = edgeprune_command(name, "run", "recipe.toml", *arguments)
    assert done.exit_code == 0, done.stderr
    assert pipeline.calls[0]["target"].execution.options[key] == value


def test_the_flavour_of_tensorrt_is_its_scheme(edgeprune_command, project, pipeline):
    edgeprune_command("jetson-orin-nano", "run", "recipe.toml", "--flavour", "tensorrt-b")
    target = pipeline.calls[0]["target"]
    assert target.dialect == "tensorrt-b"
    assert "dialect" not in target.execution.options


def test_the_flavours_are_schemes_that_exist():
    flags = {option.flag: option for option in runtimes.load("tensorrt").options}
    assert set(flags["--flavour"].choices) <= set(DIALECTS)


def test_without_options_the_profile_is_left_alone(edgeprune_command, project, pipeline):
    edgeprune_command("intel-cpu", "run", "recipe.toml")
    execution = pipeline.calls[0]["target"].execution
    assert "NUM_STREAMS" not in execution.options
    assert execution.threads == 1


def test_run_ends_with_the_table_the_verdict_and_the_paths(edgeprune_command, project, pipeline):
    pipeline.bundle = Path("runs/tiny/release/tiny.tar")
    text = edgeprune_command("intel-cpu", "run", "recipe.toml").stdout
    for wanted in ("dense FP32", "dense INT8", "pruned INT8", "94.00 %", "0.454", "2.03x", "0.51 MB"):
        assert wanted in text
    assert text.index("pruned INT8") < text.index("RELEASE") < text.index("report") < text.index("tiny.tar")
    assert "all 8 gates hold" in text


def test_json_prints_one_object_and_nothing_else(edgeprune_command, project, pipeline):
    pipeline.events = [Event("stage", "search"), Event("line", "search", "hello"), Event("done", "search")]
    done = edgeprune_command("intel-cpu", "run", "recipe.toml", "--json")
    assert done.json["result"]["verdict"] == "release"
    assert done.json["report"] == "runs/tiny/report.html"
    assert "hello" in done.stderr


def test_quiet_says_only_the_result(edgeprune_command, project, pipeline):
    pipeline.events = [Event("stage", "search"), Event("line", "search", "hello")]
    done = edgeprune_command("intel-cpu", "run", "recipe.toml", "--quiet")
    assert done.stderr == ""
    assert "RELEASE" in done.stdout


def test_plain_lines_where_there_is_no_terminal(edgeprune_command, project, pipeline):
    pipeline.events = [Event("stage", "search"), Event("line", "search", "half is gone"), Event("done", "search")]
    lines = edgeprune_command("intel-cpu", "run", "recipe.toml").stderr.splitlines()
    assert lines[0].split() == ["search", "..."]
    assert lines[1] == "search     half is gone"
    assert lines[2].startswith("search     done in ")


def test_progress_is_a_line_in_ten_seconds_not_a_thousand():
    said, now = [], [0.0]
    lines = Lines(said.append, lambda: now[0])
    lines(Event("stage", "recover"))
    for step in range(1000):
        now[0] = step * 0.05
        lines(Event("progress", "recover", "epoch", step, 1000))
    assert 4 <= len(said) <= 6
    assert said[1].split() == ["recover", "20", "%", "epoch,", "about", "40", "s", "left"]


def test_the_time_left_is_of_the_piece_under_way():
    said, now = [], [0.0]
    lines = Lines(said.append, lambda: now[0])
    lines(Event("stage", "quantize"))
    for done, total, at in ((0, 100, 0), (50, 100, 30), (100, 100, 60), (1, 400, 70), (101, 400, 130)):
        now[0] = at
        lines(Event("progress", "quantize", "calibrating", done, total))
    assert [line.split("calibrating")[1] for line in said[1:]] == [
        ", about 30 s left",
        ", about 0 s left",
        "",  # the second network begins: nothing is known
        ", about 3 min left",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with reporter(Invocation()) as bars:
        assert isinstance(bars, Bars)
        bars(Event("stage", "recover", "starting"))
        bars(Event("progress", "recover", "epoch [1]", 3, 10))
        bars(Event("line", "recover", "accuracy [bold]93 %"))
        bars(Event("done", "recover"))
        bars(Event("stage", "quantize"))
        bars(Event("done", "quantize", "kept"))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "✓ recover    done in 0.0 s" in text
    assert "✓ quantize   kept" in text
    assert "accuracy [bold]93 %" in text  # a message is text, not markup
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is back


PLAN = {
    "unit": "ms", "dense_fp32": 2.0, "dense_int8": 1.0, "budget": 0.5, "floor": 0.3, "floor_with_blocks": 0.1,
    "feasible": True, "advice": "It can.", "frozen": [{"what": "fc", "why": "it is an output"}],
    "layers": [{"name": "conv[1]", "ms": 0.6, "share": 0.6, "frozen": ""}],
}  # fmt: skip


def test_plan_says_whether_it_can_be_met(edgeprune_command, project, pipeline):
    pipeline.plan_result = PLAN
    done = edgeprune_command("intel-cpu", "plan", "recipe.toml")
    assert done.exit_code == 0, done.stderr
    for wanted in (
        "dense INT8",
        "0.300",
        "conv[1]",
        "60.0 %",
        "fc: it is an output",
        "FEASIBLE IN LATENCY  It can.",
        "Nothing is said of accuracy",
    ):
        assert wanted in done.stdout
    assert edgeprune_command("intel-cpu", "plan", "recipe.toml", "--json").json["plan"] == PLAN


def test_plan_tells_what_accuracy_is_left_where_it_is_asked(edgeprune_command, project, pipeline):
    pipeline.plan_result = {**PLAN, "accuracy": {"says": "Before any training: top-1 80.00 points."}}
    done = edgeprune_command("intel-cpu", "plan", "recipe.toml", "--accuracy")
    assert pipeline.calls[0]["accuracy"] is True
    assert "Before any training: top-1 80.00 points." in done.stdout and "Nothing is said" not in done.stdout
    edgeprune_command("intel-cpu", "plan", "recipe.toml")
    assert pipeline.calls[1]["accuracy"] is False


def test_plan_that_cannot_be_met_has_the_exit_code_of_a_budget(edgeprune_command, project, pipeline):
    pipeline.plan_result = {**PLAN, "feasible": False, "advice": "Ask for 0.4 ms."}
    done = edgeprune_command("intel-cpu", "plan", "recipe.toml")
    assert done.exit_code == 7
    assert "NOT FEASIBLE" in done.stdout
    assert "Ask for 0.4 ms." in done.stderr


def refused(run_dir):
    result = json.loads((Path(__file__).parent.parent / "report" / "example.json").read_text())
    result["verdict"] = "refused"
    failed = next(gate for gate in result["gates"] if gate["name"] == "accuracy")
    failed.update(passed=False, message="1.2 points too low.", remedy="Train longer.")
    error = GateError("1 of 5 gates failed: accuracy.", "Train longer.")
    error.outcome = types.SimpleNamespace(run_dir=run_dir, result=result, report=run_dir / "report.html", bundle=None)
    return error


def test_refused_shows_the_table_the_gate_and_the_report(edgeprune_command, project, pipeline):
    pipeline.error = refused(project / "runs" / "x")
    done = edgeprune_command("intel-cpu", "run", "recipe.toml")
    assert done.exit_code == 8
    for wanted in ("pruned INT8", "REFUSED  1 of 8", "✗ accuracy: 1.2 points too low.", "Train longer.", "report.html"):
        assert wanted in done.stdout
    assert "bundle" not in done.stdout
    assert done.stderr.endswith("Error: 1 of 5 gates failed: accuracy.\n  Train longer.\n")


def test_unverified_shows_the_bundle_and_what_is_open(edgeprune_command, project, pipeline):
    pipeline.error = refused(project / "runs" / "x")
    outcome = pipeline.error.outcome
    outcome.result["verdict"], outcome.bundle = "unverified", Path("x-unverified.tar")
    done = edgeprune_command("jetson-orin-nano", "run", "recipe.toml")
    assert done.exit_code == 8
    assert "UNVERIFIED  no device has measured; 1 gate open" in done.stdout and "x-unverified.tar" in done.stdout


def test_refused_is_still_one_json_object(edgeprune_command, project, pipeline):
    pipeline.error = refused(project / "runs" / "x")
    done = edgeprune_command("intel-cpu", "run", "recipe.toml", "--json")
    assert done.exit_code == 8
    assert done.json["result"]["verdict"] == "refused"


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (DeviceBusy("pi5 is busy.", "Wait."), 6, "Error: pi5 is busy.\n  Wait.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 11, "runs/x: the disk is full."),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 11, "runs/x: cannot be read or written"),
        (MemoryError(), 11, "out of memory"),
        (KeyboardInterrupt(), INTERRUPTED, "resume with the same command"),
        (ZeroDivisionError("division by zero"), 1, "internal error: ZeroDivisionError"),
    ],
)
def test_every_bad_end_is_one_message_and_a_code(edgeprune_command, project, pipeline, error, code, says):
    pipeline.error = error
    done = edgeprune_command("intel-cpu", "run", "recipe.toml")
    assert done.exit_code == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_verbose_shows_the_traceback(edgeprune_command, project, pipeline):
    pipeline.error = DeviceBusy("pi5 is busy.", "Wait.")
    done = edgeprune_command("intel-cpu", "run", "recipe.toml", "--verbose")
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("Error: pi5 is busy.\n  Wait.\n")


def test_errors_are_json_too(edgeprune_command, project, pipeline):
    pipeline.error = DeviceBusy("pi5 is busy.", "Wait.")
    done = edgeprune_command("intel-cpu", "run", "recipe.toml", "--json")
    assert done.json == {"error": {"kind": "DeviceBusy", "message": "pi5 is busy.", "remedy": "Wait.", "exit_code": 6}}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("speedup = 1.05", "sped = 1.05", "unknown key [budget] sped.\n  Did you mean 'speedup'?"),
        ("speedup = 1.05", 'speedup = "fast"', "[budget] speedup: expected"),
        ("speedup = 1.05", "speedup = 1.0", "speedup is 1; it must be more than 1"),
        ("speedup = 1.05", "", "max_drop alone needs [search] method"),
        ('[search]\nmethod = "uniform"', "[serach]", "Did you mean 'search'?"),
        ("[model]", "[model", "not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_done(edgeprune_command, project, pipeline, old, new, says):
    text = Path("recipe.toml").read_text()
    assert old in text
    Path("recipe.toml").write_text(text.replace(old, new))
    done = edgeprune_command("intel-cpu", "run", "recipe.toml")
    assert done.exit_code == 2
    assert "recipe.toml: " in done.stderr
    assert says in done.stderr
    assert not pipeline.calls
    assert not Path("runs").exists()


def test_a_recipe_that_is_not_there(edgeprune_command, pipeline):
    done = edgeprune_command("intel-cpu", "run", "nowhere.toml")
    assert done.exit_code == 2
    assert "nowhere.toml: no such file." in done.stderr


def test_a_bad_key_is_refused_before_the_work(edgeprune_command, project, pipeline):
    pytest.importorskip("cryptography")
    done = edgeprune_command("intel-cpu", "run", "recipe.toml", "--sign", "nowhere.key")
    assert done.exit_code == 2
    assert "openssl genpkey" in done.stderr
    assert not pipeline.calls
