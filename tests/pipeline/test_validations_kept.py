"""validations.json lies beside the stages; damaged or deleted, it is put back from what validate/ holds sealed."""

from __future__ import annotations

import json

import msgspec
import pytest

from edgeprune import validate
from edgeprune.pipeline import validations
from edgeprune.pipeline.rundir import RunDirectory, write_json
from edgeprune.result import Latency


class Told:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, stage: str, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def mine():
    found = validate.entry({"dense_int8": Latency(median=2.0, spread=0.01, rounds=(1.0, 2.0))})
    return json.loads(msgspec.json.encode([found]))


def kept(run):
    return json.loads((run.path / validations.FILE).read_text())


@pytest.fixture
def run(tmp_path, mine):
    with RunDirectory(tmp_path / "run") as directory:
        held = {"identity": "these", "validations": mine}
        directory.stage("validate", "key", lambda folder: write_json(folder / "measured.json", held))
        yield directory


@pytest.mark.parametrize("content", [None, b"", b'{"these": [', b"[]", b"{}", b'{"these": []}'])
def test_what_is_damaged_or_gone_is_put_back(run, mine, content):
    if content is not None:
        (run.path / validations.FILE).write_bytes(content)
    told = Told()
    validations.restore(run, told)
    assert kept(run)["these"] == mine and "put back" in told.lines[0]
    validations.restore(run, told)
    assert len(told.lines) == 1


def test_a_figure_that_was_changed_is_put_back_and_other_artifacts_stay(run, mine):
    changed = json.loads(json.dumps(mine).replace("2.0", "1.0"))
    write_json(run.path / validations.FILE, {"these": changed, "others": changed})
    validations.restore(run, Told())
    assert kept(run) == {"these": mine, "others": changed}


def test_what_was_measured_since_stays(run, mine):
    write_json(run.path / validations.FILE, {"these": mine + mine})
    told = Told()
    validations.restore(run, told)
    assert kept(run) == {"these": mine + mine} and not told.lines


def test_a_validate_stage_that_is_not_whole_says_nothing(run, mine):
    (run.folder("validate") / "measured.json").write_text("{}")
    validations.restore(run, Told())
    assert not (run.path / validations.FILE).exists()
