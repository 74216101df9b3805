"""`edgeprune report RUN` and `edgeprune verify BUNDLE`."""

from __future__ import annotations

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


def test_report_elsewhere(edgeprune_command, run, tmp_path):
    done = edgeprune_command("report", run, "--out", tmp_path / "page.html", "--json")
    assert done.json == {"report": str(tmp_path / "page.html"), "verdict": "release"}
    assert (tmp_path / "page.html").is_file()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(("text", "says"), [(None, "no such file"), ("{", "damaged"), ("[]", "not a result")])
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
    assert done.exit_code == 10
    assert done.json["error"]["kind"] == "BundleError"
