"""`edgeprune report RUN` and `edgeprune verify BUNDLE`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_project import EXAMPLE

from edgeprune.release import archive


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(EXAMPLE.read_text())
    return folder


def test_report_writes_the_page_again(edgeprune_command, run):
    done = edgeprune_command("report", run)
    assert done.exit_code == 0, done.stderr
    assert Path(done.stdout.strip()) == run / "report.html"
    assert "cifar10 on intel-cpu" in (run / "report.html").read_text()


@pytest.mark.long
def test_what_the_linter_found_as_sarif(edgeprune_command, run, tmp_path):
    """A graph without findings is a document without results, which closes the alerts of the one before."""
    lint = [
        {"node": "conv", "rule": "per-tensor", "severity": "warning", "why": "Slower.", "remedy": "Per channel."},
        {"node": "head", "rule": "float-bias", "severity": "error", "why": "It is refused.", "remedy": ""},
    ]  # fmt: skip
    result = json.loads((run / "result.json").read_text())
    for found in (lint, []):
        result["quantize"] = {**result.get("quantize", {}), "lint": found}
        (run / "result.json").write_text(json.dumps(result))
        done = edgeprune_command("report", run, "--sarif", tmp_path / "new" / "lint.sarif", "--json")
        assert done.json["sarif"] == str(tmp_path / "new" / "lint.sarif")
        made = json.loads((tmp_path / "new" / "lint.sarif").read_text())
        (one,) = made["runs"]
        assert made["version"] == "2.1.0" and one["tool"]["driver"]["name"] == "edgeprune"
        told = [(row["ruleId"], row["level"], row["message"]["text"]) for row in one["results"]]
        assert told == [
            ("per-tensor", "warning", "conv: Slower. Per channel."),
            ("float-bias", "error", "head: It is refused."),
        ][: len(found)]  # fmt: skip
        for row in one["results"]:
            assert one["tool"]["driver"]["rules"][row["ruleIndex"]]["id"] == row["ruleId"]
            place = row["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
            assert place.endswith("quantize/pruned-int8.onnx")
    assert edgeprune_command("report", run, "--sarif", "/proc/none/lint.sarif").exit_code == 11


def test_report_elsewhere(edgeprune_command, run, tmp_path):
    done = edgeprune_command("report", run, "--out", tmp_path / "page.html", "--json")
    assert done.json == {"report": str(tmp_path / "page.html"), "verdict": "release"}
    assert (tmp_path / "page.html").is_file()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(("text", "says"), [(None, "no such file"), ("{", "not valid JSON"), ("[]", "not a result")])
def test_report_of_what_is_no_run(edgeprune_command, run, text, says):
    (run / "result.json").unlink() if text is None else (run / "result.json").write_text(text)
    done = edgeprune_command("report", run)
    assert done.exit_code == 11
    assert says in done.stderr
    assert not (run / "report.html").exists()


def test_verify_of_what_is_no_bundle(edgeprune_command, tmp_path):
    path = archive.write(tmp_path / "a.tar", {"readme": b"hello"})
    done = edgeprune_command("verify", path)
    assert done.exit_code == 10
    assert "'SHA256SUMS' is missing" in done.stderr
    done = edgeprune_command("verify", tmp_path / "nowhere.tar", "--json")
    assert done.exit_code == 2
    assert done.json["error"]["kind"] == "UsageError"
