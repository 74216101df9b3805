"""result.json, typed: version 2, version 1, and what is none; how scores are spelled."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

from edgeprune import report, result
from edgeprune.cli.outcome import results_table, verdict
from edgeprune.errors import RunError

EXAMPLE = json.loads((Path(__file__).parent / "example.json").read_text())
VERSION1 = json.loads((Path(__file__).parent / "version1.json").read_text())


def as_regression(**changes):
    """The example as of another task: an error in kg, lower is better."""
    found = copy.deepcopy(EXAMPLE)
    task = {"metric": "MAE", "unit": "kg", "higher_is_better": False}
    found["task"] = {"kind": "regression", **task, **changes}
    for number, name in enumerate(result.NAMES):
        figures = found[name]
        for key in ("accuracy", "correct", "images", "agreement", "low", "high"):
            figures.pop(key, None)
        value = 1.25 + 0.0625 * number
        figures["score"] = {**task, "value": value, "low": value - 0.1, "high": value + 0.1, "examples": 500}
    found["comparison"] |= {
        **task, "scale": "kg", "reference": 1.25, "value": 1.4375, "drop": 0.1875, "low": 0.1, "high": 0.25,
        "examples": 500, "method": "seeded bootstrap",
    }  # fmt: skip
    for sane in found["sanity"].values():
        sane |= {**task, "scale": "kg", "errors": None, "examples": 500, "chance": 3.5, "blind": "the median"}
    del found["difference"]
    return found


def test_version_1_is_read_and_shown():
    read = result.read(VERSION1)
    assert read.version == 1 and read.allowed == VERSION1["budget_ms"]
    rated = read.pruned_int8.rated
    assert (rated.metric, rated.text, rated.examples) == ("top-1", "94.02 %", 2000)
    assert read.pruned_int8.latency("ms").median == 0.4535
    page = report.page(VERSION1)
    assert "94.02 %" in page and "<strong>Release</strong>" in page and "points below" in page
    assert results_table(read).row_count == 4 and verdict(read)[0][1] == "  all 5 gates hold"


def test_version_2_is_what_was_written_and_keeps_what_version_1_readers_read():
    read = result.read(EXAMPLE)
    assert read.version == 2 and read.task.metric == "top-1" and read.inputs[0].shape == (3, 32, 32)
    for name, one in read.networks.items():
        assert 100 * EXAMPLE[name]["accuracy"] == pytest.approx(one.rated.value)
        assert EXAMPLE[name]["correct"] == one.correct
    assert json.loads(json.dumps(read.comparison.to_dict())) == EXAMPLE["comparison"]


@pytest.mark.parametrize(
    ("part", "odd", "says"),
    [
        ("dense_fp32", 3, "no dense fp32"),
        ("comparison", {"metric": 1}, "no comparison"),
        ("validations", [{}], "no validations"),
        ("pruned_int8_b", {"accuracy": "much"}, "no pruned_int8_b"),
        ("version", 3, "has version 3"),
    ],
)
def test_a_part_that_is_none_is_refused_by_who_decides_and_left_out_by_who_shows(part, odd, says):
    found = {**EXAMPLE, part: odd}
    with pytest.raises(RunError, match=says):
        result.read(found)
    assert result.glance(found).pruned_int8 == result.read(EXAMPLE).pruned_int8


def test_another_task_is_spoken_of_in_its_own_words():
    found = as_regression()
    page = report.page(found)
    for wanted in (
        "MAE",
        "1.438 kg",
        "0.1875 kg above the dense FP32 network",
        "Lower MAE is better",
        "500 test examples",
    ):
        assert wanted in page, wanted
    shown = re.sub("<[^>]*>", " ", page[page.index('id="networks"') : page.index('id="layers"')])
    assert not any(word in shown for word in ("top-1", "images", "class", "points", "agrees"))
    read = result.read(found)
    assert [one.rated.text for one in read.networks.values()] == ["1.25 kg", "1.312 kg", "1.375 kg", "1.438 kg"]
    assert "MAE (lower is better)" in [str(column.header) for column in results_table(read).columns]


def test_scores_are_spelled_with_their_unit():
    assert result.quantity(93.6, "points") == "93.60 %" and result.quantity(31.2, "dB") == "31.20 dB"
    assert result.quantity(0.83114, "") == "0.8311" and result.quantity(None, "dB") == "– dB"
    assert result.quantity(0.35, "points", "points") == "0.35 points" and result.quantity(0.00312, "m") == "0.00312 m"
